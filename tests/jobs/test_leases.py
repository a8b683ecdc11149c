"""A lease is the worker's: it covers all its jobs, ends in silence, and whoever lost it writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from celeriac.errors import Fenced
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Claim, State
from tests.jobs.conftest import Queue

Write = Callable[[Queue, Claim], Awaitable[object]]
WRITES: dict[str, Write] = {
    "finish": lambda queue, claim: queue.finish(claim),
    "park": lambda queue, claim: queue.jobs.park(claim, "retry", timedelta(seconds=1)),
    "give_back": lambda queue, claim: queue.jobs.give_back(claim),
    "commit": lambda queue, claim: queue.stores.journal.commit(claim, 0, {}, None),
    "admit": lambda queue, claim: queue.stores.journal.admit(claim, "c2", 5, {}),
}


async def test_one_heartbeat_renews_the_lease_of_all_jobs(queue: Queue) -> None:
    """Its jobs stay a worker's as long as it lives."""
    await queue.worker()
    claims = [await queue.claim(await queue.submit()) for _ in range(5)]
    await queue.pass_time(120, "w1")
    for claim in claims:
        await queue.finish(claim)


async def test_jobs_of_a_silent_worker_are_ready_for_others(queue: Queue) -> None:
    """Once its lease has ended, and not before; a new run has a fence of its own."""
    await queue.worker("dead")
    await queue.worker("w2")
    job = await queue.submit()
    await queue.claim(job, "dead")
    await queue.pass_time(10, "w2")
    assert await queue.state(job) == State.RUNNING
    await queue.pass_time(5, "w2")
    assert queue.rung()[-1] == job.id
    claim = await queue.claim(job, "w2")
    assert claim.attempt == 2
    await queue.finish(claim)


@pytest.mark.parametrize("what", WRITES)
async def test_who_lost_its_job_writes_nothing_for_it(queue: Queue, what: str) -> None:
    """Neither while it waits, nor while another runs it, nor when it has ended."""
    await queue.worker("dead")
    await queue.worker("w2")
    job = await queue.submit()
    old = await queue.claim(job, "dead")

    async def refused() -> None:
        before = queue.everything()
        with pytest.raises(Fenced):
            await WRITES[what](queue, old)
        assert queue.everything() == before

    await queue.given_up("w2")
    await refused()
    claim = await queue.claim(job, "w2")
    await refused()
    await queue.finish(claim)
    await refused()


@pytest.mark.parametrize("what", WRITES)
async def test_a_run_is_known_by_its_nonce_too(queue: Queue, what: str) -> None:
    """A worker that has claimed the job again does not write for its older run."""
    await queue.worker()
    job = await queue.submit()
    old = await queue.claim(job)
    await queue.fleet.disown("w1", job.id)
    claim = await queue.claim(job)
    with pytest.raises(Fenced):
        await WRITES[what](queue, old)
    await queue.finish(claim)


@pytest.mark.parametrize("what", WRITES)
async def test_a_job_that_stands_as_waiting_is_nobodys_to_write(queue: Queue, what: str) -> None:
    """Whatever its record says of a worker: the place decides."""
    await queue.worker()
    job = await queue.submit()
    claim = await queue.claim(job)
    await queue.jobs.give_back(claim)
    queue.redis.hset(f"celeriac:job:{job.id}", mapping={"worker": "w1", "nonce": claim.nonce, "released": ""})
    queue.planted = True
    with pytest.raises(Fenced):
        await WRITES[what](queue, claim)


async def test_a_heartbeat_never_registers(queue: Queue) -> None:
    """A name that the store does not know is told so, and nothing is kept of it."""
    with pytest.raises(Fenced):
        await queue.fleet.heartbeat("stranger", 10, taking=True)
    assert not queue.redis.exists("celeriac:workers", "celeriac:worker:stranger", "celeriac:free")


