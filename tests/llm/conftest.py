"""Real SDKs over real HTTP to the fault-injecting provider: nothing here is patched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.errors import ModelError, Overloaded, RateLimited
from celeriac.llm.anthropic import Anthropic
from celeriac.llm.model import Answer, Lane, Message, ModelClient, ModelRequest
from celeriac.llm.openai import OpenAI
from celeriac.llm.scripted import Line, Scripted
from celeriac.llm.transport import open_http

KEY = "sk-test-7f3a9c-never-shown"
PROMPT = "my mother's maiden name is Quackenbush"
#: api -> provider
WIRES = {"chat": "openai", "responses": "openai", "messages": "anthropic"}


class Case:
    """One way to ask a model: an adapter in front of the provider process."""

    def __init__(self, name: str, client: ModelClient, provider: ProviderProcess | None) -> None:
        self.name = name
        self.client = client
        self._provider = provider
        self.requests: list[ModelRequest] = []

    @property
    def provider(self) -> ProviderProcess:
        assert self._provider is not None
        return self._provider

    def request(self, model: str = "small", *, text: str = "Capital of France?", **fields: Any) -> ModelRequest:
        lane = Lane(WIRES.get(self.name, self.name), model)
        api = "responses" if self.name == "responses" else "chat"
        return ModelRequest(lane, (Message("user", text),), **{"api": api, "deadline": 10.0, **fields})

    async def answer(self, model: str = "small", **fields: Any) -> Answer:
        return await self.client.answer(self.request(model, **fields))

    async def meets(self, **behaviour: Any) -> None:
        """What the next call meets."""
        await self.provider.script(behaviour)

    async def started(self) -> None:
        """Returns once a call is under way."""
        await self.provider.until(lambda state: state["in_flight"] == 1)


class ScriptedCase(Case):
    """The same behaviours, of the scripted model."""

    def __init__(self) -> None:
        super().__init__("scripted", Scripted(), None)

    async def meets(self, **behaviour: Any) -> None:
        errors: dict[int, Line] = {429: RateLimited("busy", retry_after=2.0), 529: Overloaded("busy")}
        line = errors.get(behaviour.get("status", 200), behaviour.get("text", "You said nothing"))
        self.client = Scripted(line, delay=behaviour.get("delay", 0.0))

    async def started(self) -> None:
        import asyncio

        assert isinstance(self.client, Scripted)
        while not self.client.requests:  # noqa: ASYNC110  # a list has no event
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def provider_process() -> Iterator[ProviderProcess]:
    process = ProviderProcess().start()
    yield process
    process.stop()


@pytest.fixture
async def provider(provider_process: ProviderProcess) -> ProviderProcess:
    """The provider, with a clean bill and nothing scripted."""
    await provider_process.reset()
    await provider_process.until(lambda state: state["in_flight"] == 0)
    return provider_process


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with open_http(20, connect_timeout=2.0) as client:
        yield client


class Sent:
    """Gives each request more time until it was sent: before that our machine is late, and not the provider."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client

    async def answer(self, request: ModelRequest) -> Answer:
        try:
            return await self._client.answer(request)
        except ModelError as error:
            if error.in_doubt or request.deadline > 5:
                raise
        return await self.answer(replace(request, deadline=4 * request.deadline))


def adapter(name: str, http: httpx2.AsyncClient, url: str) -> ModelClient:
    """The adapter that speaks that API to a server at that URL."""
    if name == "messages":
        return Anthropic(http, key=KEY, base_url=url)
    return OpenAI(http, key=KEY, base_url=f"{url}/v1")


@pytest.fixture(params=list(WIRES))
def sdk(request: pytest.FixtureRequest, http: httpx2.AsyncClient, provider: ProviderProcess) -> Case:
    """Each API through its real SDK."""
    return Case(request.param, adapter(request.param, http, provider.url), provider)


@pytest.fixture(params=[*WIRES, "scripted"])
def model(request: pytest.FixtureRequest, http: httpx2.AsyncClient, provider: ProviderProcess) -> Case:
    """Everything that is a model client."""
    if request.param == "scripted":
        return ScriptedCase()
    return Case(request.param, adapter(request.param, http, provider.url), provider)
