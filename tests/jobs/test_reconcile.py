"""`celeriac reconcile` over a real store and a ledger that the journal wrote, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celeriac.costs.books import Account, counts
from celeriac.jobs.journal import Admitted, Settlement
from celeriac.llm.model import Lane, Usage
from tests.conftest import Valkey
from tests.jobs.conftest import Queue
from tests.unit.test_reports import text

MINI, HAIKU = "gpt-5.4-mini-2026-03-01", "claude-haiku-4-5-20251001"


class Deployment:
    """A ledger of yesterday's calls, and reports of that day."""

    def __init__(self, queue: Queue, valkey: Valkey, folder: Path) -> None:
        self.queue, self.valkey, self.folder, self.calls = queue, valkey, folder, 0
        #: Of a day that is over.
        self.noon = datetime.combine(datetime.now(UTC).date() - timedelta(days=1), time(12), UTC)

    async def call(
        self, lane: Lane, model: str, nanos: int, *, bound: int = 0, usage: Usage | None = None, doubt: bool = False
    ) -> None:
        """In doubt, it may have cost its bound."""
        self.calls += 1
        name, bound = f"c{self.calls}", bound or nanos
        claim = await self.queue.claim(await self.queue.submit(tenant="acme"))
        books = partial(Account(claim.tenant, claim.agent).books, lane)
        said = await self.queue.stores.journal.admit(claim, name, bound, {"lane": str(lane)}, books=books)
        assert isinstance(said, Admitted)
        facts: dict[str, Any] = {"lane": str(lane)}
        if not doubt:
            facts |= {"model": model, "usage": (usage or Usage(input=1)).as_dict()}
        stands = "doubt" if doubt else "settled"
        counted = counts(None if doubt else usage, nanos)
        await self.queue.stores.journal.settle(
            claim,
            Settlement(name, stands, bound, nanos, facts, None, "", counted),  # type: ignore[arg-type]  # one of them
        )

    def report(self, name: str, *changes: tuple[str, str], back: int = 0) -> Path:
        """The documented one, as of that day, or of one so many days before."""
        day = self.noon - timedelta(days=back)
        written, then = text(name), datetime(2026, 11, 20, tzinfo=UTC)
        for days in (2, 1, 0):
            old, new = (then + timedelta(days=days), day.replace(hour=0) + timedelta(days=days))
            written = written.replace(str(int(old.timestamp())), str(int(new.timestamp())))
            written = written.replace(f"{old:%Y-%m-%d}T", f"{new:%Y-%m-%d}T")
        for old_text, new_text in changes:
            assert old_text in written
            written = written.replace(old_text, new_text)
        file = self.folder / f"{name}.json"
        file.write_text(written)
        return file

    def reconcile(self, *arguments: str, **env: str) -> tuple[int, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "celeriac.cli", "reconcile", *arguments],
            env=os.environ | {"CELERIAC_REDIS_URL": self.valkey.url} | env,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        said = ended.stdout + ended.stderr
        assert "Traceback" not in said
        return ended.returncode, said


@pytest.fixture
async def deployment(queue: Queue, valkey: Valkey, tmp_path: Path) -> Deployment:
    while datetime.now(UTC).time() > time(23, 59):  # noqa: ASYNC110  # today is the same day for the command, too
        await asyncio.sleep(1)
    made = Deployment(queue, valkey, tmp_path)
    queue.later(int(made.noon.timestamp() * 1000) - queue.now)
    await queue.worker(slots=50)
    return made


OPENAI, ANTHROPIC = Lane("openai", "gpt-5.4-mini"), Lane("anthropic", "claude-haiku-4-5")
NOT_OURS = ('"amount": {"value": 0.06, "currency": "usd"}, ', '"amount": {"value": 0, "currency": "usd"}, ')


async def test_a_bill_that_agrees_is_ok(deployment: Deployment) -> None:
    """To the nano-dollar, by day and model; another provider's calls, and a line of no model, are no part of it."""
    await deployment.call(OPENAI, MINI, 130_000_000)
    await deployment.call(OPENAI, "gpt-5.4-mini", 805_580)
    await deployment.call(ANTHROPIC, HAIKU, 77)
    status, said = deployment.reconcile(str(deployment.report("openai_costs", NOT_OURS)))
    head, row, apart, tool, skipped = said.splitlines()
    assert head.split() == ["DAY", "MODEL", "BILLED", "USD", "SETTLED", "IN", "DOUBT", "DIFFERENCE", "VERDICT"]
    day = f"{deployment.noon:%Y-%m-%d}"
    assert row.split() == [day, "gpt-5.4-mini", "0.130805580", "0.130805580", "0.000000000", "0.000000000", "ok"]
    assert apart.startswith("of no model")
    assert tool.split("  ") == [day, "web search tool calls", "1.000000000"]
    assert skipped == f"not compared: {deployment.noon + timedelta(days=1):%Y-%m-%d}, it is not over yet"
    assert status == 0


