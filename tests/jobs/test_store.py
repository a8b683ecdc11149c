"""The job store keeps each job in one place and lets one run write for it."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from redis.exceptions import ResponseError

from celeriac.connections import unpack
from celeriac.contexts.store import encode_turn
from celeriac.errors import Conflict, Fenced, Invalid, Misconfigured, StoreUnavailable
from celeriac.jobs.model import MOVES, PROTOCOL, Asked, JobError, Place, State
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Message
from celeriac.settings import Settings
from celeriac.stores import open_stores
from tests.conftest import Valkey
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])


async def test_a_job_goes_from_submission_to_its_answer(queue: Queue) -> None:
    """What was submitted is what the run gets, and what the run wrote is what the caller sees."""
    await queue.worker()
    job = await queue.submit(metadata={"order": "7"}, request_id="r-1", max_output_tokens=5, model="openai/x")
    assert await queue.state(job) == State.QUEUED
    queue.later(250)
    claim = await queue.claim(job)
    assert await queue.state(job) == State.RUNNING
    assert (claim.attempt, claim.waited, claim.request_id) == (1, 0.25, "r-1")
    assert unpack(claim.spec) == {"input": [["user", "hi"]], "model": "openai/x", "max_output_tokens": 5}
    await queue.finish(claim, model="x-1", usage={"input_tokens": 3})
    found = await queue.jobs.get(job.id, "default")
    assert found is not None
    assert (found.state, found.answer, found.model, found.usage) == (
        State.SUCCEEDED,
        "Paris",
        "x-1",
        {"input_tokens": 3},
    )
    assert found.metadata == {"order": "7"}
    assert found.started_at is not None
    assert found.started_at - found.created_at == timedelta(milliseconds=250)


async def test_a_job_submitted_twice_is_one_job(queue: Queue) -> None:
    """A submit whose answer was lost is sent again; the second changes nothing."""
    id = new_id()
    first = await queue.submit(id=id)
    queue.later(10)
    assert await queue.submit(id=id) == first
    assert len((await queue.jobs.list("default")).jobs) == 1


async def test_a_job_is_seen_by_its_tenant_alone(queue: Queue) -> None:
    """Another tenant's job does not exist."""
    job = await queue.submit(tenant="acme")
    assert await queue.jobs.get(job.id, "default") is None
    assert (await queue.jobs.list("default")).jobs == ()
    assert await queue.state(job, "acme") == State.QUEUED


async def test_only_a_job_whose_bell_is_out_can_be_claimed(queue: Queue) -> None:
    """A stale bell cannot get round the limits of dispatch: waiting, claimed and ended jobs are not given out."""
    waiting = await queue.submit()
    await queue.worker(slots=1)
    behind = [await queue.submit() for _ in range(5)]
    assert await queue.try_claim(behind[-1]) is None
    claim = await queue.claim(waiting)
    assert await queue.try_claim(waiting) is None
    await queue.finish(claim)
    assert await queue.try_claim(waiting) is None
    assert await queue.try_claim("no-such-job") is None


async def test_the_same_claim_again_gets_the_same_answer(queue: Queue) -> None:
    """A claim whose answer was lost is sent again and is not a second attempt."""
    await queue.worker()
    job, nonce = await queue.submit(), new_nonce()
    first = await queue.try_claim(job, nonce=nonce)
    assert first is not None
    assert await queue.try_claim(job, nonce=nonce) == first
    assert first.attempt == 1


async def test_a_worker_the_store_does_not_know_claims_nothing(queue: Queue) -> None:
    """Who was given up learns it at its next claim."""
    await queue.worker()
    job = await queue.submit()
    with pytest.raises(Fenced):
        await queue.try_claim(job, "stranger")


