"""Cancelling takes effect wherever a job is, and outlives the worker that should have obeyed. Deadlines are cancels by
the clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from celeriac.errors import Stopped
from celeriac.jobs.model import Accepted, JobError, State
from tests.jobs.conftest import Queue


async def ready(queue: Queue) -> Accepted:
    return await queue.submit()


async def rung(queue: Queue) -> Accepted:
    await queue.worker()
    return await queue.submit()


async def parked(queue: Queue) -> Accepted:
    await queue.worker()
    job = await queue.submit()
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=600))
    return job


async def behind(queue: Queue) -> Accepted:
    await queue.worker()
    await queue.claim(await queue.submit(context_id="c"))
    return await queue.submit(context_id="c")


async def suspect(queue: Queue) -> Accepted:
    job = await queue.submit()
    for name in ("dead1", "dead2"):
        await queue.worker(name)
        await queue.claim(job, name)
        await queue.given_up()
    queue.redis.delete("celeriac")
    return job


WAITING: dict[str, Callable[[Queue], Awaitable[Accepted]]] = {
    "ready": ready, "rung": rung, "parked": parked, "behind": behind, "suspect": suspect,
}  # fmt: skip


@pytest.mark.parametrize("where", WAITING)
async def test_a_job_that_no_worker_runs_is_cancelled_at_once(queue: Queue, where: str) -> None:
    """Wherever it waits; nothing of it is left there, its bell rings for nothing, and again changes nothing."""
    job = await WAITING[where](queue)
    for _ in range(2):
        assert await queue.jobs.cancel(job.id, "default") == State.CANCELLED
    found = await queue.job(job)
    assert found.error is not None
    assert (found.state, found.error.code) == (State.CANCELLED, "cancelled")
    await queue.worker("w9")
    assert await queue.try_claim(job, "w9") is None


@pytest.mark.parametrize("where", WAITING)
async def test_a_waiting_job_expires_at_its_deadline(queue: Queue, where: str) -> None:
    """Wherever it waits, within a round of upkeep."""
    job = await WAITING[where](queue)
    queue.redis.hset(f"celeriac:job:{job.id}", "deadline", queue.now + 50_000)
    queue.redis.zadd("celeriac:deadlines", {job.id: queue.now + 50_000})
    alive = [name for name in queue.slots if queue.redis.zscore("celeriac:workers", name)]
    await queue.pass_time(45, *alive)
    assert await queue.state(job) != State.EXPIRED
    await queue.pass_time(5, *alive)
    found = await queue.job(job)
    assert found.error is not None
    assert (found.state, found.error.code) == (State.EXPIRED, "expired")


async def test_a_cancelled_job_makes_way(queue: Queue) -> None:
    """Its bell's room goes to the next, and its context too."""
    await queue.worker(slots=1)
    jobs = [await queue.submit(context_id="c" if i == 0 else None) for i in range(5)]
    follower = await queue.submit(context_id="c", priority="high")
    await queue.jobs.cancel(jobs[0].id, "default")
    assert queue.rung()[3:] == [follower.id]
    assert (await queue.job(follower)).waits_for is None


async def test_a_running_job_is_asked_to_stop(queue: Queue) -> None:
    """Its worker hears of it at every heartbeat until it let go; what it spent is kept."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    for _ in range(2):
        assert await queue.jobs.cancel(claim.id, "default") == State.RUNNING
    assert (await queue.job(claim.id)).stopping is True
    for _ in range(2):
        assert (await queue.beat()).stop == {claim.id: "cancelled"}
    ended = await queue.end(claim, state=State.FAILED, answer=None, error=JobError("timeout", "no"))
    assert ended.state == State.CANCELLED
    assert (await queue.beat()).stop == {}
    found = await queue.job(claim.id)
    assert found.error is not None
    assert (found.state, found.error.code, found.stopping) == (State.CANCELLED, "cancelled", False)


async def test_a_job_that_finishes_first_has_finished(queue: Queue) -> None:
    """The script that comes first wins, and a later cancel is told the state."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.jobs.cancel(claim.id, "default")
    assert (await queue.end(claim)).state == State.SUCCEEDED
    assert await queue.jobs.cancel(claim.id, "default") == State.SUCCEEDED
    assert (await queue.job(claim.id)).answer == "Paris"


