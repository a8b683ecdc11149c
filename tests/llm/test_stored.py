"""An answer that its provider has kept is looked up there: nothing is bought for that, nothing is believed blindly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import httpx2
import openai
import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.errors import BadAnswer, ContentRefused, ModelError, ModelTimeout
from celeriac.llm.anthropic import Anthropic
from celeriac.llm.client import Models
from celeriac.llm.model import Answer, Lane, LooksUp, Message, ModelRequest, ToolSpec
from celeriac.llm.openai import LOOKS, OpenAI

from .conftest import KEY, PROMPT, Case, adapter

#: What goes wrong in the middle of a call whose answer is there soon after.
LOST: dict[str, list[dict[str, Any]]] = {
    "chat": [{"reset": "after"}, {"fault": "truncated"}, {"reset": "middle"}, {"delay": 1.0}],
    "responses": [{"delay": 1.0}],
}


#: As the providers say it, of the call c-7.
COMPLETION: Final[dict[str, Any]] = {
    "choices": [{"message": {"role": "assistant", "content": "It is Paris."}, "finish_reason": "stop"}],
    "model": "small",
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    "metadata": {"celeriac_call": "c-7"},
}
RESPONSE: Final[dict[str, Any]] = {
    "id": "resp_7",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "It is Paris."}]}],
    "usage": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12},
}
QUEUED: Final = json.dumps({"id": "resp_7", "status": "queued"}).encode()
FOUND: Final = {"chat": json.dumps({"data": [COMPLETION]}).encode(), "responses": json.dumps(RESPONSE).encode()}


class Stored(Case):
    """Of calls that may be stored, each under a name of its own. named: what the provider called their answers."""

    def __init__(self, name: str, http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
        self.adapter = OpenAI(http, key=KEY, base_url=provider.openai_url)
        super().__init__(name, self.adapter, provider)
        self.calls = 0
        self.named: list[str] = []

    def stored(self, **facts: Any) -> ModelRequest:
        async def note(name: str) -> None:
            self.named.append(name)

        self.calls += 1
        return self.request(**{"stored": True, "call": f"{id(self)}-{self.calls}", "on_stored": note} | facts)

    async def look_up(self, request: ModelRequest) -> Answer | None:
        return await self.adapter.look_up(request, self.named[-1] if self.named else "")

    async def looks(self) -> int:
        return (await self.provider.state())["looks"]


@pytest.fixture(params=["chat", "responses"])
def case(request: pytest.FixtureRequest, http: httpx2.AsyncClient, provider: ProviderProcess) -> Stored:
    return Stored(request.param, http, provider)


@pytest.fixture
def responses(http: httpx2.AsyncClient, provider: ProviderProcess) -> Stored:
    return Stored("responses", http, provider)


#: In place of a page: nothing is ever answered.
SILENCE: Final = b"(silence)"


@contextlib.asynccontextmanager
async def serving(*pages: bytes | int | None) -> AsyncIterator[str]:
    """Each question is answered with the next of these pages, and then with the last; a number is an error's status.
    None: the connection breaks.
    """
    left = list(pages)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = left.pop(0) if len(left) > 1 else left[0]
        if page is SILENCE:
            await reader.read()
        elif page is not None:
            status, page = (page, b"{}") if isinstance(page, int) else (200, page)
            head = f"HTTP/1.1 {status} As Told\r\ncontent-type: application/json\r\ncontent-length: {len(page)}\r\n"
            writer.write(f"{head}connection: close\r\n\r\n".encode() + page)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def billed(case: Case) -> tuple[int, int, int]:
    bill = await case.provider.bill()
    return bill["calls"], bill["input"], bill["output"]


@pytest.mark.parametrize("own", [True, False], ids=["OpenAI", "others"])
async def test_what_may_be_stored_is_named_after_its_call(
    http: httpx2.AsyncClient, provider: ProviderProcess, own: bool
) -> None:
    """As the SDK itself would say it. What may not be is sent as ever."""
    client = OpenAI(http, key=KEY, base_url=provider.openai_url, own=own)
    theirs = openai.AsyncOpenAI(api_key=KEY, base_url=provider.openai_url, http_client=http)
    for api in ("chat", "responses"):
        case = Case(api, client, provider)
        await client.answer(case.request(stored=True, call="c-7"))
        messages: Any = [{"role": "user", "content": "Capital of France?"}]
        kept: Any = {"store": True, "metadata": {"celeriac_call": "c-7"}}
        tier: Any = {"service_tier": "default"} if own else {}
        if api == "responses":
            await theirs.responses.create(
                model="small", input=messages, max_output_tokens=1024, background=True, **kept, **tier
            )
        else:
            limit: Any = {"max_completion_tokens" if own else "max_tokens": 1024}
            await theirs.chat.completions.create(model="small", messages=messages, **limit, **kept, **tier)
        ours, wanted = (json.loads(request["body"]) for request in (await provider.requests())[-2:])
        assert ours == wanted
        await client.answer(case.request())
        plain = json.loads((await provider.requests())[-1]["body"])
        assert not plain.get("store")
        assert plain.keys().isdisjoint({"metadata", "background"})


async def test_an_answer_that_may_be_stored_is_the_same(case: Stored) -> None:
    """Also where it comes as a stream, and from one who stores nothing, whatever is asked."""
    said: list[str] = []
    for behaviour, facts in (({}, {}), ({}, {"on_text": said.append}), ({"keeps": False}, {})):
        await case.provider.script({"text": "It is Paris.", "delay": 0.3} | behaviour)
        before = await billed(case)
        answer = await case.adapter.answer(case.stored(**facts))
        assert (answer.text, answer.stop_reason) == ("It is Paris.", "end")
        calls, input, output = (now - then for now, then in zip(await billed(case), before, strict=True))
        assert (1, answer.usage.input, answer.usage.output) == (calls, input, output)
        assert answer.request_id.startswith("req_")
    assert "".join(said) == "It is Paris."


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_name_of_a_response_is_said_before_it_is_made(responses: Stored, streamed: bool) -> None:
    """Else whoever goes on after a crash would not know what to look for. It is said once."""
    await responses.meets(hang=True)
    request = responses.stored(**({"on_text": lambda _: None} if streamed else {}))
    asking = asyncio.create_task(responses.adapter.answer(request))
    async with asyncio.timeout(5):
        while not responses.named:  # noqa: ASYNC110  # a list has no event
            await asyncio.sleep(0.01)
    assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await responses.adapter.answer(request := responses.stored(on_text=(lambda _: None) if streamed else None))
    assert len(responses.named) == len(set(responses.named)) == 2
    assert await responses.look_up(request) is not None


@pytest.mark.parametrize(("name", "lost"), [(name, lost) for name, all in LOST.items() for lost in all])
async def test_an_answer_that_got_lost_is_looked_up(
    http: httpx2.AsyncClient, provider: ProviderProcess, name: str, lost: dict[str, Any]
) -> None:
    """Text, usage and the name of the request are those that were billed; the bill has one call."""
    case = Stored(name, http, provider)
    await case.provider.script(lost | {"text": "It is Paris.", "cached": 4, "reasoning": 2})
    request = case.stored(deadline=0.6)
    with pytest.raises(ModelError) as caught:
        await case.adapter.answer(request)
    assert caught.value.in_doubt
    answer = await case.look_up(replace(request, deadline=10.0))
    assert answer is not None
    assert answer.text == "It is Paris."
    (line,) = (await provider.bill(lines=True))["lines"]
    usage = answer.usage
    assert (usage.input, usage.cache_read, usage.made) == (line["input"], line["cache_read"], line["output"])
    assert answer.request_id == (line["id"] if name == "chat" else "")


async def test_a_stream_that_got_lost_is_looked_up(responses: Stored) -> None:
    """Its beginning named the response."""
    await responses.meets(reset="middle", text="It is Paris.")
    request = responses.stored(on_text=lambda _: None)
    with pytest.raises(ModelError) as caught:
        await responses.adapter.answer(request)
    assert caught.value.in_doubt
    answer = await responses.look_up(request)
    assert answer is not None
    assert (answer.text, (await billed(responses))[0]) == ("It is Paris.", 1)


async def test_calls_of_tools_are_looked_up_too(case: Stored) -> None:
    """As the model wanted them."""
    await case.meets(calls=[{"name": "find_order", "arguments": {"number": 7}}])
    await case.adapter.answer(request := case.stored())
    answer = await case.look_up(request)
    assert answer is not None
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [("find_order", {"number": 7})]
    assert answer.stop_reason == "tool"


@pytest.mark.parametrize(
    "behaviour",
    [
        {"keeps": False},
        {"hang": True},
        *({"looked_up": status} for status in (401, 404, 500)),
        {"usage": "missing"},
        {"usage": {"output": 10**12}},
        {"usage": {"input": -5}},
    ],
    ids=str,
)
async def test_what_is_not_found_whole_is_not_found(case: Stored, behaviour: dict[str, Any]) -> None:
    """Whatever the reason is: that is no error of the call, which stays as it was, and few questions are asked."""
    await case.provider.script(behaviour)
    request = case.stored(deadline=2.0)
    with contextlib.suppress(ModelError):
        await case.adapter.answer(replace(request, deadline=0.6))
    looks = await case.looks()
    assert await case.look_up(request) is None
    asked = await case.looks() - looks
    # Whoever is refused is refused again.
    assert asked == 1 if behaviour.get("looked_up") in (401, 404) else asked <= max(LOOKS, 5)
    assert (await billed(case))[0] == 1


async def test_a_provider_that_is_away_is_asked_in_vain(http: httpx2.AsyncClient) -> None:
    """Also where it breaks off, or answers with something else."""
    for api in ("chat", "responses"):
        for page in (None, b"", b"<html>", b"[]", b'{"data": 1}'):
            async with serving(page) as url:
                client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
                request = Case(api, client, None).request(stored=True, call="c-7", deadline=1.0)
                assert await client.look_up(request, "resp_7") is None


async def test_why_nothing_was_found_is_said(http: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    """That nobody knows the answer is something else than that nobody could be asked."""
    for name, page, why in (
        ("chat", b'{"data": []}', "unknown there"),
        ("chat", 503, "it could not be looked at any more"),
        ("responses", 404, "it could not be looked at any more"),
    ):
        async with serving(page) as url:
            client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
            assert await client.look_up(Case(name, client, None).request(stored=True, call="c-7"), "resp_7") is None
        [line] = [line for line in capsys.readouterr().out.splitlines() if "stored_answer_not_found" in line]
        assert why in line


async def test_nobody_is_given_the_answer_to_another_call(http: httpx2.AsyncClient) -> None:
    """Some who speak this API know no such filter, and list all that they have."""
    nameless = {name: value for name, value in COMPLETION.items() if name != "metadata"}
    strange = [nameless, *(nameless | {"metadata": other} for other in (None, {"celeriac_call": "c-8"}, ["c-7"]))]
    for others, found in ((strange, None), ([*strange, COMPLETION], "It is Paris.")):
        async with serving(json.dumps({"data": others}).encode()) as url:
            client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
            answer = await client.look_up(Case("chat", client, None).request(stored=True, call="c-7"), "")
            assert (answer and answer.text) == found


@pytest.mark.parametrize(
    "another",
    [{"id": "resp_8"}, {"id": None}, {"metadata": {"celeriac_call": "c-8"}}, {"metadata": {"of": "us"}}],
    ids=str,
)
async def test_nobody_is_given_the_response_to_another_call(http: httpx2.AsyncClient, another: dict[str, Any]) -> None:
    """A gateway that mixes them up may give each its own the next time. That a call is named nowhere proves nothing."""
    mixed_up, named = [json.dumps(RESPONSE | more).encode() for more in (another, {"metadata": COMPLETION["metadata"]})]
    for pages, found in (
        ([mixed_up, named], "It is Paris."),
        ([FOUND["responses"]], "It is Paris."),
    ):
        async with serving(*pages) as url:
            client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
            request = Case("responses", client, None).request(stored=True, call="c-7")
            answer = await client.look_up(request, "resp_7")
            assert (answer and answer.text) == found
    async with serving(QUEUED, mixed_up) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        with pytest.raises(BadAnswer) as caught:
            await client.answer(request)
    assert caught.value.in_doubt


async def test_of_several_answers_to_one_call_none_is_taken(
    http: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each was billed: settled at the price of one, the call would be booked too low, and nobody would hear of it."""
    one, other = (COMPLETION | {"id": name} for name in ("chatcmpl-1", "chatcmpl-2"))
    for several in ([COMPLETION, COMPLETION], [one, other, one]):
        async with serving(json.dumps({"data": several}).encode()) as url:
            client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
            assert await client.look_up(Case("chat", client, None).request(stored=True, call="c-7"), "") is None
        [line] = [line for line in capsys.readouterr().out.splitlines() if "several_stored_answers" in line]
        assert "answers=2" in line


