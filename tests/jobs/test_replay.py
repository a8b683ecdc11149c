"""A replay is a submission of the same job: it enters by the same door, and keeps its journal if that still fits."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from celeriac.connections import unpack
from celeriac.contexts.store import encode_turn
from celeriac.errors import Conflict
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Accepted, Claim, JobError, State
from celeriac.jobs.store import Replayed
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])


async def fail(queue: Queue, claim: Claim) -> None:
    await queue.finish(claim, state=State.FAILED, answer=None, error=JobError("bad_answer", "no"))


async def failed(queue: Queue, **facts: object) -> Accepted:
    """A job that failed after one step, which cost 4."""
    await queue.worker()
    job = await queue.submit(**facts)
    claim = await queue.claim(job)
    await queue.stores.journal.admit(claim, "c1", 9, {})
    await queue.stores.journal.commit(claim, 0, {"text": "one"}, Settlement("c1", "settled", 9, 4, {}))
    await fail(queue, claim)
    return job


async def replay(queue: Queue, job: Accepted, *, fresh: bool = False) -> Replayed:
    replayed = await queue.jobs.replay(job.id, "default", fresh=fresh)
    assert replayed is not None
    return replayed


async def test_a_replayed_job_goes_on_at_the_step_that_it_had_reached(queue: Queue) -> None:
    """Under its id, with a new attempt; what it has cost is kept and counted on."""
    job = await failed(queue)
    assert await replay(queue, job) == Replayed(fresh=False, waits_for=None)
    found = await queue.job(job)
    assert (found.state, found.error, found.ended_at, found.replays) == (State.QUEUED, None, None, 1)
    claim = await queue.claim(job)
    assert ([unpack(step) for step in claim.journal], claim.attempt) == ([{"text": "one"}], 2)
    await queue.stores.journal.admit(claim, "c2", 9, {})
    ended = await queue.end(claim, settlement=Settlement("c2", "settled", 9, 5, {}))
    assert (ended.state, ended.cost_nanos) == (State.SUCCEEDED, 9)


async def test_a_fresh_replay_starts_from_the_beginning(queue: Queue) -> None:
    """What was spent stays spent."""
    job = await failed(queue)
    assert (await replay(queue, job, fresh=True)).fresh is True
    claim = await queue.claim(job)
    assert claim.journal == ()
    assert (await queue.job(job)).cost_nanos == 4
    await queue.finish(claim)


async def test_a_replay_in_an_unchanged_context_keeps_its_journal(queue: Queue) -> None:
    """And appends where it would have appended."""
    job = await failed(queue, context_id="c")
    assert (await replay(queue, job)).fresh is False
    claim = await queue.claim(job)
    assert len(claim.journal) == 1
    assert await queue.finish(claim, turn=TURN) is True


@pytest.mark.parametrize("change", ["appended", "deleted", "held"])
async def test_a_replay_in_a_context_that_has_changed_starts_afresh_and_says_so(queue: Queue, change: str) -> None:
    """Its steps were made from other turns; who holds the context now will change it before it is this job's turn."""
    await queue.worker("w0")
    await queue.finish(await queue.claim(await queue.submit(context_id="c"), "w0"), turn=TURN)
    job = await failed(queue, context_id="c")
    if change == "deleted":
        await queue.stores.contexts.delete("default", "c")
    else:
        other = await queue.claim(await queue.submit(context_id="c"))
        if change == "appended":
            await queue.finish(other, turn=TURN)
    replayed = await replay(queue, job)
    assert replayed.fresh is True
    assert replayed.waits_for == (other.id if change == "held" else None)
    if change == "held":
        assert await queue.try_claim(job) is None
        await queue.finish(other, turn=TURN)
    claim = await queue.claim(job)
    assert (claim.journal, claim.context_version) == ((), {"appended": 2, "deleted": 0, "held": 2}[change])
    assert await queue.finish(claim, turn=TURN) is True


async def test_a_context_that_was_deleted_and_filled_again_is_another_one(queue: Queue) -> None:
    """Though it is at the same version: what was made from the turns that are gone is not made into turns of it."""
    await queue.worker("w0")
    await queue.finish(await queue.claim(await queue.submit(context_id="c"), "w0"), turn=TURN)
    job = await failed(queue, context_id="c")
    await queue.stores.contexts.delete("default", "c")
    await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
    assert (await replay(queue, job)).fresh is True
    claim = await queue.claim(job)
    assert (claim.journal, claim.context_version) == ((), 1)
    assert await queue.finish(claim, turn=TURN) is True


async def test_a_context_that_was_empty_and_has_gone_changes_nothing(queue: Queue) -> None:
    """What was paid for was made from no turns, and there are none: it is not bought again."""
    job = await failed(queue, context_id="c")
    await queue.stores.contexts.delete("default", "c")
    assert (await replay(queue, job)).fresh is False
    claim = await queue.claim(job)
    assert len(claim.journal) == 1
    assert await queue.finish(claim, turn=TURN) is True


async def test_a_run_that_goes_on_in_another_context_appends_nothing_to_it(queue: Queue) -> None:
    """Its steps were made from the turns that were deleted while it waited."""
    await queue.worker()
    await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
    job = await queue.submit(context_id="c")
    claim = await queue.claim(job)
    await queue.stores.journal.commit(claim, 0, {"text": "one"}, None)
    await queue.jobs.give_back(claim)
    queue.redis.hset("celeriac:context:default:c", "born", "of another")
    assert await queue.finish(await queue.claim(job), turn=TURN) is False


