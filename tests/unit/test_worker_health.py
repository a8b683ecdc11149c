"""`python -m worker.health`: what a container's health check says, about a real store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from celeriac.assembly import new_name
from celeriac.jobs.lease import Fleet
from celeriac.settings import Settings, load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey
from tests.processes import ROOT, free_port, wait_until


@pytest.fixture
def lease() -> int:
    """Seconds; longer than a health check takes to start on a busy machine."""
    return 60


@pytest.fixture
async def fleet(settings: Settings, stores: Stores, lease: int) -> AsyncIterator[Fleet]:
    opened, line = open_fleet(load_settings(redis_url=settings.redis_url, jobs={"lease": lease}), stores, name="test")
    yield opened
    await line.aclose()


async def register(fleet: Fleet, name: str) -> None:
    await fleet.register(name, ["celeriac"], 1, (), {"celeriac": ""})


def health(redis_url: str, **env: str) -> tuple[int, str]:
    """Exit status, and the line on standard error."""
    argv = (sys.executable, "-m", "worker.health")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CELERIAC_")}
    ran = subprocess.run(
        argv, cwd=ROOT, env=clean | {"CELERIAC_REDIS_URL": redis_url} | env, capture_output=True, text=True, timeout=60
    )
    return ran.returncode, ran.stderr.strip()


async def test_a_worker_of_this_host_with_a_lease_is_healthy(valkey: Valkey, fleet: Fleet) -> None:
    """It names itself as the health check expects."""
    await register(fleet, new_name())
    assert health(valkey.url) == (0, "")


async def test_a_worker_of_another_host_does_not_count(valkey: Valkey, fleet: Fleet) -> None:
    """Not even one whose host's name begins with ours."""
    host, _, rest = new_name().partition(".")
    await register(fleet, f"{host}2.{rest}")
    assert health(valkey.url) == (1, f"no worker of {host} holds a lease")


@pytest.mark.parametrize("lease", [2])
async def test_a_worker_that_went_silent_is_not_healthy(valkey: Valkey, fleet: Fleet) -> None:
    """Though nobody has taken its jobs from it yet."""
    name = new_name()
    await register(fleet, name)
    wait_until(lambda: health(valkey.url)[0], "the lease to end")
    assert name in valkey.client().zrange("celeriac:workers", 0, -1)


def test_a_store_that_is_away_is_not_healthy() -> None:
    """It says so in one line, in time for the health check."""
    assert health(f"redis://127.0.0.1:{free_port()}/0") == (1, "the store does not answer (ConnectionError)")


def test_a_wrong_setting_is_named(valkey: Valkey) -> None:
    """As the worker itself would name it."""
    status, line = health(valkey.url, CELERIAC_WORKER__CONCURRENCY="many")
    assert status == 1
    assert line.startswith("CELERIAC_WORKER__CONCURRENCY: ")


async def test_a_worker_that_takes_no_jobs_is_not_healthy(valkey: Valkey, fleet: Fleet) -> None:
    """It holds its lease and is cut off from its broker, or its loop is blocked. One that works beside it is enough."""
    name = new_name()
    await register(fleet, name)
    await fleet.heartbeat(name, 10, taking=False)
    assert health(valkey.url) == (1, f"{name}: holds a lease and takes no jobs")
    await register(fleet, new_name())
    assert health(valkey.url) == (0, "")


async def test_a_worker_that_drains_is_healthy(valkey: Valkey, fleet: Fleet) -> None:
    """It takes no jobs on purpose: it offers no slots at all, and is not killed for it."""
    name = new_name()
    await register(fleet, name)
    await fleet.heartbeat(name, 0, taking=False)
    assert health(valkey.url) == (0, "")


def test_a_port_that_nobody_answers_is_not_healthy(valkey: Valkey) -> None:
    """Where there should be one, the store is not asked: it may know of another worker of this host."""
    port = str(free_port())
    assert health(valkey.url, CELERIAC_WORKER__HEALTH_PORT=port) == (1, f"no worker answers on port {port} (URLError)")