async def test_one_answer_that_is_listed_twice_is_one(http: httpx2.AsyncClient) -> None:
    """It was billed once."""
    one = COMPLETION | {"id": "chatcmpl-1"}
    async with serving(json.dumps({"data": [one, one]}).encode()) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        answer = await client.look_up(Case("chat", client, None).request(stored=True, call="c-7"), "")
    assert answer is not None
    assert answer.text == "It is Paris."


async def test_a_response_that_is_still_made_is_waited_for(responses: Stored) -> None:
    """For as long as a call may take, and with few questions."""
    await responses.meets(delay=2.0, text="It is Paris.")
    request = responses.stored(deadline=0.5)
    with pytest.raises(ModelTimeout) as caught:
        await responses.adapter.answer(request)
    assert caught.value.in_doubt
    looks = await responses.looks()
    answer = await responses.look_up(replace(request, deadline=10.0))
    assert answer is not None
    assert answer.text == "It is Paris."
    assert 2 <= await responses.looks() - looks <= 8


async def test_a_response_that_cannot_be_looked_at_any_more_is_in_doubt(responses: Stored) -> None:
    """Whatever is said then is said of the look, and not of the call: that may be billed."""
    for status in (401, 404, 500):
        await responses.meets(looked_up=status)
        with pytest.raises(BadAnswer) as caught:
            await responses.adapter.answer(responses.stored())
        assert caught.value.in_doubt
        assert caught.value.status in (0, 200)


