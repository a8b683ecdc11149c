"""A call in doubt whose answer was kept: what is booked of it when it is found, and what its lane hears of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from celeriac import keys
from celeriac.agents.calls import Calls, Lease
from celeriac.connections import patiently
from celeriac.costs.books import Account
from celeriac.costs.prices import Prices
from celeriac.drill.proxy import Proxy
from celeriac.errors import ContentRefused, ModelError, ModelTimeout
from celeriac.gate.lanes import spelt
from celeriac.jobs.journal import breaker_changes, overruns
from celeriac.jobs.lease import Fleet
from celeriac.jobs.model import Call, Claim, Doubt, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.fallback import Fallback
from celeriac.llm.limits import Limit
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import Settings, load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey
from tests.processes import until

from .conftest import Waits

LANE = Lane("openai", "gpt-5-mini")
REQUEST = ModelRequest(LANE, (Message("user", "What is a leek?"),), max_output_tokens=1000, deadline=20.0, stored=True)
ANSWER = Answer("A plant.", Usage(input=10, output=70), LANE, LANE.model)
LOST = ModelTimeout("openai did not answer in time", in_doubt=True, request_id="req_7")
#: That fills by a token or two while a test runs.
TOKENS = Limit("tokens", most=100_000, left=50_000, period=86_400.0)


def used(output: int) -> Answer:
    return replace(ANSWER, usage=Usage(input=10, output=output))


def kept(name: str, line: Line = LOST) -> Line:
    """The provider keeps the answer under this name; this is what comes of the call."""

    async def asked(request: ModelRequest) -> Line:
        assert request.on_stored is not None
        await request.on_stored(name)
        return line

    return asked


class Keeper(Scripted):
    """A model whose answers are kept. found: what is found of them, one a look; then nothing more. looks: what was
    looked up, under which name.
    """

    def __init__(self, *lines: Line, found: list[Answer | ModelError | None] | None = None) -> None:
        super().__init__(*lines)
        self.found = found or []
        self.looks: list[tuple[ModelRequest, str]] = []

    def may_find(self, request: ModelRequest, response: str | None) -> bool:
        return request.lane.provider == "openai"

    async def look_up(self, request: ModelRequest, response: str) -> Answer | None:
        self.looks.append((request, response))
        found = self.found.pop(0) if self.found else None
        if isinstance(found, ModelError):
            raise found
        return found

    @property
    def looked_up(self) -> list[str]:
        return [request.call for request, _ in self.looks]


class Desk:
    """Runs of one job, one after the other."""

    def __init__(self, stores: Stores, fleet: Fleet, valkey: Valkey, claim: Claim) -> None:
        self.stores, self.fleet, self.claim, self.redis = stores, fleet, claim, valkey.client()
        self.account: Account | None = None
        self.prices = Prices()

    def calls(self, model: Scripted, *, strict: bool = False) -> Calls:
        async def insist(write: Callable[[], Awaitable[Any]]) -> Any:
            return await patiently(write)

        return Calls(
            *(self.claim, model, self.stores.journal, self.prices, Lease()),
            caps={},
            account=self.account,
            strict=strict,
            insist=insist,
        )

    async def admitted(self) -> None:
        """A call is made of which nothing is heard any more."""
        asked = asyncio.Event()

        async def hangs(_: ModelRequest) -> str:
            asked.set()
            await asyncio.Event().wait()
            return "never"

        asking = asyncio.create_task(self.calls(Keeper(hangs)).answer(REQUEST))
        await asked.wait()
        asking.cancel()
        await asyncio.wait([asking])

    def lane(self) -> dict[str, str]:
        """What the fleet knows of it."""
        return self.redis.hgetall(keys.spell("lane", lane=spelt(LANE)))

    def left(self, bucket: str) -> float:
        return float(self.lane()[bucket].split(" ")[2])

    def shut(self, seconds: float) -> None:
        """The lane is left alone for so long."""
        ms = int(seconds * 1000)
        facts = {"shut": int(time.time() * 1000) + ms, "span": ms, "why": "rate_limited"}
        self.redis.hset(keys.spell("lane", lane=spelt(LANE)), mapping=facts)

    def open(self) -> None:
        self.redis.hdel(keys.spell("lane", lane=spelt(LANE)), "shut")

    async def again(self) -> None:
        """The run lets go of the job, and another one takes it."""
        await self.stores.jobs.park(self.claim, "retry", timedelta(0))
        await self.fleet.upkeep()
        claim = await self.stores.jobs.claim(self.claim.id, "w1", new_nonce())
        assert isinstance(claim, Claim)
        self.claim = claim

    async def booked(self) -> list[Call]:
        job = await self.stores.jobs.get(self.claim.id, None)
        assert job is not None
        return list(job.calls)


@pytest.fixture
async def desk(stores: Stores, valkey: Valkey, settings: Settings) -> AsyncIterator[Desk]:
    fleet, line = open_fleet(settings, stores, name="line")
    await fleet.register("w1", ["celeriac"], 1, (), {"celeriac": ""})
    job = await stores.jobs.submit(NewJob(new_id(), "default", "clerk", "celeriac", (("user", "hi"),)))
    claim = await stores.jobs.claim(job.id, "w1", new_nonce())
    assert isinstance(claim, Claim)
    yield Desk(stores, fleet, valkey, claim)
    await line.aclose()


async def test_an_answer_that_is_found_costs_what_it_cost_when_it_was_asked_for(desk: Desk, tmp_path: Path) -> None:
    """And not what it would cost now; its bound is of that time too. What it was booked under is as it was."""
    file = tmp_path / "prices.toml"
    today = datetime.now(UTC).date()
    file.write_text(
        f'[[openai."gpt-5-mini"]]\nfrom = {today - timedelta(days=1)}\ninput = "100"\noutput = "100"\n'
        f'[[openai."gpt-5-mini"]]\nfrom = {today - timedelta(days=9)}\ninput = "1"\noutput = "1"\n'
    )
    desk.prices, desk.account = Prices(file), Account("default", "clerk")
    then = datetime.now(UTC) - timedelta(days=5)
    with pytest.raises(ModelTimeout):
        await desk.calls(Keeper(LOST)).answer(REQUEST)
    await desk.again()
    [doubt] = desk.claim.doubts
    assert abs(doubt.at - datetime.now(UTC)) < timedelta(seconds=30)
    assert "all" in doubt.books
    desk.claim = replace(desk.claim, doubts=(replace(doubt, at=then, bound=1),))
    calls = desk.calls(Keeper(found=[ANSWER]))
    settlement = calls.settlement(await calls.answer(REQUEST))
    assert settlement is not None
    assert (settlement.nanos, settlement.books) == (80 * 1000, doubt.books)
    assert settlement.heard is not None
    assert settlement.heard["over"] == -(-1000 * settlement.nanos // desk.prices.bound(REQUEST, then))
    await calls.close()


async def test_what_is_found_is_booked_with_its_names(desk: Desk) -> None:
    """Those that the call had before: its provider says neither of what it kept."""
    calls = desk.calls(Keeper(kept("resp_7"), found=[ANSWER]))
    answer = await calls.answer(REQUEST)
    assert (answer.text, answer.request_id) == ("A plant.", "req_7")
    await calls.close()
    [call] = await desk.booked()
    assert (call.id, call.stands, call.facts["late"]) == (answer.call, "settled", True)
    assert (call.facts["response"], call.facts["request_id"], call.facts["error"]) == ("resp_7", "req_7", None)


async def test_a_doubt_is_looked_up_by_the_run_that_goes_on(desk: Desk) -> None:
    """Also where the run before looked in vain, and let go of its job in good order: it said how to find it."""
    first = Keeper(kept("resp_7"))
    with pytest.raises(ModelTimeout):
        await desk.calls(first).answer(REQUEST)
    await desk.again()
    second = Keeper(found=[ANSWER])
    calls = desk.calls(second)
    answer = await calls.answer(REQUEST)
    assert [(request.call, response) for request, response in second.looks] == [(answer.call, "resp_7")]
    assert first.looked_up == [answer.call]
    await calls.close()
    [call] = await desk.booked()
    assert (call.stands, call.facts["response"], call.facts["request_id"]) == ("settled", "resp_7", "req_7")


@pytest.mark.parametrize("later", [False, True], ids=["this run", "the next run"])
@pytest.mark.parametrize("refused", [False, True], ids=["an answer", "a refusal"])
async def test_the_receipt_of_what_is_found_says_what_was_known_of_its_call(
    desk: Desk, waits: Waits, refused: bool, later: bool
) -> None:
    """How long it waited, how long it took to fail, and how its provider names it."""
    found = ContentRefused("no", usage=Usage(input=10, output=5)) if refused else ANSWER

    async def fails(_: ModelRequest) -> ModelError:
        await asyncio.sleep(0.2)
        return LOST

    desk.shut(20)
    model = Keeper(fails, found=[None, found] if later else [found])
    calls, began = desk.calls(model), time.monotonic()
    asking = asyncio.create_task(calls.answer(REQUEST))
    await until(lambda: waits != [])
    await asyncio.sleep(0.2)
    desk.open()
    waits.over.set()
    await asyncio.wait([asking])
    took = time.monotonic() - began
    if later:
        with pytest.raises(ModelTimeout):
            await asking
        await desk.again()
        calls = desk.calls(model)
    with suppress(ContentRefused):
        await (calls.answer(REQUEST) if later else asking)
    await calls.close()
    [call] = await desk.booked()
    facts = call.facts
    assert (call.stands, facts["late"], facts["request_id"]) == ("settled", True, "req_7")
    assert min(facts["waited"], facts["seconds"]) >= 0.2
    assert facts["waited"] + facts["seconds"] <= took + 0.001, "both are rounded"


async def test_a_doubt_of_a_run_that_lost_its_job_is_looked_up(desk: Desk) -> None:
    """And the store its history: it is booked from the run's own copy, with all that it is found by."""
    asked = asyncio.Event()

    async def hangs(request: ModelRequest) -> str:
        assert request.on_stored is not None
        await request.on_stored("resp_7")
        asked.set()
        await asyncio.Event().wait()
        return "never"

    calls = desk.calls(Keeper(hangs))
    asking = asyncio.create_task(calls.answer(REQUEST))
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    desk.redis.delete(keys.spell("calls", id=desk.claim.id))
    await calls.doubt()
    await desk.again()
    [doubt] = desk.claim.doubts
    assert (doubt.lane, doubt.response, doubt.digest) == (str(LANE), "resp_7", REQUEST.digest())


