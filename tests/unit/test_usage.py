"""Tokens in disjoint classes: as providers count them, as we do, and as callers and older releases see them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.gate.lanes import heard
from celeriac.jobs.model import Call
from celeriac.jobs.store import _usage
from celeriac.llm.model import Lane, Message, ModelRequest, Usage
from celeriac.llm.reading import NotAnAnswer, anthropic_usage, openai_usage

REQUEST = ModelRequest(Lane("anthropic", "small"), (Message("user", "x" * 1000),), max_output_tokens=1000)
COUNTS = st.integers(0, 10**9)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
#: What a release that knows four classes and a part stores and reads.
BEFORE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@given(one=USAGES, other=USAGES)
def test_what_is_stored_says_all_that_was_counted(one: Usage, other: Usage) -> None:
    """Each class comes back, sums are sums, and the first four names of what callers see add up to all of it."""
    said = one.as_dict()
    assert Usage.from_dict(said) == one
    assert sum(list(said.values())[:4]) == one.total == sum(one.classes().values())
    assert (one + other).classes() == {name: n + other.classes()[name] for name, n in one.classes().items()}
    assert (one.prompt, one.made) == (one.total - one.made, one.output + one.reasoning)


def test_callers_and_older_releases_see_the_names_and_sums_that_they_know() -> None:
    """Reasoning is within the output there, and what is written for an hour within what is written."""
    usage = Usage(1, 2, 3, 4, 5)
    assert usage.as_dict() == dict(zip(BEFORE, (1, 2, 3, 9, 5), strict=True))
    hour = Usage(cache_write=3, cache_write_1h=4).as_dict()
    assert (hour["cache_write_tokens"], hour["cache_write_1h_tokens"]) == (7, 4)


def test_what_an_older_release_stored_is_read() -> None:
    """Its output held the reasoning."""
    stored = {"input_tokens": 1, "cache_read_tokens": 0, "cache_write_tokens": 2, "output_tokens": 9}
    assert Usage.from_dict(stored) == Usage(1, 0, 2, 9)
    assert Usage.from_dict(stored | {"reasoning_tokens": 5}) == Usage(1, 0, 2, 4, 5)


def test_a_jobs_usage_holds_the_classes_of_all_its_calls() -> None:
    """Also of one that only the last of them has."""
    calls = [
        Call(str(n), "settled", 1, datetime(2026, 11, 1, tzinfo=UTC), {"usage": usage.as_dict()})
        for n, usage in enumerate((Usage(1, output=2), Usage(4, cache_write_1h=8)))
    ]
    found = _usage(calls)
    assert found is not None
    assert Usage.from_dict(found) == Usage(5, output=2, cache_write_1h=8)


def test_rates_count_whatever_is_read_and_made() -> None:
    """What was thought is output to them, and what is written for an hour is input; only Anthropic's reads are free."""
    usage = Usage(1, 2, 4, 8, 16, 32)
    assert heard(Lane("anthropic", "x"), usage=usage)["used"] == (1 + 4 + 32, 8 + 16)
    assert heard(Lane("openai", "x"), usage=usage)["used"] == (1 + 2 + 4 + 32, 8 + 16)


def written(**usage: Any) -> tuple[int, int]:
    """Tokens written for five minutes, and for an hour."""
    made = {"usage": {"input_tokens": 1, "output_tokens": 1, **usage}}
    found = anthropic_usage(made, REQUEST)
    return found.cache_write, found.cache_write_1h


def parts(five: Any, hour: Any) -> dict[str, Any]:
    return {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}


def test_writes_without_a_lifetime_are_of_five_minutes() -> None:
    """An hour has to be asked for, which no request of ours does."""
    assert (
        written(cache_creation_input_tokens=7) == written(cache_creation_input_tokens=7, cache_creation=None) == (7, 0)
    )


def test_writes_that_are_left_over_are_of_the_longest_lifetime_that_is_named() -> None:
    """Never too low: a stream may name the parts at its beginning, and a larger total at its end."""
    assert written(cache_creation_input_tokens=9, cache_creation=parts(2, 0)) == (9, 0)
    assert written(cache_creation_input_tokens=9, cache_creation=parts(2, 4)) == (2, 7)
    assert written(cache_creation=parts(2, 4)) == (2, 4)


@pytest.mark.parametrize(
    "usage",
    [
        {"cache_creation_input_tokens": 5, "cache_creation": parts(2, 4)},
        {"cache_creation_input_tokens": 0, "cache_creation": parts(1, 0)},
        {"cache_creation": parts(-1, 0)},
        {"cache_creation": parts(0, True)},
        {"cache_creation": parts(0, 1.0)},
        {"cache_creation": parts(0, 10**6)},
        {"output_tokens_details": {"thinking_tokens": 2}},
    ],
    ids=["more-than-all", "of-nothing", "negative", "true", "float", "huge", "more-thought-than-made"],
)
def test_parts_that_cannot_be_are_not_believed(usage: dict[str, Any]) -> None:
    """The call is then in doubt at its bound: nobody knows what it cost."""
    with pytest.raises(NotAnAnswer):
        written(**usage)


def test_reasoning_beyond_the_output_is_not_believed() -> None:
    """OpenAI's is within it."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}}
    with pytest.raises(NotAnAnswer, match="reasoning"):
        openai_usage({"usage": usage}, REQUEST, sides=("prompt", "completion"))


@pytest.mark.parametrize("said", [{"completion_tokens": 20_000}, {"prompt_tokens": 200_000}])
def test_ten_times_what_a_request_can_cause_is_not_believed(said: dict[str, int]) -> None:
    """All that was read counts, and all that was made, whatever part of it was cached or thought."""
    usage: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 1} | said
    usage["completion_tokens_details"] = {"reasoning_tokens": usage["completion_tokens"]}
    usage["prompt_tokens_details"] = {"cached_tokens": usage["prompt_tokens"]}
    with pytest.raises(NotAnAnswer, match="more"):
        openai_usage({"usage": usage}, REQUEST, sides=("prompt", "completion"))
