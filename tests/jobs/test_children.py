"""Jobs that another job asks for: it waits for them, pays for them, and takes them with it when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from celeriac.costs.books import unspelt
from celeriac.errors import Conflict, CostLimit, Fenced, Stopped
from celeriac.jobs.journal import Full, Settlement
from celeriac.jobs.model import AGENT_UNKNOWN, Accepted, Claim, Finding, JobError, Parent, Parked, Place, State
from tests.jobs.conftest import Queue


def parent(claim: Claim, cap: int | None = None, most: int = 9, others: tuple[str, ...] = ()) -> Parent:
    return Parent(claim.id, claim.worker, claim.nonce, most, ((claim.id, cap), *claim.ancestors), others)


async def running(queue: Queue, **facts: Any) -> Claim:
    if not queue.redis.exists("celeriac:workers"):
        await queue.worker()
    return await queue.claim(await queue.submit(**facts))


async def waits(queue: Queue, claim: Claim) -> None:
    parked = await queue.jobs.wait_for_children(claim, timedelta(minutes=5))
    assert isinstance(parked, Parked)


async def asking(queue: Queue, children: int = 1) -> tuple[Claim, list[Accepted]]:
    """A job that waits for so many others."""
    claim = await running(queue)
    asked = [await queue.submit(parent=parent(claim)) for _ in range(children)]
    await waits(queue, claim)
    return claim, asked


async def test_a_job_goes_on_once_all_that_it_asked_for_have_ended(queue: Queue) -> None:
    """At once, and not before; it finds how they ended, whatever becomes of their own records."""
    asked, (one, two, three) = await asking(queue, 3)
    job = await queue.job(asked.id)
    assert (job.state, job.reason, set(job.children)) == (State.PARKED, "waiting_children", {one.id, two.id, three.id})
    await queue.end(await queue.claim(two), answer="Paris")
    error = JobError("bad_answer", "no")
    await queue.end(await queue.claim(one), state=State.FAILED, answer="so far", error=error)
    assert await queue.state(asked.id) == State.PARKED
    await queue.jobs.cancel(three.id, None)
    assert queue.record(asked.id)["place"] == Place.RUNG
    queue.redis.delete(f"celeriac:job:{two.id}")
    queue.planted = True
    assert await queue.jobs.findings(asked.id, [one.id, two.id, three.id, "another"]) == (
        Finding(State.FAILED, "so far", error),
        Finding(State.SUCCEEDED, "Paris"),
        Finding(State.CANCELLED),
        None,
    )


async def test_a_job_whose_children_ended_before_it_waited_goes_on(queue: Queue) -> None:
    claim = await running(queue)
    await queue.finish(await queue.claim(await queue.submit(parent=parent(claim))))
    await waits(queue, claim)
    await queue.fleet.upkeep()
    assert queue.record(claim)["place"] == Place.RUNG


async def test_a_job_looks_itself_after_a_while(queue: Queue) -> None:
    """The store may have lost one of them."""
    claim, _ = await asking(queue)
    await queue.pass_time(295, "w1")
    assert queue.record(claim)["place"] == Place.PARKED
    await queue.pass_time(5, "w1")
    assert queue.record(claim)["place"] == Place.RUNG


async def test_only_the_run_that_holds_a_job_asks_for_others(queue: Queue) -> None:
    """One that has lost it, or is to stop, would leave jobs behind that nobody waits for."""
    claim = await running(queue)
    await queue.jobs.cancel(claim.id, None)
    with pytest.raises(Stopped):
        await queue.submit(parent=parent(claim))
    await queue.end(claim, state=State.CANCELLED, answer=None)
    with pytest.raises(Fenced):
        await queue.submit(parent=parent(claim))


async def test_a_job_asks_for_so_many_others_and_no_more(queue: Queue) -> None:
    """Ended ones count; the same one again is the same one."""
    claim = await running(queue)
    first = await queue.submit(parent=parent(claim, most=2))
    await queue.finish(await queue.claim(first))
    second = await queue.submit(parent=parent(claim, most=2))
    with pytest.raises(Conflict, match="may ask for 2 others"):
        await queue.submit(parent=parent(claim, most=2))
    assert (await queue.submit(id=second.id, parent=parent(claim, most=2))).id == second.id


async def test_what_is_asked_for_together_is_refused_together(queue: Queue) -> None:
    """Where there is no room for all, the first is refused; one that was asked for before needs none."""
    claim = await running(queue)
    first = await queue.submit(parent=parent(claim, most=3))
    with pytest.raises(Conflict):
        await queue.submit(parent=parent(claim, most=3, others=("b", "c")))
    with pytest.raises(Conflict):
        await queue.submit(id=first.id, parent=parent(claim, most=3, others=("a", "b", "c")))
    second = await queue.submit(parent=parent(claim, most=3, others=("b", first.id)))
    assert set((await queue.job(claim.id)).children) == {first.id, second.id}


async def test_each_life_of_a_job_has_room_for_as_many(queue: Queue) -> None:
    """What was asked for in former ones ended with them, and does not count. Those of this one end with it."""
    claim = await running(queue)
    await queue.submit(parent=parent(claim, most=1))
    await queue.end(claim, state=State.FAILED, answer=None)
    queue.redis.hset(f"celeriac:job:{claim.id}", "below_jobs", 1000)
    queue.planted = True
    await queue.jobs.replay(claim.id, "default")
    claim = await queue.claim(claim.id)
    new = await queue.submit(parent=parent(claim, most=1))
    with pytest.raises(Conflict):
        await queue.submit(parent=parent(claim, most=1))
    queue.redis.hset(f"celeriac:job:{claim.id}", "below_jobs", 2000)
    with pytest.raises(Conflict):
        await queue.submit(parent=parent(claim, most=9))
    await queue.end(claim, state=State.FAILED, answer=None)
    assert await queue.state(new.id) == State.CANCELLED


@pytest.mark.parametrize("how", ["cancelled", "expired", "failed"])
async def test_a_job_that_ends_takes_those_with_it_that_it_asked_for(queue: Queue, how: str) -> None:
    """Whether they wait or run, and theirs too; and it is not woken by that."""
    claim = await running(queue, expires_in=timedelta(seconds=40))
    waiting = await queue.submit(parent=parent(claim))
    child = await queue.claim(await queue.submit(parent=parent(claim)))
    grandchild = await queue.claim(await queue.submit(parent=parent(child)))
    if how == "failed":
        await queue.end(claim, state=State.FAILED, answer=None)
    else:
        await waits(queue, claim)
        if how == "cancelled":
            await queue.jobs.cancel(claim.id, None)
        else:
            await queue.pass_time(45, "w1")
    assert await queue.state(claim.id) == how
    assert await queue.state(waiting) == State.CANCELLED
    assert (await queue.beat()).stop == {child.id: "cancelled"}
    await queue.end(child, state=State.CANCELLED, answer=None)
    assert (await queue.beat()).stop == {grandchild.id: "cancelled"}
    await queue.end(grandchild, state=State.CANCELLED, answer=None)
    assert await queue.state(claim.id) == how


async def spend(
    queue: Queue, claim: Claim, call: str, bound: int, nanos: int | None = None, cap: int | None = None
) -> None:
    await queue.stores.journal.admit(claim, call, bound, {}, cap=cap)
    if nanos is not None:
        await queue.stores.journal.settle(claim, Settlement(call, "settled", bound, nanos, {}))


async def is_held(queue: Queue, claim: Claim, bound: int, payer: Claim) -> bool:
    """Whether a call would fit under the cap of that job, once others have settled."""
    said = await queue.stores.journal.admit(claim, "held", bound, {})
    assert isinstance(said, Full)
    return (said.why, unspelt(said.scope), said.bound) == ("held", f"job:{payer.id}", bound)


async def test_what_a_job_costs_counts_for_all_that_it_works_for(queue: Queue) -> None:
    """Reserved, in doubt and settled; each shows its own beside that of those that work for it."""
    top = await running(queue)
    middle = await queue.claim(await queue.submit(parent=parent(top)))
    bottom = await queue.claim(await queue.submit(parent=parent(middle)))
    await spend(queue, top, "t", 100, 1)
    await spend(queue, middle, "m", 100, 20)
    await spend(queue, bottom, "b1", 100, 300)
    await spend(queue, bottom, "b2", 4000)
    assert queue.record(top)["below_reserved"] == "4000"
    await queue.jobs.give_back(bottom)  # nobody knows what became of that call
    shown = [await queue.job(claim.id) for claim in (top, middle, bottom)]
    assert [job.cost_nanos for job in shown] == [1, 20, 300]
    assert [job.children_cost_nanos for job in shown] == [320, 300, 0]
    assert [job.in_doubt_nanos for job in shown] == [0, 0, 4000]
    assert [job.children_in_doubt_nanos for job in shown] == [4000, 4000, 0]
    assert queue.record(top)["below_reserved"] == "0"
    assert [job.parent_id for job in shown] == [None, top.id, middle.id]


async def test_no_cap_above_a_job_is_crossed_by_it(queue: Queue) -> None:
    """Nor its own by those that work for it: whatever is reserved anywhere counts."""
    top = await running(queue)
    middle = await queue.claim(await queue.submit(parent=parent(top, cap=1000)))
    bottom = await queue.claim(await queue.submit(parent=parent(middle, cap=700)))
    other = await queue.claim(await queue.submit(parent=parent(top, cap=1000)))
    await spend(queue, bottom, "b1", 600)
    assert await is_held(queue, bottom, 101, middle)
    assert await is_held(queue, other, 401, top)
    with pytest.raises(CostLimit):
        await spend(queue, top, "x", 401, cap=1000)
    with pytest.raises(CostLimit):
        await spend(queue, bottom, "x", 701)
    queue.later(5_000)
    await spend(queue, bottom, "b2", 100)
    await spend(queue, other, "o", 300)


async def test_a_job_whose_parent_is_gone_costs_its_own(queue: Queue) -> None:
    """Its record has aged out, or was lost: no part of one is made."""
    top = await running(queue)
    child = await queue.claim(await queue.submit(parent=parent(top)))
    queue.planted = True
    queue.redis.delete(f"celeriac:job:{top.id}")
    await spend(queue, child, "c", 100, 7)
    assert (await queue.end(child)).state == State.SUCCEEDED
    assert not queue.redis.exists(f"celeriac:job:{top.id}")


@pytest.mark.parametrize("stored", ["nonsense", "3", "[3]", '[["a"]]'])
async def test_a_job_of_whose_ancestors_nothing_is_known_buys_nothing(queue: Queue, stored: str) -> None:
    """Nobody knows whose cap it would cross. What it bought before is booked, and it ends."""
    top = await running(queue)
    child = await queue.claim(await queue.submit(parent=parent(top)))
    await spend(queue, child, "c", 100)
    queue.planted = True
    queue.redis.hset(f"celeriac:job:{child.id}", mapping={"ancestors": stored, "parent": "nonsense"})
    with pytest.raises(redis.ResponseError):
        await spend(queue, child, "d", 100)
    ended = await queue.end(child, settlement=Settlement("c", "settled", 100, 7, {}))
    assert (ended.state, ended.cost_nanos) == (State.SUCCEEDED, 7)


async def test_a_child_that_is_started_again_is_nobodys(queue: Queue) -> None:
    """Who asked for it has heard of its end, and has gone on since."""
    claim, (child,) = await asking(queue)
    await queue.end(await queue.claim(child), state=State.FAILED, answer=None)
    again = await queue.claim(claim.id)
    await queue.jobs.replay(child.id, "default")
    await queue.end(await queue.claim(child), answer="late")
    assert (await queue.jobs.findings(claim.id, [child.id]))[0] == Finding(State.FAILED)
    await queue.end(again)


async def test_what_a_job_asked_for_is_kept_as_long_as_the_job(queue: Queue) -> None:
    claim, (child,) = await asking(queue)
    await queue.end(await queue.claim(child))
    await queue.end(await queue.claim(claim.id))
    ends = {queue.redis.pexpiretime(f"celeriac:{name}:{claim.id}") for name in ("job", "children", "answers")}
    assert len(ends) == 1
    assert ends.pop() > 0
    assert not queue.redis.exists(f"celeriac:awaits:{claim.id}")


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_job_that_is_started_again_knows_what_became_of_those_it_had_asked_for(queue: Queue, how: str) -> None:
    """They ended with it: it does not wait for them, and is not ready again and again."""
    claim = await running(queue, expires_in=timedelta(seconds=40))
    child = await queue.submit(parent=parent(claim))
    await waits(queue, claim)
    if how == "cancelled":
        await queue.jobs.cancel(claim.id, None)
    else:
        await queue.pass_time(45, "w1")
    await queue.jobs.replay(claim.id, "default")
    again = await queue.claim(claim.id)
    assert await queue.jobs.findings(again.id, [child.id]) == (Finding(State.CANCELLED),)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_job_that_the_store_forgot_it_had_asked_for_is_found_again(queue: Queue, ended: bool) -> None:
    """Asked for once more, it is waited for; or how it ended is known at once."""
    claim = await running(queue)
    child = await queue.submit(parent=parent(claim))
    queue.redis.delete(f"celeriac:children:{claim.id}", f"celeriac:awaits:{claim.id}")
    if ended:
        await queue.end(await queue.claim(child), answer="Paris")
    assert await queue.jobs.findings(claim.id, [child.id]) == (None,)
    await queue.submit(id=child.id, parent=parent(claim))
    if ended:
        assert await queue.jobs.findings(claim.id, [child.id]) == (Finding(State.SUCCEEDED, "Paris"),)
        return
    await waits(queue, claim)
    await queue.fleet.upkeep()
    assert queue.record(claim)["place"] == Place.PARKED
    await queue.end(await queue.claim(child), answer="Paris")
    assert queue.record(claim)["place"] == Place.RUNG


async def test_nobody_else_asks_for_a_job(queue: Queue) -> None:
    """Its id stands for one that another one asked for, or nobody."""
    claim = await running(queue)
    for other in (await queue.submit(), await queue.submit(parent=parent(await running(queue)))):
        with pytest.raises(Conflict):
            await queue.submit(id=other.id, parent=parent(claim))


async def test_a_thousand_jobs_may_work_for_one(queue: Queue) -> None:
    """At any depth: they end with it in one script."""
    top = await running(queue)
    middle = await queue.claim(await queue.submit(parent=parent(top)))
    queue.planted = True
    assert queue.redis.hget(f"celeriac:job:{top.id}", "below_jobs") == "1"
    queue.redis.hset(f"celeriac:job:{top.id}", "below_jobs", 999)
    await queue.submit(parent=parent(middle))
    with pytest.raises(Conflict, match="a thousand may work for one"):
        await queue.submit(parent=parent(middle))


async def test_no_cap_at_any_depth_is_crossed(queue: Queue) -> None:
    """Also that of the one above the one above."""
    top = await running(queue)
    middle = await queue.claim(await queue.submit(parent=parent(top, cap=500)))
    bottom = await queue.claim(await queue.submit(parent=parent(middle)))
    await spend(queue, bottom, "a", 400)
    assert await is_held(queue, bottom, 101, top)
    await queue.stores.journal.settle(bottom, Settlement("a", "settled", 400, 400, {}))
    with pytest.raises(CostLimit):
        await spend(queue, bottom, "b", 101)


async def test_a_job_past_its_deadline_asks_for_nothing(queue: Queue) -> None:
    """It expires, as where it would buy something; upkeep may not have looked yet."""
    claim = await running(queue, expires_in=timedelta(seconds=5))
    queue.later(6000)
    late = datetime.fromtimestamp(queue.now / 1000 - 1, UTC)
    with pytest.raises(Stopped):
        await queue.submit(parent=parent(claim), deadline=late)
    assert (await queue.end(claim, state=State.CANCELLED, answer=None)).state == State.EXPIRED


async def test_why_a_job_failed_that_nobody_knew_is_told(queue: Queue) -> None:
    claim = await running(queue)
    child = await queue.submit(parent=parent(claim), agent="novel")
    await waits(queue, claim)
    run = await queue.claim(child)
    queue.redis.hset(f"celeriac:job:{child.id}", "unknown_since", queue.now - 3_600_000)
    await queue.jobs.leave_to_others(run)
    [finding] = await queue.jobs.findings(claim.id, [child.id])
    assert finding is not None
    assert (finding.state, finding.error) == (State.FAILED, AGENT_UNKNOWN)


async def test_what_a_job_asked_for_stays_with_it_when_it_is_started_again(queue: Queue) -> None:
    """As long as the job itself."""
    claim, (child,) = await asking(queue)
    await queue.end(await queue.claim(child))
    await queue.end(await queue.claim(claim.id), state=State.FAILED, answer=None)
    await queue.jobs.replay(claim.id, "default")
    for name in ("job", "children", "answers"):
        assert queue.redis.ttl(f"celeriac:{name}:{claim.id}") == -1
