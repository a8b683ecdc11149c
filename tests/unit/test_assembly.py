"""A worker's parts, as they are put together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriac.assembly import open_worker
from celeriac.settings import load_settings
from tests.conftest import Valkey


@pytest.mark.parametrize(
    ("concurrency", "worker", "connections"),
    [(1, {}, 8), (320, {}, 10), (640, {}, 20), (640, {"redis_connections": 3}, 3)],
)
async def test_a_workers_pool_is_as_large_as_its_concurrency_asks(
    valkey: Valkey, concurrency: int, worker: dict[str, Any], connections: int
) -> None:
    """One connection for 32 jobs in flight, at least 8, unless the operator says how many."""
    settings = load_settings(redis_url=valkey.url, scripted=True, worker=worker)
    async with open_worker(settings, concurrency) as parts:
        jobs = parts.stores.jobs
        await asyncio.gather(*(jobs.get("none", "default") for _ in range(8 * connections)))
        names = [client["name"] for client in valkey.client().client_list()]
    assert names.count("celeriac-worker") == connections


async def test_a_worker_asks_no_lane_that_it_has_no_key_for(valkey: Valkey) -> None:
    """It would be admitted in vain, again and again."""
    settings = load_settings(redis_url=valkey.url, anthropic_api_key="sk-x")
    async with open_worker(settings, 1) as parts:
        assert [lane.provider for lane in parts.registry["assistant"].lanes] == ["anthropic"]
