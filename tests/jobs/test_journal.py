"""A call is booked before it is sent, its money lands once, and a finished step is never made again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from celeriac import keys
from celeriac.connections import pack, unpack
from celeriac.costs.books import Account, counts
from celeriac.errors import Fenced, Invalid, Stopped
from celeriac.jobs.journal import MOST_NANOS, Admitted, Journal, Settlement
from celeriac.jobs.model import Claim, Doubt, JobError, State
from celeriac.llm.model import Lane
from tests.conftest import Valkey
from tests.jobs.conftest import Queue


def settled(nanos: int, *, call: str = "c1", bound: int = 100, **facts: object) -> Settlement:
    return Settlement(call, "settled", bound, nanos, facts)


@pytest.fixture
async def claim(queue: Queue) -> Claim:
    await queue.worker()
    return await queue.claim(await queue.submit())


@pytest.fixture
def journal(queue: Queue) -> Journal:
    return queue.stores.journal


async def sums(queue: Queue, claim: Claim) -> tuple[int, int, int]:
    """Reserved, in doubt, settled."""
    record = queue.record(claim)
    return int(record.get("reserved", 0)), int(record.get("in_doubt", 0)), int(record.get("cost", 0))


async def test_a_call_is_booked_at_its_highest_price_before_it_is_sent(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """The same call again changes nothing."""
    for _ in range(2):
        await journal.admit(claim, "c1", 100, {"lane": "openai/x"})
    assert await sums(queue, claim) == (100, 0, 0)
    (call,) = (await queue.job(claim.id)).calls
    assert (call.id, call.stands, call.nanos, call.facts) == ("c1", "open", 100, {"lane": "openai/x"})


async def test_a_settled_call_costs_its_price_and_counts_once(queue: Queue, claim: Claim, journal: Journal) -> None:
    """However often it is said, and whatever is said later."""
    await journal.admit(claim, "c1", 100, {})
    await journal.settle(claim, settled(40, model="x-1"))
    for other in (
        settled(40),
        settled(70),
        Settlement("c1", "released", 100, 0, {}),
        Settlement("c1", "doubt", 9, 0, {}),
    ):
        await journal.settle(claim, other)
    assert await sums(queue, claim) == (0, 0, 40)
    (call,) = (await queue.job(claim.id)).calls
    assert (call.stands, call.nanos, call.facts) == ("settled", 40, {"model": "x-1"})


async def test_a_released_call_costs_nothing_and_stays_released(queue: Queue, claim: Claim, journal: Journal) -> None:
    """There was proof that it was not billed."""
    await journal.admit(claim, "c1", 100, {})
    await journal.settle(claim, Settlement("c1", "released", 100, 0, {}))
    await journal.settle(claim, settled(40))
    assert await sums(queue, claim) == (0, 0, 0)


async def test_a_price_above_the_bound_is_booked_as_it_is(queue: Queue, claim: Claim, journal: Journal) -> None:
    """The truth, never clamped."""
    await journal.admit(claim, "c1", 100, {})
    await journal.settle(claim, settled(250))
    assert await sums(queue, claim) == (0, 0, 250)


async def test_a_call_of_a_free_model_is_booked_too(queue: Queue, claim: Claim, journal: Journal) -> None:
    """Nothing is an amount like any other."""
    await journal.admit(claim, "c1", 0, {})
    await journal.settle(claim, settled(0, bound=0))
    await journal.admit(claim, "c2", 0, {})
    await queue.jobs.give_back(claim)
    assert [call.stands for call in (await queue.job(claim.id)).calls] == ["settled", "doubt"]


async def test_money_is_exact_beyond_what_lua_counts(queue: Queue, claim: Claim, journal: Journal) -> None:
    """Amounts stay text; what one call may not cost is refused and not booked as less."""
    for i in range(3):
        await journal.admit(claim, f"c{i}", MOST_NANOS - 1, {})
    await journal.settle(claim, settled(MOST_NANOS - 1, call="c0", bound=MOST_NANOS - 1))
    assert await sums(queue, claim) == (2 * (MOST_NANOS - 1), 0, MOST_NANOS - 1)
    before = queue.everything()
    with pytest.raises(Invalid):
        await journal.admit(claim, "c9", MOST_NANOS + 1, {})
    assert queue.everything() == before


Leave = Callable[[Queue, Claim], Awaitable[object]]
LEAVE: dict[str, Leave] = {
    "finish": lambda queue, claim: queue.finish(claim),
    "park": lambda queue, claim: queue.jobs.park(claim, "retry", timedelta(seconds=1)),
    "give_back": lambda queue, claim: queue.jobs.give_back(claim),
    "disown": lambda queue, claim: queue.fleet.disown(claim.worker, claim.id),
    "given_up": lambda queue, claim: queue.given_up(),
}


@pytest.mark.parametrize("how", LEAVE)
async def test_a_call_without_an_outcome_is_in_doubt_as_soon_as_its_run_lets_go(
    queue: Queue, claim: Claim, journal: Journal, how: str
) -> None:
    """In the very step that takes the job, at the full bound; what arrives later corrects it."""
    await journal.admit(claim, "c1", 100, {})
    await journal.admit(claim, "c2", 30, {})
    await journal.settle(claim, settled(5, call="c2", bound=30))
    await LEAVE[how](queue, claim)
    assert await sums(queue, claim) == (0, 100, 5)
    await journal.settle(claim, settled(40))
    assert await sums(queue, claim) == (0, 0, 45)


async def test_a_call_in_doubt_may_turn_out_not_to_be_billed(queue: Queue, claim: Claim, journal: Journal) -> None:
    """Proof may come late as well."""
    await journal.admit(claim, "c1", 100, {})
    await journal.settle(claim, Settlement("c1", "doubt", 100, 0, {"error": "timeout"}))
    assert await sums(queue, claim) == (0, 100, 0)
    await journal.settle(claim, Settlement("c1", "released", 100, 0, {}))
    assert await sums(queue, claim) == (0, 0, 0)


async def test_a_job_that_was_asked_to_stop_admits_no_call(queue: Queue, claim: Claim, journal: Journal) -> None:
    """What is not sent costs nothing."""
    await queue.jobs.cancel(claim.id, None)
    with pytest.raises(Stopped):
        await journal.admit(claim, "c1", 100, {})
    assert await sums(queue, claim) == (0, 0, 0)


async def test_a_call_that_the_store_does_not_know_is_booked_and_said(
    queue: Queue, claim: Claim, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lost its history: the worker's own copy counts. It ages with its job, if that has ended."""
    await queue.finish(claim)
    await journal.settle(claim, settled(40, call="lost"))
    assert await sums(queue, claim) == (0, 0, 40)
    assert queue.redis.ttl(f"celeriac:calls:{claim.id}") > 0
    assert "call_not_known" in capsys.readouterr().out


