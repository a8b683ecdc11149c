"""A parked job waits outside every slot until its time has come."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from celeriac.contexts.store import encode_turn
from celeriac.jobs.model import AGENT_UNKNOWN, Accepted, Parked, Place, State
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])


def at(queue: Queue, seconds: int) -> datetime:
    return datetime.fromtimestamp(queue.now / 1000 + seconds, UTC)


async def test_a_parked_job_gives_its_slot_to_the_next(queue: Queue) -> None:
    """It says why it waits and until when, and does not age."""
    await queue.worker(slots=1)
    jobs = [await queue.submit() for _ in range(4)]
    claim = await queue.claim(jobs[0])
    parked = await queue.jobs.park(claim, "retry", timedelta(seconds=30))
    assert parked == Parked(at(queue, 30))
    assert queue.rung() == [job.id for job in jobs]
    found = await queue.job(jobs[0])
    assert (found.state, found.reason, found.resume_at) == (State.PARKED, "retry", at(queue, 30))
    assert queue.redis.ttl(f"celeriac:job:{claim.id}") == -1


async def test_a_parked_job_goes_on_when_its_time_has_come(queue: Queue) -> None:
    """Not before, and within a round of upkeep; then nothing is left of why it waited."""
    await queue.worker()
    job = await queue.submit()
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=30))
    await queue.pass_time(29, "w1")
    assert await queue.try_claim(job) is None
    await queue.pass_time(1, "w1")
    assert queue.rung()[1:] == [job.id]
    claim = await queue.claim(job)
    found = await queue.job(job)
    assert (claim.attempt, found.reason, found.resume_at) == (2, None, None)


async def test_many_that_are_due_at_once_go_on_page_by_page(queue: Queue) -> None:
    """One script looks at a few hundred, and says that there are more."""
    starts = at(queue, 10)
    for _ in range(450):
        await queue.submit(run_at=starts)
    queue.later(10_000)
    more, _ = await queue.fleet._due(page=200, keep=queue.fleet._keep)
    assert (more, queue.redis.zcard("celeriac:parked")) == (1, 250)
    await queue.fleet.upkeep()
    assert queue.redis.zcard("celeriac:parked") == 0


async def test_a_try_counts_only_where_it_is_one(queue: Queue) -> None:
    """And Celery's own count of them travels on the bell."""
    await queue.worker()
    job = await queue.submit()
    await queue.jobs.park(await queue.claim(job), "budget", timedelta(seconds=1))
    await queue.pass_time(1, "w1")
    claim = await queue.claim(job)
    assert claim.retries == 0
    await queue.jobs.park(claim, "retry", timedelta(seconds=1), retry=True)
    await queue.pass_time(1, "w1")
    assert json.loads(queue.redis.lindex("celeriac", 0))["headers"]["retries"] == 1
    assert (await queue.claim(job)).retries == 1


async def test_parking_sent_again_gets_the_first_answer(queue: Queue) -> None:
    """A park whose answer was lost is neither fenced nor done twice, also when the job has gone on since."""
    await queue.worker()
    job = await queue.submit()
    claim = await queue.claim(job)
    first = await queue.jobs.park(claim, "retry", timedelta(seconds=5), retry=True)
    queue.later(1000)
    assert await queue.jobs.park(claim, "retry", timedelta(seconds=5), retry=True) == first
    await queue.pass_time(5, "w1")
    again = await queue.claim(job)
    assert await queue.jobs.park(claim, "retry", timedelta(seconds=5), retry=True) == first
    assert again.retries == 1
    await queue.finish(again)


async def test_a_worker_that_does_not_know_the_agent_is_not_asked_again(queue: Queue) -> None:
    """Others are, while a deploy rolls; where there are none, it is asked every five seconds in vain."""
    await queue.worker("old")
    job = await queue.submit()
    await queue.jobs.leave_to_others(await queue.claim(job, "old"))
    await queue.pass_time(5, "old")
    assert await queue.try_claim(job, "old") is None
    found = await queue.job(job)
    assert (found.state, found.reason, found.resume_at) == (State.PARKED, "agent_unknown", at(queue, 5))
    await queue.worker("new")
    await queue.pass_time(5, "old", "new")
    await queue.finish(await queue.claim(job, "new"))


async def test_a_job_whose_agent_somebody_knows_comes_back_soon(queue: Queue) -> None:
    """A second later, since one that does not know it may have the next bell too; slowly more where that goes on."""
    await queue.worker("old")
    await queue.worker("new", agents=("assistant",))
    job = await queue.submit()
    await queue.jobs.leave_to_others(await queue.claim(job, "old"))
    waits = []
    for _ in range(40):
        resume_at = (await queue.job(job)).resume_at
        assert resume_at is not None
        waits.append(math.ceil((resume_at - at(queue, 0)).total_seconds()))
        await queue.pass_time(waits[-1], "old", "new")
        assert await queue.try_claim(job, "old") is None
    assert (waits[0], waits[15]) == (1, 1)
    assert 3 <= waits[-1] <= 6
    await queue.pass_time(waits[-1] + 1, "old", "new")
    await queue.finish(await queue.claim(job, "new"))


