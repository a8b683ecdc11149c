"""The store went back in time: it is noticed, and mended from what the workers know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from celeriac.connections import unpack
from celeriac.contexts.store import encode_turn
from celeriac.errors import Fenced
from celeriac.jobs.journal import Settlement
from celeriac.jobs.lease import HistoryLost
from celeriac.jobs.model import State
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])


async def test_a_store_that_went_back_is_noticed_at_the_next_heartbeat(queue: Queue) -> None:
    """Once; the worker's lease runs all the same."""
    await queue.worker()
    then = queue.everything()
    for _ in range(3):
        await queue.beat()
    queue.rewind(then)
    with pytest.raises(HistoryLost, match="3 heartbeats") as raised:
        await queue.beat()
    assert raised.value.gone is False
    await queue.beat()
    assert queue.redis.zscore("celeriac:workers", "w1") == queue.now + 15_000


async def test_a_worker_whose_writes_were_lost_notices_though_others_have_beaten_since(queue: Queue) -> None:
    """The count of beats is above what it heard last: its own claims and releases tell. It is told once."""
    await queue.worker()
    claims = [await queue.claim(await queue.submit()) for _ in range(2)]
    then = queue.everything()
    await queue.finish(claims[0])
    await queue.fleet.heartbeat("w1", 10, taking=True, writes=3)
    queue.rewind(then)
    queue.redis.incrby("celeriac:beats", 100)
    with pytest.raises(HistoryLost, match="forgot 1 of our writes") as raised:
        await queue.fleet.heartbeat("w1", 10, taking=True, writes=3)
    assert (raised.value.gone, raised.value.writes) == (False, 2)
    await queue.fleet.heartbeat("w1", 10, taking=True, writes=raised.value.writes)


async def test_a_store_that_forgot_the_worker_says_so_too(queue: Queue) -> None:
    """It has to come back under a new name before anything can be mended."""
    then = queue.everything()
    await queue.worker()
    await queue.beat()
    queue.rewind(then)
    with pytest.raises(HistoryLost) as raised:
        await queue.beat()
    assert raised.value.gone is True
    with pytest.raises(Fenced):
        await queue.beat()


async def test_a_store_that_lost_nothing_is_not_alarmed_about(queue: Queue) -> None:
    """Others beat in between, workers come and go."""
    await queue.worker("w1")
    await queue.beat("w1")
    await queue.worker("w2")
    for _ in range(3):
        await queue.beat("w1")
        await queue.beat("w2")


async def test_a_run_that_the_store_still_knows_goes_on(queue: Queue) -> None:
    """Steps that were lost are brought again, those that were not stay."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    await queue.stores.journal.commit(claim, 0, {"text": "one"}, None)
    then = queue.everything()
    await queue.stores.journal.commit(claim, 1, {"text": "two"}, None)
    queue.rewind(then)
    for _ in range(2):
        assert await queue.fleet.adopt(claim, "w1") == "kept"
    assert (await queue.job(claim.id)).steps == 2
    await queue.jobs.give_back(claim)
    assert [unpack(step)["text"] for step in (await queue.claim(claim.id)).journal] == ["one", "two"]


async def test_a_run_goes_on_under_its_workers_new_name(queue: Queue) -> None:
    """The old name holds nothing any more; a stop that was asked for is asked of the new one."""
    await queue.worker("old", slots=3)
    claim = await queue.claim(await queue.submit(), "old")
    await queue.jobs.cancel(claim.id, None)
    await queue.worker("new", slots=3)
    assert await queue.fleet.adopt(claim, "new") == "kept"
    assert (await queue.beat("old", list_held=True)).held == frozenset()
    assert (await queue.beat("new")).stop == {claim.id: "cancelled"}
    claim.worker = "new"
    await queue.finish(claim)


@pytest.mark.parametrize("place", ["rung", "ready", "parked", "scheduled"])
async def test_a_job_that_stands_as_waiting_is_its_runs_again(queue: Queue, place: str) -> None:
    """Wherever it waits: it leaves that place, nobody else can claim it, and the claim that was lost counts."""
    await queue.worker()
    context = "c" if place != "scheduled" else None
    job = await queue.submit(context_id=context)
    if place == "parked":
        await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=5))
        then = queue.everything()
        await queue.pass_time(5, "w1")
    else:
        if place == "ready":
            queue.later(16_000)
            await queue.fleet.heartbeat("w1", 10, taking=False)
            queue.redis.delete("celeriac")
            await queue.jobs.give_back(await queue.claim(job))
        then = queue.everything()
        if place == "ready":
            await queue.beat()
            await queue.fleet.upkeep()
    claim = await queue.claim(job)
    queue.rewind(then)
    assert await queue.fleet.adopt(claim, "w1") == "taken"
    assert await queue.try_claim(job) is None
    found = await queue.job(job)
    assert (found.state, found.attempts) == (State.RUNNING, claim.attempt)
    assert found.started_at == datetime.fromtimestamp(int(claim.record["started"]) / 1000, UTC)
    assert await queue.finish(claim, turn=TURN if context else b"") is (True if context else None)


async def test_a_limit_counts_a_job_that_was_adopted(queue: Queue) -> None:
    """A job that stood as waiting had no place under it: now that it runs, its tenant's next one waits for its end."""
    await queue.worker(limits={"t:default": 1})
    job = await queue.submit()
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=5))
    then = queue.everything()
    await queue.pass_time(5, "w1")
    claim = await queue.claim(job)
    queue.rewind(then)
    assert await queue.fleet.adopt(claim, "w1") == "taken"
    other = await queue.submit()
    assert queue.record(other)["place"] == "ready"
    await queue.finish(claim)
    assert queue.record(other)["place"] == "rung"