async def test_a_look_that_fails_costs_no_answer(http: httpx2.AsyncClient) -> None:
    """It is looked again, and the call is not bought anew for that."""
    async with serving(QUEUED, None, b"<html>", 503, FOUND["responses"]) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        answer = await client.answer(Case("responses", client, None).request(stored=True, call="c-7"))
    assert answer.text == "It is Paris."


@pytest.mark.parametrize("name", ["chat", "responses"])
@pytest.mark.parametrize("failed", [None, b"<html>", 408, 429, 503], ids=str)
async def test_a_look_that_fails_is_made_again(http: httpx2.AsyncClient, name: str, failed: bytes | int | None) -> None:
    """What is overloaded at first may have the answer all the same."""
    async with serving(failed, FOUND[name]) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        answer = await client.look_up(Case(name, client, None).request(stored=True, call="c-7"), "resp_7")
    assert answer is not None
    assert answer.text == "It is Paris."


@pytest.mark.parametrize("name", ["chat", "responses"])
async def test_a_look_that_hangs_is_one_that_failed(http: httpx2.AsyncClient, name: str) -> None:
    """The next one finds what is there, well before the time of the call is over."""
    async with serving(SILENCE, FOUND[name]) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        answer = await client.look_up(Case(name, client, None).request(stored=True, call="c-7"), "resp_7")
    assert answer is not None
    assert answer.text == "It is Paris."


