"""Tools as each provider's wire has them: what a model is told of them, what it wants called, and what came of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from celeriac.errors import BadAnswer
from celeriac.llm.model import Message, ToolCall, ToolSpec

from .conftest import Case

WEATHER = ToolSpec(
    "weather",
    "The weather in a town.",
    {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
)
CALL = {"name": "weather", "arguments": {"town": "Paris"}}
ONE, TWO = ToolCall("call_1", "weather", '{"town": "Paris"}'), ToolCall("call_2", "weather", '{"town": "Lyon"}')
#: A turn with two calls, one of which failed; and what follows it.
TURN = (
    Message("user", "Paris or Lyon?"),
    Message("assistant", "I look.", calls=(ONE, TWO)),
    Message("tool", "sunny", call_id="call_1"),
    Message("tool", "no such town", call_id="call_2", failed=True),
)


async def sent(sdk: Case) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((await sdk.provider.requests())[-1]["body"])
    return body


async def test_a_model_is_told_of_the_tools(sdk: Case) -> None:
    """By name, description and schema; without tools nothing is said of any."""
    await sdk.answer(tools=(WEATHER,))
    function = {"name": "weather", "description": WEATHER.description, "parameters": WEATHER.schema}
    told = {
        "chat": {"type": "function", "function": function},
        "responses": {"type": "function", **function},
        "messages": {"name": "weather", "description": WEATHER.description, "input_schema": WEATHER.schema},
    }
    assert (await sent(sdk))["tools"] == [told[sdk.name]]
    await sdk.answer()
    assert "tools" not in await sent(sdk)


async def test_a_model_is_told_the_schema_of_its_answer(sdk: Case) -> None:
    """In the provider's own field; without a schema nothing is said of any."""
    await sdk.answer(schema=WEATHER.schema)
    told, form = await sent(sdk), {"name": "answer", "schema": WEATHER.schema, "strict": False}
    closed = WEATHER.schema | {"additionalProperties": False}
    where = {
        "chat": ("response_format", {"type": "json_schema", "json_schema": form}),
        "responses": ("text", {"format": {"type": "json_schema", **form}}),
        "messages": ("output_config", {"format": {"type": "json_schema", "schema": closed}}),
    }
    field, value = where[sdk.name]
    assert told[field] == value
    await sdk.answer()
    assert field not in await sent(sdk)


@pytest.mark.parametrize("text", [None, "I look."])
async def test_what_a_model_wants_called_is_in_its_answer(sdk: Case, text: str | None) -> None:
    """Several at once, with or without words beside them."""
    await sdk.meets(text=text, calls=[CALL, {"name": "time", "arguments": {}}])
    answer = await sdk.answer(tools=(WEATHER,))
    assert (answer.text, answer.stop_reason) == (text or "", "tool")
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [
        ("weather", {"town": "Paris"}),
        ("time", {}),
    ]
    assert len({call.id for call in answer.calls}) == 2


async def test_what_came_of_the_calls_goes_back_to_the_model(sdk: Case) -> None:
    """Each result with the call that it answers, in the provider's own form."""
    await sdk.client.answer(replace(sdk.request(tools=(WEATHER,)), messages=TURN))
    body = await sent(sdk)
    if sdk.name == "chat":
        assert body["messages"] == [
            {"role": "user", "content": "Paris or Lyon?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                    for c in (ONE, TWO)
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": "no such town"},
        ]
    elif sdk.name == "responses":
        assert body["input"] == [
            {"role": "user", "content": "Paris or Lyon?"},
            {"role": "assistant", "content": "I look."},
            *({"type": "function_call", "call_id": c.id, "name": c.name, "arguments": c.arguments} for c in (ONE, TWO)),
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "call_2", "output": "no such town"},
        ]
    else:
        assert body["messages"] == [
            {"role": "user", "content": "Paris or Lyon?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"town": "Paris"}},
                    {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"town": "Lyon"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny", "is_error": False},
                    {"type": "tool_result", "tool_use_id": "call_2", "content": "no such town", "is_error": True},
                ],
            },
        ]


@pytest.mark.parametrize("name", ["", "two words", "x" * 200])
async def test_a_call_of_a_tool_without_a_proper_name_is_no_answer(sdk: Case, name: str) -> None:
    """It could be said back to no provider."""
    await sdk.meets(calls=[{"name": name}])
    with pytest.raises(BadAnswer) as caught:
        await sdk.answer(tools=(WEATHER,))
    assert caught.value.in_doubt


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("functions.find_order", "unknown_functions_find_order"),
        ("x" * 65, "unknown_" + "x" * 56),
        ("y" * 128, "unknown_" + "y" * 56),
    ],
)
async def test_a_tool_that_a_model_made_up_has_a_name_that_can_be_said_back(sdk: Case, name: str, told: str) -> None:
    """To every provider, by which the job may go on: OpenAI refuses a dot, and more than 64 letters. It is no tool's
    that the agent has: `orders.cancel` cancels nothing.
    """
    await sdk.meets(calls=[{"name": name}])
    answer = await sdk.answer(tools=(WEATHER,))
    assert [call.name for call in answer.calls] == [told]
    said = Message("assistant", answer.text, calls=answer.calls)
    result = Message("tool", "there is no such tool", call_id=answer.calls[0].id, failed=True)
    question = sdk.request(tools=(WEATHER,))
    await sdk.client.answer(replace(question, messages=(*question.messages, said, result)))
    body = json.dumps(await sent(sdk))
    assert told in body
    assert name not in body


async def test_calls_have_names_of_our_own(sdk: Case) -> None:
    """Unlike in all turns, and such as every provider takes back: Mistral wants nine letters and digits, and the others
    take those. Servers send the same ones again, or longer ones.
    """
    names = set()
    for _ in range(2):
        await sdk.meets(calls=[CALL | {"id": "call_0"}, CALL | {"id": "x" * 64}])
        names |= {call.id for call in (await sdk.answer(tools=(WEATHER,))).calls}
    assert len(names) == 4
    assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", name) for name in names)
