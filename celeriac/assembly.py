"""Puts a worker's parts together: the only module that knows every concrete class."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from celeriac.agents.agent import Agent
from celeriac.agents.check import Checker
from celeriac.agents.children import AgentTool
from celeriac.agents.intake import Intake
from celeriac.agents.output import JsonSchema, Output, find_output
from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.runner import Runner
from celeriac.agents.toolbox import Toolbox
from celeriac.agents.tools import Tool, find_tool
from celeriac.alerting import Alerting, sinks_of
from celeriac.costs.prices import Prices
from celeriac.errors import Misconfigured, PriceUnknown
from celeriac.jobs.lease import Fleet
from celeriac.llm.client import Models, open_models
from celeriac.llm.model import Endpoint
from celeriac.llm.terms import ANTHROPIC_URL, OPENAI_URL, is_anthropic, is_openai, region_of
from celeriac.logs import get_logger
from celeriac.settings import Settings
from celeriac.stores import Stores, check_redis, open_fleet, open_stores

log = get_logger(__name__)


@dataclass(frozen=True)
class WorkerParts:
    stores: Stores
    fleet: Fleet
    registry: Registry
    runner: Runner
    intake: Intake
    alerting: Alerting


def new_name() -> str:
    """A worker has a new name at each start: what a former life left behind can never be taken for this one's."""
    return f"{socket.gethostname().partition('.')[0]}.{os.getpid()}.{secrets.token_hex(4)}"