async def test_a_job_that_the_store_forgot_is_restored_from_its_runs_copy(queue: Queue) -> None:
    """With its steps, its deadline and its key; the number of its submission is not given out again."""
    await queue.worker()
    then = queue.everything()
    job = await queue.submit(
        context_id="c", idempotency_key="k", fingerprint="f", expires_in=timedelta(seconds=50), metadata={"order": "7"}
    )
    claim = await queue.claim(job)
    await queue.stores.journal.admit(claim, "c1", 9, {})
    await queue.stores.journal.commit(claim, 0, {"text": "one"}, None)
    queue.rewind(then)
    with pytest.raises(Fenced):
        await queue.finish(claim)
    assert await queue.fleet.adopt(claim, "w1") == "restored"
    found = await queue.job(job)
    assert (found.state, found.steps, found.metadata) == (State.RUNNING, 1, {"order": "7"})
    assert (await queue.submit(idempotency_key="k", fingerprint="f")).id == job.id
    assert (await queue.submit(context_id="c")).waits_for == job.id
    await queue.stores.journal.settle(claim, Settlement("c1", "settled", 9, 4, {}))
    await queue.pass_time(50, "w1")
    assert (await queue.beat()).stop == {job.id: "expired"}
    ended = await queue.end(claim, turn=TURN)
    assert (ended.state, ended.cost_nanos, ended.appended) == (State.SUCCEEDED, 4, True)
    assert len((await queue.jobs.list("default")).jobs) == 2
    assert len({queue.record(job.id)["seq"] for job in (await queue.jobs.list("default")).jobs}) == 2


async def test_a_job_that_another_run_holds_is_not_taken_from_it(queue: Queue) -> None:
    """The store's history counts, even if it is not the one that was lost."""
    await queue.worker()
    await queue.worker("w2")
    job = await queue.submit()
    then = queue.everything()
    claim = await queue.claim(job)
    queue.rewind(then)
    other = await queue.claim(job, "w2")
    before = queue.everything()
    assert await queue.fleet.adopt(claim, "w1") is None
    assert queue.everything() == before
    await queue.finish(other)
    assert await queue.fleet.adopt(claim, "w1") is None
    assert await queue.state(job) == State.SUCCEEDED


@pytest.mark.parametrize("known", [True, False])
async def test_a_run_whose_context_another_job_holds_is_not_to_go_on(queue: Queue, known: bool) -> None:
    """Two jobs of a context at once would write over each other; nothing is changed by the attempt."""
    await queue.worker()
    empty = queue.everything()
    first = await queue.submit(context_id="c")
    second = await queue.submit(context_id="c")
    then = queue.everything() if known else empty
    await queue.finish(await queue.claim(first), turn=TURN)
    claim = await queue.claim(second)
    queue.rewind(then)
    if not known:
        await queue.submit(context_id="c")
    before = queue.everything()
    assert await queue.fleet.adopt(claim, "w1") is None
    assert queue.everything() == before


async def test_a_worker_that_the_store_does_not_know_mends_nothing(queue: Queue) -> None:
    """Its lease would never end."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    before = queue.everything()
    assert await queue.fleet.adopt(claim, "stranger") is None
    assert queue.everything() == before