async def test_a_look_that_hangs_does_not_use_up_the_time_of_its_call(http: httpx2.AsyncClient) -> None:
    async with serving(QUEUED, SILENCE, FOUND["responses"]) as url:
        client = OpenAI(http, key=KEY, base_url=f"{url}/v1")
        answer = await client.answer(Case("responses", client, None).request(stored=True, call="c-7"))
    assert answer.text == "It is Paris."


async def test_a_refusal_that_got_lost_is_settled_from_its_usage(case: Stored) -> None:
    """As one that came at once."""
    await case.meets(finish="refusal")
    request = case.stored()
    with pytest.raises(ContentRefused):
        await case.adapter.answer(request)
    with pytest.raises(ContentRefused) as caught:
        await case.look_up(request)
    error = caught.value
    [line] = (await case.provider.bill(lines=True))["lines"]
    assert (error.usage.input, error.usage.output) == (line["input"], line["output"])
    assert error.request_id == (line["id"] if case.name == "chat" else "")
    assert not error.in_doubt


async def test_what_is_found_is_of_the_region_that_was_asked(case: Stored) -> None:
    """OpenAI says it by the name of its host alone, and bills more there."""
    case.adapter.region = "eu"
    await case.provider.script({"text": "It is Paris."}, {"finish": "refusal"})
    await case.adapter.answer(request := case.stored())
    answer = await case.look_up(request)
    assert answer is not None
    assert answer.region == "eu"
    with pytest.raises(ContentRefused):
        await case.adapter.answer(request := case.stored())
    with pytest.raises(ContentRefused) as caught:
        await case.look_up(request)
    assert caught.value.region == "eu"


