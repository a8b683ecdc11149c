"""What stands in the way of a worker's heartbeat must not leave it alive, deaf and eating other people's bells."""

from __future__ import annotations

import asyncio
import signal

import pytest
import redis

from celeriac.drill.proxy import Proxy
from celeriac.jobs.model import PROTOCOL
from celeriac.jobs.store import new_nonce
from celeriac.settings import load_settings
from celeriac.stores import open_stores
from tests.processes import wait_until
from tests.story.conftest import House

QUICK = {"CELERIAC_JOBS__LEASE": "2"}


def test_a_worker_that_the_fleet_has_left_behind_stops(house: House) -> None:
    """It lost its lease and may not come back: it ends with a failing status, and another one has every job."""
    shim, client = house.shim(), house.valkey.client()
    old = house.worker("-n", "old@%h", **QUICK)
    client.set("celeriac:protocol", PROTOCOL + 1)
    [name] = client.zrange("celeriac:workers", 0, -1)
    client.zrem("celeriac:workers", name)
    assert old.wait(30) != 0
    assert "The worker stops: the workers of this store speak a newer protocol" in old.output()
    client.set("celeriac:protocol", PROTOCOL)
    house.worker("-n", "new@%h", **QUICK)
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded"


def test_a_worker_whose_record_makes_no_sense_begins_anew(house: House) -> None:
    """Its lease is not renewed for ever by heartbeats that fail: it has a new name within a second or two."""
    shim, client = house.shim(), house.valkey.client()
    worker = house.worker(**QUICK)
    [name] = client.zrange("celeriac:workers", 0, -1)
    client.delete(f"celeriac:worker:{name}")
    client.set(f"celeriac:worker:{name}", "nonsense")
    wait_until(lambda: worker.output().count("worker_registered") == 2, "it to register under a new name")
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded"
    wait_until(lambda: name not in client.zrange("celeriac:workers", 0, -1), "the old name to be given up")


@pytest.mark.parametrize("index", ["parked", "dying", "deadlines", "quarantined", "untold", "broken"])
def test_upkeep_that_fails_ends_no_heartbeat(house: House, index: str) -> None:
    """One broken index: it is said, the worker lives, and jobs run."""
    shim, client = house.shim(), house.valkey.client()
    worker = house.worker(**QUICK)
    client.delete(f"celeriac:{index}")
    client.set(f"celeriac:{index}", "nonsense")
    wait_until(lambda: worker.output().count("upkeep_failed") >= 2, "upkeep to fail, and to be tried again")
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded"
    assert "lease_lost" not in worker.output()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.zcard(f"celeriac:{index}")


async def test_a_job_that_a_worker_holds_without_knowing_it_is_handed_back(house: House) -> None:
    """The answer to its claim never came: it is told what it holds, and lets go of what it does not run."""
    shim, client = house.shim(), house.valkey.client()
    worker = house.worker(CELERIAC_JOBS__LEASE="3")
    [name] = client.zrange("celeriac:workers", 0, -1)
    worker.signal(signal.SIGSTOP)
    stores = open_stores(load_settings(redis_url=house.valkey.url))
    try:
        id = shim.submit()["id"]
        assert await stores.jobs.claim(id, name, new_nonce()) is not None
    finally:
        worker.signal(signal.SIGCONT)
        await stores.close()
    job = shim.job(id, wait=30)
    assert (job["state"], job["attempts"], job["crashes"]) == ("succeeded", 2, 0)
    assert "job_disowned" in worker.output()
    assert "worker_given_up" not in worker.output()


async def test_a_worker_says_how_many_bells_it_has_not_answered(house: House) -> None:
    """Else they would be rung again and again while it is busy. The claim that gets no answer is one."""
    client = house.valkey.client()
    shim = house.shim()
    async with Proxy(house.valkey.port) as proxy:
        await asyncio.to_thread(house.worker, CELERIAC_REDIS_URL=proxy.url)
        [name] = client.zrange("celeriac:workers", 0, -1)

        async def says(unclaimed: str) -> None:
            await asyncio.to_thread(
                wait_until, lambda: client.hget(f"celeriac:worker:{name}", "unclaimed") == unclaimed, "the heartbeat"
            )

        proxy.swallow(script="claim", cut=False)
        id = shim.submit()["id"]
        await says("1")
        assert client.hget(f"celeriac:worker:{name}", "running") == "1", "its answer was swallowed, not the claim"
        await says("0")
        assert (await asyncio.to_thread(shim.job, id, 30))["state"] == "succeeded"
