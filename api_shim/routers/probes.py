"""Probes and metrics, for whoever reaches the port: no tenant, prompt or answer is in them."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from celeriac.errors import StoreUnavailable
from celeriac.stores import Stores

router = APIRouter(tags=["probes"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether a job can be taken: 503 names what is missing. Without workers jobs are taken, and wait."""
    stores: Stores = request.app.state.stores
    try:
        async with asyncio.timeout(2):
            workers = await stores.jobs.workers_alive()
    except (StoreUnavailable, TimeoutError):
        return _answer(503, {"status": "unavailable", "store": "away"})
    return _answer(200, {"status": "ok", "store": "ok", "workers": workers})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics of this process."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


def _answer(status: int, body: dict[str, str | int]) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
