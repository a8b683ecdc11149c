"""The model that answers from a script."""

from __future__ import annotations

import subprocess
import sys

import pytest

from celeriac.errors import RateLimited
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, Usage
from celeriac.llm.scripted import OutOfLines, Scripted

REQUEST = ModelRequest(Lane("scripted", "echo"), (Message("user", "Capital of France?"),))


async def test_lines_are_answers_in_order() -> None:
    """Texts, errors, whole answers, and functions of the request."""
    whole = Answer("whole", Usage(input=1), REQUEST.lane, "m")
    script = Scripted("Paris", RateLimited("busy"), whole, lambda request: request.lane.model)
    assert (await script.answer(REQUEST)).text == "Paris"
    with pytest.raises(RateLimited):
        await script.answer(REQUEST)
    assert await script.answer(REQUEST) is whole
    assert (await script.answer(REQUEST)).text == "echo"
    assert script.requests == [REQUEST] * 4


async def test_a_function_may_be_asynchronous() -> None:
    """It can wait for what a test wants to happen first."""

    async def line(request: ModelRequest) -> str:
        return request.messages[-1].text.upper()

    assert (await Scripted(line).answer(REQUEST)).text == "CAPITAL OF FRANCE?"


async def test_a_call_too_many_is_named() -> None:
    """A test that asks more often than it planned must not hang or pass."""
    script = Scripted("Paris")
    await script.answer(REQUEST)
    with pytest.raises(OutOfLines, match="1 lines"):
        await script.answer(REQUEST)


async def test_a_cycle_begins_again() -> None:
    """For load, and for `make run` without a model."""
    script = Scripted("a", "b", cycle=True)
    assert [(await script.answer(REQUEST)).text for _ in range(5)] == ["a", "b", "a", "b", "a"]


async def test_without_lines_it_echoes() -> None:
    """Something to look at, with words counted as tokens."""
    answer = await Scripted().answer(REQUEST)
    assert answer.text == "You said: Capital of France?"
    assert answer.usage == Usage(input=3, output=5)


def test_it_and_the_fallback_need_no_sdk() -> None:
    """The two SDKs cost 1.5 s and 100 MB: whoever does not ask a provider does not import them."""
    code = (
        "import sys, celeriac.llm.model, celeriac.llm.fallback, celeriac.llm.scripted, celeriac.drill.provider\n"
        "print([m for m in ('openai', 'anthropic', 'httpx2') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
