"""`celeriac budgets` and `celeriac ledger` over a real store, as an operator types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import Valkey


def celeriac(valkey: Valkey, *arguments: str, fails: int = 0, **env: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "celeriac.cli", *arguments],
        env=os.environ | {"CELERIAC_REDIS_URL": valkey.url, "LOGNAME": "root"} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == fails, ended.stderr
    return ended.stdout if not fails else ended.stderr


def test_a_budget_is_set_listed_and_deleted(valkey: Valkey) -> None:
    """And who did it is kept, with what it was before."""
    celeriac(valkey, "budgets", "set", "tenant:acme", "month=400.50", "day=20", "--alert-at", "50,90")
    celeriac(valkey, "budgets", "set", "tenant:acme", "day=25")
    head, row = celeriac(valkey, "budgets", "list").splitlines()
    assert head.split("  ")[0] == "SCOPE"
    assert row.split()[:3] == ["tenant:acme", "day", "25.000000000"]
    shown = json.loads(celeriac(valkey, "budgets", "list", "--json"))
    assert (shown["scope"], shown["cap"]["nanos"], shown["left"]) == ("tenant:acme", 25 * 10**9, 25 * 10**9)
    celeriac(valkey, "budgets", "delete", "tenant:acme")
    newest, middle, first = celeriac(valkey, "budgets", "changes").splitlines()
    assert "tenant:acme  by cli:root: none -> day=20.000000000 month=400.500000000" in first
    assert "day=20.000000000 month=400.500000000 -> day=25.000000000" in middle
    assert newest.endswith("day=25.000000000 -> none")


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["set", "everything", "day=1"], "'everything' is no scope; write all, tenant:NAME", 1),
        (["set", "all", "day"], "'day' is no cap: write day=20", 2),
        (["set", "all", "day=-1"], "'day=-1' is no cap", 2),
        (["set", "all", "day=nan"], "'day=nan' is no cap", 2),
        (["set", "all", "year=1"], "windows are hour, day, week, month, ever", 2),
        (["set", "all", "day=1", "day=2"], "one cap for each of its windows", 1),
        (["set", "label:team=red", "day=1"], "CELERIAC_COSTS__LABELS", 1),
        (["delete", "all"], "there is no budget of all", 1),
    ],
)
def test_what_is_no_budget_is_refused_in_a_line(valkey: Valkey, arguments: list[str], said: str, status: int) -> None:
    refused = celeriac(valkey, "budgets", *arguments, fails=status)
    assert said in refused
    assert "Traceback" not in refused
    assert celeriac(valkey, "budgets", "list").splitlines()[1:] == []