@pytest.mark.parametrize("change", [{"worker": "w2"}, {"nonce": "another"}])
async def test_only_the_run_that_holds_the_job_writes(queue: Queue, change: dict[str, str]) -> None:
    """Both halves of the fence count: the worker's name and the claim's nonce."""
    await queue.worker()
    await queue.worker("w2")
    job = await queue.submit()
    claim = await queue.claim(job)
    other = dataclasses.replace(claim, **change)
    with pytest.raises(Fenced):
        await queue.finish(other)
    with pytest.raises(Fenced):
        await queue.jobs.give_back(other)
    assert await queue.state(job) == State.RUNNING


async def test_a_finish_sent_again_gets_the_first_answer(queue: Queue) -> None:
    """A finish whose answer was lost is neither fenced nor done twice: the context has one turn."""
    await queue.worker()
    job = await queue.submit(context_id="c")
    claim = await queue.claim(job)
    assert await queue.finish(claim, turn=TURN) is True
    assert await queue.finish(claim, turn=TURN) is True
    context = await queue.stores.contexts.get("default", "c")
    assert context is not None
    assert len(context.messages) == 2


async def test_an_end_never_changes(queue: Queue) -> None:
    """Who comes second is fenced, whatever it wants to write."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.finish(claim)
    with pytest.raises(Fenced):
        await queue.jobs.give_back(claim)
    assert await queue.state(claim.id) == State.SUCCEEDED
    assert MOVES[Place.ENDED] == frozenset()


async def test_a_job_given_back_is_ready_at_once(queue: Queue) -> None:
    """A run that hands over in good order frees its slot, and the next run has a fence of its own."""
    await queue.worker(slots=1)
    job = await queue.submit()
    first = await queue.claim(job)
    await queue.jobs.give_back(first)
    await queue.jobs.give_back(first)
    second = await queue.claim(job)
    assert second.attempt == 2
    with pytest.raises(Fenced):
        await queue.finish(first)
    await queue.finish(second)


async def test_a_failure_keeps_its_code(queue: Queue) -> None:
    """Callers decide by the code, people read the message."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.finish(claim, state=State.FAILED, answer=None, error=JobError("rate_limited", "busy"))
    job = await queue.jobs.get(claim.id, "default")
    assert job is not None
    assert (job.state, job.error, job.answer) == (State.FAILED, JobError("rate_limited", "busy"), None)


async def test_an_illegal_move_is_refused_before_anything_is_written(queue: Queue) -> None:
    """The table of moves is the scripts' own: a record planted in a wrong place is not touched."""
    await queue.worker()
    job = await queue.submit()
    key = f"celeriac:job:{job.id}"
    queue.redis.hset(key, "place", "nowhere")
    queue.planted = True
    before = queue.redis.hgetall(key)
    assert await queue.try_claim(job) is None
    assert queue.redis.hgetall(key) == before
    queue.redis.hset(key, "place", "new")
    everything = queue.everything()
    with pytest.raises(ResponseError, match="illegal move from new to ended"):
        await queue.jobs.cancel(job.id, None)
    assert queue.everything() == everything


