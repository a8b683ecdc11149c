"""Answers that come piece by piece: in the end they are the ones that come at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.errors import BadAnswer, ModelError, ModelTimeout, Overloaded, ProviderFailed
from celeriac.llm import adapter as adapter_module
from celeriac.llm.model import Answer, ToolSpec
from celeriac.llm.openai import OpenAI
from tests.llm.conftest import Case, adapter
from tests.processes import held, until

WEATHER = ToolSpec("weather", "The weather.", {"type": "object", "properties": {"town": {"type": "string"}}})
#: At a pace of 0.02 s a stream that does not end while a test looks.
LONG: dict[str, Any] = {"text": "leek " * 2000, "pace": 0.02}
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
    await sdk.meets(**LONG)
    pieces: list[str] = []
    asking = asyncio.create_task(sdk.answer(on_text=pieces.append, deadline=60.0))
    await until(lambda: pieces != [])
    assert not asking.done()
    asking.cancel()
    await asyncio.wait([asking])


async def test_nothing_is_asked_for_as_a_stream_that_nobody_reads(sdk: Case) -> None:
    await sdk.answer()
    assert "stream" not in json.loads((await sdk.provider.requests())[-1]["body"])


async def test_a_stream_has_the_same_deadline(sdk: Case) -> None:
    """However many pieces come meanwhile."""
    for deadline in (0.5, 2.0, 8.0):
        await sdk.meets(**LONG)
        pieces: list[str] = []
        began = held()
        with pytest.raises(ModelError) as caught:
            await sdk.answer(on_text=pieces.append, deadline=deadline)
        took = held() - began
        if pieces:  # else the machine was too busy to begin
            break
    assert isinstance(caught.value, ModelTimeout)
    assert (pieces != [], caught.value.in_doubt) == (True, True)
    assert took < deadline + 1


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


def sse(*events: dict[str, Any], done: bool = False) -> str:
    """As a server writes them."""
    named = [(f"event: {event['type']}\n" if "type" in event else "", json.dumps(event)) for event in events]
    return "".join(f"{name}data: {text}\n\n" for name, text in named) + ("data: [DONE]\n\n" if done else "")


def said(*events: dict[str, Any], done: bool = False) -> dict[str, Any]:
    """A behaviour that says exactly this."""
    return {"body": sse(*events, done=done), "content_type": "text/event-stream"}


@pytest.fixture
def chat(http: httpx2.AsyncClient, provider: ProviderProcess) -> Case:
    return Case("chat", adapter("chat", http, provider.url), provider)


@pytest.fixture
def messages(http: httpx2.AsyncClient, provider: ProviderProcess) -> Case:
    return Case("messages", adapter("messages", http, provider.url), provider)


USED = {"input_tokens": 10, "output_tokens": 1}
BEGUN = {"type": "message_start", "message": {"model": "small", "content": [], "stop_reason": None, "usage": USED}}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
WORDS = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Leeks."}}
STOPPED = {"type": "message_stop"}


def ended(**facts: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}} | facts


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": {"output_tokens": None}}])
async def test_what_a_stream_begins_with_is_no_usage(messages: Case, usage: dict[str, Any]) -> None:
    """Its first event says one token of output, whatever comes: at that, a call would be cheaper than its bill."""
    await messages.meets(**said(BEGUN, BLOCK, WORDS, ended(**usage), STOPPED))
    with pytest.raises(BadAnswer) as caught:
        await streamed(messages)
    assert caught.value.in_doubt
    await messages.meets(**said(BEGUN, BLOCK, WORDS, ended(usage={"output_tokens": 7}), STOPPED))
    answer, _ = await streamed(messages)
    assert (answer.text, answer.usage.input, answer.usage.output) == ("Leeks.", 10, 7)


async def test_a_call_that_is_cut_off_in_a_stream_is_paid(messages: Case) -> None:
    """It is not made; but what was answered was answered, and asked again it would be cut off again."""
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    piece = {"type": "input_json_delta", "partial_json": '{"town": "Sai'}
    begin, cut = BLOCK | {"content_block": call}, WORDS | {"delta": piece}
    end = ended(delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 7})
    await messages.meets(**said(BEGUN, begin, cut, end, STOPPED))
    answer, _ = await streamed(messages, tools=(WEATHER,))
    assert (answer.stop_reason, answer.usage.output, [call.name for call in answer.calls]) == ("length", 7, ["weather"])


USAGE = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 7}}


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"model": "small", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def called(index: int | None, id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    return chunk({"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]})


HALF, REST, CALLED = '{"to', 'wn": 1}', chunk({}, "tool_calls")


@pytest.mark.parametrize(
    ("pieces", "text", "calls"),
    [
        ([chunk({"role": "assistant", "content": None}), chunk({}, "stop")], "", []),
        ([{"choices": None, "prompt_filter_results": []}, chunk({"content": "Leeks."}, "stop")], "Leeks.", []),
        ([{"id": "x"}, chunk({"content": "Leeks."}, "stop")], "Leeks.", []),
        ([called(0, "a", "weather", HALF), called(0, "a", "weather", REST), CALLED], "", [("weather", HALF + REST)]),
        (
            [called(0, "a", "weather", "{}"), called(0, "b", "time", "{}"), CALLED],
            "",
            [("weather", "{}"), ("time", "{}")],
        ),
        ([called(None, "a", "weather", HALF), called(None, None, None, REST), CALLED], "", [("weather", HALF + REST)]),
    ],
    ids=["nothing", "no choices", "no chunk", "a name each time", "one number", "no number"],
)
async def test_those_who_speak_like_openai_are_understood(
    chat: Case, pieces: list[dict[str, Any]], text: str, calls: list[tuple[str, str]]
) -> None:
    """Each in its own way."""
    await chat.meets(**said(*pieces, USAGE, done=True))
    tools = (WEATHER, ToolSpec("time", "The time.", {"type": "object"})) if calls else ()
    answer, _ = await streamed(chat, tools=tools)
    assert (answer.text, [(call.name, call.arguments) for call in answer.calls]) == (text, calls)
    assert answer.usage.output == 7


RESPONSE = {
    "model": "small",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Leeks."}]}],
    "usage": USED | {"output_tokens": 7},
}
WHOLE = {
    "messages": sse(BEGUN, BLOCK, WORDS, ended(usage={"output_tokens": 7}), STOPPED),
    "responses": sse({"type": "response.completed", "response": RESPONSE}),
    "chat": sse(chunk({"content": "Leeks."}, "stop"), USAGE, done=True),
}


@contextlib.asynccontextmanager
async def serving(body: str, *, ends: bool) -> AsyncIterator[tuple[str, list[int]]]:
    """Its URL, and a number for each connection. ends: the answer does; else its connection is kept open."""
    connections: list[int] = []
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in asked.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                writer.write(head + f"{len(body):x}\r\n{body}\r\n".encode())
                await asyncio.sleep(0.02)  # the end comes by itself
                writer.write(b"0\r\n\r\n" if ends else b"")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it stays open"])
async def test_an_answer_that_is_whole_waits_for_no_connection(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, name: str, ends: bool
) -> None:
    """Some keep it open. One that was read to its end is used again: a handshake costs more than all else of a call."""
    if ends:  # a busy machine has more time for that
        monkeypatch.setattr(adapter_module, "LINGER", 40 * adapter_module.LINGER)
    async with serving(WHOLE[name], ends=ends) as (url, connections):
        client = adapter(name, http, url)
        for _ in range(3):
            answer, _ = await streamed(Case(name, client, None))
            assert (answer.text, answer.usage.output) == ("Leeks.", 7)
            assert answer.seconds < 5
        await http.aclose()
    assert len(connections) == (1 if ends else 3)


async def test_an_answer_that_is_whole_has_no_deadline(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes behind it, or does not, takes nothing back."""
    monkeypatch.setattr(adapter_module, "LINGER", 3.5)
    async with serving(WHOLE["messages"], ends=False) as (url, _):
        answer, _ = await streamed(Case("messages", adapter("messages", http, url), None), deadline=3.0)
        assert answer.text == "Leeks."
        assert answer.seconds > 3
        await http.aclose()


@pytest.mark.parametrize("asks", [True, False])
async def test_whoever_refuses_stream_options_is_sent_none(
    http: httpx2.AsyncClient, provider: ProviderProcess, asks: bool
) -> None:
    """Its usage comes unasked."""
    client = OpenAI(http, key="k", base_url=f"{provider.url}/v1", asks_for_usage=asks)
    case = Case("chat", client, provider)
    await case.meets(**said(chunk({"content": "Leeks."}, "stop"), USAGE, done=True))
    answer, _ = await streamed(case)
    assert answer.usage.output == 7
    body = json.loads((await provider.requests())[-1]["body"])
    assert body.get("stream_options") == ({"include_usage": True} if asks else None)