async def test_money_for_a_job_that_is_gone_is_said(
    queue: Queue, claim: Claim, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to book it to, and no key is made that nobody would remove."""
    await queue.finish(claim)
    queue.redis.delete(f"celeriac:job:{claim.id}")
    queue.planted = True
    await journal.settle(claim, settled(40))
    assert not queue.redis.exists(f"celeriac:calls:{claim.id}", f"celeriac:job:{claim.id}")
    assert "call_not_known" in capsys.readouterr().out


async def test_a_finished_step_is_stored_with_the_price_of_its_call(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """In one step; the same again changes nothing."""
    for step in range(2):
        call = f"c{step}"
        await journal.admit(claim, call, 100, {})
        for _ in range(2):
            await journal.commit(claim, step, {"text": call}, settled(40, call=call))
    assert await sums(queue, claim) == (0, 0, 80)
    assert [unpack(step) for step in claim.journal] == [{"text": "c0"}, {"text": "c1"}]
    assert (await queue.job(claim.id)).steps == 2


async def test_a_resumed_job_has_the_steps_that_were_made(queue: Queue, claim: Claim, journal: Journal) -> None:
    """Whoever takes it, and however the run before ended."""
    await journal.commit(claim, 0, {"text": "one"}, None)
    await queue.jobs.give_back(claim)
    second = await queue.claim(claim.id)
    assert second.journal == (pack({"text": "one"}),)
    await journal.commit(second, 1, {"text": "two"}, None)
    await queue.given_up()
    await queue.worker("w2")
    third = await queue.claim(claim.id, "w2")
    assert [unpack(step) for step in third.journal] == [{"text": "one"}, {"text": "two"}]


async def test_steps_that_the_store_lost_are_stored_again_by_the_run_that_made_them(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """Else the next run would buy them again; steps that this run did not make it cannot bring."""
    for step in range(2):
        await journal.commit(claim, step, {"text": str(step)}, None)
    queue.redis.ltrim(f"celeriac:journal:{claim.id}", 0, 0)
    await journal.commit(claim, 2, {"text": "2"}, None)
    await queue.jobs.give_back(claim)
    second = await queue.claim(claim.id)
    assert [unpack(step)["text"] for step in second.journal] == ["0", "1", "2"]
    second.journal = ()
    queue.redis.delete(f"celeriac:journal:{claim.id}")
    with pytest.raises(Fenced):
        await journal.commit(second, 3, {"text": "3"}, None)
    queue.redis.hset(f"celeriac:job:{claim.id}", "steps", 0)


async def test_the_end_books_the_call_that_brought_the_answer(queue: Queue, claim: Claim, journal: Journal) -> None:
    """One step for answer and money; the same again gets the same sums."""
    await journal.admit(claim, "c1", 100, {})
    for _ in range(2):
        ended = await queue.end(claim, settlement=settled(40))
        assert (ended.cost_nanos, ended.in_doubt_nanos) == (40, 0)
    found = await queue.job(claim.id)
    assert (found.cost_nanos, found.in_doubt_nanos) == (40, 0)


async def test_the_end_of_a_fenced_run_books_its_money_and_nothing_else(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """The answer is thrown away, what it cost is not."""
    await journal.admit(claim, "c1", 100, {})
    await queue.given_up()
    with pytest.raises(Fenced):
        await queue.finish(claim, settlement=settled(40))
    assert await sums(queue, claim) == (0, 0, 40)
    assert await queue.state(claim.id) == State.QUEUED


async def test_what_a_job_cost_is_kept_however_it_ends(queue: Queue, claim: Claim, journal: Journal) -> None:
    """A failure costs as much."""
    await journal.admit(claim, "c1", 100, {})
    await journal.admit(claim, "c2", 7, {})
    ended = await queue.end(
        claim, state=State.FAILED, answer=None, error=JobError("timeout", "no"), settlement=settled(40)
    )
    assert (ended.cost_nanos, ended.in_doubt_nanos) == (40, 7)


async def test_whoever_goes_on_is_told_which_answers_may_have_been_kept(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """Of calls in doubt for the step that is to be made alone, the newest first, and under which name."""
    asked = {"lane": "openai/x", "step": 1, "digest": "d1"}
    queue.later(1_800_000_000_000)  # windows begin before, and not before 1970
    await queue.beat()
    await journal.admit(claim, "c0", 100, asked)
    await journal.note(claim, "c0", "resp_0")
    await journal.commit(claim, 0, {"text": "one"}, settled(40, call="c0"))
    await journal.admit(claim, "c1", 100, asked | {"step": 1})
    await journal.admit(claim, "c2", 100, {"lane": "openai/x", "step": 2})
    account, at = Account("default", "clerk"), datetime.fromtimestamp(queue.now / 1000, UTC)
    under = partial(account.books, Lane("openai", "x"))
    admitted = await journal.admit(claim, "c3", 100, asked | {"step": 2}, books=under)
    assert isinstance(admitted, Admitted)
    books = admitted.books
    assert "all" in books
    await journal.admit(claim, "c4", 200, asked | {"step": 2, "lane": "other/y", "digest": "d2"})
    await journal.admit(claim, "c5", 100, asked | {"step": 2})
    await journal.settle(claim, Settlement("c5", "released", 100, 0, asked | {"step": 2}))
    await journal.note(claim, "c3", 'resp_"3"')
    assert claim.doubts == ()
    await queue.given_up()
    await queue.worker("w2")
    second = await queue.claim(claim.id, "w2")
    assert second.doubts == (
        Doubt("c4", "other/y", 200, "d2", at, took=(0, 0)),
        Doubt("c3", "openai/x", 100, "d1", at, response='resp_"3"', took=(0, 0), books=books),
    )
    assert {call.id: call.facts.get("digest") for call in (await queue.job(claim.id)).calls} == dict.fromkeys(
        ["c0", "c1", "c2", "c3", "c4", "c5"]
    ), "it is nothing for callers"
    await journal.commit(second, 1, {"text": "two"}, replace(settled(40, call="c3"), counts=counts(None, 40)))
    await queue.jobs.give_back(second)
    assert (await queue.claim(claim.id, "w2")).doubts == ()


async def test_the_name_of_an_answer_is_noted_once_and_while_it_may_be_looked_up(
    queue: Queue, claim: Claim, journal: Journal
) -> None:
    """Also by a run that has lost its job: it is true all the same. Nothing else of the call changes."""
    asked = {"lane": "openai/x", "step": 1, "digest": "d1"}
    await journal.admit(claim, "c1", 100, asked)
    await queue.given_up()
    await queue.worker("w2")
    for name in ("resp_1", "resp_2"):
        await journal.note(claim, "c1", name)
    second = await queue.claim(claim.id, "w2")
    assert [doubt.response for doubt in second.doubts] == ["resp_1"]
    assert await sums(queue, second) == (0, 100, 0)
    await journal.settle(second, settled(40))
    before = queue.everything()
    await journal.note(claim, "c1", "resp_3")
    await journal.note(claim, "c9", "resp_3")
    assert queue.everything() == before


@pytest.mark.parametrize(
    "spoilt", ["doubt 100 100 1 nonsense", 'doubt 1 1 1 {"digest":1', 'doubt 1 1 1 {"digest":"d"}']
)
async def test_a_call_that_makes_no_sense_is_not_looked_up(
    queue: Queue, claim: Claim, journal: Journal, valkey: Valkey, spoilt: str
) -> None:
    """And holds up nothing."""
    await journal.admit(claim, "c1", 100, {"lane": "openai/x", "step": 1, "digest": "d1"})
    await queue.jobs.give_back(claim)
    queue.planted = True
    spoilt = spoilt.replace("{", '{"step":1,')
    valkey.client().hset(keys.spell("calls", id=claim.id), "c2", spoilt)
    assert [doubt.call for doubt in (await queue.claim(claim.id)).doubts] == ["c1"]