async def test_a_worker_that_was_given_up_is_told_so_and_its_name_goes_after_its_last_job(queue: Queue) -> None:
    """Page by page; a job that was not taken yet may still be finished, since the first who comes wins."""
    await queue.worker("dead")
    await queue.worker("w2")
    claims = [await queue.claim(await queue.submit(), "dead") for _ in range(3)]
    waiting = await queue.submit()
    for _ in range(3):
        queue.later(5000)
        await queue.beat("w2")
        more, _, gone, fates = await queue.fleet._give_up(lease=15_000, page=1, keep=queue.fleet._keep)
    assert (more, gone, len(fates)) == (1, [b"dead"], 2)
    assert queue.redis.hget("celeriac:free", "celeriac") == "10"
    with pytest.raises(Fenced):
        await queue.beat("dead")
    with pytest.raises(Fenced):
        await queue.try_claim(waiting, "dead")
    left = next(claim for claim in claims if claim.id.encode() != fates[0])
    await queue.finish(left)
    assert queue.redis.exists("celeriac:worker:dead", "celeriac:dying") == 2
    more, _, gone, fates = await queue.fleet._give_up(lease=15_000, page=10, keep=queue.fleet._keep)
    assert (more, gone, len(fates)) == (0, [], 2)
    assert not queue.redis.exists("celeriac:worker:dead", "celeriac:dying", "celeriac:held:dead")


