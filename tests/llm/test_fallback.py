"""Asking the next lane."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac.errors import (
    BadCredentials,
    BadModelRequest,
    BudgetFull,
    ContentRefused,
    ContextTooLong,
    JobBudgetFull,
    LaneBudgetFull,
    LaneClosed,
    ModelError,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Unreachable,
)
from celeriac.llm.fallback import Fallback
from celeriac.llm.model import Lane, Message, ModelRequest
from celeriac.llm.scripted import Line, Scripted

A, B, C = Lane("openai", "a"), Lane("anthropic", "b"), Lane("scripted", "c")
REQUEST = ModelRequest(A, (Message("user", "Capital of France?"),))


def over(*lines: Line, **how: Any) -> tuple[Fallback, list[Scripted]]:
    clients = [Scripted(line) for line in lines]
    return Fallback(list(zip((A, B, C), clients, strict=False)), **how), clients


async def test_the_first_lane_answers_alone() -> None:
    """Nobody else is asked, and no attempt is on the receipt."""
    fallback, (first, second) = over("Paris", "Lyon")
    answer = await fallback.answer(REQUEST)
    assert (answer.text, answer.lane, answer.attempts) == ("Paris", A, ())
    assert (len(first.requests), len(second.requests)) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("x"),
        Overloaded("x"),
        Unreachable("x"),
        BadCredentials("x"),
        QuotaExhausted("x"),
        ContextTooLong("x"),
    ],
)
async def test_the_next_lane_is_asked_where_it_may_do_better(error: ModelError) -> None:
    """As itself, with the same conversation; what failed is on the receipt."""
    error.request_id, error.in_doubt, error.status = "req_1", True, 503
    fallback, (_, second) = over(error, "Paris")
    answer = await fallback.answer(REQUEST)
    assert (answer.text, answer.lane) == ("Paris", B)
    assert (second.requests[0].lane, second.requests[0].messages) == (B, REQUEST.messages)
    (failed,) = answer.attempts
    assert (failed.lane, failed.code, failed.request_id, failed.status, failed.in_doubt) == (
        A,
        error.code,
        "req_1",
        503,
        True,
    )


@pytest.mark.parametrize("error", [BadModelRequest("x"), ContentRefused("x")])
async def test_no_other_lane_is_asked_where_it_would_say_the_same(error: ModelError) -> None:
    """A bad request is bad everywhere, and a refusal is not shopped around."""
    fallback, (_, second) = over(error, "Paris")
    with pytest.raises(type(error)) as caught:
        await fallback.answer(REQUEST)
    assert caught.value is error
    assert second.requests == []


async def test_whoever_asks_may_decide_when_to_go_on() -> None:
    """An agent may want a second opinion on a refusal."""
    fallback, _ = over(ContentRefused("x"), "Paris", worth=lambda error, lane: True)
    assert (await fallback.answer(REQUEST)).text == "Paris"


async def test_who_shops_around_waits_for_a_lane_that_has_not_refused() -> None:
    """In whatever order; where all refuse, the first refusal tells. Who does not, hears of the refusal."""
    for lines in [ContentRefused("a"), Overloaded("b")], [Overloaded("a"), ContentRefused("b")]:
        fallback, _ = over(*lines, worth=lambda error, lane: True)
        with pytest.raises(Overloaded):
            await fallback.answer(REQUEST)
    fallback, _ = over(Overloaded("a"), ContentRefused("b"))
    with pytest.raises(ContentRefused):
        await fallback.answer(REQUEST)
    fallback, _ = over(ContentRefused("a"), ContentRefused("b"), worth=lambda error, lane: True)
    with pytest.raises(ContentRefused, match="a"):
        await fallback.answer(REQUEST)


async def test_a_lane_that_is_not_worth_it_is_passed_by() -> None:
    """The one behind it may be."""
    fallback, (_, second, _) = over(ContextTooLong("x"), "Lyon", "Paris", worth=lambda error, lane: lane == C)
    assert (await fallback.answer(REQUEST)).text == "Paris"
    assert second.requests == []


async def test_if_all_fail_the_error_that_time_may_cure_is_raised() -> None:
    """A job that can wait shall wait; it holds all attempts, in order."""
    fallback, _ = over(BadCredentials("x"), RateLimited("busy", retry_after=20), Overloaded("x", retry_after=30))
    with pytest.raises(RateLimited) as caught:
        await fallback.answer(REQUEST)
    assert caught.value.retry_after == 20
    assert [attempt.code for attempt in caught.value.attempts] == ["bad_credentials", "rate_limited", "overloaded"]
    assert [attempt.lane for attempt in caught.value.attempts] == [A, B, C]


async def test_if_all_fail_for_good_the_first_error_is_raised() -> None:
    """The agent's first choice is what its owner wants to hear about."""
    fallback, _ = over(QuotaExhausted("x"), BadCredentials("x"))
    with pytest.raises(QuotaExhausted):
        await fallback.answer(REQUEST)


