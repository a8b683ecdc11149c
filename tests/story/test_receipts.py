"""What a job cost, as its receipt tells it and as its providers bill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from celeriac.costs.prices import Prices
from celeriac.costs.receipts import nanos
from celeriac.llm.model import Lane, Usage
from tests.local.test_readme import commands
from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS: Final = """
[agents.chief]
description = "Answers, after asking."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]
asks = ["cook"]
tries_per_lane = 1

[agents.cook]
description = "Knows how things are cooked."
lanes = ["openai/gpt-5.4-mini"]
"""
ASK: Final = {"calls": [{"name": "ask_cook", "arguments": {"question": "How is a leek cooked?"}}]}
KEYS: Final = {"CELERIAC_COSTS__RECEIPT_KEYS": '{"2026-11": "a-key-of-no-less-than-32-characters"}'}
SOON: Final = {"CELERIAC_JOBS__LEASE": "2"}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(agents), **KEYS}


def receipt(shim: Shim, id: str) -> dict[str, Any]:
    answer = shim.http.get(f"/v1/jobs/{id}/receipt")
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def billed(lines: list[dict[str, Any]]) -> int:
    """What the providers ask for these lines of their bill, in nano-dollars."""
    prices, total = Prices(), 0
    for line in lines:
        usage = Usage(**{name: line[name] for name in ("input", "cache_read", "cache_write", "output")})
        lane = Lane("anthropic" if line["api"] == "messages" else "openai", line["model"])
        total += prices.price(lane, line["model"], usage).nanos
    return total


def test_the_receipts_of_a_job_and_its_child_are_what_the_providers_bill(
    house: House, env: dict[str, str], tmp_path: Path
) -> None:
    """A call that failed, the next provider's, a child's: each on one receipt, and the document's commands tell it."""
    shim, _ = house.shim(**env), house.worker(**env)
    cached = {"cached": 2, "cache_written": 1}
    house.scripted(
        {"status": 500}, ASK | cached, {"text": "In butter."}, {"text": "In butter, with salt.", "cached": 3}
    )
    id = shim.submit(agent="chief", input="Tell me about leeks.")["id"]
    job = shim.job(id, wait=30)
    assert job["answer"] == "In butter, with salt."
    made, (child,) = receipt(shim, id), [receipt(shim, child) for child in job["children"]]
    assert [(line["lane"], line["stands"], line["attempt"], line["step"]) for line in made["lines"]] == [
        ("openai/gpt-5-mini", "released", 1, 1),
        ("anthropic/claude-haiku-4-5", "settled", 1, 1),
        ("openai/gpt-5-mini", "settled", 2, 4),
    ]
    assert (made["final"], child["final"]) == (True, True)
    asked, answered, last = house.bill()["lines"]
    assert nanos(made["own"]["cost_usd"]) == billed([asked, last])
    assert nanos(child["own"]["cost_usd"]) == billed([answered]) == nanos(made["children"]["cost_usd"])
    assert made["children"]["jobs"][0]["cost_usd"] == child["own"]["cost_usd"]
    parts = made["lines"][1]["cost_by_class_usd"]
    assert nanos(parts["cache_write"]) > nanos(parts["cache_read"]) > 0

    [told] = [block for block in commands("docs/money.md") if "receipts verify" in block]
    shell = os.environ | KEYS | {
        "ID": id, "CELERIAC_REDIS_URL": house.valkey.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    said = subprocess.check_output(
        ["sh", "-ec", told.replace("http://127.0.0.1:8000", shim.url)], text=True, env=shell, cwd=tmp_path
    )
    assert said.startswith("signed with the key 2026-11, and it adds up\n")
    assert f"cost {made['own']['cost_usd']} USD itself" in said
    assert f"chief  succeeded  revision {made['revision']}, final" in said
    assert "openai/gpt-5-mini           released  provider_failed" in said


def test_a_call_that_settles_late_makes_the_receipt_final(house: House, env: dict[str, str]) -> None:
    """Its worker was paused beyond its lease, and its answer came after all: what was in doubt is what it cost."""
    shim, worker = house.shim(**env), house.worker(**SOON, **env)
    house.scripted({"delay": 5, "text": "from the zombie"}, {"text": "In butter."})
    id = shim.submit(agent="cook", stream=True)["id"]
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    begun = receipt(shim, id)
    assert (begun["final"], begun["revision"], begun["own"]["reserved_usd"]) == (
        False, 1, begun["lines"][0]["bound_usd"],
    )  # fmt: skip
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        house.worker("-n", "other@%h", **SOON, **env)
        assert shim.job(id, wait=60)["answer"] == "In butter."
        wait_until(lambda: house.in_flight() == 0, "the first answer to be sent")
        doubtful = receipt(shim, id)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert [(line["stands"], line["attempt"]) for line in doubtful["lines"]] == [("doubt", 1), ("settled", 2)]
    assert (doubtful["final"], doubtful["own"]["in_doubt_usd"]) == (False, begun["lines"][0]["bound_usd"])
    # Booked, found in doubt; booked, settled.
    assert doubtful["revision"] == 4
    made = wait_until(lambda: (now := receipt(shim, id))["final"] and now, "the late answer to be booked")
    assert made["revision"] == 5
    assert [(line["stands"], line["late"]) for line in made["lines"]] == [("settled", True), ("settled", False)]
    assert nanos(made["own"]["cost_usd"]) == billed(house.bill()["lines"])
