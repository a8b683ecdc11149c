"""Answers that come piece by piece: in the end they are the ones that come at once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from celeriac.errors import BadAnswer, ModelTimeout, Overloaded, ProviderFailed
from celeriac.llm.model import Answer, ToolSpec
from tests.llm.conftest import Case

WEATHER = ToolSpec("weather", "The weather.", {"type": "object", "properties": {"town": {"type": "string"}}})
TEXT = "Leeks are planted in spring,\nand  earthed up. \u00dcbrigens: \U0001f96c"


async def streamed(sdk: Case, **facts: Any) -> tuple[Answer, list[str]]:
    pieces: list[str] = []
    return await sdk.answer(on_text=pieces.append, **facts), pieces


async def both(sdk: Case, behaviour: dict[str, Any], **facts: Any) -> tuple[Answer, Answer, list[str]]:
    """The same call without a stream and with one."""
    behaviour = {"usage": {"input": 20}} | behaviour  # the two requests are not of one length
    await sdk.meets(**behaviour)
    once = await sdk.answer(**facts)
    await sdk.meets(**behaviour)
    return once, *await streamed(sdk, **facts)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"text": TEXT},
        {"text": TEXT, "cached": 3, "reasoning": 7},
        {"text": TEXT, "answer_model": "another-2026"},
        {"text": TEXT, "finish": "length"},
        {"text": ""},
    ],
    ids=["text", "usage", "model", "length", "nothing"],
)
async def test_a_stream_makes_the_same_answer(sdk: Case, behaviour: dict[str, Any]) -> None:
    """Text, usage in all its classes, model, tier, and why it stopped. The pieces are the text."""
    if sdk.name == "messages" and "cached" in behaviour:
        behaviour = behaviour | {"cache_written": 2}
    once, answer, pieces = await both(sdk, behaviour)
    for name in ("text", "usage", "model", "tier", "stop_reason", "calls"):
        assert getattr(answer, name) == getattr(once, name), name
    assert answer.usage.reasoning == once.usage.reasoning
    assert "".join(pieces) == answer.text
    assert len(pieces) >= 6 or not behaviour["text"]
    assert answer.request_id


@pytest.mark.parametrize("text", [None, "I look."])
async def test_calls_of_tools_come_in_pieces_too(sdk: Case, text: str | None) -> None:
    """Several at once, with words beside them or none; their names are our own."""
    calls = [{"name": "weather", "arguments": {"town": "Saint Malo", "days": [1, 2]}}, {"name": "weather"}]
    once, answer, pieces = await both(sdk, {"text": text, "calls": calls}, tools=(WEATHER,))
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [
        (call.name, json.loads(call.arguments)) for call in once.calls
    ]
    assert (answer.text, answer.stop_reason, "".join(pieces)) == (text or "", "tool", text or "")


async def test_the_first_piece_comes_before_the_last(sdk: Case) -> None:
    """Somebody waits for it."""
    await sdk.meets(text=TEXT, pace=0.1)
    came: list[float] = []
    began = time.monotonic()
    await sdk.answer(on_text=lambda _: came.append(time.monotonic() - began))
    assert came[-1] - came[0] > 0.4


async def test_nothing_is_asked_for_as_a_stream_that_nobody_reads(sdk: Case) -> None:
    await sdk.answer()
    assert "stream" not in json.loads((await sdk.provider.requests())[-1]["body"])


async def test_a_stream_has_the_same_deadline(sdk: Case) -> None:
    """However many pieces come meanwhile."""
    await sdk.meets(text=TEXT, pace=0.2)
    began = time.monotonic()
    with pytest.raises(ModelTimeout) as caught:
        await streamed(sdk, deadline=0.5)
    assert caught.value.in_doubt
    assert time.monotonic() - began < 1.5


async def test_an_error_in_a_stream_is_what_the_provider_says(sdk: Case) -> None:
    """After it has begun: nobody knows what was billed."""
    await sdk.meets(fault="overloaded-in-stream", text=TEXT)
    pieces: list[str] = []
    with pytest.raises(Overloaded if sdk.name == "messages" else ProviderFailed) as caught:
        await sdk.answer(on_text=pieces.append)
    assert caught.value.in_doubt
    assert pieces


@pytest.mark.parametrize(
    "behaviour", [{"cut": 300}, {"fault": "html"}, {"fault": "no-usage"}, {"body": "data: {}\n\n"}]
)
async def test_what_is_no_whole_stream_is_no_answer(sdk: Case, behaviour: dict[str, Any]) -> None:
    await sdk.meets(**({"text": TEXT} | behaviour))
    with pytest.raises(BadAnswer) as caught:
        await streamed(sdk)
    assert caught.value.in_doubt
