"""What a scenario has in its hands: a house to break, a caller to load it, and a history to write into."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from celeriac import keys
from celeriac.connections import Redis
from celeriac.drill.caller import Caller, Wish
from celeriac.drill.history import Fault, History
from celeriac.drill.house import House, Kept
from celeriac.drill.process import ProviderClient
from celeriac.drill.proxy import Swallow

JOB_ID: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a drill does. jobs: of one scenario. over: seconds in which they are submitted. lease: seconds.

    patience: seconds that jobs may take to end once the trouble is over; then they count as lost.
    """

    jobs: int
    over: float
    lease: float
    patience: float
    short: bool = False


class Stage:
    """One run of one scenario. redis: the store, past every proxy."""

    def __init__(
        self,
        name: str,
        size: Size,
        caller: Caller,
        history: History,
        redis: Redis,
        rng: random.Random,
        house: House | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.caller = caller
        self.history = history
        self.redis: Any = redis  # its types are those of every protocol and decoding at once
        self.rng = rng
        self._house = house

    @property
    def house(self) -> House:
        if self._house is None:
            raise RuntimeError(f"{self.name} needs processes of its own")
        return self._house

    @property
    def provider(self) -> ProviderClient:
        return self.house.provider

    @property
    def has_house(self) -> bool:
        return self._house is not None

    # Load.

    @contextlib.asynccontextmanager
    async def load(self, jobs: int | None = None, over: float | None = None, **facts: Any) -> AsyncIterator[Load]:
        """Submit jobs while inside; leaving waits until all are submitted."""
        over = self.size.over if over is None else over
        wishes = self.caller.wishes(self.name, self.size.jobs if jobs is None else jobs, over, self.rng, **facts)
        task = asyncio.create_task(self.caller.submit_all(wishes), name=f"load of {self.name}")
        try:
            yield Load(wishes, task, over)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def submit(self, jobs: int, **facts: Any) -> list[str]:
        """Submit so many at once. Answers the ids of those that were accepted."""
        wishes = self.caller.wishes(self.name, jobs, 0, self.rng, **facts)
        await self.caller.submit_all(wishes)
        labels = {wish.label for wish in wishes}
        return [id for id, post in self.history.accepted.items() if post.label in labels]

    # Faults.

    def fault(self, kind: str, affected: dict[str, float | None], at: float | None = None) -> None:
        self.history.faults.append(Fault(kind, time.time() if at is None else at, affected))

    async def strike(self, worker: Kept, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the worker a signal, and write down whose runs that hits."""
        affected = await self.running_on(worker)
        if worker.signal(number):
            self.fault(number.name, affected)

    async def hit_everybody(self, kind: str) -> None:
        """Write down that each job that has not ended is hit by what happens now."""
        self.fault(kind, await self._began(self.caller.open))

    def hit_by(self, swallow: Swallow) -> None:
        """Write down the jobs that the swallowed answers name."""
        known = self.history.accepted
        for at, answer in swallow.answers:
            ids = {id.decode() for id in JOB_ID.findall(answer)} & known.keys()
            self.fault("swallowed", dict.fromkeys(ids), at)

    async def running_on(self, worker: Kept) -> dict[str, float | None]:
        """The jobs that the store believes this process to run, and since when."""
        names = [name for name in await self.workers() if name.split(".")[-2:-1] == [str(worker.pid)]]
        held = [await self.redis.smembers(keys.spell("held", worker=name)) for name in names]
        return await self._began(id.decode() for ids in held for id in ids)

    async def _began(self, ids: Iterable[str]) -> dict[str, float | None]:
        ids = list(ids)
        async with self.redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hget(keys.spell("job", id=id), "started")
            started = await pipe.execute()
        return {id: int(ms) / 1000 if ms else None for id, ms in zip(ids, started, strict=True)}

    async def workers(self) -> list[str]:
        """The names under which workers are registered, sorted."""
        return sorted(name.decode() for name in await self.redis.zrange(keys.spell("workers"), 0, -1))

    async def queues(self) -> list[str]:
        """The queues that the registered workers serve."""
        served = [await self.redis.hget(keys.spell("worker", worker=name), "queues") for name in await self.workers()]
        return sorted({queue for names in served if names for queue in names.decode().split(",")})

    async def busy_worker(self) -> Kept | None:
        """One of those that run jobs, None while none does."""
        some = [worker for worker in self.house.workers if worker.pid]
        self.rng.shuffle(some)
        for worker in some:
            if await self.running_on(worker):
                return worker
        return None

    # Waiting, and what must happen besides.

    async def until(
        self, condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 30, *, every: float = 0.05
    ) -> bool:
        """Wait for the condition; that it does not come true in time is a violation."""
        deadline = time.monotonic() + seconds
        while True:
            true = condition()
            if not isinstance(true, bool):
                true = await true
            if true:
                return True
            if time.monotonic() > deadline:
                self.history.unexpected.append(f"waited {seconds:g} s for: {what}")
                return False
            await asyncio.sleep(every)

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.history.unexpected.append(otherwise)

    async def in_flight(self, calls: int) -> bool:
        """Wait until the provider works on so many calls."""

        async def enough() -> bool:
            return (await self.provider.state())["in_flight"] >= calls

        return await self.until(enough, f"{calls} calls to be under way")

    async def ended(self, ids: Iterable[str], patience: float | None = None) -> bool:
        """Wait until these have ended."""
        ids = set(ids)
        seconds = self.size.patience if patience is None else patience
        return await self.until(lambda: not ids & self.caller.open, f"{len(ids)} jobs to end", seconds)


class Load:
    """wishes: what is submitted. over: seconds it takes."""

    def __init__(self, wishes: list[Wish], task: asyncio.Task[None], over: float) -> None:
        self.wishes = wishes
        self.over = over
        self._task = task
        self._began = time.monotonic()

    @property
    def done(self) -> bool:
        return self._task.done()

    async def at(self, part: float) -> None:
        """Wait until this part of its time is over."""
        await asyncio.sleep(max(0.0, self._began + part * self.over - time.monotonic()))

    async def every(self, seconds: float) -> AsyncIterator[int]:
        """Count while it lasts."""
        number = 0
        while True:
            await asyncio.wait([self._task], timeout=seconds)
            if self.done:
                return
            yield number
            number += 1