async def test_limits_hold_for_a_replay(queue: Queue) -> None:
    """It waits in its tenant's line like any other."""
    job = await failed(queue)
    await queue.worker("w2", limits={"t:default": 1})
    other = await queue.claim(await queue.submit())
    await replay(queue, job)
    assert await queue.try_claim(job) is None
    await queue.finish(other)
    await queue.finish(await queue.claim(job))


async def test_only_what_ended_without_an_answer_is_replayed(queue: Queue) -> None:
    """Nothing runs twice at once, and nothing that succeeded is done again."""
    await queue.worker()
    job = await queue.submit()
    with pytest.raises(Conflict, match="queued"):
        await replay(queue, job)
    claim = await queue.claim(job)
    with pytest.raises(Conflict, match="running"):
        await replay(queue, job)
    await queue.finish(claim)
    with pytest.raises(Conflict, match="succeeded"):
        await replay(queue, job)
    assert await queue.jobs.replay(job.id, "acme") is None
    assert await queue.jobs.replay("no-such-job", "default") is None


async def test_cancelled_and_expired_jobs_are_replayed_without_their_deadline(queue: Queue) -> None:
    """It would expire at once; a new one may be given."""
    await queue.worker()
    job = await queue.submit(expires_in=timedelta(seconds=5))
    await queue.pass_time(5, "w1")
    assert await queue.state(job) == State.EXPIRED
    await replay(queue, job)
    assert (await queue.job(job)).deadline is None
    await queue.jobs.cancel(job.id, "default")
    await queue.jobs.replay(job.id, "default", expires_in=timedelta(seconds=7))
    await queue.pass_time(5, "w1")
    assert await queue.state(job) == State.QUEUED
    await queue.pass_time(2, "w1")
    assert await queue.state(job) == State.EXPIRED


async def test_a_replayed_job_has_all_its_tries_again(queue: Queue) -> None:
    """And any worker may take it."""
    await queue.worker()
    job = await queue.submit()
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=1), retry=True)
    await queue.pass_time(1, "w1")
    await queue.jobs.leave_to_others(await queue.claim(job))
    await queue.worker("w2")
    await queue.pass_time(5, "w1", "w2")
    await fail(queue, await queue.claim(job, "w2"))
    await replay(queue, job)
    assert (await queue.claim(job, "w1")).retries == 0


@pytest.mark.parametrize("what", ["replays", "steps"])
async def test_a_record_that_makes_no_sense_is_not_replayed(queue: Queue, what: str) -> None:
    """Whoever asks hears why, and it stays as it is."""
    queue.planted = True
    job = await failed(queue)
    queue.redis.hset(f"celeriac:job:{job.id}", what, "many")
    before = queue.redis.hgetall(f"celeriac:job:{job.id}")
    with pytest.raises(Conflict, match="makes no sense"):
        await queue.jobs.replay(job.id, "default")
    assert queue.redis.hgetall(f"celeriac:job:{job.id}") == before


async def test_a_replayed_job_does_not_age(queue: Queue) -> None:
    """Nor is it swept from the lists when its first end would have been forgotten."""
    job = await failed(queue, idempotency_key="k")
    await replay(queue, job)
    queue.later(10 * 86_400_000)
    await queue.submit()
    assert [found.id for found in (await queue.jobs.list("default")).jobs][1:] == [job.id]
    assert queue.redis.ttl(f"celeriac:job:{job.id}") == queue.redis.ttl(f"celeriac:journal:{job.id}") == -1


async def test_a_dead_letter_is_replayed_as_if_it_had_never_crashed(queue: Queue) -> None:
    """It leaves the list of the dead, and has all its lives again; steps made before do not count as made since."""
    job = await failed(queue)
    queue.redis.hset(f"celeriac:job:{job.id}", mapping={"dead": 1, "crashes": 5, "crash_steps": 1})
    queue.redis.zadd("celeriac:dead:default", {job.id: 1})
    await replay(queue, job)
    assert (await queue.jobs.list("default", dead=True)).jobs == ()
    found = await queue.job(job)
    assert (found.dead, found.crashes) == (False, 0)
    await queue.claim(job)
    await queue.given_up()
    assert (await queue.job(job)).crashes == 1


async def test_a_replay_sent_again_gets_the_first_answer(queue: Queue) -> None:
    """A replay whose answer was lost is neither refused nor done twice, also when the job runs already."""
    job = await failed(queue)
    request = {
        "id": job.id, "tenant": "default", "request": "r1", "fresh": True, "expires_in": None, "keep": queue.jobs._keep,
    }  # fmt: skip
    first = await queue.jobs._replay(**request)
    assert (await queue.jobs._replay(**request))[:3] == first[:3]
    claim = await queue.claim(job)
    await queue.stores.journal.commit(claim, 0, {"text": "again"}, None)
    assert (await queue.jobs._replay(**request))[:3] == first[:3]
    found = await queue.job(job)
    assert (found.replays, found.steps) == (1, 1)


async def test_of_two_that_replay_at_once_one_is_told_that_it_is_under_way(queue: Queue) -> None:
    """A job is started once."""
    job = await failed(queue)
    answers = await asyncio.gather(*(replay(queue, job) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 4
    assert (await queue.job(job)).replays == 1


async def test_the_end_before_a_replay_is_answered_as_it_was(queue: Queue) -> None:
    """A finish whose answer was lost may be sent again when the job has started anew."""
    await queue.worker()
    job = await queue.submit()
    claim = await queue.claim(job)
    await fail(queue, claim)
    await replay(queue, job)
    ended = await queue.end(claim, state=State.FAILED, answer=None, error=JobError("bad_answer", "no"))
    assert ended.state == State.FAILED
    assert await queue.state(job) == State.QUEUED