async def test_each_doubt_is_looked_up_once(desk: Desk) -> None:
    """Found or not: whoever asks again, asks the model. The answer to one question is not that to the next."""
    model = Keeper(LOST, "One.", LOST, "Two.", found=[None, ANSWER])
    calls = desk.calls(model)
    with pytest.raises(ModelTimeout):
        await calls.answer(REQUEST)
    assert (await calls.answer(REQUEST)).text == "One."
    assert len(model.looks) == 1
    assert (await calls.answer(REQUEST)).text == ANSWER.text
    assert (await calls.answer(REQUEST)).text == "Two."
    assert len(set(model.looked_up)) == len(model.looks) == 2
    await calls.close()


async def test_only_the_newest_doubts_of_former_runs_are_looked_up(desk: Desk) -> None:
    """Each look takes its time, and the slot is held."""
    doubts = [Doubt(f"c{number}", str(LANE), 1, REQUEST.digest(), datetime.now(UTC)) for number in (5, 4, 3, 2, 1)]
    desk.claim = replace(desk.claim, doubts=tuple(doubts))
    model = Keeper("A plant.")
    calls = desk.calls(model)
    await calls.answer(REQUEST)
    assert model.looked_up == ["c5", "c4", "c3"]
    await calls.close()


async def test_doubts_that_cannot_be_looked_up_take_no_turn_of_those_that_can(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another question, or of a lane that keeps nothing any more: that is said."""
    other = replace(REQUEST, instructions="Be brief.")
    lanes = [("c6", "anthropic/large", REQUEST), ("c5", str(LANE), other), ("c4", "anthropic/large", REQUEST)]
    lanes += [(f"c{number}", str(LANE), REQUEST) for number in (3, 2, 1)]
    doubts = [Doubt(call, lane, 1, asked.digest(), datetime.now(UTC)) for call, lane, asked in lanes]
    desk.claim = replace(desk.claim, doubts=tuple(doubts))
    model = Keeper("A plant.")
    calls = desk.calls(model)
    await calls.answer(REQUEST)
    assert model.looked_up == ["c3", "c2", "c1"]
    said = [line for line in capsys.readouterr().out.splitlines() if "stored_answer_not_found" in line]
    assert [("call=c6" in line, "call=c4" in line) for line in said] == [(True, False), (False, True)]
    await calls.close()


async def test_a_call_whose_lane_keeps_nothing_leaves_nothing_to_look_up(desk: Desk) -> None:
    model = Keeper(LOST, found=[ANSWER])
    with pytest.raises(ModelTimeout):
        await desk.calls(model).answer(replace(REQUEST, lane=Lane("anthropic", "claude-haiku-5-5")))
    assert model.looks == []
    await desk.again()
    assert desk.claim.doubts == ()
    [call] = await desk.booked()
    assert call.stands == "doubt"


async def test_a_doubt_about_another_question_is_not_looked_up(desk: Desk) -> None:
    doubt = Doubt("c1", str(LANE), 1, replace(REQUEST, instructions="Be brief.").digest(), datetime.now(UTC))
    desk.claim = replace(desk.claim, doubts=(doubt,))
    model = Keeper("A plant.", found=[ANSWER])
    calls = desk.calls(model)
    assert (await calls.answer(REQUEST)).call != "c1"
    assert model.looks == []
    await calls.close()


@pytest.mark.parametrize("refused", [False, True], ids=["an answer", "a refusal"])
async def test_the_lane_does_not_hear_of_a_look(desk: Desk, refused: bool) -> None:
    """How it did was heard when the call failed: what is looked up is no second call, that went well or was refused."""
    calls = desk.calls(Keeper(LOST, found=[ContentRefused("no", usage=ANSWER.usage) if refused else ANSWER]))
    with suppress(ContentRefused):
        await calls.answer(REQUEST)
    await calls.close()
    assert [call.facts["error"] for call in await desk.booked()] == ["content_refused" if refused else None]
    [minute] = [text for name, text in desk.lane().items() if name.startswith("slot")]
    assert minute.split()[1:] == ["1", "1"], "calls, and those of them that failed"
    [ends] = await desk.stores.lanes.ends([LANE], 2)
    assert (ends.answered, ends.errors) == (0, {"timeout": 1})


async def test_what_was_used_corrects_what_was_taken(desk: Desk) -> None:
    """Where it is known what that was: a run that died says it, one that booked the call in doubt does not."""
    calls = desk.calls(Keeper(replace(ANSWER, limits=(TOKENS,))))
    await calls.answer(REQUEST)
    await calls.close()
    for ending, known in (("died", True), ("parked", False)):
        # Of a lane that nobody has asked, half of what a call may use is expected.
        desk.redis.hdel(keys.spell("lane", lane=spelt(LANE)), "of_input", "of_output")
        before, model = desk.left("tokens"), Keeper(LOST)
        if ending == "died":
            await desk.admitted()
        else:
            with pytest.raises(ModelTimeout):
                await desk.calls(model).answer(REQUEST)
        taken = before - desk.left("tokens")
        assert taken > 500
        await desk.again()
        [doubt] = desk.claim.doubts
        assert (doubt.took is not None) is known
        calls = desk.calls(Keeper(found=[ANSWER]))
        await calls.answer(REQUEST)
        await calls.close()
        assert before - desk.left("tokens") == pytest.approx(80 if known else taken, abs=4), ending


async def test_an_answer_that_cannot_be_noted_is_an_answer(
    desk: Desk, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under which name it is kept would only help whoever goes on: the call goes on, and the log says it."""
    desk.stores = open_stores(load_settings(redis_url=proxy.url))
    lost = proxy.swallow(script="note", times=4)
    calls = desk.calls(Keeper(kept("resp_7", "A plant.")))
    assert (await calls.answer(REQUEST)).text == "A plant."
    assert lost.done.is_set()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "stored_answer_not_noted" in line]
    assert "call=" in line
    await calls.close()
    await desk.stores.close()