async def test_nobody_is_given_up_until_a_full_lease_after_an_outage(queue: Queue) -> None:
    """The owners are alive, hold paid answers, and speak first."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.fleet.upkeep()
    queue.later(60_000)
    await queue.fleet.upkeep()
    for _ in range(2):
        queue.later(7400)
        await queue.fleet.upkeep()
    await queue.beat()
    await queue.finish(claim)


async def test_after_the_lease_of_grace_the_silent_are_given_up(queue: Queue) -> None:
    """An outage delays the recovery; it does not prevent it."""
    await queue.worker()
    job = await queue.submit()
    await queue.claim(job)
    await queue.fleet.upkeep()
    queue.later(60_000)
    await queue.fleet.upkeep()
    await queue.pass_time(15)
    assert await queue.state(job) == State.QUEUED


async def test_a_clock_that_went_back_is_an_outage(queue: Queue) -> None:
    """After a failover the time may be another: nobody is given up for it."""
    queue.later(10_000_000)
    await queue.worker()
    await queue.worker("w2")
    claim = await queue.claim(await queue.submit())
    await queue.fleet.upkeep()
    queue.later(-3_600_000)
    await queue.beat("w2")
    queue.redis.zadd("celeriac:workers", {"w1": queue.now - 1})
    await queue.fleet.upkeep()
    await queue.beat("w1")
    await queue.finish(claim)


async def test_a_lease_that_ends_too_far_ahead_is_cut_back(queue: Queue) -> None:
    """It was written by a clock that was ahead; a dead worker would keep its jobs for as long."""
    await queue.worker()
    job = await queue.submit()
    await queue.claim(job)
    queue.redis.zadd("celeriac:workers", {"w1": queue.now + 3_600_000})
    await queue.fleet.upkeep()
    assert queue.redis.zscore("celeriac:workers", "w1") == queue.now + 15_000
    await queue.given_up()
    assert await queue.state(job) == State.QUEUED


async def test_a_longer_lease_of_another_release_is_respected(queue: Queue) -> None:
    """What is too far ahead is judged by the lease that the worker registered with."""
    await queue.worker()
    queue.redis.hset("celeriac:worker:w1", "lease", 60_000)
    queue.redis.zadd("celeriac:workers", {"w1": queue.now + 60_000})
    await queue.fleet.upkeep()
    assert queue.redis.zscore("celeriac:workers", "w1") == queue.now + 60_000


async def test_a_time_to_ring_again_too_far_ahead_is_cut_back(queue: Queue) -> None:
    """Else a lost bell is missed for as long as the clock was ahead."""
    await queue.worker()
    job = await queue.submit()
    queue.redis.delete("celeriac")
    queue.redis.zadd("celeriac:rung:celeriac", {job.id: queue.now + 3_600_000})
    await queue.pass_time(65, "w1")
    assert queue.rung() == [job.id]


async def test_registering_twice_is_registering_once(queue: Queue) -> None:
    """A registration whose answer was lost is sent again, and forgets no job that was claimed meanwhile."""
    await queue.worker(slots=3)
    await queue.claim(await queue.submit())
    await queue.worker(slots=3)
    assert queue.redis.hget("celeriac:worker:w1", "running") == "1"


async def test_a_worker_may_ask_which_jobs_the_store_says_it_runs(queue: Queue) -> None:
    """So it finds the claims whose answers never arrived."""
    await queue.worker()
    claims = [await queue.claim(await queue.submit()) for _ in range(2)]
    assert (await queue.beat()).held is None
    assert (await queue.beat(list_held=True)).held == {claim.id for claim in claims}


async def test_a_job_that_its_worker_does_not_know_is_handed_back(queue: Queue) -> None:
    """It is ready at once, its open calls are in doubt, and it is no crash."""
    await queue.worker()
    await queue.worker("w2")
    job = await queue.submit()
    claim = await queue.claim(job)
    await queue.stores.journal.admit(claim, "c1", 5, {})
    assert await queue.fleet.disown("w2", job.id) is False
    assert await queue.fleet.disown("w1", job.id) is True
    found = await queue.job(job)
    assert (found.state, found.crashes, found.in_doubt_nanos) == (State.QUEUED, 0, 5)
    assert await queue.fleet.disown("w1", job.id) is False
    assert job.id in queue.rung()


async def test_the_upkeep_goes_to_whoever_is_there_once_its_keeper_is_gone(queue: Queue) -> None:
    """The lock lives for less than a second."""
    await queue.worker("w1")
    await queue.worker("w2")

    async def beats() -> tuple[int, str | None]:
        await queue.beat("w1")
        left = queue.redis.pttl("celeriac:upkeep")
        queue.redis.delete("celeriac:upkeep")
        await queue.beat("w2")
        return left, queue.redis.get("celeriac:upkeep")

    left, keeper = await queue.while_it_holds(beats)
    assert 0 < left < 1000
    assert keeper == "w2"


async def test_a_lock_that_outlives_its_clock_holds_nobody_up(queue: Queue) -> None:
    """Redis keeps when it goes as a time of day: the clock went back, and nobody did the upkeep."""
    await queue.worker("w1")

    async def beats() -> tuple[bool, int, bool]:
        queue.redis.set("celeriac:upkeep", "w0", px=3_600_000)
        first = (await queue.beat("w1")).upkeep
        left = queue.redis.pttl("celeriac:upkeep")
        return first, left, (await queue.beat("w1")).upkeep

    first, left, second = await queue.while_it_holds(beats)
    assert (first, second) == (True, False)
    assert 0 < left < 1000


async def test_two_that_do_the_upkeep_at_once_do_no_harm(queue: Queue) -> None:
    """Each of its steps is a script that checks: a crash is counted once, a bell is rung once."""
    await queue.worker("dead", slots=50)
    await queue.worker("w2")
    jobs = [await queue.submit() for _ in range(20)]
    for job in jobs:
        await queue.claim(job, "dead")
    queue.redis.delete("celeriac")
    await queue.pass_time(10, "w2")
    queue.later(6000)
    await queue.beat("w2")
    await asyncio.gather(*(queue.fleet.upkeep() for _ in range(4)))
    assert {queue.record(job)["crashes"] for job in jobs} == {"1"}
    assert len(queue.rung()) == len(set(queue.rung())) == 12


async def test_slots_of_a_dead_worker_are_not_offered(queue: Queue) -> None:
    """From the moment it is given up, whoever it still takes jobs from."""
    await queue.worker("dead", slots=50)
    await queue.worker("w2", slots=1)
    await queue.given_up("w2")
    for _ in range(9):
        await queue.submit()
    assert len(queue.rung()) == 3


async def test_the_settlement_of_a_fenced_run_is_booked(queue: Queue) -> None:
    """Its money lands, its step does not."""
    await queue.worker("dead")
    await queue.worker("w2")
    job = await queue.submit()
    claim = await queue.claim(job, "dead")
    await queue.stores.journal.admit(claim, "c1", 9, {})
    await queue.given_up("w2")
    assert (await queue.job(job)).in_doubt_nanos == 9
    with pytest.raises(Fenced):
        await queue.stores.journal.commit(claim, 0, {"text": "Paris"}, Settlement("c1", "settled", 9, 4, {}))
    found = await queue.job(job)
    assert (found.cost_nanos, found.in_doubt_nanos, found.steps) == (4, 0, 0)
    assert (await queue.claim(job, "w2")).journal == ()