async def test_what_is_in_doubt_covers_a_bill_up_to_its_bound(deployment: Deployment) -> None:
    """In a column of its own; one nano-dollar beyond it and the rounding, the command fails."""
    await deployment.call(ANTHROPIC, HAIKU, 1_000_000_000)
    await deployment.call(ANTHROPIC, HAIKU, 0, bound=237_891_300, doubt=True)
    status, said = deployment.reconcile(str(deployment.report("anthropic_costs")), "--json")
    found = json.loads(said)
    [row] = found["rows"]
    assert row == {
        "day": f"{deployment.noon:%Y-%m-%d}",
        "model": "claude-haiku-4-5",
        "billed_usd": "1.237891300",
        "settled_usd": "1.000000000",
        "in_doubt_usd": "0.237891300",
        "difference_usd": "0.237891300",
        # Two lines of the bill, and one call.
        "rounding_usd": "0.000000201",
        "verdict": "covered",
    }
    assert (status, found["provider"], found["report"], found["unexplained"]) == (0, "anthropic", "costs", 0)
    dearer = str(deployment.report("anthropic_costs", ('"123.78912"', '"123.7891402"')))
    status, said = deployment.reconcile(dearer)
    assert (status, said.splitlines()[1].split()[-1]) == (1, "unexplained")
    assert deployment.reconcile(dearer, "--rounding", "0.000001")[0] == 0


@pytest.mark.parametrize(("name", "lane", "model", "usage"), [
    ("openai_usage", OPENAI, MINI, Usage(input=200, cache_read=700, cache_write=100, output=100, reasoning=400)),
    ("anthropic_usage", ANTHROPIC, HAIKU, Usage(1500, 200, 500, 500, 0, 1000)),
])  # fmt: skip
async def test_tokens_are_compared_by_class(
    deployment: Deployment, name: str, lane: Lane, model: str, usage: Usage
) -> None:
    """The sums are compared in each class; which one differs is named."""
    await deployment.call(lane, model, 5, usage=usage)
    status, said = deployment.reconcile(str(deployment.report(name)))
    assert (status, said.splitlines()[1].split()[-2:]) == (0, ["0", "ok"])
    status, said = deployment.reconcile(str(deployment.report(name, ('output_tokens": 500', 'output_tokens": 501'))))
    assert (status, said.splitlines()[1].split()[-3:]) == (1, ["output", "+1", "unexplained"])


async def test_the_same_provider_by_another_name(deployment: Deployment) -> None:
    """A deployment names providers of its own: whose calls a report bills can be said."""
    await deployment.call(Lane("openai-eu", "gpt-5.4-mini"), MINI, 130_805_580)
    report = str(deployment.report("openai_costs", NOT_OURS))
    assert deployment.reconcile(report)[0] == 1
    assert deployment.reconcile(report, "--provider", "openai", "--provider", "openai-eu")[0] == 0


async def test_days_that_cannot_be_compared_are_named(deployment: Deployment) -> None:
    """Days that are not over, that the ledger forgot, or that the file has a part of; with none left it says so."""
    old = str(deployment.report("anthropic_costs", back=50))
    status, said = deployment.reconcile(old)
    assert "the ledger keeps 45 days (CELERIAC_COSTS__ENTRIES_TTL)" in said
    assert (status, said.splitlines()[-1]) == (2, "celeriac: no day of the file could be compared")
    status, said = deployment.reconcile(old, CELERIAC_COSTS__ENTRIES_TTL=str(60 * 86400))
    assert (status, "unexplained" in said) == (1, True)
    today = deployment.noon + timedelta(days=1)
    part = deployment.report("anthropic_usage", (f"{today:%Y-%m-%d}T00", f"{deployment.noon:%Y-%m-%d}T12"))
    status, said = deployment.reconcile(str(part))
    assert (status, "the file tells only of 12 hours of it" in said) == (2, True)
    assert "its last page names a next one" in said


@pytest.mark.parametrize(("written", "said"), [
    ("Date,Amount\n2026-11-20,1\n", "celeriac: this is no report of a provider's: "),
    ('{"data": []}', "it is the report of no day; what is read: answers of OpenAI's /v1/organization/costs"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_status_2(valkey: Valkey, tmp_path: Path, written: str, said: str) -> None:
    """In one line, which names what is read."""
    file = tmp_path / "export.csv"
    file.write_text(written)
    ended = subprocess.run(
        [sys.executable, "-m", "celeriac.cli", "reconcile", str(file)],
        env=os.environ | {"CELERIAC_REDIS_URL": valkey.url}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
