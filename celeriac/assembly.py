"""Puts a worker's parts together: the only module that knows every concrete class."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass

from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.runner import Runner
from celeriac.connections import Redis
from celeriac.costs.prices import Prices
from celeriac.errors import Misconfigured
from celeriac.jobs.lease import Fleet
from celeriac.settings import Settings
from celeriac.stores import Stores, open_fleet, open_stores


@dataclass(frozen=True)
class WorkerParts:
    stores: Stores
    fleet: Fleet
    fleet_redis: Redis
    registry: Registry
    runner: Runner

    async def close(self) -> None:
        await self.stores.close()
        await self.fleet_redis.aclose()


def new_name() -> str:
    """A worker has a new name at each start: what a former life left behind can never be taken for this one's."""
    return f"{socket.gethostname().partition('.')[0]}.{os.getpid()}.{secrets.token_hex(4)}"


async def open_worker(settings: Settings) -> WorkerParts:
    """Everything a worker process needs, on the event loop that runs its jobs.

    Raises Misconfigured for a wrong agents or prices file, a Redis that cannot keep the promises, or no provider at all.
    """
    ...
