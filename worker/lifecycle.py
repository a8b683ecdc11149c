"""A worker's life: what it opens before its first job, says every second, and closes after its last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from celeriac.assembly import WorkerParts, new_name, open_worker
from celeriac.errors import Fenced, StoreUnavailable
from celeriac.jobs.lease import HEARTBEAT
from celeriac.logs import get_logger
from celeriac.settings import Settings

log = get_logger(__name__)

#: A hub that has not ticked for so many seconds takes no messages: the worker offers no slots.
DEAF_AFTER: Final = 3.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What the process can take right now. slots: jobs at once, busy ones included. taking: it takes bells at all."""

    slots: int
    taking: bool


class Lifecycle:
    """Everything that lives on the pool's event loop besides the jobs.

    offer: asked at every heartbeat. templates: queue -> Celery's own message, "" where the broker is another server.
    """

    def __init__(self, settings: Settings, *, offer: Callable[[], Offer], templates: Mapping[str, str]) -> None:
        self._settings = settings
        self._offer = offer
        self._templates = templates
        self._parts: WorkerParts | None = None
        self._heart: asyncio.Task[None] | None = None
        self._heard = time.monotonic()
        self._registered = False

    @property
    def parts(self) -> WorkerParts:
        if self._parts is None:
            raise RuntimeError("the worker is not open")
        return self._parts

    async def start(self) -> WorkerParts:
        """Open everything and register. Raises Misconfigured; a store that is away is waited for."""
        self._parts = await open_worker(self._settings)
        await self._register()
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        return self._parts

    async def drain(self) -> None:
        """Offer no more slots from now on."""
        await self._say(Offer(0, taking=False))

    def hand_back(self) -> None:
        """From now on runs that are cancelled give their jobs back."""
        self.parts.runner.hand_back()

    async def stop(self) -> None:
        """Leave the fleet and close. The jobs have ended or were given back."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
            if self._registered and not await self.parts.fleet.leave(self.parts.runner.worker):
                log.warning("left_with_jobs", worker=self.parts.runner.worker)
        await self.parts.close()

    async def _register(self) -> None:
        parts, name = self.parts, new_name()
        wait = 0.2
        while True:
            try:
                await parts.fleet.register(
                    name, self._templates, self._offer().slots, parts.registry.digest, self._templates
                )
                break
            except StoreUnavailable as error:
                log.warning("store_away", reason=str(error), again_in_seconds=wait)
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)
        parts.runner.worker = name
        self._registered = True
        self._heard = time.monotonic()
        log.info("worker_registered", worker=name, queues=sorted(self._templates), slots=self._offer().slots)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT.total_seconds())
            await self._say(self._offer())

    async def _say(self, offer: Offer) -> None:
        if not self._registered:
            return
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
