"""Limits on jobs at once hold for tenants and agents, are charged when dispatch rings, and stop nobody else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac.jobs.lease import limits
from celeriac.jobs.model import Accepted, Place, State
from tests.jobs.conftest import Queue


def tenants(queue: Queue) -> list[str]:
    return [queue.record(id)["tenant"] for id in queue.rung()]


async def test_a_tenant_runs_as_many_jobs_at_once_as_its_limit_says(queue: Queue) -> None:
    """Its own, else that of all tenants; those without wait for slots only."""
    await queue.worker(slots=50, limits={"t:a": 2, "t:*": 3})
    for tenant in "abab" * 5:
        await queue.submit(tenant=tenant)
    assert sorted(tenants(queue)) == ["a"] * 2 + ["b"] * 3


async def test_limits_are_written_as_settings_say_them() -> None:
    """No limit for all tenants is no limit."""
    assert limits(None, {"a": 2}, {"reviewer": 1}) == {"t:a": 2, "a:reviewer": 1}
    assert limits(3, {}, {}) == {"t:*": 3}


@pytest.mark.parametrize("how", ["finish", "park", "give_back", "cancel"])
async def test_a_tenant_at_its_limit_comes_back_when_one_of_its_jobs_makes_room(queue: Queue, how: str) -> None:
    """However that comes; nothing is left at the end of how it was kept out."""
    await queue.worker(limits={"t:default": 1})
    jobs = [await queue.submit(priority=priority) for priority in ("low", "normal", "high")]
    assert queue.rung() == [jobs[0].id]
    assert queue.redis.smembers("celeriac:full") == {"default"}
    if how == "cancel":
        await queue.jobs.cancel(jobs[0].id, "default")
    else:
        claim = await queue.claim(jobs[0])
        if how == "finish":
            await queue.finish(claim)
        elif how == "park":
            await queue.jobs.park(claim, "retry", timedelta(seconds=1))
        else:
            await queue.jobs.give_back(claim)
    assert queue.rung()[1:] == [jobs[2].id]
    await queue.finish(await queue.claim(jobs[2]))
    left = [job for job in jobs if await queue.state(job) in {State.QUEUED, State.PARKED}]
    for _ in left:
        await queue.pass_time(2, "w1")
        (id,) = set(queue.redis.zrange("celeriac:rung:celeriac", 0, -1))
        await queue.finish(await queue.claim(id))
    assert not queue.redis.exists("celeriac:full", "celeriac:left:default", "celeriac:busy")


async def test_a_full_tenant_holds_up_nobody(queue: Queue) -> None:
    """It leaves the rotation: dispatch does not walk past its jobs again and again."""
    await queue.worker(slots=4, limits={"t:a": 1})
    for _ in range(200):
        await queue.submit(tenant="a")
    others = [await queue.submit(tenant="b") for _ in range(4)]
    assert tenants(queue) == ["a", *"bbbb"]
    assert queue.redis.zrange("celeriac:rotation:celeriac:1", 0, -1) == []
    await queue.finish(await queue.claim(others[0]))
    assert queue.redis.zscore("celeriac:rotation:celeriac:1", "a") is None


async def test_many_full_tenants_are_passed_in_one_dispatch(queue: Queue) -> None:
    """Up to a hundred."""
    for _ in range(2):
        for i in range(60):
            await queue.submit(tenant=f"t{i}")
        await queue.submit(tenant="free")
    await queue.worker(slots=150, limits={"t:*": 1, "t:free": 50})
    assert tenants(queue).count("free") == 2


async def test_an_agent_runs_as_many_jobs_at_once_as_its_limit_says(queue: Queue) -> None:
    """Its jobs wait in a line of their own: others, also of the same tenant, are not behind them."""
    await queue.worker(slots=20, limits={"a:reviewer": 2})
    reviews = [await queue.submit(agent="reviewer", limited=True) for _ in range(5)]
    others = [await queue.submit() for _ in range(3)]
    assert queue.rung() == [job.id for job in [*reviews[:2], *others]]
    await queue.finish(await queue.claim(reviews[0]))
    assert queue.rung()[5:] == [reviews[2].id]


async def test_the_lines_of_a_queue_take_turns(queue: Queue) -> None:
    """An agent with a limit and room is served beside the others, neither before nor after all of them."""
    others = [await queue.submit() for _ in range(20)]
    reviews = [await queue.submit(agent="reviewer", limited=True) for _ in range(20)]
    await queue.worker(slots=10, limits={"a:reviewer": 15})
    rung = set(queue.rung())
    assert 5 <= len(rung & {job.id for job in reviews}) <= 7
    assert 5 <= len(rung & {job.id for job in others}) <= 7


async def test_both_limits_hold_at_once(queue: Queue) -> None:
    """A tenant at its limit leaves the lines of agents too, and comes back to each."""
    await queue.worker(slots=20, limits={"t:a": 2, "a:reviewer": 3})
    jobs: list[Accepted] = []
    for _ in range(4):
        jobs.append(await queue.submit(tenant="a", agent="reviewer", limited=True))
        jobs.append(await queue.submit(tenant="b", agent="reviewer", limited=True))
    assert sorted(tenants(queue)) == ["a", "a", "b"]
    done = 0
    while done < len(jobs):
        for id in queue.redis.zrange("celeriac:rung:celeriac", 0, -1):
            await queue.finish(await queue.claim(id))
            done += 1
    assert not queue.redis.exists("celeriac:full", "celeriac:left:a", "celeriac:busy", "celeriac:lines:celeriac")


async def test_the_line_of_an_agent_is_kept_for_tenants_that_will_be_back(queue: Queue) -> None:
    """All who wait in it may be at their limit: no rotation names the line then."""
    await queue.worker(slots=20, limits={"t:a": 1, "a:reviewer": 5})
    first = await queue.submit(tenant="a")
    review = await queue.submit(tenant="a", agent="reviewer", limited=True)
    for _ in range(3):
        await queue.submit(tenant="b")
    await queue.finish(await queue.claim(first))
    assert queue.rung()[-1] == review.id


async def test_a_stale_bell_does_not_get_round_a_limit(queue: Queue) -> None:
    """It is charged when dispatch rings, and only a job that was rung can be claimed."""
    await queue.worker(limits={"t:default": 1})
    job = await queue.submit()
    await queue.jobs.give_back(await queue.claim(job))
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=1))
    other = await queue.submit()
    await queue.pass_time(1, "w1")
    assert await queue.try_claim(job) is None
    await queue.finish(await queue.claim(other))
    await queue.finish(await queue.claim(job))


async def test_a_limit_that_was_raised_lets_its_tenant_in_again(queue: Queue) -> None:
    """A worker registers with other settings; within a lease everybody is looked at anew."""
    await queue.worker(limits={"t:default": 1})
    for _ in range(5):
        await queue.submit()
    assert len(queue.rung()) == 1
    await queue.worker("w2", limits={"t:default": 3})
    queue.redis.delete("celeriac:recount")
    await queue.fleet.upkeep()
    assert len(queue.rung()) == 3


async def test_a_clock_that_goes_back_does_not_put_off_the_counting(queue: Queue) -> None:
    """The key that says when it was done last would stay for an hour."""
    await queue.worker()
    queue.redis.set("celeriac:recount", "1", px=3_600_000)
    queue.redis.hset("celeriac:free", "celeriac", 0)
    job = await queue.submit()
    await queue.fleet.upkeep()
    assert queue.rung() == [job.id]


async def test_a_limit_that_was_taken_back_holds_nobody(queue: Queue) -> None:
    """What counts is what the worker says that registered last."""
    await queue.worker(limits={"t:default": 1})
    for _ in range(5):
        await queue.submit()
    await queue.worker("w2")
    queue.redis.delete("celeriac:recount")
    await queue.fleet.upkeep()
    assert len(queue.rung()) == 5


async def test_a_job_that_a_dead_worker_ran_counts_no_more(queue: Queue) -> None:
    """Its tenant's next job takes its place."""
    await queue.worker("dead", limits={"t:default": 1})
    await queue.claim(await queue.submit(), "dead")
    other = await queue.submit(priority="high")
    await queue.worker("w2", limits={"t:default": 1})
    await queue.given_up("w2")
    assert queue.rung()[1:] == [other.id]