@pytest.mark.parametrize("how", ["park", "give_back", "disown", "given_up"])
@pytest.mark.parametrize("why", [State.CANCELLED, State.EXPIRED])
async def test_a_stop_that_its_worker_did_not_obey_is_obeyed_by_whoever_comes_next(
    queue: Queue, how: str, why: State
) -> None:
    """The request is a field of the record: it outlives the worker."""
    await queue.worker()
    await queue.worker("w2")
    job = await queue.submit(expires_in=timedelta(seconds=7))
    claim = await queue.claim(job)
    await queue.stores.journal.admit(claim, "c1", 5, {})
    if why == State.CANCELLED:
        await queue.jobs.cancel(job.id, "default")
    else:
        await queue.pass_time(10, "w1", "w2")
    if how == "park":
        for _ in range(2):
            assert await queue.jobs.park(claim, "retry", timedelta(seconds=1)) == why
    elif how == "give_back":
        await queue.jobs.give_back(claim)
    elif how == "disown":
        await queue.fleet.disown("w1", job.id)
    else:
        await queue.given_up("w2")
    found = await queue.job(job)
    assert (found.state, found.in_doubt_nanos, found.crashes) == (why, 5, 0)


async def test_a_claim_obeys_a_stop_that_nobody_obeyed(queue: Queue) -> None:
    """Such a record comes from a history that was lost; the job ends and does not run."""
    await queue.worker()
    job = await queue.submit()
    queue.redis.hset(f"celeriac:job:{job.id}", "stop", "cancelled")
    assert await queue.try_claim(job) is None
    assert await queue.state(job) == State.CANCELLED


async def test_a_job_is_cancelled_by_its_tenant_or_by_an_operator(queue: Queue) -> None:
    """For another tenant it does not exist."""
    job = await queue.submit()
    assert await queue.jobs.cancel(job.id, "acme") is None
    assert await queue.jobs.cancel("no-such-job", None) is None
    assert await queue.state(job) == State.QUEUED
    assert await queue.jobs.cancel(job.id, None) == State.CANCELLED


async def test_a_job_past_its_deadline_is_not_run(queue: Queue) -> None:
    """Its bell may have waited in the broker longer than upkeep took."""
    await queue.worker()
    job = await queue.submit(expires_in=timedelta(seconds=5))
    queue.later(5000)
    assert await queue.try_claim(job) is None
    assert await queue.state(job) == State.EXPIRED


async def test_a_running_job_is_stopped_at_its_deadline(queue: Queue) -> None:
    """It is asked like one that is cancelled; an answer that comes first counts."""
    await queue.worker()
    claims = [await queue.claim(await queue.submit(expires_in=timedelta(seconds=5))) for _ in range(2)]
    await queue.pass_time(5, "w1")
    assert (await queue.beat()).stop == {claim.id: "expired" for claim in claims}
    assert (await queue.end(claims[0], state=State.CANCELLED, answer=None)).state == State.EXPIRED
    assert (await queue.end(claims[1])).state == State.SUCCEEDED


async def test_a_run_past_its_deadline_buys_no_call(queue: Queue) -> None:
    """Upkeep may not have looked yet: the call itself is refused and the run ends as expired, whatever it says."""
    await queue.worker()
    claim = await queue.claim(await queue.submit(expires_in=timedelta(seconds=5)))
    queue.later(4999)
    await queue.stores.journal.admit(claim, "c1", 5, {})
    queue.later(1)
    for _ in range(2):
        with pytest.raises(Stopped, match="expired"):
            await queue.stores.journal.admit(claim, "c2", 7, {})
    assert (await queue.beat()).stop == {claim.id: "expired"}
    ended = await queue.end(claim, state=State.CANCELLED, answer=None)
    assert (ended.state, ended.in_doubt_nanos) == (State.EXPIRED, 5)
    assert [call.id for call in (await queue.job(claim.id)).calls] == ["c1"]


async def test_who_was_cancelled_before_its_deadline_was_cancelled(queue: Queue) -> None:
    """The first reason stays."""
    await queue.worker()
    claim = await queue.claim(await queue.submit(expires_in=timedelta(seconds=5)))
    await queue.jobs.cancel(claim.id, "default")
    await queue.pass_time(5, "w1")
    assert (await queue.beat()).stop == {claim.id: "cancelled"}
    await queue.jobs.give_back(claim)
    assert await queue.state(claim.id) == State.CANCELLED


async def test_of_a_deadline_and_a_life_span_the_earlier_one_counts(queue: Queue) -> None:
    """Both may be given."""
    at = datetime.fromtimestamp(queue.now / 1000 + 10, UTC)
    jobs = [await queue.submit(deadline=at, expires_in=timedelta(seconds=seconds)) for seconds in (5, 60)]
    deadlines = [(await queue.job(job)).deadline for job in jobs]
    assert deadlines == [datetime.fromtimestamp(queue.now / 1000 + 5, UTC), at]


async def test_a_job_that_ended_in_time_leaves_no_deadline(queue: Queue) -> None:
    """Nothing is kept for what is over."""
    await queue.worker()
    await queue.finish(await queue.claim(await queue.submit(expires_in=timedelta(seconds=5))))
    assert queue.redis.zcard("celeriac:deadlines") == 0
