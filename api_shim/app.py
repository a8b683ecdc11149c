"""The shim: HTTP in front of the job store. It opens the stores and nothing else; no provider SDK, no Celery task."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi_swagger import patch_fastapi
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from api_shim import errors
from api_shim.auth import SCHEMES, Keys, tenant
from api_shim.middleware import Around, HttpMetrics, Within
from api_shim.routers import agents, budgets, contexts, jobs, probes, usage
from api_shim.schemas import Problem
from celeriac.agents.registry import read_agents
from celeriac.connections import patiently
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import Signing
from celeriac.errors import Misconfigured
from celeriac.logs import get_logger
from celeriac.settings import Settings
from celeriac.stores import Stores, check_redis, open_stores

log = get_logger(__name__)

#: Seconds that the store gets for each answer. More than `DURABLE_WITHIN`, less than callers' own timeouts.
PATIENCE = 3.0

DESCRIPTION = "Hand over an agent job, poll for its answer. Never lost, never paid twice."


#: What every route of a tenant may answer besides what it is for.
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": Problem, "description": "The body cannot be read as JSON"},
    401: {"model": Problem, "description": "No key, or a wrong one"},
    408: {"model": Problem, "description": "The body did not arrive in time"},
    413: {"model": Problem, "description": "The body is larger than CELERIAC_SHIM__MAX_BODY_BYTES"},
    422: {"model": Problem, "description": "The request is not valid; `errors` says where and what to do"},
    503: {
        "model": Problem,
        "description": "The job store is away or full; try again after `Retry-After`. With `maybe_accepted` it may "
        "have been done all the same: a submission is safe to send again with the same `Idempotency-Key`.",
    },
}


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI knows one media type a route; refusals have another. Who may answer 401 asks for a key."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["securitySchemes"] = SCHEMES
            for path in schema["paths"].values():
                for operation in path.values():
                    if "401" in operation["responses"]:
                        operation["security"] = [{scheme: []} for scheme in SCHEMES]
                    for status, response in operation["responses"].items():
                        content = response.get("content", {})
                        if status >= "400" and "application/json" in content:
                            content["application/problem+json"] = content.pop("application/json")
        return super().openapi()


async def _look(stores: Stores, settings: Settings) -> None:
    """Once the store is there: one that cannot keep the promises stops the shim, as it would have at the start."""
    try:
        await patiently(lambda: check_redis(stores.redis, settings))
    except Misconfigured as error:
        log.critical("store_is_unsafe", reason=str(error))
        signal.raise_signal(signal.SIGTERM)


async def _stop_readers(stores: Stores, closing: asyncio.Event) -> None:
    await closing.wait()
    stores.events.stop()


def create_app(settings: Settings) -> FastAPI:
    """The application. Reads the agents and prices now: a wrong file stops the start. Raises Misconfigured."""
    registry = read_agents(settings.agents_file, settings.costs.max_job_usd)
    prices = Prices.of(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stores = open_stores(settings, name="celeriac-shim", within=PATIENCE)
        app.state.stores = stores
        look = None if app.state.store_checked else asyncio.create_task(_look(stores, settings), name="look")
        stop = asyncio.create_task(_stop_readers(stores, app.state.closing), name="stop_readers")
        yield
        for task in filter(None, (look, stop)):
            task.cancel()
        await stores.close()

    app = Api(
        title="Celeriac",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.settings = settings
    app.state.store_checked = False
    app.state.registry = registry
    app.state.keys = Keys(settings.shim.api_keys)
    app.state.prices = prices
    app.state.signing = Signing(settings.costs.receipt_keys, settings.costs.signs_with)
    app.state.closing = asyncio.Event()
    app.state.broker = None if settings.broker_is_store else probes.Broker(settings)
    app.state.metrics = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        app.state.metrics.register(collector)

    errors.install(app)
    for module in (jobs, contexts, agents, budgets, usage):
        app.include_router(module.router, dependencies=[Depends(tenant)], responses=REFUSALS)
    app.include_router(probes.router)
    patch_fastapi(app, redirect_from_root_to_docs=True)
    app.add_middleware(Within, max_body_bytes=settings.shim.max_body_bytes)
    if settings.shim.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.shim.cors_origins),
            allow_credentials=settings.shim.cors_credentials,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "X-Request-ID",
                "Idempotency-Key",
                "Last-Event-ID",
            ],
            expose_headers=["Location", "Retry-After", "X-Request-ID", "Idempotency-Replayed"],
        )
    app.add_middleware(Around, metrics=HttpMetrics(app.state.metrics))
    return app
