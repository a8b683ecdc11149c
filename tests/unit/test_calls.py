"""The calls of one run: what the fleet hears of each, and what is written of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from celeriac.agents.calls import LATE, Calls, Lease
from celeriac.connections import patiently
from celeriac.costs.prices import Prices, most_input
from celeriac.errors import ContentRefused, ModelError, Overloaded, RateLimited
from celeriac.gate.lanes import Caps, spelt
from celeriac.jobs.model import Call, Claim, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.limits import Limit
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey
from tests.processes import until

from .conftest import Waits

LANE = Lane("openai", "gpt-5-mini")
REQUEST = ModelRequest(LANE, (Message("user", "What is a leek?"),), max_output_tokens=1000, deadline=20.0)
#: That fills by a token or two while a test runs.
TOKENS = Limit("tokens", most=100_000, left=50_000, period=86_400.0)


def answered(output: int, *limits: Limit) -> Answer:
    return Answer("A plant.", Usage(input=10, output=output), LANE, LANE.model, limits=limits)


class Desk:
    """One run that asks one lane."""

    def __init__(self, stores: Stores, valkey: Valkey, claim: Claim) -> None:
        self.stores, self.claim, self.redis = stores, claim, valkey.client()
        self.key = f"celeriac:lane:{spelt(LANE)}"

    def calls(self, *lines: Line, caps: Caps | None = None, cycle: bool = False) -> Calls:
        async def insist(write: Callable[[], Awaitable[Any]]) -> Any:
            return await patiently(write)

        model = Scripted(*lines, cycle=cycle)
        return Calls(
            self.claim, model, self.stores.journal, Prices(), Lease(), caps={LANE: caps} if caps else {}, insist=insist
        )  # fmt: skip

    def lane(self) -> dict[str, str]:
        """What the fleet knows of it."""
        return self.redis.hgetall(self.key)

    def left(self, bucket: str) -> float:
        return float(self.lane()[bucket].split(" ")[2])

    def shut(self, seconds: float) -> None:
        ms = int(seconds * 1000)
        self.redis.hset(self.key, mapping={"shut": int(time.time() * 1000) + ms, "span": ms, "why": "rate_limited"})

    def open(self) -> None:
        self.redis.hdel(self.key, "shut")

    async def booked(self) -> list[Call]:
        job = await self.stores.jobs.get(self.claim.id, None)
        assert job is not None
        return list(job.calls)


@pytest.fixture
async def desk(stores: Stores, valkey: Valkey) -> AsyncIterator[Desk]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    await fleet.register("w1", ["celeriac"], 1, (), {"celeriac": ""})
    job = await stores.jobs.submit(NewJob(new_id(), "default", "clerk", "celeriac", (("user", "hi"),)))
    claim = await stores.jobs.claim(job.id, "w1", new_nonce())
    assert isinstance(claim, Claim)
    yield Desk(stores, valkey, claim)
    await line.aclose()


async def test_a_lane_that_is_tried_out_waits_for_the_word_of_whoever_does(desk: Desk) -> None:
    """Which comes a moment after the deadline of its call: else a provider that hangs would be sent a second one."""
    desk.redis.hset(desk.key, mapping={"opened": 1})
    seen: list[dict[str, str]] = []

    def asked(_: ModelRequest) -> str:
        seen.append(desk.lane())
        return "A plant."

    await desk.calls(asked).answer(REQUEST)
    [lane] = seen
    assert float(lane["probe_ms"]) == (REQUEST.deadline + LATE) * 1000
    assert LATE >= 2
    assert abs(float(lane["probe_until"]) - (time.time() + REQUEST.deadline + LATE) * 1000) < 3000


async def test_a_call_takes_of_a_rate_what_it_used(desk: Desk) -> None:
    """Beforehand what it is expected to use; that is corrected."""
    seen: list[float] = []

    def asked(_: ModelRequest) -> Answer:
        seen.append(desk.left("tokens"))
        return answered(70)

    calls = desk.calls(answered(70, TOKENS), asked)
    await calls.answer(REQUEST)
    await calls.close()
    before, share = desk.left("tokens"), 10 / most_input(REQUEST)
    await calls.answer(REQUEST)
    await calls.close()
    assert seen == [pytest.approx(before - 70 - most_input(REQUEST) * share, abs=4)]
    assert desk.left("tokens") == pytest.approx(before - 80, abs=4)


async def test_the_fleet_learns_what_calls_use_of_what_they_may(desk: Desk) -> None:
    calls = desk.calls(answered(70))
    await calls.answer(REQUEST)
    await calls.close()
    assert float(desk.lane()["of_output"]) == 0.07
    assert float(desk.lane()["of_input"]) == pytest.approx(10 / most_input(REQUEST), abs=0.0001)


async def test_more_than_was_expected_is_taken_too(desk: Desk) -> None:
    """Of a lane that nobody has asked, half of what a call may use is expected."""
    calls = desk.calls(answered(0, TOKENS), answered(1000))
    await calls.answer(REQUEST)
    await calls.close()
    desk.redis.hdel(desk.key, "of_input", "of_output")
    before = desk.left("tokens")
    await calls.answer(REQUEST)
    assert desk.left("tokens") == pytest.approx(before - 500 - most_input(REQUEST) / 2, abs=4)
    await calls.close()
    assert desk.left("tokens") == pytest.approx(before - 1010, abs=4)


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("busy", retry_after=7.0, limits=(TOKENS,)),
        Overloaded("busy", limits=(TOKENS,)),
        ContentRefused("no", usage=Usage(input=10, output=1), limits=(TOKENS,)),
    ],
    ids=lambda error: error.code,
)
async def test_what_a_refusal_says_of_the_rates_is_known(desk: Desk, error: ModelError) -> None:
    """A 429 above all."""
    calls = desk.calls(error)
    with pytest.raises(type(error)):
        await calls.answer(REQUEST)
    most, period, _, _, _ = desk.lane()["tokens"].split(" ")
    assert (int(most), int(period)) == (TOKENS.most, TOKENS.period * 1000)
    assert desk.left("tokens") == pytest.approx(TOKENS.left, abs=10)


async def test_a_refusal_that_was_paid_for_counts_what_it_used(desk: Desk) -> None:
    calls = desk.calls(ContentRefused("no", usage=Usage(input=10, output=30)))
    with pytest.raises(ContentRefused):
        await calls.answer(REQUEST)
    assert float(desk.lane()["of_output"]) == 0.03


async def test_what_the_operator_allows_counts_for_each_call(desk: Desk) -> None:
    calls = desk.calls(answered(70), caps=Caps(requests=60, tokens=9000))
    await calls.answer(REQUEST)
    lane = desk.lane()
    assert [lane[name].split(" ")[0] for name in ("own_requests", "own_tokens")] == ["60", "9000"]


async def test_how_long_a_call_waited_is_written_of_it(desk: Desk, waits: Waits) -> None:
    """In its slot, for a lane that is left alone for a moment; one that did not wait says so too."""
    calls = desk.calls(answered(70), answered(70))
    desk.shut(20)
    times = [time.monotonic()]
    asking = asyncio.create_task(calls.answer(REQUEST))
    await until(lambda: waits != [])
    await asyncio.sleep(0.3)
    desk.open()
    waits.over.set()
    answers = [await asking]
    times.append(time.monotonic())
    answers.append(await calls.answer(REQUEST))
    times.append(time.monotonic())
    await calls.close()
    waited = {call.id: call.facts["waited"] for call in await desk.booked()}
    one, other = (waited[answer.call] for answer in answers)
    assert 0.3 <= one <= times[1] - times[0] + 0.001, "it is rounded"
    assert other <= times[2] - times[1] + 0.001


async def test_those_who_wait_for_a_lane_do_not_ask_again_together(desk: Desk, waits: Waits) -> None:
    """Each is told the same wait, and the store would be asked by all of them in one moment."""
    calls, crowd = desk.calls(answered(70), cycle=True), 60
    desk.shut(20)
    asking = [asyncio.create_task(calls.answer(REQUEST)) for _ in range(crowd)]
    await until(lambda: len(waits) == crowd)
    desk.open()
    waits.over.set()
    await asyncio.gather(*asking)
    assert len(set(waits)) == crowd
    assert 10 * 0.75 <= min(waits) < max(waits) - 4, "they came within 10 s"
    assert max(waits) <= 20 * 1.5
    await calls.close()
