"""A worker's life: what it opens before its first job, says every second, and closes after its last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from celery import bootsteps
from celery.platforms import EX_FAILURE

from celeriac.assembly import WorkerParts, new_name, open_worker
from celeriac.errors import Fenced, StoreUnavailable
from celeriac.jobs.dispatch import templates
from celeriac.jobs.lease import HEARTBEAT
from celeriac.logs import always, get_logger
from celeriac.settings import Settings
from worker.pool import TaskPool

log = get_logger(__name__)

T = TypeVar("T")

#: A hub that has not ticked for so many seconds takes no messages: the worker offers no slots.
DEAF_AFTER: Final = 3.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What the process can take right now. slots: jobs at once, busy ones included. taking: it takes bells at all."""

    slots: int
    taking: bool


class Lifecycle(bootsteps.StartStopStep):
    """Gives the pool what jobs need on its loop: the stores, the models, and the worker's place in the fleet."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> None:
        settings: Settings = worker.app.settings
        pool = worker.pool
        if not job_queues(worker.app):
            return
        if worker.time_limit:
            # It kills without a word: the job would be given back and run again, and again.
            log.critical("worker_cannot_start", reason="--time-limit is set; give agents a timeout_seconds instead")
            raise SystemExit(EX_FAILURE)
        pool.grace = settings.worker.grace.total_seconds()
        pool.stall = settings.worker.stall.total_seconds()
        began = time.monotonic()

        def offer() -> Offer:
            silence = time.monotonic() - max(began, pool.hub_ticked)
            return Offer(pool.limit, taking=not pool.draining.is_set() and silence < DEAF_AFTER)

        lease = Lease(settings, offer, bells(worker.app))

        async def opened(pool: TaskPool) -> None:
            worker.app.runner = (await lease.open()).runner

        async def closing(pool: TaskPool) -> None:
            await lease.close()

        async def draining(pool: TaskPool) -> None:
            self._drain = asyncio.create_task(lease.drain(pool.draining), name="drain")

        pool.on_loop_start += [opened, draining]
        pool.on_loop_stop.append(closing)


def job_queues(app: Any) -> list[str]:
    """The queues with jobs that this process consumes."""
    return [queue for queue in app.settings.worker.queues if queue in app.amqp.queues.consume_from]


def bells(app: Any) -> dict[str, str]:
    """Queue -> the message that a script may push for a job, "" where the broker is another server."""
    queues = job_queues(app)
    return dict(templates(app, queues)) if app.settings.broker_is_store else dict.fromkeys(queues, "")


class Lease:
    """What the process opens, and its place in the fleet.

    offer: asked at every heartbeat. bells: queue -> Celery's own message, "" where the broker is another server.
    """

    def __init__(self, settings: Settings, offer: Callable[[], Offer], bells: Mapping[str, str]) -> None:
        self._settings = settings
        self._offer = offer
        self._bells = bells
        self._open = AsyncExitStack()
        self._parts: WorkerParts | None = None
        self._heart: asyncio.Task[None] | None = None
        self._heard = time.monotonic()
        self._registered = False

    @property
    def parts(self) -> WorkerParts:
        if self._parts is None:
            raise RuntimeError("the worker is not open")
        return self._parts

    async def open(self) -> WorkerParts:
        """Open everything and register. Raises Misconfigured. A store that is away is waited for."""
        self._parts = await self._patiently(
            lambda: self._open.enter_async_context(open_worker(self._settings, self._offer().slots))
        )
        await self._register()
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        return self._parts

    async def drain(self, draining: asyncio.Event) -> None:
        """Wait until the worker stops; from then on it offers nothing."""
        await draining.wait()
        await self.say()

    async def close(self) -> None:
        """Leave the fleet and close. The jobs have ended or were given back."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
            if self._registered and not await self.parts.fleet.leave(self.parts.runner.worker):
                log.warning("left_with_jobs", worker=self.parts.runner.worker)
        await self._open.aclose()

    async def _register(self) -> None:
        parts, name = self.parts, new_name()
        await self._patiently(
            lambda: parts.fleet.register(name, self._bells, self._offer().slots, parts.registry.digest, self._bells)
        )
        parts.runner.worker = name
        always(worker=name)
        self._registered = True
        self._heard = time.monotonic()
        log.info("worker_registered", worker=name, queues=sorted(self._bells), slots=self._offer().slots)

    @staticmethod
    async def _patiently(do: Callable[[], Awaitable[T]]) -> T:
        wait = 0.2
        while True:
            try:
                return await do()
            except StoreUnavailable as error:
                log.warning("store_away", reason=str(error), again_in_seconds=wait)
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT.total_seconds())
            await self.say()

    async def say(self) -> None:
        """One heartbeat."""
        if not self._registered:
            return
        offer = self._offer()
        try:
            await self.parts.fleet.heartbeat(self.parts.runner.worker, offer.slots, taking=offer.taking)
            self._heard = time.monotonic()
        except StoreUnavailable as error:
            log.warning("heartbeat_lost", reason=str(error), seconds=round(time.monotonic() - self._heard, 1))
        except Fenced:
            # Somebody took our jobs away: what still runs here may write nothing.
            log.warning("lease_lost", worker=self.parts.runner.worker, running=self.parts.runner.running)
            self._registered = False
            self.parts.runner.cancel_all()
            await self._register()