@pytest.mark.parametrize("how", ["gone", "no sense"])
@pytest.mark.parametrize("place", ["rung", "running"])
async def test_a_record_that_is_lost_while_its_job_is_busy_leaves_its_place_to_others(
    queue: Queue, place: str, how: str
) -> None:
    """Its tenant's limit would be one lower for ever: what is busy is counted anew."""
    queue.planted = True
    for worker in ("w1", "w2"):
        await queue.worker(worker, limits={"t:*": 2})
    lost, other = await queue.submit(), await queue.submit()
    await queue.claim(other, "w2")
    if place == "running":
        await queue.claim(lost, "w1")
    key = f"celeriac:job:{lost.id}"
    queue.redis.delete(key) if how == "gone" else queue.redis.hset(key, "priority", "x")
    queue.redis.delete("celeriac")
    waiting = await queue.submit()
    assert queue.record(waiting)["place"] == Place.READY
    await queue.pass_time(30, "w2")
    assert queue.record(waiting)["place"] == Place.RUNG
    assert queue.redis.hget("celeriac:busy", "t:default") == "2"
    assert not queue.redis.exists("celeriac:miscounted")


async def test_a_record_that_is_lost_while_its_worker_lives_costs_it_no_slot(queue: Queue) -> None:
    """The worker lets go of what it does not know: its slots are counted anew as well."""
    queue.planted = True
    await queue.worker("w1", slots=2)
    lost = [await queue.submit() for _ in range(2)]
    for job in lost:
        await queue.claim(job)
        queue.redis.delete(f"celeriac:job:{job.id}")
    for job in lost:
        assert await queue.fleet.disown("w1", job.id) is False
    await queue.fleet.upkeep()
    assert queue.redis.hget("celeriac:worker:w1", "running") == "0"
    assert queue.redis.hget("celeriac:free", "celeriac") == "2"
    for job in [await queue.submit() for _ in range(2)]:
        await queue.claim(job)