async def test_a_call_over_its_bound_is_measured_by_what_was_asked_for_it(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by its bound, which is raised already: else the next overrun would lower those of the calls that follow."""
    asked = desk.prices.bound(REQUEST)
    desk.redis.hset("celeriac:overruns", spelt(LANE), "3000 raised")
    for model in Keeper(used(4000)), Keeper(LOST, found=[used(5000)]):
        counted = overruns[str(LANE)]
        calls = desk.calls(model)
        await calls.answer(REQUEST)
        assert overruns[str(LANE)] == counted + 1
        [line] = [line for line in capsys.readouterr().out.splitlines() if "call_over_its_bound" in line]
        await calls.close()
        call = (await desk.booked())[-1]
        assert call.facts["overrun"] is True
        assert call.nanos > call.bound >= 3 * asked
        assert f"nanos={call.nanos}" in line
        ratio = -(-1000 * call.nanos // asked)
        assert desk.redis.hget("celeriac:overruns", spelt(LANE)) == f"{ratio} raised"


@pytest.mark.parametrize("later", [False, True], ids=["this run", "the next run"])
async def test_a_call_that_is_looked_up_is_no_overrun_below_its_raised_bound(
    desk: Desk, capsys: pytest.CaptureFixture[str], later: bool
) -> None:
    """It was booked at more than would be asked for it."""
    desk.redis.hset("celeriac:overruns", spelt(LANE), "3000 raised")
    counted, asked = overruns[str(LANE)], desk.prices.bound(REQUEST)
    model = Keeper(LOST, found=[None, used(1500)] if later else [used(1500)])
    calls = desk.calls(model)
    if later:
        with pytest.raises(ModelTimeout):
            await calls.answer(REQUEST)
        await desk.again()
        calls = desk.calls(model)
    await calls.answer(REQUEST)
    await calls.close()
    [call] = await desk.booked()
    assert asked < call.nanos < call.bound
    assert "overrun" not in call.facts
    assert overruns[str(LANE)] == counted
    assert "call_over_its_bound" not in capsys.readouterr().out
    assert desk.redis.hget("celeriac:overruns", spelt(LANE)) == "3000 raised"


async def test_a_strict_lane_that_is_closed_is_told_of_once(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """By the first of those that were under way together; and none that is not strict opens it."""
    strict = desk.calls(Keeper(used(4000), used(4000)), strict=True)
    lax = desk.calls(Keeper(used(9000)))
    for calls in (strict, strict, lax):
        await calls.answer(REQUEST)
    changed = breaker_changes[str(LANE), "open"]
    for calls in (strict, lax):
        await calls.close()
    assert breaker_changes[str(LANE), "open"] == changed + 1
    said = [line for line in capsys.readouterr().out.splitlines() if "lane_closed_for_overrun" in line]
    assert len(said) == 1
    assert str(LANE) in said[0]
    [change] = await desk.stores.lanes.changes(9)
    assert (change.lane, change.state, change.why) == (LANE, "open", "overrun")
    [known] = await desk.stores.lanes.look([LANE])
    assert (known.why, known.over > 2) == ("overrun", True)


@pytest.mark.parametrize("first", ["A plant.", LOST], ids=["the first answers", "the first fails"])
async def test_a_refusal_that_is_found_is_that_of_its_own_lane(desk: Desk, first: Line) -> None:
    """Found while another is asked, it is booked, and that one is asked. Who refused is not asked, nor paid, again."""
    other = replace(REQUEST, lane=Lane("openai", "gpt-5-nano"))
    with pytest.raises(ModelTimeout):
        await desk.calls(Keeper(LOST)).answer(other)
    await desk.again()
    declined = ContentRefused("no", usage=Usage(input=10, output=5), provider="openai", model="gpt-5-nano")
    model = Keeper(first, "Never asked.", found=[declined])
    calls = desk.calls(model)
    asking = Fallback([(REQUEST.lane, calls), (other.lane, calls)]).answer(REQUEST)
    if first is LOST:
        with pytest.raises(ContentRefused):
            await asking
    else:
        assert (await asking).text == "A plant."
    assert [request.lane for request in model.requests] == [LANE]
    await calls.close()
    [refused] = [call for call in await desk.booked() if call.facts["lane"] == str(other.lane)]
    assert (refused.stands, refused.facts["error"], refused.facts["late"]) == ("settled", "content_refused", True)


async def test_a_refusal_that_is_found_ends_the_turn_of_its_lane(desk: Desk) -> None:
    """It is not asked again. That of another question is no refusal of this one."""
    declined = ContentRefused("no", usage=Usage(input=10, output=5))
    model = Keeper(LOST, "A plant.", found=[declined])
    calls = desk.calls(model)
    with pytest.raises(ContentRefused):
        await calls.answer(REQUEST)
    assert len(model.requests) == 1
    assert (await calls.answer(replace(REQUEST, instructions="Be brief."))).text == "A plant."
    await calls.close()


@pytest.mark.parametrize("ends", [LOST, ANSWER], ids=["it fails", "it is answered"])
async def test_a_stream_that_ends_while_it_is_read_on_is_booked(desk: Desk, ends: Line) -> None:
    """As what came of it, and not as a call that was broken off here."""
    desk.claim = replace(desk.claim, record=dict(desk.claim.record) | {"stream": b"1"})
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def streams(_: ModelRequest) -> Line:
        asked.set()
        await goes_on.wait()
        return ends

    calls = desk.calls(Keeper(streams))
    asking = asyncio.create_task(calls.answer(REQUEST))
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    goes_on.set()
    await calls.close()
    [call] = await desk.booked()
    names = (call.facts["error"], call.facts["request_id"])
    assert (call.stands, names) == (("doubt", ("timeout", "req_7")) if ends is LOST else ("settled", (None, "")))
