"""`celeriac receipts`, as an operator types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from celeriac.accounts import receipt
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import Signing
from tests.by_hand import finish
from tests.cli.test_jobs import Terminal
from tests.conftest import Valkey
from tests.unit.test_receipts import account

SECRETS = {"2025-07": "the-old-signing-secret-of-this-test", "2026-11": "the-new-signing-secret-of-this-test"}
MADE: dict[str, Any] = receipt(account(), Prices())


def signed(receipt: dict[str, Any] = MADE, key: str | None = "2026-11") -> dict[str, Any]:
    return Signing({name: SecretStr(secret) for name, secret in SECRETS.items()}, key).signed(receipt)


def receipts(*arguments: str, text: str = "", keys: tuple[str, ...] = tuple(SECRETS), **env: str) -> tuple[int, str]:
    """Exit status, and what was said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CELERIAC_")}
    if keys:
        env["CELERIAC_COSTS__RECEIPT_KEYS"] = json.dumps({name: SECRETS[name] for name in keys})
        env["CELERIAC_COSTS__RECEIPT_KEY"] = keys[-1]
    ended = subprocess.run(
        [sys.executable, "-m", "celeriac.cli", "receipts", *arguments],
        env=clean | env, input=text, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said
    assert "signing-secret" not in said
    return ended.returncode, said


def test_a_receipt_that_nobody_changed_is_verified(tmp_path: Path) -> None:
    """By the key that signed it, which it names, from a file or standard input."""
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(signed()))
    status, said = receipts("verify", str(file))
    assert (status, said.splitlines()) == (0, [
        "signed with the key 2026-11, and it adds up",
        "job j1 cost 0.000460000 USD itself; revision 8, not final",
    ])  # fmt: skip
    status, said = receipts("verify", "-", text=json.dumps(signed(key="2025-07"), indent=2))
    assert (status, said.splitlines()[0]) == (0, "signed with the key 2025-07, and it adds up")


@pytest.mark.parametrize(("text", "said"), [
    (json.dumps(signed() | {"tenant": "other"}), "it was changed after it was signed"),
    (json.dumps(signed(key=None)), "it is not signed; a shim signs where CELERIAC_COSTS__RECEIPT_KEYS is set"),
    (json.dumps({"id": "j1"}), "this is no receipt"),
    ("hello", "this is no receipt: it is no JSON"),
    (json.dumps(signed(MADE | {"lines": MADE["lines"][1:]})), "its lines make in_doubt_usd 0.000000000, and not 0.009"),
])  # fmt: skip
def test_a_receipt_that_is_not_to_be_believed_is_refused(text: str, said: str) -> None:
    """Saying why: changed, not signed, none at all, or signed and yet wrong."""
    status, told = receipts("verify", "-", text=text)
    assert status == 1
    assert f"celeriac: {said}" in told or f"; {said}" in told


def test_a_key_that_is_not_known_here_is_named() -> None:
    """With what to do about it."""
    status, said = receipts("verify", "-", text=json.dumps(signed(key="2025-07")), keys=("2026-11",))
    assert status == 1
    assert "signed with the key '2025-07', which is not known here (known: 2026-11)" in said
    assert "CELERIAC_COSTS__RECEIPT_KEYS" in said
    status, said = receipts("verify", "-", text=json.dumps(signed()), keys=())
    assert (status, "(known: none)" in said) == (1, True)


def test_a_jobs_receipt_is_shown_as_a_table(valkey: Valkey) -> None:
    """Over the store: each call, and the sums."""
    id = Terminal(valkey).submit()
    finish(valkey, id)
    status, said = receipts("show", id, CELERIAC_REDIS_URL=valkey.url)
    assert status == 0
    head, columns, line, _, own, below = said.splitlines()
    assert head == f"{id}  assistant  succeeded  revision 2, final"
    assert columns.split("  ")[0] == "CALL"
    assert line.split()[1:] == ["1", "openai/x", "settled", "3", "in,", "1", "out", "0.000001234", "0.000005000"]
    assert own.split() == ["itself", "0.000001234", "0.000000000", "0.000000000"]
    assert below.split()[-3:] == ["0.000000000"] * 3


def test_there_is_no_receipt_of_a_job_that_is_not_there(valkey: Valkey) -> None:
    """Nor of another tenant's, where one is named."""
    id = Terminal(valkey).submit()
    for arguments in (("nobody",), (id, "--tenant", "other")):
        status, said = receipts("show", *arguments, CELERIAC_REDIS_URL=valkey.url)
        assert (status, said) == (1, f"celeriac: there is no job {arguments[0]}\n")
