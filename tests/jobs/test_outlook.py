"""What is told of a job that waits: how many go before it, when it starts, what it costs, what budgets leave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac.costs.books import counts, spelt
from celeriac.errors import Conflict
from celeriac.jobs.journal import Admitted, Settlement
from celeriac.jobs.model import Claim, NewJob, Outlook, Parent, State
from celeriac.jobs.store import new_id
from celeriac.llm.model import Usage
from tests.jobs.conftest import Queue
from tests.jobs.explained import faults
from tests.jobs.test_budgets import Buyers

SCOPES = (spelt("all"), spelt("tenant:acme"), spelt("agent:assistant"))


class Askers(Buyers):
    """Those who want to know before."""

    async def outlook(self, tenant: str = "acme", **facts: Any) -> Outlook:
        """Of a job that nobody submits."""
        asked = {"agent": "assistant", "queue": "celeriac", "input": (("user", "hi"),), "scopes": SCOPES}
        return (await self.queue.jobs.submit(NewJob(new_id(), tenant, **(asked | facts)), dry_run=True)).outlook

    async def submitted(self, tenant: str = "acme", **facts: Any) -> Outlook:
        return (await self.queue.submit(tenant=tenant, scopes=SCOPES, **facts)).outlook

    async def earn(self, claim: Claim, nanos: int, **facts: Any) -> None:
        """The job makes one call, and ends."""
        assert isinstance(await self.ask(claim, nanos), Admitted)
        made = Settlement(self.name, "settled", nanos, nanos, {}, None, "", counts(Usage(input=1), nanos))
        await self.queue.end(claim, settlement=made, **facts)

    async def mean(self, agent: str = "assistant") -> int | None:
        return (await self.outlook(agent=agent)).mean_cost

    def at(self, seconds: float = 0) -> datetime:
        return datetime.fromtimestamp(self.queue.now / 1000 + seconds, UTC)


@pytest.fixture
async def buyers(queue: Queue) -> Askers:
    queue.later(1_800_000_000_000)
    return Askers(queue)


async def test_a_job_that_finds_a_slot_starts_at_once(buyers: Askers) -> None:
    await buyers.queue.worker(slots=1)
    assert await buyers.outlook() == Outlook(0, buyers.at(), None, None)
    assert await buyers.submitted() == Outlook(0, buyers.at(), None, None)


async def test_nobody_says_when_a_job_starts_that_no_worker_takes(buyers: Askers) -> None:
    assert (await buyers.submitted()).position == 0
    assert await buyers.submitted() == Outlook(1, None)


async def test_those_are_counted_that_go_before(buyers: Askers) -> None:
    """Who is more urgent, who of the same tenant came first, and one of each other tenant a turn; nobody else."""
    for tenant, priority, number in (
        ("acme", "high", 3), ("acme", "normal", 2), ("other", "normal", 9), ("third", "normal", 1), ("acme", "low", 7),
    ):  # fmt: skip
        for _ in range(number):
            await buyers.queue.submit(tenant=tenant, priority=priority)
    await buyers.queue.submit(queue="slow")
    assert (await buyers.outlook()).position == 3 + 2 + min(9, 3) + 1
    assert (await buyers.outlook(priority="high")).position == 3
    assert (await buyers.outlook(priority="low")).position == 3 + 2 + 9 + 1 + 7
    assert (await buyers.outlook("new")).position == 3 + 1 + 1 + 1
    assert (await buyers.submitted()).position == 3 + 2 + min(9, 3) + 1


async def test_many_tenants_are_taken_to_be_as_some_of_them(buyers: Askers) -> None:
    for number in range(100):
        for _ in range(2):
            await buyers.queue.submit(tenant=f"t{number}")
    assert (await buyers.outlook(priority="low")).position == pytest.approx(200, abs=4)


async def test_an_agent_with_a_limit_has_a_line_of_its_own(buyers: Askers) -> None:
    for _ in range(4):
        await buyers.queue.submit()
    await buyers.queue.submit(agent="rare", limited=True)
    assert (await buyers.outlook(agent="rare", limited=True)).position == 1


async def test_the_start_follows_from_how_fast_jobs_left_the_line(buyers: Askers) -> None:
    """While others waited there: an idle hour says nothing of how fast it can be."""
    queue = buyers.queue
    await queue.worker(slots=1)
    first = [await queue.submit(tenant="acme") for _ in range(40)]
    assert (await buyers.outlook()).starts_at is None
    for job in first[:20]:
        claim = await queue.claim(job)
        await queue.pass_time(2, "w1")
        await queue.finish(claim)
    outlook = await buyers.outlook()
    assert outlook.position == 40 - 20 - 3
    assert outlook.starts_at is not None
    assert (outlook.starts_at - buyers.at()).total_seconds() == pytest.approx(2 * 18, rel=0.25)
    for job in first[20:]:
        await queue.finish(await queue.claim(job))
    await queue.pass_time(3600, "w1")
    for _ in range(30):
        await queue.submit(tenant="acme")
    after = await buyers.outlook()
    assert after.starts_at is not None
    assert (after.starts_at - buyers.at()).total_seconds() == pytest.approx(2 * 28, rel=0.35)


async def test_a_scheduled_job_starts_at_its_time(buyers: Askers) -> None:
    await buyers.queue.worker()
    later = buyers.at(3600)
    assert await buyers.outlook(run_at=later) == Outlook(None, later)
    assert await buyers.submitted(run_at=later) == Outlook(None, later)
    assert await buyers.outlook(run_at=buyers.at(-1)) == Outlook(0, buyers.at())


async def test_nobody_says_when_a_job_starts_that_waits_for_its_context(buyers: Askers) -> None:
    await buyers.queue.worker()
    await buyers.queue.submit(tenant="acme", context_id="c")
    assert await buyers.outlook(context_id="c", run_at=buyers.at(3600)) == Outlook(None, None)
    assert await buyers.submitted(context_id="c") == Outlook(None, None)


async def test_the_tightest_budget_says_what_is_left(buyers: Askers) -> None:
    """Of those that the job is in, whatever its window; what is reserved or in doubt is not left."""
    await buyers.queue.worker()
    await buyers.caps("tenant:other", ever=1)
    assert (await buyers.outlook()).budget_left is None
    await buyers.caps("all", ever=1000)
    await buyers.caps("tenant:acme", hour=300, month=900)
    assert (await buyers.outlook()).budget_left == 300
    job = await buyers.job()
    await buyers.buy(job, 90, 60)
    assert isinstance(await buyers.ask(job, 100), Admitted)
    assert (await buyers.outlook()).budget_left == 300 - 60 - 100
    await buyers.caps("all", ever=100)
    assert (await buyers.submitted()).budget_left == 0


async def test_a_budget_that_is_not_told_of_is_waited_for_all_the_same(buyers: Askers) -> None:
    """Only what it leaves is not said."""
    await buyers.queue.worker()
    await buyers.caps("all", hour=100)
    await buyers.buy(await buyers.job(), 100, 100)
    known, own = await buyers.outlook(), await buyers.outlook(told=(spelt("tenant:acme"),))
    assert (known.budget_left, own.budget_left) == (0, None)
    assert own.starts_at == known.starts_at
    assert own.starts_at is not None
    assert own.starts_at > buyers.at()


async def test_without_money_a_job_starts_in_the_next_window(buyers: Askers) -> None:
    await buyers.queue.worker()
    await buyers.caps("all", hour=100)
    await buyers.buy(await buyers.job(), 100, 100)
    ends = buyers.at().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    assert await buyers.outlook() == Outlook(0, ends, None, 0)
    await buyers.caps("all", ever=100)
    assert await buyers.outlook() == Outlook(0, None, None, 0)


async def test_jobs_of_an_agent_teach_what_one_costs(buyers: Askers) -> None:
    """With those that worked for it. Not one that failed, nor one that asked a model of its own choice."""
    queue = buyers.queue
    await queue.worker()
    assert await buyers.mean() is None
    await buyers.earn(await buyers.job(), 100)
    assert await buyers.mean() == 100
    await buyers.earn(await buyers.job(), 900, state=State.FAILED)
    await buyers.earn(await queue.claim(await queue.submit(tenant="acme", model="openai/o9")), 900)
    assert (await buyers.mean(), await buyers.mean("reviewer")) == (100, None)
    above = await buyers.job(agent="chief")
    parent = Parent(above.id, above.worker, above.nonce, 9, ((above.id, None),), ())
    await buyers.earn(await queue.claim(await queue.submit(tenant="acme", parent=parent)), 300)
    assert await buyers.mean() == 200
    await buyers.earn(above, 50)
    assert await buyers.mean("chief") == 350
    for _ in range(300):
        await buyers.earn(await buyers.job(), 10)
    assert (await buyers.mean() or 0) < 30


async def test_what_is_only_told_keeps_nobody_from_work(buyers: Askers) -> None:
    """A key of the wrong type is made anew, or nothing is said."""
    queue = buyers.queue
    await queue.worker(slots=1)
    queue.planted = True
    for name in ("celeriac:mean_costs", "celeriac:pace"):
        queue.redis.rpush(name, "nonsense")
    jobs = [await queue.submit(tenant="acme", scopes=SCOPES) for _ in range(9)]
    assert jobs[-1].outlook == Outlook(5, None)
    await queue.finish(await queue.claim(jobs[0]))
    await queue.pass_time(5, "w1")
    assert queue.redis.type("celeriac:mean_costs") == queue.redis.type("celeriac:pace") == "hash"
    assert faults(queue.redis) == []


@pytest.mark.parametrize("planted", ["budgets", "used:all"])
async def test_what_makes_no_sense_refuses_no_job(buyers: Askers, planted: str) -> None:
    """Nothing is said of when it starts and what it costs: it is stored and answered, and can be asked for."""
    queue = buyers.queue
    await buyers.caps("all", ever=100)
    queue.planted = True
    queue.redis.delete(f"celeriac:{planted}")
    queue.redis.set(f"celeriac:{planted}", "nonsense")
    job = await queue.submit(tenant="acme", scopes=SCOPES)
    assert job.outlook == await buyers.outlook() == Outlook()
    assert await queue.state(job, "acme") == State.QUEUED


async def test_asking_changes_nothing(buyers: Askers) -> None:
    await buyers.queue.worker(slots=1)
    await buyers.caps("all", hour=100)
    for _ in range(5):
        await buyers.queue.submit(tenant="acme")
    before = buyers.queue.everything()
    assert (await buyers.outlook()).position == 2
    # Nor what submit would put in order: a context whose holder is gone.
    held = [await buyers.queue.submit(tenant="acme", context_id="c") for _ in range(2)]
    buyers.queue.planted = True
    buyers.queue.redis.hset("celeriac:context:acme:c", "holder", "gone")
    before = buyers.queue.everything()
    with pytest.raises(Conflict, match=held[1].id):
        await buyers.outlook(context_id="c", if_busy="reject")
    assert buyers.queue.everything() == before


async def test_a_job_that_is_known_is_looked_up(buyers: Askers) -> None:
    """As it stands now: it may run, or have ended."""
    queue = buyers.queue
    await queue.worker(slots=1)
    jobs = [await queue.submit(tenant="acme") for _ in range(6)]

    async def known(number: int) -> Outlook:
        asked = NewJob(jobs[number].id, "acme", "assistant", "celeriac", (("user", "hi"),), scopes=SCOPES)
        return await queue.jobs.outlook(asked)

    assert (await known(4)).position == 1
    claim = await queue.claim(jobs[0])
    assert await known(0) == Outlook(0, buyers.at())
    await queue.finish(claim)
    assert await known(0) == Outlook(None, None, 0)
