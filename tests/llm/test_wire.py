"""What goes over the wire, and what the answer's usage says about the bill."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.errors import BadCredentials, ContentRefused
from celeriac.llm import transport
from celeriac.llm.anthropic import Anthropic
from celeriac.llm.client import open_models
from celeriac.llm.model import Lane, Message, ModelRequest, Usage
from celeriac.llm.openai import OpenAI
from celeriac.llm.terms import is_openai, region_of, runs_where_it_is_told
from celeriac.llm.transport import open_http
from celeriac.settings import Settings

from .conftest import KEY, WIRES, Case, adapter

TALK = (Message("user", "Hé \U0001f600 <&>"), Message("assistant", " \u00a0- "), Message("user", "  spaces\n\ttoo  "))


async def sent(provider: ProviderProcess) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((await provider.requests())[-1]["body"])
    return said


async def test_the_body_is_what_the_sdk_itself_would_send(sdk: Case, http: httpx2.AsyncClient) -> None:
    """We go past the SDK's `create` for its cost; byte for byte nothing else changes."""
    request = replace(sdk.request(instructions="Be brief."), messages=TALK, max_output_tokens=9)
    await sdk.client.answer(request)
    messages: Any = [{"role": message.role, "content": message.text} for message in TALK]
    url = sdk.provider.url
    if sdk.name == "messages":
        theirs = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, http_client=http)
        await theirs.messages.create(model="small", messages=messages, max_tokens=9, system="Be brief.")
    elif sdk.name == "responses":
        ours = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=http)
        await ours.responses.create(
            model="small", input=messages, max_output_tokens=9, store=False, instructions="Be brief."
        )
    else:
        ours = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=http)
        system: Any = [{"role": "system", "content": "Be brief."}]
        await ours.chat.completions.create(model="small", messages=system + messages, max_tokens=9)
    mine, theirs_too = (await sdk.provider.requests())[-2:]
    assert json.loads(mine["body"]) == json.loads(theirs_too["body"])
    assert sorted(mine["body"]) == sorted(theirs_too["body"])
    differ = {"x-stainless-read-timeout", "x-stainless-timeout", "content-length"}
    assert {k: v for k, v in mine["headers"].items() if k not in differ} == {
        k: v for k, v in theirs_too["headers"].items() if k not in differ
    }


