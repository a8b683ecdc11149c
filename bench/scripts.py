"""The scripts of the job store: what each costs the server, with ten ready jobs and with a million."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import redis

from celeriac.jobs.dispatch import celery_app, templates
from celeriac.jobs.journal import Settlement
from celeriac.jobs.lease import Fleet
from celeriac.jobs.model import Claim, Ending, NewJob, State
from celeriac.jobs.store import new_id, new_nonce
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey

#: Ready jobs, and the tenants that they belong to.
FEW: Final = (10, 10)
MANY: Final = (1_000_000, 10_000)
QUEUE: Final = "celeriac"
SLOTS: Final = 10
ROUNDS: Final = 50

#: One tenant's jobs as submit would have left them, but a few hundred times faster.
FILL: Final = """
local tenant, tenants, jobs = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local name, ids = 't' .. tenant, {}
for seq = tenant + 1, jobs, tenants do
  local id = string.format('0190f0f0-0000-7000-8000-%012d', seq)
  redis.call('HSET', 'celeriac:job:' .. id, 'tenant', name, 'agent', 'assistant', 'queue', 'celeriac', 'line',
    'celeriac', 'priority', 1, 'seq', seq, 'created', 0, 'attempts', 0, 'retries', 0, 'ignore_result', 'true',
    'request_id', '', 'metadata', '{}', 'spec', 'j{}', 'place', 'ready')
  ids[#ids + 1] = seq
  ids[#ids + 1] = id
end
for _, index in ipairs({'jobs:' .. name, 'jobs:' .. name .. ':queued', 'ready:celeriac:1:' .. name}) do
  redis.call('ZADD', 'celeriac:' .. index, unpack(ids))
end
redis.call('ZADD', 'celeriac:rotation:celeriac:1', tenant, name)
redis.call('MSET', 'celeriac:seq', jobs, 'celeriac:turn', jobs)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of the server's time a script, with few ready jobs and with many."""

    script: str
    few: float
    many: float


def costs(few: tuple[int, int] = FEW, many: tuple[int, int] = MANY, rounds: int = ROUNDS) -> Iterator[Cost]:
    """Each of few and many: ready jobs, tenants."""
    measured = [asyncio.run(_measure(*size, rounds)) for size in (few, many)]
    for script in measured[0]:
        yield Cost(script, measured[0][script], measured[1][script])


async def _measure(jobs: int, tenants: int, rounds: int) -> dict[str, float]:
    # Nothing of it has to survive, and the file would grow by gigabytes.
    server = Valkey("--appendonly", "no")
    try:
        server.start()
        client = server.client()
        fill = client.register_script(FILL)
        for tenant in range(tenants):
            fill(args=[tenant, tenants, jobs])
        return await Measure(client, server.url, tenants).run(rounds)
    finally:
        server.remove()


class Measure:
    def __init__(self, client: redis.Redis, url: str, tenants: int) -> None:
        self._client = client
        self._settings = load_settings(redis_url=url)
        self._tenants = tenants
        self._spent: defaultdict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def _counted(self, script: str, times: int = 1) -> Iterator[None]:
        """The server's own count of its time, so that neither we nor the network are in it."""
        self._client.config_resetstat()
        yield
        self._spent[script].append(self._client.info("commandstats")["cmdstat_evalsha"]["usec"] / times)

    async def run(self, rounds: int) -> dict[str, float]:
        stores = open_stores(self._settings)
        fleet, line = open_fleet(self._settings, stores, name="bench")
        try:
            bells = templates(celery_app(self._settings), [QUEUE])
            with self._counted("register"):
                await fleet.register("w", [QUEUE], SLOTS, (), bells)
            for _ in range(rounds):
                await self._round(stores, fleet)
        finally:
            await stores.close()
            await line.aclose()
        # The median: the first calls load the scripts.
        return {script: sorted(times)[len(times) // 2] for script, times in self._spent.items()}

    async def _round(self, stores: Stores, fleet: Fleet) -> None:
        """A worker's slots fill and empty once; as many jobs come as go."""
        jobs, journal = stores.jobs, stores.journal
        with self._counted("submit", SLOTS):
            for i in range(SLOTS):
                await jobs.submit(NewJob(new_id(), f"t{i % self._tenants}", "assistant", QUEUE, (("user", "hi"),)))
        ids = self._client.zrange(f"celeriac:rung:{QUEUE}", 0, SLOTS - 1)
        claims: list[Claim] = []
        with self._counted("claim", SLOTS):
            for id in ids:
                claim = await jobs.claim(id, "w", new_nonce())
                assert claim is not None
                claims.append(claim)
        with self._counted("admit", SLOTS):
            for claim in claims:
                await journal.admit(claim, "c1", 10, {"lane": "openai/x"})
        with self._counted("step", SLOTS):
            for claim in claims:
                await journal.commit(claim, 0, {"text": "x"}, Settlement("c1", "settled", 10, 5, {"lane": "openai/x"}))
        # Else the heartbeat would do the upkeep too.
        self._client.set("celeriac:upkeep", "nobody", px=60_000)
        with self._counted("heartbeat"):
            await fleet.heartbeat("w", SLOTS, taking=True)
        with self._counted("a round of upkeep"):
            await fleet.upkeep()
        with self._counted("finish and dispatch", SLOTS - 2):
            for claim in claims[2:]:
                await jobs.finish(claim, Ending(State.SUCCEEDED, answer="Paris"))
        with self._counted("park and dispatch"):
            await jobs.park(claims[0], "retry", timedelta(hours=1))
        with self._counted("give back and dispatch"):
            await jobs.give_back(claims[1])
        self._client.delete(QUEUE)