async def test_what_one_lane_alone_takes_amiss_is_not_told_of_all() -> None:
    """A later lane may refuse what the first takes: that one may answer yet."""
    for later in BadModelRequest("b"), JobBudgetFull("b", why="never"), BudgetFull("b", why="never"):
        fallback, _ = over(Overloaded("a"), later)
        with pytest.raises(Overloaded):
            await fallback.answer(REQUEST)


async def test_money_that_is_not_waited_for_does_not_end_a_job_that_another_lane_cures() -> None:
    """However soon there would be some."""
    soon = datetime.now(UTC) + timedelta(seconds=60)
    for waits, told in (True, LaneBudgetFull), (False, RateLimited):
        spent = LaneBudgetFull("a", why="spent", ends=soon, waits=waits, asked=False)
        fallback, _ = over(spent, RateLimited("b", retry_after=120.0))
        with pytest.raises(told):
            await fallback.answer(REQUEST)


async def test_of_two_that_name_no_time_the_one_that_was_asked_is_told() -> None:
    """It counts as a try; a budget that is held for a moment does not."""
    held = LaneBudgetFull("a", why="held", asked=False)
    fallback, _ = over(held, Unreachable("b"))
    with pytest.raises(Unreachable):
        await fallback.answer(REQUEST)


async def test_an_error_of_all_lanes_survives_pickling() -> None:
    """With its attempts."""
    fallback, _ = over(Overloaded("x"), Overloaded("y"))
    with pytest.raises(Overloaded) as caught:
        await fallback.answer(REQUEST)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # our own bytes
    assert again.attempts == caught.value.attempts
    assert len(again.attempts) == 2


async def test_fallbacks_nest() -> None:
    """A fallback is a model client like any other, and its attempts are not lost."""
    inner, _ = over(Overloaded("x"), RateLimited("y"))
    outer = Fallback([(A, inner), (C, Scripted("Paris"))])
    answer = await outer.answer(REQUEST)
    assert answer.text == "Paris"
    assert [attempt.code for attempt in answer.attempts][:2] == ["overloaded", "rate_limited"]


async def test_where_nobody_could_be_asked_the_lane_that_opens_first_tells() -> None:
    """The job waits for that one."""
    fallback, _ = over(LaneClosed("a", retry_after=9.0), LaneClosed("b", retry_after=4.0), BadCredentials("c"))
    with pytest.raises(LaneClosed) as told:
        await fallback.answer(REQUEST)
    assert told.value.retry_after == 4.0


async def test_a_lane_that_failed_tells_more_than_one_that_asks_for_time() -> None:
    """It may be asked again at once."""
    fallback, _ = over(LaneClosed("a", retry_after=1.0), Unreachable("b"))
    with pytest.raises(Unreachable):
        await fallback.answer(REQUEST)


@pytest.mark.parametrize("asked", [RateLimited, Overloaded])
async def test_a_job_waits_for_the_lane_that_may_be_asked_first(asked: type[ModelError]) -> None:
    """Whether it was told so itself, or the fleet was."""
    fallback, _ = over(asked("a", retry_after=3600.0), LaneClosed("b", retry_after=2.0))
    with pytest.raises(LaneClosed, match="b"):
        await fallback.answer(REQUEST)
    fallback, _ = over(asked("a", retry_after=1.0), LaneClosed("b", retry_after=2.0))
    with pytest.raises(asked, match="a"):
        await fallback.answer(REQUEST)
