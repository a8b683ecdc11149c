"""The models that a process can ask: one adapter for each provider it has a key for, over one HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module

from pydantic import SecretStr

from celeriac.errors import BadCredentials
from celeriac.llm.model import Answer, ModelClient, ModelRequest
from celeriac.llm.scripted import Echo
from celeriac.llm.transport import open_http
from celeriac.settings import Settings

#: Sent where an operator has set a URL and no key: servers of one's own mostly want none, the SDKs insist on one.
NO_KEY = "no-key-needed"


class Models:
    """Asks whoever the request's lane names. Itself a model client."""

    def __init__(self, clients: Mapping[str, ModelClient]) -> None:
        self._clients = dict(clients)

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self._clients)

    async def answer(self, request: ModelRequest) -> Answer:
        """Raises BadCredentials for a provider that the settings hold no key for: another lane may do."""
        lane = request.lane
        client = self._clients.get(lane.provider)
        if client is None:
            raise BadCredentials(f"no key is set for {lane.provider}", provider=lane.provider, model=lane.model)
        return await client.answer(request)


@asynccontextmanager
async def open_models(settings: Settings, concurrency: int) -> AsyncIterator[Models]:
    """The models of this process, open while inside. Open and close it on the loop that asks them.

    concurrency: calls in flight at once; a further one waits for a connection within its deadline. In dev there is a
    provider "scripted" too, which echoes; with `scripted` set, it answers for the others as well.
    """
    if settings.scripted:
        yield Models(dict.fromkeys(("openai", "anthropic", "scripted"), Echo()))
        return
    async with open_http(concurrency) as http:
        clients: dict[str, ModelClient] = {}
        # Imported here: the two SDKs cost 1.5 s and 100 MB, and few processes need both. In a thread: the loop goes on.
        if key := _key(settings.openai_api_key, settings.openai_base_url):
            await asyncio.to_thread(import_module, "celeriac.llm.openai")
            from celeriac.llm.openai import OpenAI

            clients["openai"] = OpenAI(http, key=key, base_url=settings.openai_base_url)
        if key := _key(settings.anthropic_api_key, settings.anthropic_base_url):
            await asyncio.to_thread(import_module, "celeriac.llm.anthropic")
            from celeriac.llm.anthropic import Anthropic

            clients["anthropic"] = Anthropic(http, key=key, base_url=settings.anthropic_base_url)
        if settings.env == "dev":
            clients["scripted"] = Echo()
        yield Models(clients)


def _key(key: SecretStr | None, base_url: str | None) -> str:
    if key is not None and key.get_secret_value():
        return key.get_secret_value()
    return NO_KEY if base_url else ""