async def test_what_ended_is_forgotten_after_its_time_and_leaves_its_indexes(queue: Queue) -> None:
    """Nothing grows for ever: the record ages, and index entries go with it."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.finish(claim)
    assert 86_300_000 < queue.redis.pttl(f"celeriac:job:{claim.id}") <= 86_400_000
    queue.redis.delete(f"celeriac:job:{claim.id}")  # as Redis does when its time has come
    queue.later(86_400_000)
    await queue.submit()
    assert queue.redis.zscore("celeriac:jobs:default", claim.id) is None
    assert queue.redis.zscore("celeriac:jobs:default:succeeded", claim.id) is None
    assert queue.redis.zcard("celeriac:retention") == 0


@pytest.mark.parametrize("who", ["submit", "finish", "upkeep"])
async def test_whoever_comes_by_sweeps_a_little(queue: Queue, who: str) -> None:
    """So the lists shrink while there is work, too."""
    await queue.worker()
    running = await queue.claim(await queue.submit())
    ended = await queue.submit()
    await queue.jobs.cancel(ended.id, None)
    queue.redis.delete(f"celeriac:job:{ended.id}")
    queue.later(86_400_000)
    if who == "submit":
        await queue.submit()
    elif who == "finish":
        await queue.finish(running)
    else:
        await queue.fleet.upkeep()
    assert queue.redis.zscore("celeriac:jobs:default", ended.id) is None
    queue.later(-86_400_000)


async def test_a_tenant_without_jobs_is_listed_no_more(queue: Queue) -> None:
    """Once its last record has aged out."""
    await queue.worker()
    await queue.finish(await queue.claim(await queue.submit(tenant="a")))
    queue.redis.zadd("celeriac:retention", dict.fromkeys(queue.redis.zrange("celeriac:retention", 0, -1), 1))
    for name in queue.redis.keys("celeriac:job:*"):
        queue.redis.delete(name)
    await queue.submit(tenant="b")
    assert await queue.jobs.tenants(10) == ["b"]


async def test_whoever_waits_for_an_end_is_woken(queue: Queue) -> None:
    """However the job ends."""
    await queue.worker()
    jobs = [await queue.submit() for _ in range(2)]
    async with queue.stores.ends.watch(jobs[0].id) as first, queue.stores.ends.watch(jobs[1].id) as second:
        await queue.finish(await queue.claim(jobs[0]))
        await asyncio.wait_for(first.wait(), 5)
        assert not second.is_set()
        await queue.jobs.cancel(jobs[1].id, None)
        await asyncio.wait_for(second.wait(), 5)


async def test_a_waiting_job_does_not_age(queue: Queue) -> None:
    """A record lives at least as long as anything that points at it."""
    job = await queue.submit(context_id="c")
    assert queue.redis.ttl(f"celeriac:job:{job.id}") == -1
    assert queue.redis.ttl("celeriac:context:default:c") == -1


async def test_jobs_are_listed_newest_first_by_page_state_and_agent(queue: Queue) -> None:
    """Pages meet without a gap or an overlap, whatever they are filtered by."""
    await queue.worker(slots=100)
    jobs = [await queue.submit(agent="assistant" if i % 2 else "reviewer") for i in range(25)]
    for job in jobs[:5]:
        await queue.finish(await queue.claim(job))

    async def pages(**filters: object) -> list[str]:
        ids, cursor = [], None
        while True:
            page = await queue.jobs.list("default", cursor=cursor, limit=4, **filters)  # type: ignore[arg-type]
            ids += [job.id for job in page.jobs]
            if (cursor := page.cursor) is None:
                return ids

    assert await pages() == [job.id for job in reversed(jobs)]
    assert await pages(state=State.SUCCEEDED) == [job.id for job in reversed(jobs[:5])]
    assert await pages(agent="reviewer") == [job.id for job in reversed(jobs[::2])]
    assert await pages(state=State.QUEUED, agent="assistant") == [
        job.id for job in reversed(jobs[5:]) if job in jobs[1::2]
    ]
    with pytest.raises(Invalid):
        await queue.jobs.list("default", cursor="x")


async def test_the_jobs_of_all_tenants_are_one_list(queue: Queue) -> None:
    """The newest first, whoever has them, and its pages meet too; the counts agree with it."""
    await queue.worker(slots=100)
    tenants = ["a"] * 30 + ["b", "c"] * 10 + ["a", "b", "b"] * 4
    jobs = [await queue.submit(tenant=t, agent="assistant" if i % 3 else "reviewer") for i, t in enumerate(tenants)]
    ended = {*jobs[:4], *jobs[30:40]}
    for job in ended:
        claim = await queue.claim(job)
        await queue.finish(claim)

    async def pages(limit: int, **filters: Any) -> list[str]:
        ids, cursor = [], None
        while True:
            page = await queue.jobs.list(None, cursor=cursor, limit=limit, **filters)
            ids += [job.id for job in page.jobs]
            if (cursor := page.cursor) is None:
                return ids

    newest = [*reversed(jobs)]
    for limit in (1, 7, 100):
        assert await pages(limit) == [job.id for job in newest]
    assert await pages(3, state=State.SUCCEEDED) == [job.id for job in newest if job in ended]
    assert await pages(2, agent="reviewer") == [job.id for job in reversed(jobs[::3])]
    counted = await queue.jobs.count(None)
    assert (counted.states[State.SUCCEEDED], sum(counted.states.values()), counted.dead) == (14, len(jobs), 0)
    assert sum((await queue.jobs.count("a")).states.values()) == 34
    assert await queue.jobs.tenants(10) == ["a", "b", "c"]
    assert len(await queue.jobs.tenants(2)) == 2


async def test_two_jobs_with_one_number_hold_nobody_up(queue: Queue) -> None:
    """A store that lost history gives numbers out again: both are listed, and the script ends."""
    queue.planted = True
    first = await queue.submit(tenant="a")
    queue.redis.set("celeriac:seq", 0)
    second = await queue.submit(tenant="b")
    page = await queue.jobs.list(None, limit=10)
    assert {job.id for job in page.jobs} == {first.id, second.id}


async def test_a_page_of_all_tenants_looks_at_no_more_than_it_shows(queue: Queue) -> None:
    """However many jobs there are: each tenant's newest, and of those that have the newest a few more."""

    async def looks() -> int:
        queue.redis.config_resetstat()
        assert len((await queue.jobs.list(None, limit=50)).jobs) == 50
        used = queue.redis.info("commandstats")
        return int(used["cmdstat_zrevrangebyscore"]["calls"]) + int(used["cmdstat_hmget"]["calls"])

    for n in range(200):
        await queue.submit(tenant=f"t{n % 4}")
    few = await looks()
    for n in range(800):
        await queue.submit(tenant=f"t{n % 4}")
    assert await looks() == few < 250