async def test_openai_itself_is_sent_its_own_words(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Its reasoning models refuse `max_tokens`; nothing is stored; the tier is always named."""
    client = OpenAI(http, key=KEY, base_url=provider.openai_url, own=True)
    request = ModelRequest(Lane("openai", "small"), TALK, max_output_tokens=7, temperature=0.5)
    await client.answer(request)
    body = await sent(provider)
    assert {name: body.get(name) for name in ("max_completion_tokens", "store", "service_tier", "temperature")} == {
        "max_completion_tokens": 7,
        "store": False,
        "service_tier": "default",
        "temperature": 0.5,
    }
    assert "max_tokens" not in body


async def test_openais_responses_are_sent_the_tier(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Else the project's own default decides what a call costs."""
    request = ModelRequest(Lane("openai", "small"), TALK, api="responses")
    await OpenAI(http, key=KEY, base_url=provider.openai_url, own=True).answer(request)
    assert (await sent(provider))["service_tier"] == "default"
    await OpenAI(http, key=KEY, base_url=provider.openai_url).answer(request)
    assert "service_tier" not in await sent(provider)


async def test_anthropic_itself_is_sent_the_tier(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Its own default is `auto`, which may be billed as priority; those who speak like it may not know the field."""
    request = ModelRequest(Lane("anthropic", "small"), TALK)
    await Anthropic(http, key=KEY, base_url=provider.url, own=True).answer(request)
    assert (await sent(provider))["service_tier"] == "standard_only"
    await Anthropic(http, key=KEY, base_url=provider.url).answer(request)
    assert "service_tier" not in await sent(provider)


async def test_anthropic_itself_is_told_where_to_run(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Else the workspace's own default decides what a call costs; models that refuse the field are not sent it."""
    own = Anthropic(http, key=KEY, base_url=provider.url, own=True)
    for model, region in (("claude-opus-4-6", "global"), ("claude-fable-5-2", "global"), ("claude-haiku-4-5", None)):
        await own.answer(ModelRequest(Lane("anthropic", model), TALK))
        assert (await sent(provider)).get("inference_geo") == region, model
    here = Anthropic(http, key=KEY, base_url=provider.url, own=True, region="us")
    await here.answer(ModelRequest(Lane("anthropic", "claude-opus-4-6"), TALK))
    assert (await sent(provider))["inference_geo"] == "us"
    await Anthropic(http, key=KEY, base_url=provider.url).answer(ModelRequest(Lane("anthropic", "claude-opus-5"), TALK))
    assert "inference_geo" not in await sent(provider)


@pytest.mark.parametrize(
    ("model", "takes_it"),
    [
        ("claude-opus-4-6", True),
        ("claude-sonnet-4-6-20260218", True),
        ("claude-haiku-5-5", True),
        ("claude-fable-5", True),
        ("claude-opus-4-5-20251101", False),
        ("claude-sonnet-4-20250514", False),
        ("claude-3-5-haiku-latest", False),
        ("small", False),
    ],
)
def test_only_models_that_take_a_region_are_told_one(model: str, takes_it: bool) -> None:
    """The date behind a name is no version."""
    assert runs_where_it_is_told(model) is takes_it


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tier_and_the_region_are_those_of_the_answer(sdk: Case, stream: bool) -> None:
    """What was asked for may not be what was had, and each has a price of its own."""
    also = {"inference_geo": "us"} if sdk.name == "messages" else {}
    await sdk.meets(text="a b", tier="priority", also=also)
    answer = await sdk.answer(on_text=(lambda piece: None) if stream else None)
    assert (answer.tier, answer.region) == ("priority", "us" if also else "")


async def test_the_fast_mode_is_a_tier(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Anthropic says `standard` of its tier, and bills twice as much."""
    sdk = Case("messages", adapter("messages", http, provider.url), provider)
    await sdk.meets(text="a", also={"speed": "fast", "inference_geo": "not_available"})
    answer = await sdk.answer()
    assert (answer.tier, answer.region) == ("fast", "")


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_written_for_an_hour_are_told_apart(
    http: httpx2.AsyncClient, provider: ProviderProcess, stream: bool
) -> None:
    """They cost two thirds more than those that are kept for five minutes."""
    sdk = Case("messages", adapter("messages", http, provider.url), provider)
    parts = {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 4}
    await sdk.meets(text="a", cache_written=6, also={"cache_creation": parts})
    answer = await sdk.answer(text="words " * 40, on_text=(lambda piece: None) if stream else None)
    assert (answer.usage.cache_write, answer.usage.cache_write_1h) == (2, 4)


async def test_a_refusal_is_priced_where_it_was_made(sdk: Case) -> None:
    """In its tier and region, as an answer is."""
    also = {"inference_geo": "us"} if sdk.name == "messages" else {}
    await sdk.meets(finish="refusal", tier="flex", also=also)
    with pytest.raises(ContentRefused) as caught:
        await sdk.answer()
    assert (caught.value.tier, caught.value.region) == ("flex", "us" if also else "")


def test_openais_region_is_in_its_address() -> None:
    """It does not say it in its answer."""
    assert region_of("https://eu.api.openai.com/v1") == "eu"
    assert region_of("https://api.openai.com/v1") == region_of("http://127.0.0.1:8081/v1") == ""
    assert region_of("https://eu.api.openai.com.evil.example/v1") == ""


@pytest.mark.parametrize(
    ("url", "own"),
    [
        (None, True),
        ("https://api.anthropic.com", True),
        ("http://127.0.0.1:8081", False),
        ("https://api.anthropic.com.evil.example", False),
    ],
)
async def test_anthropic_is_known_by_its_host(http: httpx2.AsyncClient, url: str | None, own: bool) -> None:
    """Where no URL is given, it is Anthropic itself."""
    assert Anthropic(http, key=KEY, base_url=url)._own is own


async def test_others_are_sent_only_what_all_of_them_take(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Some refuse fields they do not know, and `max_tokens` is the one name they share."""
    await OpenAI(http, key=KEY, base_url=provider.openai_url).answer(ModelRequest(Lane("openai", "small"), TALK))
    assert (await sent(provider)).keys() == {"model", "messages", "max_tokens"}


async def test_responses_are_never_stored(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """The context is ours: that is what makes a fallback between providers possible."""
    client = OpenAI(http, key=KEY, base_url=provider.openai_url)
    await client.answer(ModelRequest(Lane("openai", "small"), TALK, api="responses"))
    assert (await sent(provider))["store"] is False


async def test_temperature_reaches_anthropic(http: httpx2.AsyncClient, provider: ProviderProcess) -> None:
    """Its SDK has dropped the argument; the API has not."""
    client = Anthropic(http, key=KEY, base_url=provider.url)
    await client.answer(ModelRequest(Lane("anthropic", "small"), TALK, temperature=0.25))
    assert (await sent(provider))["temperature"] == 0.25


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://mine.openai.azure.com/openai/v1", True),
        ("http://127.0.0.1:8081/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
    ],
)
def test_openai_is_known_by_its_host(url: str, own: bool) -> None:
    """Nothing else in the URL counts."""
    assert is_openai(url) is own


async def test_usage_equals_the_bill_with_caching_and_reasoning(sdk: Case) -> None:
    """Each billed token is in exactly one class: OpenAI counts cached tokens as input too, Anthropic does not."""
    await sdk.meets(text="a b c", cached=5, cache_written=6, reasoning=4)
    answer = await sdk.answer(text="words " * 40)
    line = (await sdk.provider.bill(lines=True))["lines"][-1]
    thought = 0 if sdk.name == "messages" else 4
    said = line["output"] - thought
    assert answer.usage == Usage(line["input"], line["cache_read"], line["cache_write"], said, thought)
    assert (answer.usage.cache_read, answer.usage.cache_write) == (5, 6)
    assert answer.usage.made == answer.usage.as_dict()["output_tokens"] == 7
    assert (answer.request_id, line["written"]) == (line["id"], True)


async def test_reasoning_that_only_the_total_shows_is_output(sdk: Case) -> None:
    """Some who speak OpenAI's APIs leave it out of the output, and bill it."""
    await sdk.meets(text="a b c", reasoning=40, reasoning_apart=True)
    answer = await sdk.answer()
    line = (await sdk.provider.bill(lines=True))["lines"][-1]
    assert answer.usage.made == line["output"] == 43
    assert answer.usage.reasoning == (0 if sdk.name == "messages" else 40)


@pytest.mark.parametrize("fault", ["refusal", "filter"])
async def test_a_refusal_is_settled_from_its_usage(sdk: Case, fault: str) -> None:
    """The model worked and is paid: the error carries what it cost and as what it was billed."""
    with pytest.raises(ContentRefused) as caught:
        await sdk.answer(f"fault-{fault}")
    line = (await sdk.provider.bill(lines=True))["lines"][-1]
    assert caught.value.usage == Usage(line["input"], 0, 0, line["output"])
    assert (caught.value.billed_model, caught.value.in_doubt) == (f"fault-{fault}", False)


async def test_an_answer_names_the_model_that_was_billed(sdk: Case) -> None:
    """It may be another one than we asked for, and another price."""
    answer = await sdk.answer("fault-wrong-model")
    assert (answer.model, answer.lane.model) == ("another-model-2026-01-01", "fault-wrong-model")
    assert answer.tier == ("standard" if sdk.name == "messages" else "default")


async def test_a_cancelled_call_leaves_no_request_behind(sdk: Case) -> None:
    """The provider sees the connection end, and the answer was not written."""
    await sdk.meets(delay=30.0)
    task = asyncio.create_task(sdk.answer())
    await sdk.started()
    task.cancel()
    await sdk.provider.until(lambda state: state["in_flight"] == 0)
    assert (await sdk.provider.bill())["written"] == 0


async def test_redirects_are_not_followed(sdk: Case) -> None:
    """A second POST would be a second bill, and the key would go wherever the answer says."""
    seen = (await sdk.provider.state())["seen"]
    where = f"{sdk.provider.url}/v1/{'messages' if sdk.name == 'messages' else 'chat/completions'}"
    await sdk.meets(status=307, headers={"location": where})
    with pytest.raises(Exception, match="HTTP 307"):
        await sdk.answer()
    assert (await sdk.provider.state())["seen"] == seen + 1


async def test_a_providers_cookie_is_neither_kept_nor_passed_on(
    provider: ProviderProcess, http: httpx2.AsyncClient
) -> None:
    """It would tie calls to each other. By name: cookies of a bare address are kept by nobody."""
    url = provider.url.replace("127.0.0.1", "localhost")
    client = adapter("chat", http, url)
    for _ in range(2):
        await provider.script({"headers": {"set-cookie": "who=you; Path=/"}})
        await client.answer(ModelRequest(Lane("openai", "small"), TALK))
        assert "cookie" not in (await provider.requests())[-1]["headers"]
    await provider.script({"headers": {"set-cookie": "who=you; Path=/", "x-other": "passed on"}})
    answer = await http.post(
        f"{url}/v1/chat/completions", json={"model": "small", "messages": []}, headers={"x-api-key": KEY}
    )
    assert answer.headers["x-other"] == "passed on"
    assert "set-cookie" not in answer.headers
    assert not http.cookies


async def test_an_idle_connection_is_not_used_when_the_other_side_may_be_closing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Servers close theirs after 5 s: a request sent at that moment could be billed, and nobody would know."""
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with open_http(1) as http:
            for _ in range(3):
                assert (await http.get(url)).content == b"{}"
        assert opened == 1, "a connection in use is kept"

        assert transport.KEEPALIVE < 5
        monkeypatch.setattr(transport, "KEEPALIVE", 0.1)
        async with open_http(1) as http:
            for _ in range(2):
                assert (await http.get(url)).content == b"{}"
                await asyncio.sleep(0.15)
        assert opened == 3, "one that was idle for longer is not used again"


async def test_proxies_of_the_environment_are_not_used(
    provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shell has set must not decide where keys and prompts go."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with open_http(1) as http:
        answer = await adapter("chat", http, provider.url).answer(ModelRequest(Lane("openai", "small"), TALK))
    assert answer.text


FROM_SHELL = "authorization: Bearer FROMSHELL\nX-Api-Key: FROMSHELL\nx-more: FROMSHELL\nuser-agent: FROMSHELL"


@pytest.mark.parametrize("name", WIRES)
async def test_headers_and_keys_of_the_environment_are_not_used(
    http: httpx2.AsyncClient, provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A call carries what it carries in an empty shell, to the same place: the SDKs would add all of these."""
    await Case(name, adapter(name, http, provider.url), provider).answer()
    for of in ("OPENAI", "ANTHROPIC"):
        for what in ("API_KEY", "AUTH_TOKEN", "ADMIN_KEY", "ORG_ID", "ORGANIZATION_ID", "PROJECT_ID", "PROFILE"):
            monkeypatch.setenv(f"{of}_{what}", "FROMSHELL")
        monkeypatch.setenv(f"{of}_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv(f"{of}_CUSTOM_HEADERS", FROM_SHELL)
    await Case(name, adapter(name, http, provider.url), provider).answer()
    plain, ours = [request["headers"] for request in (await provider.requests())[-2:]]
    assert ours == plain
    assert ours["authorization"] == f"...{KEY[-4:]}"


async def test_models_are_built_from_the_settings(provider: ProviderProcess) -> None:
    """A URL without a key is enough: servers of one's own mostly want none."""
    settings = Settings(
        _env_file=None, env="dev", openai_base_url=provider.openai_url, openai_api_key=None, anthropic_api_key=None
    )
    async with open_models(settings, 5) as models:
        assert models.providers == ("openai", "scripted")
        answer = await models.answer(ModelRequest(Lane("openai", "small"), TALK))
        assert answer.text.startswith("You said:")
        with pytest.raises(Exception, match="no key is set for anthropic"):
            await models.answer(ModelRequest(Lane("anthropic", "small"), TALK))


async def test_in_prod_nothing_is_answered_from_a_script(provider: ProviderProcess) -> None:
    """An agent with a lane scripted/echo would sell echoes as answers."""
    settings = Settings(
        _env_file=None,
        env="prod",
        openai_base_url=provider.openai_url,
        openai_api_key=None,
        anthropic_api_key=None,
        shim={"api_keys": {"acme": "a-key-that-nobody-guesses-0123456789"}},
    )
    async with open_models(settings, 5) as models:
        assert models.providers == ("openai",)
        with pytest.raises(BadCredentials, match="no key is set for scripted"):
            await models.answer(ModelRequest(Lane("scripted", "echo"), TALK))
