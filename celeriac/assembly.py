"""Puts a worker's parts together: the only module that knows every concrete class."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from celeriac.agents.intake import Intake
from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.runner import Runner
from celeriac.costs.prices import Prices
from celeriac.errors import Misconfigured
from celeriac.jobs.lease import Fleet
from celeriac.llm.client import Models, open_models
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


def new_name() -> str:
    """A worker has a new name at each start: what a former life left behind can never be taken for this one's."""
    return f"{socket.gethostname().partition('.')[0]}.{os.getpid()}.{secrets.token_hex(4)}"


@asynccontextmanager
async def open_worker(settings: Settings, concurrency: int) -> AsyncIterator[WorkerParts]:
    """Everything a worker process needs, open while inside, on the event loop that runs its jobs.

    concurrency: jobs in flight at once. Raises Misconfigured for a wrong agents or prices file, an agent that no
    configured provider can answer, or a Redis that cannot keep the promises; StoreUnavailable.
    """
    registry = read_agents(settings.agents_file)
    prices = Prices(*([settings.prices_file] if settings.prices_file else []))
    connections = settings.worker.redis_connections or max(8, concurrency // 32)
    stores = open_stores(settings, connections=connections, name="celeriac-worker")
    fleet, line = open_fleet(settings, stores, name="celeriac-lease")
    try:
        await check_redis(stores.redis, settings)
        async with open_models(settings, concurrency, registry.providers) as models:
            check_lanes(registry, models)
            registry = registry.asking(models.providers)
            chord_ttl = settings.jobs.chord_ttl
            runner = Runner(stores, registry, models, prices, chord_ttl=chord_ttl)
            yield WorkerParts(stores, fleet, registry, runner, Intake(stores.jobs, registry, chord_ttl=chord_ttl))
    finally:
        await stores.close()
        await line.aclose()


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