@pytest.mark.parametrize("workers", [("old",), ("old", "older")])
async def test_a_job_whose_agent_nobody_knows_fails_in_the_end(queue: Queue, workers: tuple[str, ...]) -> None:
    """After an hour in which each worker said so, or the only one had it again and again. A retry begins a new hour."""
    for worker in workers:
        await queue.worker(worker)
    job = await queue.submit()

    async def an_hour_in_vain() -> None:
        for wait in (5, 3590, 30, 0):
            assert await queue.state(job) != State.FAILED
            for worker in workers:
                claim = await queue.try_claim(job, worker)
                if claim is not None:
                    left = await queue.jobs.leave_to_others(claim)
                    assert await queue.jobs.leave_to_others(claim) == left, "sent again"
            queue.later((wait - min(wait, 30)) * 1000)
            await queue.pass_time(min(wait, 30), *workers)

    await an_hour_in_vain()
    found = await queue.job(job)
    assert (found.state, found.error, found.dead) == (State.FAILED, AGENT_UNKNOWN, False)
    assert await queue.jobs.replay(job.id, "default")
    await an_hour_in_vain()
    assert await queue.state(job) == State.FAILED


async def unknown_for_an_hour(queue: Queue, unknowing: str, other: str) -> Accepted:
    """A job that one worker does not know, and has again after an hour in which the other has not taken it."""
    job = await queue.submit()
    await queue.jobs.leave_to_others(await queue.claim(job, unknowing))
    await queue.fleet.upkeep()
    queue.later(3_600_000)
    for worker in (unknowing, other):
        await queue.fleet.heartbeat(worker, queue.slots[worker], taking=True)
    await queue.pass_time(60, unknowing, other)
    assert await queue.try_claim(job, unknowing) is None
    return job


async def test_a_job_whose_agent_somebody_knows_does_not_fail(queue: Queue) -> None:
    """Who knows it has no slot for it, for more than an hour: it waits for that one."""
    await queue.worker("old")
    await queue.worker("new", slots=0, agents=("novel", "assistant"))
    job = await unknown_for_an_hour(queue, "old", "new")
    assert await queue.state(job) == State.PARKED
    await queue.given_up("old")
    await queue.try_claim(job, "old")
    await queue.pass_time(30, "old")
    await queue.try_claim(job, "old")
    assert await queue.state(job) == State.FAILED, "it has gone"


async def test_who_serves_another_queue_does_not_know_it(queue: Queue) -> None:
    """It could not take the job."""
    await queue.worker("old")
    await queue.worker("elsewhere", queues=("slow",), agents=("assistant",))
    job = await unknown_for_an_hour(queue, "old", "elsewhere")
    assert await queue.state(job) == State.FAILED


@pytest.mark.parametrize("since", ["soon", "99999999999"])
async def test_nonsense_of_when_an_agent_was_first_unknown_loses_no_job(queue: Queue, since: str) -> None:
    """Another clock's time, or none at all: the hour begins anew."""
    await queue.worker("old")
    job = await queue.submit()
    await queue.jobs.leave_to_others(await queue.claim(job, "old"))
    queue.redis.hset(f"celeriac:job:{job.id}", "unknown_since", since)
    await queue.pass_time(5, "old")
    assert await queue.try_claim(job, "old") is None
    assert await queue.state(job) == State.PARKED
    assert queue.record(job)["unknown_since"] == str(queue.now)


async def test_jobs_of_an_unknown_agent_do_not_hold_up_the_others(queue: Queue) -> None:
    """However many come back to the head of the line: each that is left to others makes room for the next."""
    await queue.worker("old", slots=3)
    unknown = [await queue.submit(agent="novel") for _ in range(40)]
    known = await queue.submit()
    for _ in range(200):
        rung = next((job for job in [*unknown, known] if queue.record(job)["place"] == Place.RUNG), None)
        if rung is None or rung.id == known.id:
            break
        if claim := await queue.try_claim(rung, "old"):
            await queue.jobs.leave_to_others(claim)
    for job in unknown:
        queue.redis.hset(f"celeriac:job:{job.id}", "excluded", "old")
    await queue.pass_time(5, "old")
    for _ in range(200):
        rung = next((job for job in unknown if queue.record(job)["place"] == Place.RUNG), None)
        if queue.record(known)["place"] == Place.RUNG or rung is None:
            break
        assert await queue.try_claim(rung, "old") is None
    await queue.claim(known, "old")


