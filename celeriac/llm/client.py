"""The models that a process can ask: one adapter for each provider it has a key for, over one HTTP client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Final

from pydantic import SecretStr

from celeriac.errors import BadCredentials, Misconfigured
from celeriac.llm.model import BUILT_IN, Answer, Endpoint, LooksUp, ModelClient, ModelRequest
from celeriac.llm.scripted import Echo
from celeriac.llm.transport import open_http
from celeriac.settings import Settings

#: Sent where an operator has set a URL and no key: servers of one's own mostly want none, the SDKs insist on one.
NO_KEY: Final = "no-key-needed"
NONE: Final[Mapping[str, Endpoint]] = {}


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
            raise BadCredentials(
                f"no key is set for {lane.provider}", provider=lane.provider, model=lane.model, asked=False
            )
        return await client.answer(request)

    def may_find(self, request: ModelRequest, response: str | None) -> bool:
        client = self._clients.get(request.lane.provider)
        return isinstance(client, LooksUp) and client.may_find(request, response)

    async def look_up(self, request: ModelRequest, response: str) -> Answer | None:
        client = self._clients.get(request.lane.provider)
        return await client.look_up(request, response) if isinstance(client, LooksUp) else None


@asynccontextmanager
async def open_models(
    settings: Settings, concurrency: int, providers: Mapping[str, Endpoint] = NONE
) -> AsyncIterator[Models]:
    """The models of this process, open while inside. Open and close it on the loop that asks them.

    concurrency: calls in flight at once; a further one waits for a connection within its deadline. providers: those of
    the deployment's own. In dev there is a provider "scripted" too, which echoes; with `scripted` set, it answers for
    all others as well. Raises Misconfigured for a provider whose key is not in the environment.
    """
    if settings.scripted:
        yield Models(dict.fromkeys((*BUILT_IN, "scripted", *providers), Echo()))
        return
    wanted: dict[str, tuple[str, str, str | None]] = {
        name: (end.api, _key_of(name, end), end.base_url) for name, end in providers.items()
    }
    if key := _key(settings.openai_api_key, settings.openai_base_url):
        wanted["openai"] = "openai", key, settings.openai_base_url
    if key := _key(settings.anthropic_api_key, settings.anthropic_base_url):
        wanted["anthropic"] = "anthropic", key, settings.anthropic_base_url
    async with open_http(concurrency) as http:
        clients: dict[str, ModelClient] = {}
        for name, (api, key, base_url) in wanted.items():
            # Imported here, in a thread: the two SDKs cost 1.5 s and 100 MB, and few processes need both.
            adapters: Any = await asyncio.to_thread(import_module, f"celeriac.llm.{api}")
            kind = adapters.OpenAI if api == "openai" else adapters.Anthropic
            facts: dict[str, Any] = {"region": settings.anthropic_region} if api == "anthropic" else {}
            if api == "openai" and (end := providers.get(name)):
                facts = {"asks_for_usage": end.asks_for_usage, "stores": end.stores}
            clients[name] = kind(http, key=key, base_url=base_url, **facts)
        if settings.env == "dev":
            clients["scripted"] = Echo()
        yield Models(clients)


def _key_of(name: str, end: Endpoint) -> str:
    key = os.environ.get(end.key_variable, "") if end.key_variable else NO_KEY
    if not key:
        raise Misconfigured(f"{end.key_variable} is not set: provider {name} wants a key (api_key_env)")
    return key


def _key(key: SecretStr | None, base_url: str | None) -> str:
    if key is not None and key.get_secret_value():
        return key.get_secret_value()
    return NO_KEY if base_url else ""
