"""A Redis without memory takes no new work, and stores everything that was paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from celeriac.contexts.store import encode_turn
from celeriac.errors import StoreFull
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import JobError, Place, State, Untold
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])


@pytest.fixture
def full(queue: Queue) -> Iterator[None]:
    """From where the test calls `fill`."""
    yield
    queue.redis.config_set("maxmemory", "0")


def fill(queue: Queue) -> None:
    queue.redis.config_set("maxmemory", "1mb")


@pytest.mark.usefixtures("full")
async def test_a_full_redis_refuses_new_work_whole(queue: Queue) -> None:
    """Submit, schedule, replay and admit leave nothing behind."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    failed = await queue.claim(await queue.submit())
    await queue.finish(failed, state=State.FAILED, answer=None, error=JobError("timeout", "no"))
    fill(queue)
    before = queue.everything()
    with pytest.raises(StoreFull):
        await queue.submit(context_id="c", idempotency_key="k", expires_in=timedelta(seconds=5))
    with pytest.raises(StoreFull):
        await queue.jobs.replay(failed.id, "default")
    with pytest.raises(StoreFull):
        await queue.stores.journal.admit(claim, "c1", 5, {})
    assert queue.everything() == before


async def test_a_clock_that_goes_back_does_not_keep_a_store_full(queue: Queue) -> None:
    """What is looked at once a second is not believed for the hour that the key would stay."""
    queue.redis.set("celeriac:room", "0", px=3_600_000)
    await queue.submit()
    assert queue.redis.get("celeriac:room") == "1"


@pytest.mark.usefixtures("full")
async def test_a_redis_that_is_nearly_full_takes_no_new_job(queue: Queue) -> None:
    """From 90 % on: what runs needs the rest. What was taken before is said to be taken, and new calls are made."""
    await queue.worker()
    taken = await queue.submit(idempotency_key="k")
    failed = await queue.claim(await queue.submit())
    await queue.finish(failed, state=State.FAILED, answer=None, error=JobError("timeout", "no"))

    async def with_memory(full: float) -> None:
        # What a test before has left is freed in the background.
        used = 0
        while used != (used := queue.redis.info("memory")["used_memory"]):  # noqa: ASYNC110  # Redis tells nobody
            await asyncio.sleep(0.1)
        queue.redis.config_set("maxmemory", int(used / full))
        queue.redis.delete("celeriac:room")  # a second later

    await with_memory(0.95)
    before = queue.everything()
    with pytest.raises(StoreFull):
        await queue.submit(context_id="c")
    with pytest.raises(StoreFull):
        await queue.jobs.replay(failed.id, "default")
    assert queue.everything() == before
    assert (await queue.submit(id="another", idempotency_key="k")).id == taken.id
    assert (await queue.submit(id=taken.id)).id == taken.id
    claim = await queue.claim(taken)
    await queue.stores.journal.admit(claim, "c1", 5, {})
    await queue.finish(claim)
    await with_memory(0.8)
    assert await queue.jobs.replay(failed.id, "default")
    await queue.submit()


@pytest.mark.usefixtures("full")
async def test_in_a_full_redis_everything_else_goes_on(queue: Queue) -> None:
    """Else an answer that was paid for could not be stored, or all workers would look dead."""
    await queue.worker()
    await queue.worker("dead")
    jobs = [await queue.submit(context_id="c" if i == 0 else None) for i in range(8)]
    later = await queue.submit(expires_in=timedelta(seconds=5))
    claims = [await queue.claim(job) for job in jobs[:5]]
    for claim in claims:
        await queue.stores.journal.admit(claim, "c1", 5, {})
    lost = await queue.claim(jobs[5], "dead")
    fill(queue)

    await queue.stores.journal.commit(claims[0], 0, {"text": "x" * 5000}, Settlement("c1", "settled", 5, 4, {}))
    await queue.stores.journal.settle(claims[1], Settlement("c1", "released", 5, 0, {}))
    assert await queue.finish(claims[0], answer="Paris" * 1000, turn=TURN) is True
    await queue.jobs.park(claims[1], "retry", timedelta(seconds=5))
    await queue.jobs.give_back(claims[2])
    await queue.fleet.disown("w1", claims[3].id)
    assert await queue.jobs.cancel(jobs[6].id, None) == State.CANCELLED
    assert await queue.jobs.cancel(claims[4].id, None) == State.RUNNING
    await queue.claim(jobs[7])
    await queue.fleet.leave("nobody")
    await queue.stores.contexts.delete("default", "c")
    await queue.worker("w2")
    await queue.given_up("w1", "w2")
    assert await queue.fleet.adopt(claims[4], "w2") == "kept"
    assert await queue.state(later) == State.EXPIRED
    assert queue.record(claims[1])["place"] == Place.RUNG
    assert (await queue.job(lost.id)).crashes == 1
    assert len((await queue.jobs.list("default")).jobs) == 9
    await queue.given_up("w2")


@pytest.mark.usefixtures("full")
async def test_in_a_full_redis_celery_is_told_of_ends(queue: Queue) -> None:
    """By the run that ended the job, or by a later one; that it was told is noted, or its record would never age."""
    await queue.worker()
    claim = await queue.claim(await queue.submit(ignore_result=False))
    cancelled = await queue.submit(ignore_result=False)
    fill(queue)
    await queue.jobs.cancel(cancelled.id, None)
    await queue.finish(claim)
    assert claim.tell is not None
    await queue.jobs.told(claim.id, claim.tell)
    untold = await queue.try_claim(cancelled)
    assert isinstance(untold, Untold)
    await queue.jobs.told(cancelled.id, untold.job.replays)
    assert not queue.redis.exists("celeriac:untold")
    assert all(queue.redis.ttl(f"celeriac:job:{id}") > 0 for id in (claim.id, cancelled.id))