async def test_jobs_are_listed_by_what_they_wait_for(queue: Queue) -> None:
    """Those that somebody has to allow something, among those that are parked for another reason."""
    await queue.worker()
    claims = [await queue.claim(await queue.submit(tenant=tenant)) for tenant in ("a", "b", "b")]
    for claim in claims[:2]:
        await queue.jobs.wait_for_approval(claim, [Asked("1.c", "sell", "{}")], timedelta(hours=1))
    await queue.jobs.park(claims[2], "retry", timedelta(hours=1))
    page = await queue.jobs.list(None, state=State.PARKED, reason="waiting_approval")
    assert [job.id for job in page.jobs] == [claims[1].id, claims[0].id]
    assert await queue.jobs.question(claims[0].id) == (("user", "hi"),)
    assert await queue.jobs.question("no-such-job") == ()


async def test_a_list_of_tenants_that_makes_no_sense_is_begun_anew(queue: Queue) -> None:
    """By the next submission; nobody's is refused for it."""
    queue.redis.rpush("celeriac:tenants", "nonsense")
    job = await queue.submit(tenant="a")
    assert [found.id for found in (await queue.jobs.list(None)).jobs] == [job.id]


async def test_a_page_far_down_a_long_list_is_found(queue: Queue) -> None:
    """One script looks at 500 jobs at most; the page goes on until it is full."""
    rare = await queue.submit(agent="reviewer")
    for _ in range(1010):
        await queue.submit()
    page = await queue.jobs.list("default", agent="reviewer", limit=1)
    assert [job.id for job in page.jobs] == [rare.id]


async def test_a_store_that_is_away_says_that_the_job_may_have_been_accepted(own_valkey: Valkey) -> None:
    """Only the write that may have happened names the job."""
    stores = open_stores(Settings(redis_url=own_valkey.url))  # type: ignore[arg-type]
    own_valkey.stop()
    queue = Queue(stores, None, own_valkey.client(), {})  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable) as raised:
        await queue.submit(id="j1")
    assert (raised.value.maybe_accepted, raised.value.job_id) == (True, "j1")
    with pytest.raises(StoreUnavailable) as raised:
        await stores.jobs.get("j1", "default")
    assert raised.value.maybe_accepted is False
    await stores.close()


