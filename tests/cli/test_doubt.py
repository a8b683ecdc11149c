"""`celeriac doubt` over a real store, as an operator types it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

import pytest

from celeriac.costs.books import Account
from celeriac.jobs.journal import Admitted, Settlement
from celeriac.jobs.model import Claim, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Lane
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.cli.test_budgets import celeriac
from tests.conftest import Valkey

LANE = Lane("openai", "gpt-5.4-mini")


def over(valkey: Valkey, work: Callable[[Stores], Awaitable[Claim]]) -> Claim:
    async def run() -> Claim:
        settings = load_settings(redis_url=valkey.url)
        stores = open_stores(settings)
        fleet, line = open_fleet(settings, stores, name="test")
        try:
            await fleet.register("w1", ["celeriac"], 9, [], {"celeriac": "", "celeriac.suspects": ""}, None)
            return await work(stores)
        finally:
            await line.aclose()
            await stores.close()

    return asyncio.run(run())


@pytest.fixture
def doubtful(valkey: Valkey) -> Claim:
    """A job of acme with two calls in doubt, `a` and `b`, of at most $0.02 each, and an open one, `c`."""

    async def work(stores: Stores) -> Claim:
        job = await stores.jobs.submit(NewJob(new_id(), "acme", "assistant", "celeriac", (("user", "hi"),)))
        claim = await stores.jobs.claim(job.id, "w1", new_nonce())
        assert claim is not None
        books = partial(Account("acme", "assistant").books, LANE)
        for call in ("a", "b", "c"):
            said = await stores.journal.admit(claim, call, 20_000_000, {"lane": str(LANE)}, books=books)
            assert isinstance(said, Admitted)
        for call in ("a", "b"):
            facts = {"lane": str(LANE), "error": "timeout", "request_id": f"req_{call}"}
            await stores.journal.settle(claim, Settlement(call, "doubt", 20_000_000, 0, facts))
        return claim

    return over(valkey, work)


def test_a_call_in_doubt_is_listed_and_resolved(valkey: Valkey, doubtful: Claim) -> None:
    """As billed or as not, and who said so is kept; the budgets and the ledger have it at once."""
    celeriac(valkey, "budgets", "set", "tenant:acme", "day=1")
    head, *rows = celeriac(valkey, "doubt", "list").splitlines()
    assert head.split()[:3] == ["JOB", "CALL", "ADMITTED"]
    assert [row.split()[:2] for row in rows] == [[doubtful.id, "a"], [doubtful.id, "b"]]
    assert rows[0].split()[-6:] == ["acme", "assistant", str(LANE), "0.020000000", "timeout", "req_a"]
    said = celeriac(valkey, "doubt", "resolve", doubtful.id, "a", "--cost", "0.0123", "--note", "their dashboard")
    assert said == f"{doubtful.id} a  billed at $0.012300000; at most $0.020000000 was in doubt\n"
    assert "was resolved so before" in celeriac(valkey, "doubt", "resolve", doubtful.id, "a", "--cost", "0.0123")
    assert "not billed" in celeriac(valkey, "doubt", "resolve", doubtful.id, "b", "--not-billed")
    assert celeriac(valkey, "doubt", "list").splitlines()[1:] == []
    newest, first = celeriac(valkey, "doubt", "changes").splitlines()
    made = f"{doubtful.id} a  by cli:root: in doubt at $0.020000000 -> billed at $0.012300000  (their dashboard)"
    assert first.endswith(made)
    assert newest.endswith("-> not billed")
    assert len(celeriac(valkey, "doubt", "changes", "--limit", "1").splitlines()) == 1
    [_, row] = celeriac(valkey, "budgets", "list").splitlines()
    assert row.split()[3:6] == ["0.012300000", "0.000000000", "0.020000000"]
    assert len(celeriac(valkey, "budgets", "changes").splitlines()) == 1
    entries = [json.loads(line) for line in celeriac(valkey, "ledger", "export").splitlines()]
    assert [(e["outcome"], e["cost_usd"], e["in_doubt_usd"], e["resolved"]) for e in entries] == [
        ("doubt", "0.000000000", "0.020000000", False),
        ("doubt", "0.000000000", "0.020000000", False),
        ("settled", "0.012300000", "-0.020000000", True),
        ("released", "0.000000000", "-0.020000000", True),
    ]


def test_more_than_was_in_doubt_is_booked_and_said(valkey: Valkey, doubtful: Claim) -> None:
    said = celeriac(valkey, "doubt", "resolve", doubtful.id, "a", "--cost", "0.03")
    assert "booked as an overrun" in said


def test_the_list_is_narrowed(valkey: Valkey, doubtful: Claim) -> None:
    """By tenant and by age; as JSON with all that is known."""
    first, _ = (json.loads(line) for line in celeriac(valkey, "doubt", "list", "--json").splitlines())
    assert (first["job"], first["call"], first["bound_usd"]) == (doubtful.id, "a", "0.020000000")
    assert (first["request_id"], first["attempt"], first["step"]) == ("req_a", 1, 1)
    assert datetime.fromisoformat(first["at"]).tzinfo is not None
    assert len(celeriac(valkey, "doubt", "list", "--tenant", "acme", "--older-than", "0s").splitlines()) == 3
    assert len(celeriac(valkey, "doubt", "list", "--tenant", "other").splitlines()) == 1
    assert len(celeriac(valkey, "doubt", "list", "--older-than", "1d").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["resolve", "JOB", "a"], "either --cost DOLLARS or --not-billed", 2),
        (["resolve", "JOB", "a", "--cost", "1", "--not-billed"], "either --cost DOLLARS or --not-billed", 2),
        (["resolve", "JOB", "a", "--cost", "-1"], "'-1' is no amount", 2),
        (["resolve", "JOB", "a", "--cost", "nan"], "'nan' is no amount", 2),
        (["resolve", "JOB", "a", "--cost", "much"], "'much' is no amount", 2),
        (["resolve", "JOB", "a", "--cost", "1e400000000"], "is no amount", 2),
        (["resolve", "JOB", "a", "--cost", "1", "--note", "x" * 501], "a note is a line of at most 500", 1),
        (["resolve", "JOB", "c", "--cost", "1"], "the call is not in doubt: it is being made", 1),
        (["resolve", "JOB", "d", "--cost", "1"], "`celeriac doubt list` names them", 1),
        (["list", "--older-than", "soon"], "'soon' is no age: write 90m, 12h or 1d", 2),
    ],
)
def test_what_resolves_nothing_is_refused_in_a_line(
    valkey: Valkey, doubtful: Claim, arguments: list[str], said: str, status: int
) -> None:
    refused = celeriac(valkey, "doubt", *(doubtful.id if word == "JOB" else word for word in arguments), fails=status)
    assert said in refused
    assert "Traceback" not in refused
    assert len(celeriac(valkey, "doubt", "list").splitlines()) == 3
    assert celeriac(valkey, "doubt", "changes") == ""
