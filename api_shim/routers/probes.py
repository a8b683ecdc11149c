"""Probes and metrics, for whoever reaches the port: no tenant, prompt or answer is in them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from celeriac.errors import StoreUnavailable
from celeriac.jobs.reach import ask_broker
from celeriac.settings import Settings
from celeriac.stores import Stores

router = APIRouter(tags=["probes"])

#: Seconds that each dependency gets to answer; who asks /readyz waits no longer than the slowest.
PATIENCE: Final = 1.0
#: Seconds for which the broker's last answer counts.
FRESH: Final = 2.0


class Broker:
    """A broker that is a server of its own, as /readyz sees it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asking: asyncio.Future[bool] | None = None
        self._asked = float("-inf")

    async def answers(self) -> bool:
        """Whether it did in the last seconds. Asked in a thread, once at a time: nobody waits longer than PATIENCE."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked > FRESH):
            self._asking = asyncio.get_running_loop().create_future()
            self._asked = now
            # A daemon, for a shim that stops meanwhile does not wait for it either.
            threading.Thread(
                target=self._ask, args=(asyncio.get_running_loop(), self._asking), name="ask-broker", daemon=True
            ).start()
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(self._asking)
        except TimeoutError:
            return False

    def _ask(self, loop: asyncio.AbstractEventLoop, asking: asyncio.Future[bool]) -> None:
        try:
            ask_broker(self._settings, PATIENCE)
            answered = True
        except Exception:  # whatever a broker's client may raise
            answered = False
        with contextlib.suppress(RuntimeError):  # the shim has stopped meanwhile
            loop.call_soon_threadsafe(asking.set_result, answered)


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether a job can be taken; `missing` names what is not there: `store`, `broker`, `workers`, or `workers:QUEUE`
    where there are workers, and none for a queue that an agent uses.

    503 only without the store. Without a broker or without workers jobs are taken, and wait: then the answer is 200 and
    `status` is `degraded`, since taking the shim out of service would turn a delay into refusals. `broker` is shown
    where it is a server of its own.
    """
    broker: Broker | None = request.app.state.broker
    workers, broker_answers = await asyncio.gather(
        _workers(request.app.state.stores), broker.answers() if broker is not None else _yes()
    )
    found: dict[str, Any] = {"store": "ok" if workers is not None else "away"}
    if broker is not None:
        found["broker"] = "ok" if broker_answers else "away"
    if workers is not None:
        found["workers"] = len(workers)
    missing = [name for name, state in found.items() if state in ("away", 0)]
    if workers:
        used = {agent.queue for agent in request.app.state.registry}
        missing += [f"workers:{queue}" for queue in sorted(used.difference(*workers))]
    status = "unavailable" if workers is None else "degraded" if missing else "ok"
    return _answer(503 if workers is None else 200, {"status": status, "missing": missing, **found})


async def _workers(stores: Stores) -> Sequence[frozenset[str]] | None:
    """The queues of each whose lease runs; None if the store does not answer."""
    try:
        async with asyncio.timeout(2 * PATIENCE):
            return await stores.jobs.workers_alive()
    except (StoreUnavailable, TimeoutError):
        return None


async def _yes() -> bool:
    return True


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics of this process."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


def _answer(status: int, body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
