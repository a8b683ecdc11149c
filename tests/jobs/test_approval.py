"""Calls of tools that somebody has to allow: a job waits for that outside every slot, and hears what was decided."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac.errors import Conflict, Invalid
from celeriac.jobs.model import Accepted, Asked, Claim, Decision, Parked, Place, State
from tests.jobs.conftest import Queue

SELL = Asked("1.c0", "sell", '{"what": "the house / \\"all\\" of it"}')
BUY = Asked("1.c1", "buy", "{}")


async def waiting(queue: Queue, *asked: Asked) -> Accepted:
    await queue.worker()
    job = await queue.submit()
    parked = await queue.jobs.wait_for_approval(await queue.claim(job), asked, timedelta(hours=1))
    assert isinstance(parked, Parked)
    return job


async def test_a_job_shows_what_it_waits_to_be_allowed(queue: Queue) -> None:
    """As the model wrote it; not in lists."""
    job = await waiting(queue, SELL, BUY)
    found = await queue.job(job)
    assert (found.state, found.reason, found.approvals) == (State.PARKED, "waiting_approval", (SELL, BUY))
    assert (await queue.jobs.list("default")).jobs[0].approvals == ()


async def test_a_job_goes_on_once_all_is_decided(queue: Queue) -> None:
    """And its next run knows what was. It waits until then, whatever part is decided."""
    job = await waiting(queue, SELL, BUY)
    assert await queue.jobs.resume(job.id, "default", approve=False, reason="never", calls=["1.c0"]) == 1
    assert (await queue.job(job)).approvals == (BUY,)
    assert queue.record(job)["place"] == Place.PARKED
    assert await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c1"]) == 0
    claim = await queue.claim(job)
    assert claim.decided == {"1.c0": Decision(False, "never"), "1.c1": Decision(True, "")}
    assert claim.asked == ()
    assert (await queue.job(job)).approvals == ()


async def test_a_decision_is_made_once(queue: Queue) -> None:
    """Sent again it changes nothing; another one is refused, and what else it names is left undecided."""
    job = await waiting(queue, SELL, BUY)
    for _ in range(2):
        assert await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c1"]) == 1
    with pytest.raises(Conflict, match=r"1\.c1 was decided otherwise"):
        await queue.jobs.resume(job.id, "default", approve=False, calls=["1.c0", "1.c1"])
    assert (await queue.job(job)).approvals == (SELL,)
    await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"])
    # Whoever did not hear the answer to that asks again, and the job has gone on since.
    assert await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"]) == 0
    with pytest.raises(Conflict, match="was decided otherwise"):
        await queue.jobs.resume(job.id, "default", approve=False, calls=["1.c0"])


async def test_only_what_is_asked_for_is_decided(queue: Queue) -> None:
    """Of a job of this tenant that asks for it now."""
    job = await waiting(queue, SELL)
    with pytest.raises(Invalid, match=r"does not ask for 2\.c0"):
        await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0", "2.c0"])
    assert await queue.jobs.resume(job.id, "stranger", approve=True, calls=["1.c0"]) is None
    assert await queue.jobs.resume("no-such-job", "default", approve=True, calls=["1.c0"]) is None
    other = await queue.submit()
    with pytest.raises(Conflict, match=r"waits for no approval, it is queued"):
        await queue.jobs.resume(other.id, "default", approve=True, calls=["1.c0"])
    await queue.jobs.cancel(job.id, "default")
    with pytest.raises(Conflict, match=r"waits for no approval, it is cancelled"):
        await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"])
    assert (await queue.job(job)).approvals == ()
    assert queue.record(job).keys().isdisjoint({"asked", "asked_until"})


async def test_a_job_goes_on_by_itself_when_nobody_decides(queue: Queue) -> None:
    """Its run finds what it asked for, and that the time is over."""
    job = await waiting(queue, SELL)
    await queue.pass_time(3601, "w1")
    with pytest.raises(Conflict):
        await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"])
    claim = await queue.claim(job)
    assert (claim.asked, claim.decided, claim.asked_over) == ((SELL,), {}, True)
    assert (await queue.job(job)).approvals == ()


async def test_a_job_that_starts_afresh_is_allowed_nothing(queue: Queue) -> None:
    """What was allowed was for the steps that it had made; where it keeps them it keeps that too."""
    job = await waiting(queue, SELL)
    await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"])
    for fresh, kept in ((False, {"1.c0": Decision(True)}), (True, {})):
        await queue.finish(await queue.claim(job), state=State.FAILED, answer=None)
        await queue.jobs.replay(job.id, "default", fresh=fresh)
        claim: Claim = await queue.claim(job)
        assert claim.decided == kept
        await queue.jobs.give_back(claim)


async def test_a_job_that_waits_on_waits_no_longer_than_it_was_to(queue: Queue) -> None:
    """It is the store's clock that says when the time is over."""
    job = await waiting(queue, SELL)
    until = queue.record(job)["asked_until"]
    queue.redis.zadd("celeriac:parked", {job.id: 1})
    await queue.pass_time(5, "w1")
    await queue.jobs.wait_for_approval(await queue.claim(job), [SELL], None)
    assert (queue.record(job)["asked_until"], queue.record(job)["resume_at"]) == (until, until)
    assert "asked_over" not in queue.record(job)


@pytest.mark.parametrize("stored", ["nonsense", "3", "[3]", '[{"tool": "x"}]', "{}"])
async def test_a_job_of_which_nonsense_is_asked_can_be_looked_at(queue: Queue, stored: str) -> None:
    """And decided about: it asks for nothing that anybody knows."""
    job = await waiting(queue, SELL)
    queue.planted = True
    queue.redis.hset(f"celeriac:job:{job.id}", "asked", stored)
    assert (await queue.job(job)).approvals == ()
    with pytest.raises(Invalid):
        await queue.jobs.resume(job.id, "default", approve=True, calls=["1.c0"])
    await queue.pass_time(3605, "w1")
    assert (await queue.claim(job)).asked == ()