async def test_the_hour_of_an_unknown_agent_begins_anew_once_a_worker_knew_it(queue: Queue) -> None:
    """A job that runs and is tried again does not fail because a worker did not know its agent long ago."""
    await queue.worker("old")
    await queue.worker("new")
    job = await queue.submit()
    await queue.jobs.leave_to_others(await queue.claim(job, "old"))
    await queue.pass_time(5, "old", "new")
    await queue.jobs.park(await queue.claim(job, "new"), "retry", timedelta(hours=2), retry=True)
    queue.later(2 * 3_600_000)
    await queue.pass_time(5, "old", "new")
    assert await queue.try_claim(job, "old") is None
    assert await queue.state(job) == State.PARKED


@pytest.mark.parametrize("hours", [0.1, 3])
async def test_a_clock_that_goes_back_does_not_make_a_parked_job_wait_longer(queue: Queue, hours: float) -> None:
    """Each waits as long as it was to wait, be it an hour; what is scheduled is for a time of day and stays."""
    queue.later(100 * 3_600_000)
    await queue.worker("w1")
    await queue.worker("unknowing")
    spans = [30, 3600]
    jobs = [await queue.submit() for _ in range(3)]
    await queue.jobs.park(await queue.claim(jobs[0]), "retry", timedelta(seconds=30), retry=True)
    await queue.jobs.park(await queue.claim(jobs[1]), "retry", timedelta(seconds=3600), retry=True)
    await queue.jobs.leave_to_others(await queue.claim(jobs[2], "unknowing"))
    scheduled = await queue.submit(run_at=at(queue, 60))
    await queue.fleet.upkeep()
    queue.later(int(-hours * 3_600_000))
    await queue.fleet.upkeep()
    assert [(await queue.job(job)).resume_at for job in jobs] == [at(queue, seconds) for seconds in (*spans, 5)]
    assert (await queue.job(scheduled)).resume_at == scheduled.resume_at
    assert not queue.redis.exists("celeriac:went_back")
    queue.redis.delete("celeriac")
    await queue.pass_time(30, "w1", "unknowing")
    assert sorted(queue.rung()) == sorted([jobs[0].id, jobs[2].id])
    assert "parked_for" not in queue.record(jobs[0])


async def test_many_parked_jobs_are_looked_at_page_by_page_when_the_clock_went_back(queue: Queue) -> None:
    """Those that were scheduled are passed over."""
    await queue.worker(slots=1000)
    await queue.fleet.upkeep()
    jobs = [await queue.submit() for _ in range(300)]
    for job in jobs:
        await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=30))
        await queue.submit(run_at=at(queue, 3600))
    queue.later(-60_000)
    await queue.fleet._give_up(lease=queue.fleet._lease, page=100, keep=queue.fleet._keep)
    more, _ = await queue.fleet._due(page=100, keep=queue.fleet._keep)
    moved = queue.redis.zcount("celeriac:parked", "-inf", queue.now + 30_000)
    assert (more, 0 < moved < 300) == (1, True)
    await queue.fleet.upkeep()
    assert queue.redis.zcount("celeriac:parked", "-inf", queue.now + 30_000) == 300


async def test_a_scheduled_job_starts_at_its_time(queue: Queue) -> None:
    """Until then it is parked; a time that has passed is now."""
    await queue.worker()
    job = await queue.submit(run_at=at(queue, 60))
    assert job.resume_at == at(queue, 60)
    assert (await queue.job(job)).reason == "scheduled"
    assert queue.rung() == []
    await queue.pass_time(60, "w1")
    assert queue.rung() == [job.id]
    late = await queue.submit(run_at=at(queue, -5))
    assert late.resume_at is None
    assert queue.rung()[1:] == [late.id]


async def test_a_scheduled_job_of_a_context_waits_for_its_turn_and_for_its_time(queue: Queue) -> None:
    """Whichever comes last; the holder keeps the context while it is parked."""
    await queue.worker()
    first = await queue.submit(context_id="c")
    soon, late = [await queue.submit(context_id="c", run_at=at(queue, seconds)) for seconds in (5, 60)]
    last = await queue.submit(context_id="c")
    assert soon.waits_for == late.waits_for == first.id
    await queue.pass_time(10, "w1")
    assert await queue.state(soon) == State.QUEUED
    await queue.finish(await queue.claim(first), turn=TURN)
    await queue.finish(await queue.claim(soon), turn=TURN)
    assert (await queue.job(late)).reason == "scheduled"
    assert (await queue.job(last)).waits_for == late.id
    assert await queue.try_claim(last) is None
    await queue.pass_time(60, "w1")
    await queue.finish(await queue.claim(late), turn=TURN)
    assert len((await queue.claim(last)).turns) == 3
