"""Asking the same lane again."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from celeriac.errors import (
    BadAnswer,
    BadCredentials,
    BadModelRequest,
    ContentRefused,
    ContextTooLong,
    LaneClosed,
    LocalFault,
    ModelError,
    ModelTimeout,
    Overloaded,
    ProviderFailed,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from celeriac.llm.fallback import Fallback
from celeriac.llm.model import Lane, Message, ModelRequest
from celeriac.llm.patient import LONGEST, Patience, Patient, backoff
from celeriac.llm.scripted import Line, Scripted

LANE = Lane("openai", "a")
REQUEST = ModelRequest(LANE, (Message("user", "Capital of France?"),))


def patient(*lines: Line, tries: int = 4, within: timedelta = timedelta(minutes=1)) -> tuple[Patient, Scripted]:
    model = Scripted(*lines)
    return Patient(model, Patience(tries, within)), model


MAY_HELP = [
    RateLimited("x"),
    Overloaded("x"),
    ProviderFailed("x"),
    ModelTimeout("x", in_doubt=True),
    Unreachable("x"),
    LocalFault("x"),
]


@pytest.mark.parametrize("error", MAY_HELP, ids=lambda error: error.code)
async def test_a_lane_that_may_answer_the_next_time_is_asked_again(error: ModelError) -> None:
    """As often as patience says; what failed is in the answer."""
    client, model = patient(error, type(error)("y"), "Paris", tries=3)
    answer = await client.answer(REQUEST)
    assert (answer.text, [attempt.code for attempt in answer.attempts]) == ("Paris", [error.code] * 2)
    assert [attempt.in_doubt for attempt in answer.attempts] == [error.in_doubt, False]
    assert len(model.requests) == 3


@pytest.mark.parametrize("error", MAY_HELP, ids=lambda error: error.code)
async def test_patience_ends(error: ModelError) -> None:
    """With the last error, which holds all attempts."""
    kind = type(error)
    client, model = patient(kind("x"), kind("y"), kind("z"), tries=3)
    with pytest.raises(kind, match="z") as caught:
        await client.answer(REQUEST)
    assert (len(model.requests), len(caught.value.attempts)) == (3, 3)


@pytest.mark.parametrize(
    "kind",
    [
        BadCredentials,
        QuotaExhausted,
        BadModelRequest,
        ContextTooLong,
        UnknownModel,
        ContentRefused,
        LaneClosed,
    ],
)
async def test_a_lane_that_would_say_the_same_is_not_asked_again(kind: type[ModelError]) -> None:
    client, model = patient(kind("x"), "Paris")
    with pytest.raises(kind):
        await client.answer(REQUEST)
    assert len(model.requests) == 1


async def test_an_answer_that_is_none_is_asked_for_once_more() -> None:
    """Each may have been billed."""
    client, model = patient(BadAnswer("x"), Unreachable("y"), BadAnswer("z"), "Paris")
    with pytest.raises(BadAnswer, match="z"):
        await client.answer(REQUEST)
    assert len(model.requests) == 3


async def test_a_lane_that_took_long_to_fail_is_not_waited_for_again() -> None:
    client, model = patient(ModelTimeout("x"), "Paris", within=timedelta(0))
    with pytest.raises(ModelTimeout):
        await client.answer(REQUEST)
    assert len(model.requests) == 1


async def test_a_provider_that_asks_for_a_moment_gets_it() -> None:
    client, _ = patient(Overloaded("x", retry_after=0.8), "Paris")
    began = time.monotonic()
    assert (await client.answer(REQUEST)).text == "Paris"
    assert time.monotonic() - began >= 0.8


async def test_no_slot_is_held_for_a_longer_wait() -> None:
    """The job lets go of it, or asks another lane."""
    client, model = patient(RateLimited("x", retry_after=LONGEST.total_seconds() + 0.1), "Paris")
    with pytest.raises(RateLimited):
        await client.answer(REQUEST)
    assert len(model.requests) == 1


async def test_a_lane_that_was_closed_by_what_we_met_says_what_that_was() -> None:
    """And for how long it is closed: the job that waits for it has been told so itself, which counts as a try."""
    client, model = patient(RateLimited("x"), LaneClosed("y", retry_after=2.0), "Paris")
    with pytest.raises(RateLimited, match="x") as caught:
        await client.answer(REQUEST)
    assert (caught.value.retry_after, len(caught.value.attempts), len(model.requests)) == (2.0, 1, 2)


async def test_then_the_next_lane_is_asked() -> None:
    """Each attempt is told once."""
    one, _ = patient(Overloaded("x"), Overloaded("y"), tries=2)
    two, _ = patient(Unreachable("z"), "Paris", tries=2)
    answer = await Fallback([(LANE, one), (Lane("anthropic", "b"), two)]).answer(REQUEST)
    told = [(attempt.lane.provider, attempt.code) for attempt in answer.attempts]
    assert told == [("openai", "overloaded"), ("openai", "overloaded"), ("anthropic", "unreachable")]


def test_waits_grow_and_are_spread() -> None:
    """Exponentially, with full jitter: those who failed together do not come back together."""
    second = timedelta(seconds=1)
    for retries, longest in ((0, 1), (1, 2), (2, 4), (3, 5), (90, 5)):
        waits = [backoff(retries, second, 5 * second) for _ in range(300)]
        assert longest * 0.9 * second < max(waits) <= longest * second
        assert min(waits) < longest * 0.1 * second