@asynccontextmanager
async def open_worker(settings: Settings, concurrency: int) -> AsyncIterator[WorkerParts]:
    """Everything a worker process needs, open while inside, on the event loop that runs its jobs.

    concurrency: jobs in flight at once. Raises Misconfigured for a wrong agents or prices file, an agent that no
    configured provider can answer, whose tools cannot be had, or whose price nobody knows where that is refused, or a
    Redis that cannot keep the promises; StoreUnavailable.
    """
    registry = read_agents(settings.agents_file, settings.costs.max_job_usd)
    prices = open_prices(settings, registry)
    connections = settings.worker.redis_connections or max(8, concurrency // 32)
    stores = open_stores(settings, connections=connections, name="celeriac-worker")
    fleet, line = open_fleet(settings, stores, name="celeriac-lease")
    try:
        await check_redis(stores.redis, settings)
        async with open_models(settings, concurrency, registry.providers) as models:
            check_lanes(registry, models)
            registry = registry.asking(models.providers)
            check_prices(registry, prices)
            chord_ttl = settings.jobs.chord_ttl
            async with open_toolboxes(registry) as toolboxes, Checker() as checker:
                outputs = open_outputs(registry, checker)
                runner = Runner(
                    stores,
                    registry,
                    models,
                    prices,
                    toolboxes=toolboxes,
                    outputs=outputs,
                    checker=checker,
                    chord_ttl=chord_ttl,
                    costs=settings.costs,
                )
                alerting = Alerting(stores.alerts, sinks_of(settings.costs))
                intake = Intake(stores.jobs, registry, chord_ttl=chord_ttl)
                try:
                    yield WorkerParts(stores, fleet, registry, runner, intake, alerting)
                finally:
                    await alerting.close()
    finally:
        await stores.close()
        await line.aclose()


def open_prices(settings: Settings, registry: Registry) -> Prices:
    """Raises Misconfigured for a file of prices that cannot be used."""
    return Prices.of(
        settings,
        refuses_unknown=settings.prices_unknown_models == "refuse",
        pinned=pinned(settings, registry.providers),
    )


def pinned(settings: Settings, providers: Mapping[str, Endpoint]) -> dict[str, str]:
    """Where the models of those run who are sent the tier and the region of each call: OpenAI and Anthropic themselves.
    A gateway is sent neither, whatever it is called.
    """
    addresses = {name: (end.api, end.base_url) for name, end in providers.items()}
    addresses["openai"] = "openai", settings.openai_base_url or OPENAI_URL
    addresses["anthropic"] = "anthropic", settings.anthropic_base_url or ANTHROPIC_URL
    own = {}
    for name, (api, url) in addresses.items():
        if api == "openai" and is_openai(url):
            own[name] = region_of(url)
        elif api == "anthropic" and is_anthropic(url):
            own[name] = settings.anthropic_region
    return own


def check_prices(registry: Registry, prices: Prices) -> None:
    """Raises Misconfigured for agents whose lanes have no known price, where such models are refused."""
    mistakes = []
    for agent in registry:
        for lane in agent.lanes:
            try:
                prices.check(lane)
            except PriceUnknown:
                mistakes.append(
                    f"agent {agent.name}: nobody knows what {lane} costs, and CELERIAC_PRICES_UNKNOWN_MODELS=refuse: "
                    "name its price in CELERIAC_PRICES_FILE"
                )
    if mistakes:
        raise Misconfigured("\n".join(mistakes))


@asynccontextmanager
async def open_toolboxes(registry: Registry) -> AsyncIterator[dict[str, Toolbox]]:
    """By agent; the MCP servers that agents name are open while inside.

    Raises Misconfigured for tools that cannot be found, for two of one name, and for servers that cannot be used.
    """
    async with AsyncExitStack() as open_:
        mistakes: list[str] = []
        of_servers: Mapping[str, Sequence[Tool]] = {}
        if servers := {name: registry.mcp[name] for agent in registry for name in agent.mcp}:
            # Imported here, in a thread: few deployments need it, and it costs 0.7 s and 55 MB.
            mcp: Any = await asyncio.to_thread(import_module, "celeriac.agents.mcp")
            try:
                of_servers = await open_.enter_async_context(mcp.open_servers(list(servers.values())))
            except Misconfigured as error:
                mistakes.append(str(error))
        found = {agent.name: _toolbox(agent, registry, of_servers, mistakes) for agent in registry}
        if mistakes:
            raise Misconfigured("\n".join(mistakes))
        yield found


def _toolbox(
    agent: Agent, registry: Registry, of_servers: Mapping[str, Sequence[Tool]], mistakes: list[str]
) -> Toolbox:
    """What is wrong is added to the mistakes."""
    tools: dict[str, Tool] = {}
    for path in agent.tools:
        try:
            made = find_tool(path)
        except Misconfigured as error:
            mistakes.append(f"agent {agent.name}: {error}")
            continue
        if made.name in tools:
            mistakes.append(f"agent {agent.name}: two tools are called {made.name}; name one by @tool(name=...)")
        tools[made.name] = made
    for server in agent.mcp:
        for tool in of_servers.get(server, ()):
            name = tool.spec.name
            if name in tools:
                mistakes.append(
                    f"agent {agent.name}: two tools are called {name}; give the server {server} another name, "
                    'or say which of its tools are used, by tools = ["..."]'
                )
            tools[name] = tool
    others = [AgentTool(registry[name]) for name in agent.asks]
    others += [AgentTool(registry[name], hands_over=True) for name in agent.hands_over_to]
    agents: dict[str, AgentTool] = {}
    for other in others:
        if other.name in tools or other.name in agents:
            mistakes.append(f"agent {agent.name}: two tools are called {other.name}; give one another name")
        agents[other.name] = other
    return Toolbox(tools, agents)


def open_outputs(registry: Registry, checker: Checker) -> dict[str, Output]:
    """By agent, of those that say what an answer has to be. Raises Misconfigured for models that cannot be found."""
    found: dict[str, Output] = {}
    mistakes = []
    for agent in registry:
        if agent.output_schema is not None:
            found[agent.name] = JsonSchema(agent.output_schema, checker)
        elif agent.output_type:
            try:
                found[agent.name] = find_output(agent.output_type)
            except Misconfigured as error:
                mistakes.append(f"agent {agent.name}: output_type: {error}")
    if mistakes:
        raise Misconfigured("\n".join(mistakes))
    return found


def check_lanes(registry: Registry, models: Models) -> None:
    """Raises Misconfigured for an agent none of whose lanes can be asked; a lane that cannot is a warning."""
    mistakes = []
    for agent in registry:
        closed = [str(lane) for lane in agent.lanes if lane.provider not in models.providers]
        if len(closed) == len(agent.lanes):
            mistakes.append(
                f"agent {agent.name}: no lane can be asked ({', '.join(closed)}): "
                "set OPENAI_API_KEY or ANTHROPIC_API_KEY, or a base URL of your own"
            )
        elif closed:
            log.warning("lanes_closed", agent=agent.name, lanes=closed, reason="no key for their provider")
    if mistakes:
        raise Misconfigured("\n".join(mistakes))
