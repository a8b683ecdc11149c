"""Whether the next lane is worth asking, or the one before it worth waiting for."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from celeriac.agents.agent import Agent
from celeriac.agents.choice import Choice, shortened
from celeriac.costs.prices import Prices
from celeriac.errors import (
    BadModelRequest,
    BudgetFull,
    ContentRefused,
    ContextTooLong,
    JobBudgetFull,
    LaneClosed,
    ModelError,
    Overloaded,
    RateLimited,
    UnknownModel,
)
from celeriac.llm.model import Lane, Message, ModelRequest

CHEAP, DEAR = Lane("openai", "gpt-5-mini"), Lane("openai", "gpt-5.4")
SHORT, LONG, UNKNOWN = Lane("openai", "gpt-4o"), Lane("anthropic", "claude-haiku-5-5"), Lane("local", "llama")


def choice(patience: float = 10.0, deadline: float | None = None, **facts: Any) -> Choice:
    agent = Agent("a", "", "", (CHEAP, DEAR), patience=timedelta(seconds=patience))
    request = ModelRequest(CHEAP, (Message("user", "hi"),), deadline=60.0)
    return Choice(agent, Prices(), request, None if deadline is None else time.time() + deadline, **facts)


def closed(kind: type[ModelError], of: Lane, wait: float | None) -> ModelError:
    return kind("x", provider=of.provider, model=of.model, retry_after=wait)


@pytest.mark.parametrize("kind", [LaneClosed, RateLimited])
def test_a_patient_agent_rather_waits_than_asks_a_dearer_lane(kind: type[ModelError]) -> None:
    """As long as it says. Of a lane that costs no more there is nothing to wait for."""
    assert not choice().worth(closed(kind, CHEAP, 10.0), DEAR)
    assert choice().worth(closed(kind, CHEAP, 10.1), DEAR)
    assert choice().worth(closed(kind, DEAR, 10.0), CHEAP)
    assert choice(patience=0).worth(closed(kind, CHEAP, 0.1), DEAR)
    assert choice(patience=0).worth(closed(kind, CHEAP, 0.0), DEAR)


def test_a_job_that_would_be_late_does_not_wait() -> None:
    """There has to be time for the call as well."""
    assert choice(deadline=69).worth(closed(LaneClosed, CHEAP, 10.0), DEAR)
    assert not choice(deadline=72).worth(closed(LaneClosed, CHEAP, 10.0), DEAR)


def test_patience_is_for_all_waits_together() -> None:
    """Else a lane that is closed for a moment again and again would be waited for without end."""
    assert not choice(waited=6.0).worth(closed(LaneClosed, CHEAP, 4.0), DEAR)
    assert choice(waited=6.1).worth(closed(LaneClosed, CHEAP, 4.0), DEAR)


def test_on_its_last_try_a_job_asks_whoever_there_is() -> None:
    """It would fail, with a lane that nobody has asked."""
    assert choice(is_last_try=True).worth(closed(RateLimited, CHEAP, 4.0), DEAR)


def test_a_lane_that_fails_is_not_waited_for() -> None:
    """It may fail again."""
    assert choice().worth(closed(Overloaded, CHEAP, 1.0), DEAR)


@pytest.mark.parametrize(("kind", "worth"), [(UnknownModel, True), (BadModelRequest, False), (ContentRefused, False)])
def test_for_the_rest_the_error_says_it(kind: type[ModelError], worth: bool) -> None:
    assert choice().worth(closed(kind, CHEAP, None), DEAR) is worth


def test_what_is_too_dear_for_a_cap_may_be_cheap_enough_elsewhere() -> None:
    """Whose cap it is does not matter: calls of lanes differ in what they may cost. What is held is waited for."""
    for kind in BudgetFull, JobBudgetFull:
        dear = kind("x", why="never", provider=DEAR.provider, model=DEAR.model)
        cheap = kind("x", why="never", provider=CHEAP.provider, model=CHEAP.model)
        assert choice().worth(dear, CHEAP)
        assert not choice().worth(cheap, DEAR)
        assert not choice().worth(cheap, CHEAP)
    held = BudgetFull("x", why="held", provider=DEAR.provider, model=DEAR.model)
    assert not choice().worth(held, CHEAP)


def test_a_refusal_is_shopped_around_where_the_agent_says_so() -> None:
    """Of its own accord nobody does."""
    said = choice()
    asked = replace(said, agent=replace(said.agent, refused="next"))
    refused = closed(ContentRefused, CHEAP, None)
    assert (said.worth(refused, DEAR), asked.worth(refused, DEAR)) == (False, True)


@pytest.mark.parametrize(
    ("of", "lane", "worth"),
    [(SHORT, LONG, True), (LONG, SHORT, False), (LONG, LONG, False), (LONG, UNKNOWN, True), (UNKNOWN, SHORT, True)],
)
def test_what_is_too_long_for_one_lane_goes_to_one_with_a_longer_window(of: Lane, lane: Lane, worth: bool) -> None:
    """Where the windows are not known, it is tried."""
    assert choice().worth(closed(ContextTooLong, of, None), lane) is worth


def messages(*roles: str) -> tuple[Message, ...]:
    return tuple(Message("user" if role == "u" else "assistant", str(n)) for n, role in enumerate(roles))


@pytest.mark.parametrize(
    ("roles", "left"),
    [("uauau", "234"), ("uauauau", "456"), ("uau", "2"), ("uuaau", "1234"), ("auau", "3"), ("u", None), ("au", None)],
)
def test_a_conversation_is_shortened_by_whole_turns(roles: str, left: str | None) -> None:
    """The older half of them; the last question always stays."""
    found = shortened(messages(*roles))
    assert (found and "".join(message.text for message in found)) == left
    assert found is None or found[0].role == "user"