async def test_a_record_with_a_field_more_is_a_record_all_the_same(queue: Queue) -> None:
    """The next release may write one while a deploy rolls; it is kept, and given to the run."""
    await queue.worker()
    job = await queue.submit()
    queue.redis.hset(f"celeriac:job:{job.id}", "colour", "green")
    claim = await queue.claim(job)
    assert claim.record["colour"] == b"green"
    await queue.finish(claim)
    assert queue.record(job)["colour"] == "green"


async def test_an_older_worker_is_refused_by_a_newer_fleet(queue: Queue) -> None:
    """Two releases may share a store; a protocol that the fleet has left behind may not."""
    await queue.worker("w0")
    assert queue.redis.get("celeriac:protocol") == str(PROTOCOL)
    queue.redis.set("celeriac:protocol", PROTOCOL + 1)
    with pytest.raises(Misconfigured, match="newer release"):
        await queue.worker()


class TestContexts:
    async def test_jobs_of_a_context_run_one_at_a_time_in_order(self, queue: Queue) -> None:
        """Each reads what the one before it wrote; nobody is overtaken."""
        await queue.worker()
        jobs = [await queue.submit(context_id="c") for _ in range(3)]
        assert [job.waits_for for job in jobs] == [None, jobs[0].id, jobs[0].id]
        for i, job in enumerate(jobs):
            assert queue.rung()[-1] == job.id
            for later in jobs[i + 1 :]:
                assert await queue.try_claim(later) is None
            claim = await queue.claim(job)
            assert len(claim.turns) == claim.context_version == i
            await queue.finish(claim, turn=TURN)
        second = await queue.jobs.get(jobs[1].id, "default")
        assert second is not None
        assert second.waits_for is None

    async def test_the_next_of_a_context_is_rung_at_once_whoever_serves_its_queue(self, queue: Queue) -> None:
        """The worker that ends the first may serve another one."""
        await queue.worker("w1")
        await queue.worker("w2", queues=("slow",))
        first = await queue.submit(context_id="c")
        second = await queue.submit(context_id="c", queue="slow")
        await queue.finish(await queue.claim(first))
        assert queue.rung("slow") == [second.id]

    async def test_a_job_that_would_not_wait_is_told_who_holds_the_context(self, queue: Queue) -> None:
        """409 names the blocker, and nothing is stored."""
        first = await queue.submit(context_id="c")
        with pytest.raises(Conflict, match=first.id):
            await queue.submit(context_id="c", if_busy="reject")
        assert len((await queue.jobs.list("default")).jobs) == 1

    async def test_two_tenants_may_name_a_context_alike(self, queue: Queue) -> None:
        """A context belongs to its tenant."""
        await queue.submit(context_id="c")
        assert (await queue.submit(context_id="c", tenant="acme")).waits_for is None
        assert await queue.stores.contexts.get("other", "c") is None

    async def test_a_failed_job_appends_nothing_and_the_next_goes_on(self, queue: Queue) -> None:
        """A conversation holds only what was answered."""
        await queue.worker()
        first, second = await queue.submit(context_id="c"), await queue.submit(context_id="c")
        assert await queue.finish(await queue.claim(first), state=State.FAILED, answer=None) is None
        assert (await queue.claim(second)).turns == ()

    async def test_a_deleted_context_is_not_written_again_by_a_job_that_read_it(self, queue: Queue) -> None:
        """The job still ends, says that nothing was appended, and the next one begins afresh."""
        await queue.worker()
        await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        first, second = await queue.submit(context_id="c"), await queue.submit(context_id="c")
        claim = await queue.claim(first)
        assert await queue.stores.contexts.delete("default", "c") is True
        assert await queue.finish(claim, turn=TURN) is False
        job = await queue.jobs.get(first.id, "default")
        assert job is not None
        assert (job.state, job.context_appended) == (State.SUCCEEDED, False)
        claim = await queue.claim(second)
        assert claim.turns == ()
        assert await queue.finish(claim, turn=TURN) is True

    async def test_a_context_that_was_deleted_while_it_was_held_has_all_its_room_again(self, queue: Queue) -> None:
        """What was deleted does not count: the new turns are trimmed no earlier than those of a new context."""
        queue.jobs._max_messages, queue.jobs._max_bytes = 4, 2 * len(TURN)
        await queue.worker()
        for _ in range(2):
            await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        claim = await queue.claim(await queue.submit(context_id="c"))
        await queue.stores.contexts.delete("default", "c")
        meta = queue.redis.hgetall("celeriac:context:default:c")
        assert (meta["messages"], meta["bytes"]) == ("0", "0")
        await queue.finish(claim, turn=TURN)
        for _ in range(2):
            await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        context = await queue.stores.contexts.get("default", "c")
        assert context is not None
        assert len(context.messages) == 4

    @pytest.mark.parametrize("steps", [0, 1])
    async def test_a_run_that_goes_on_from_its_journal_appends_to_the_turns_that_it_was_made_from(
        self, queue: Queue, steps: int
    ) -> None:
        """A job that made no step yet reads the conversation anew; steps are not mixed with another one's."""
        await queue.worker()
        await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        job = await queue.submit(context_id="c")
        claim = await queue.claim(job)
        for step in range(steps):
            await queue.stores.journal.commit(claim, step, {"text": "x"}, None)
        await queue.jobs.give_back(claim)
        await queue.stores.contexts.delete("default", "c")
        assert await queue.finish(await queue.claim(job), turn=TURN) is (steps == 0)

    async def test_an_idle_context_is_deleted_whole(self, queue: Queue) -> None:
        """Nothing of it is left but, for a minute, that it was; deleting it again says that there was none."""
        await queue.worker()
        await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        assert await queue.stores.contexts.delete("default", "c") is True
        assert queue.redis.keys("celeriac:*:default:c") == ["celeriac:deleted:default:c"]
        assert 0 < queue.redis.pttl("celeriac:deleted:default:c") <= 60_000
        assert await queue.stores.contexts.delete("default", "c") is False

    async def test_a_context_ages_from_the_end_of_its_last_job(self, queue: Queue) -> None:
        """Both keys age together, and neither while a job runs or waits."""
        await queue.worker()
        keys = ["celeriac:context:default:c", "celeriac:turns:default:c"]
        await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        assert all(86_300 < queue.redis.ttl(key) <= 86_400 for key in keys)
        job = await queue.submit(context_id="c")
        assert [queue.redis.ttl(key) for key in keys] == [-1, -1]
        await queue.finish(await queue.claim(job), turn=TURN)
        assert all(86_300 < queue.redis.ttl(key) <= 86_400 for key in keys)

    @pytest.mark.parametrize(("messages", "size", "kept"), [(4, 1_000_000, 2), (1000, 2 * len(TURN), 2), (1, 1, 1)])
    async def test_old_turns_go_whole_when_there_are_too_many(
        self, queue: Queue, messages: int, size: int, kept: int
    ) -> None:
        """Trimmed at the border of a turn, by messages or by bytes; the newest always stays."""
        queue.jobs._max_messages, queue.jobs._max_bytes = messages, size
        await queue.worker()
        for _ in range(5):
            await queue.finish(await queue.claim(await queue.submit(context_id="c")), turn=TURN)
        context = await queue.stores.contexts.get("default", "c")
        assert context is not None
        assert len(context.messages) == kept * 2
        meta = queue.redis.hgetall("celeriac:context:default:c")
        assert (int(meta["messages"]), int(meta["bytes"])) == (kept * 2, kept * len(TURN))

    def test_a_long_turn_is_compressed_and_read_back(self) -> None:
        """Text that shrinks is stored small; what comes back is what went in."""
        from celeriac.contexts.store import decode_turns

        messages = (Message("user", "ein Satz, der sich wiederholt. " * 200), Message("assistant", "ü\n\0"))
        turn = encode_turn(messages)
        assert len(turn) < 1000
        assert decode_turns([turn, TURN]) == (*messages, Message("user", "hi"), Message("assistant", "Paris"))
