"""Money: what admitting and settling a call costs the process that calls, and how long a report takes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import uvloop

from celeriac import keys
from celeriac.costs.books import COLUMNS, Account, counts
from celeriac.costs.budgets import Cap
from celeriac.gate.lanes import Caps, asking, heard
from celeriac.jobs.journal import Admitted, Settlement
from celeriac.jobs.model import NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Lane, Usage
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey

LANE: Final = Lane("openai", "gpt-5.4-mini")
#: In each of the five scopes that every call is in.
SCOPES: Final = ("all", "tenant:acme", "agent:assistant", "provider:openai", f"model:{LANE}")
CAPS: Final = (Cap("day", 10**15), Cap("month", 10**15))
#: At once: as many as there are connections, so that nobody waits for one.
AT_ONCE: Final = 8
DAYS: Final = 90
SERIES: Final = 50


@dataclass(frozen=True, slots=True)
class Booked:
    """Microseconds of the client's CPU: a call's admission and settlement; and two round trips of scripts that do
    nothing, through the same client.
    """

    ours: float
    bare: float


def booked(calls: int, rounds: int) -> Booked:
    """Of rounds in turn the least: what else the machine does only adds to it."""
    server = Valkey().start()
    try:
        return uvloop.run(_booked(server.url, calls, rounds))
    finally:
        server.remove()


def reported(rounds: int) -> float:
    """Milliseconds until a report of 90 days and 50 series is there, grouped by day and model; the middle one."""
    server = Valkey().start()
    try:
        return uvloop.run(_reported(server, rounds))
    finally:
        server.remove()


async def _booked(url: str, calls: int, rounds: int) -> Booked:
    settings = load_settings(redis_url=url)
    stores = open_stores(settings, connections=AT_ONCE)
    fleet, line = open_fleet(settings, stores, name="bench")
    try:
        await fleet.register("w", ["celeriac"], AT_ONCE, (), {"celeriac": ""})
        for scope in SCOPES:
            await stores.budgets.put(scope, CAPS, "bench")
        ours = [await _buyer(stores) for _ in range(AT_ONCE)]
        nothing = stores.redis.register_script("return {ARGV[1]}")

        async def bare(_: int) -> None:
            await nothing(args=["x" * 600])
            await nothing(args=["x" * 600])

        costs: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(rounds):
            for name, buyers in (("ours", ours), ("bare", [bare] * AT_ONCE)):
                begin, each = number * calls, calls // AT_ONCE
                spent = time.process_time()
                await asyncio.gather(*(_in_turn(buy, begin, begin + each) for buy in buyers))
                costs[name].append((time.process_time() - spent) / each / AT_ONCE * 1e6)
        return Booked(min(costs["ours"]), min(costs["bare"]))
    finally:
        await stores.close()
        await line.aclose()


async def _in_turn(buy: Callable[[int], Awaitable[None]], first: int, last: int) -> None:
    for number in range(first, last):
        await buy(number)


async def _buyer(stores: Stores) -> Callable[[int], Awaitable[None]]:
    """A job that makes one call after the other."""
    job = await stores.jobs.submit(NewJob(new_id(), "acme", "assistant", "celeriac", (("user", "hi"),)))
    claim = await stores.jobs.claim(job.id, "w", new_nonce())
    assert claim is not None
    door = asking(LANE, (100, 100), Caps(), 9.0)
    books = partial(Account("acme", "assistant").books, LANE)
    usage = Usage(input=50, output=50)
    facts = {"lane": str(LANE), "step": 1, "usage": usage.as_dict()}

    async def buy(number: int) -> None:
        call = f"c{number}"
        said = await stores.journal.admit(claim, call, 1000, {"lane": str(LANE)}, door, books=books)
        assert isinstance(said, Admitted)
        told = heard(LANE, most=(100, 100), took=(50, 50), usage=usage)
        made = Settlement(call, "settled", 1000, 700, facts, told, said.books, counts(usage, 700))
        await stores.journal.settle(claim, made)

    return buy


async def _reported(server: Valkey, rounds: int) -> float:
    settings = load_settings(redis_url=server.url)
    stores = open_stores(settings)
    client = server.client()
    now = datetime.now(UTC)
    sums = " ".join(str(10**6 + column) for column in range(len(COLUMNS)))
    for back in range(DAYS):
        start, _ = stores.usage.day(now - timedelta(days=back))
        series = {f"acme,a{number % 5},openai,model-{number}": sums for number in range(SERIES)}
        client.hset(keys.spell("usage", span=f"day.{int(start.timestamp())}"), mapping=series)
    try:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            rows = await stores.usage.report(now - timedelta(days=DAYS), now, ("day", "model"))
            times.append((time.perf_counter() - began) * 1000)
        assert len(rows) == (DAYS - 1) * SERIES + SERIES
        return statistics.median(times)
    finally:
        await stores.close()
