"""Providers of a deployment's own, beside those that are built in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.errors import BadCredentials, Misconfigured
from celeriac.llm.client import open_models
from celeriac.llm.model import Endpoint, Lane, Message, ModelRequest
from celeriac.settings import load_settings


def asking(provider: str) -> ModelRequest:
    return ModelRequest(Lane(provider, "small"), (Message("user", "Capital of France?"),))


async def test_each_has_its_own_url_key_and_api(provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the process's other keys are not sent there."""
    monkeypatch.setenv("TOGETHER_API_KEY", "key-of-together-1111")
    monkeypatch.setenv("OTHER_API_KEY", "key-of-other-2222")
    settings = load_settings(openai_api_key="key-of-openai-0000", openai_base_url=f"{provider.url}/v1")
    own = {
        "together": Endpoint("openai", f"{provider.url}/v1", "TOGETHER_API_KEY"),
        "other": Endpoint("anthropic", provider.url, "OTHER_API_KEY"),
        "local": Endpoint("openai", f"{provider.url}/v1"),
    }
    async with open_models(settings, 10, own) as models:
        for name in ("openai", *own):
            assert (await models.answer(asking(name))).lane == Lane(name, "small")
        with pytest.raises(BadCredentials, match="no key is set for anthropic"):
            await models.answer(asking("anthropic"))
    lines = (await provider.bill(lines=True))["lines"]
    requests = (await provider.requests())[-len(lines) :]
    asked = [(call["path"], line["key"]) for call, line in zip(requests, lines, strict=True)]
    assert asked == [
        ("/v1/chat/completions", "0000"),
        ("/v1/chat/completions", "1111"),
        ("/v1/messages", "2222"),
        ("/v1/chat/completions", "eded"),
    ]


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_only_who_says_that_it_stores_is_asked_to(
    provider: ProviderProcess, api: Literal["chat", "responses"]
) -> None:
    """Some refuse a request that asks for it, and no other lane is asked then: the request is at fault. OpenAI does."""
    named: list[str] = []
    calls = 0

    async def note(name: str) -> None:
        named.append(name)

    settings = load_settings(openai_api_key="key", openai_base_url=f"{provider.url}/v1")
    own = {
        "plain": Endpoint("openai", f"{provider.url}/v1"),
        "keeping": Endpoint("openai", f"{provider.url}/v1", stores=True),
    }
    async with open_models(settings, 10, own) as models:
        for name, stores in ("plain", False), ("keeping", True), ("openai", True):
            for on_text in None, lambda _: None:
                calls += 1
                request = replace(
                    asking(name), api=api, stored=True, call=f"{api}-{calls}", on_stored=note, on_text=on_text
                )
                await models.answer(request)
                body = json.loads((await provider.requests())[-1]["body"])
                assert (body.get("store"), "metadata" in body) == (stores or (None if api == "chat" else False), stores)
                assert ("background" in body) is (stores and api == "responses")
                assert bool(named) is (stores and api == "responses")
                assert models.may_find(request, None) is stores
                looks = (await provider.state())["looks"]
                found = await models.look_up(request, named[-1] if named else "resp_7")
                assert (found is not None) is stores
                assert ((await provider.state())["looks"] > looks) is stores
                named.clear()


async def test_a_key_that_is_not_there_stops_the_start() -> None:
    """It names the variable and the provider."""
    own = {"together": Endpoint("openai", "http://127.0.0.1:9/v1", "NO_SUCH_KEY")}
    with pytest.raises(Misconfigured, match="NO_SUCH_KEY is not set: provider together"):
        async with open_models(load_settings(), 10, own):
            pass


async def test_with_the_scripted_model_nobody_needs_a_key() -> None:
    own = {"together": Endpoint("openai", "http://127.0.0.1:9/v1", "NO_SUCH_KEY")}
    async with open_models(load_settings(scripted=True), 10, own) as models:
        assert (await models.answer(asking("together"))).text