async def test_a_response_without_a_name_is_not_looked_for(responses: Stored) -> None:
    """The connection broke before it was said; there is no other way to find it."""
    await responses.meets(reset="after")
    with pytest.raises(ModelError):
        await responses.adapter.answer(request := responses.stored())
    looks = await responses.looks()
    assert not responses.adapter.may_find(request, "")
    assert await responses.look_up(request) is None
    assert await responses.looks() == looks


async def test_nothing_of_a_look_is_let_out(case: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither what was asked nor the key."""
    await case.provider.script({"looked_up": 500}, {"finish": "refusal"})
    request = case.stored(text=PROMPT)
    with contextlib.suppress(ModelError):
        await case.adapter.answer(request)
    assert await case.look_up(request) is None
    with contextlib.suppress(ModelError):
        await case.adapter.answer(refused := case.stored(text=PROMPT))
    with pytest.raises(ContentRefused) as caught:
        await case.look_up(refused)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    said = "".join(capsys.readouterr())
    assert KEY not in said
    assert PROMPT not in said


async def test_whoever_keeps_nothing_has_nothing_to_look_up(
    http: httpx2.AsyncClient, provider: ProviderProcess
) -> None:
    """Anthropic: what may be stored is sent to it as ever, and nobody is asked later."""
    client = adapter("messages", http, provider.url)
    assert isinstance(client, Anthropic)
    models = Models({"anthropic": client})
    request = Case("messages", client, provider).request(stored=True, call="c-7")
    await client.answer(request)
    assert json.loads((await provider.requests())[-1]["body"]).keys().isdisjoint({"store", "metadata", "background"})
    looks = (await provider.state())["looks"]
    assert not isinstance(client, LooksUp)
    assert not models.may_find(request, "msg_7")
    assert await models.look_up(request, "msg_7") is None
    assert await models.look_up(replace(request, lane=Lane("nobody", "small")), "") is None
    assert (await provider.state())["looks"] == looks


def test_the_same_question_has_the_same_digest() -> None:
    """Whoever is asked, however long, whether or not it is streamed; anything that a model is told makes another."""
    tool = ToolSpec("find", "Finds.", {"type": "object"})
    one = ModelRequest(Lane("openai", "small"), (Message("user", "Hi"),), tools=(tool,), stored=True)
    same = replace(one, lane=Lane("other", "large"), deadline=1.0, call="c-7", on_text=lambda _: None)
    assert same.digest() == one.digest()
    others: list[dict[str, Any]] = [
        {"messages": (Message("user", "Hi!"),)},
        {"messages": (Message("assistant", "Hi"),)},
        {"messages": (Message("user", "Hi"), Message("user", "Hi"))},
        {"instructions": "Be brief."},
        {"tools": ()},
        {"tools": (replace(tool, description="Seeks."),)},
        {"schema": {"type": "object"}},
        {"max_output_tokens": 9},
        {"temperature": 0.5},
        {"api": "responses"},
    ]
    assert len({one.digest(), *(replace(one, **other).digest() for other in others)}) == 1 + len(others)
