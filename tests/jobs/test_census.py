"""The census: how many jobs there are, by state and by queue. All other tests of the store end with one too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from celeriac.jobs.census import OfQueue
from celeriac.jobs.model import JobError, State
from tests.jobs.conftest import Queue


async def test_jobs_are_counted_where_they_stand(queue: Queue) -> None:
    """Ready, rung, running, due and behind their context; a queue that nobody ever served is told of if it is named."""
    await queue.worker("w1", slots=2)
    await queue.worker("w2", slots=1, queues=("celeriac", "slow"))
    of_slow = await queue.submit(queue="slow", tenant="acme")
    await queue.claim(of_slow, "w2")
    jobs = [await queue.submit(context_id=context) for context in ("talk", "talk", "walk", "walk", None, None, None)]
    await queue.claim(jobs[0])
    await queue.submit(queue="nobodys")
    later = datetime.fromtimestamp(queue.now / 1000, UTC) + timedelta(minutes=1)
    await queue.submit(run_at=later)
    await queue.submit(run_at=later + timedelta(minutes=1), queue="slow")
    queue.later(60_000)
    told = await queue.stores.census.count(["nobodys"])
    assert told.states == {State.QUEUED: 7, State.RUNNING: 2, State.PARKED: 2}
    assert told.queues == {
        "celeriac": OfQueue(ready=1, rung=3, running=1, due=1),
        "slow": OfQueue(ready=0, rung=0, running=1, due=0),
        "nobodys": OfQueue(ready=1, rung=0, running=0, due=0),
    }


async def test_a_tenant_at_its_limit_waits_all_the_same(queue: Queue) -> None:
    """It has no turn in its queue any more, and its jobs are ready."""
    await queue.worker(slots=9, limits={"t:acme": 1})
    for _ in range(4):
        await queue.submit(tenant="acme")
    assert (await queue.stores.census.count()).queues["celeriac"] == OfQueue(ready=3, rung=1, running=0, due=0)


async def test_ends_are_counted_for_ever(queue: Queue) -> None:
    """One that is started anew ends twice; the records age, and the numbers do not."""
    await queue.worker()
    job = await queue.submit()
    await queue.end(await queue.claim(job), state=State.FAILED, answer=None, error=JobError("internal", "no"))
    await queue.jobs.replay(job.id, "default")
    await queue.end(await queue.claim(job))
    cancelled = await queue.submit()
    await queue.jobs.cancel(cancelled.id, "default")
    assert (await queue.stores.census.count()).ended == {"failed": 1, "succeeded": 1, "cancelled": 1}


async def test_no_more_jobs_are_looked_at_than_may_be(queue: Queue) -> None:
    """Those beyond are counted all the same, and nobody says of which queue they are."""
    await queue.worker(slots=9, queues=("celeriac", "slow"))
    for number in range(3):
        await queue.claim(await queue.submit(queue="slow" if number else "celeriac"))
    for _ in range(3):
        await queue.submit(run_at=datetime.fromtimestamp(queue.now / 1000, UTC) + timedelta(seconds=1))
    queue.later(1000)
    told = await queue.stores.census.count(most=2)
    assert told.states == {State.QUEUED: 0, State.RUNNING: 3, State.PARKED: 3}
    assert told.queues["other"] == OfQueue(ready=0, rung=0, running=1, due=1)
    assert sum(of.running for of in told.queues.values()) == sum(of.due for of in told.queues.values()) == 3


@pytest.mark.parametrize("planted", ["parked", "behind", "full", "ends", "picks", "workers", "rung:celeriac"])
async def test_what_makes_no_sense_hides_nothing_else(queue: Queue, planted: str) -> None:
    """A key of the wrong type is not counted; and no job's end hangs on a count."""
    await queue.worker()
    queue.planted = True
    job = await queue.submit()
    claim = await queue.claim(job)
    queue.redis.delete(f"celeriac:{planted}")
    queue.redis.set(f"celeriac:{planted}", "nonsense")
    assert (await queue.stores.census.count(["slow"])).queues["slow"] == OfQueue(0, 0, 0, 0)
    if planted == "ends":
        await queue.end(claim)
        assert await queue.state(job) == State.SUCCEEDED
