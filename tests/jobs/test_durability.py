"""CELERIAC_DURABILITY: what an answer of the store means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from celeriac import connections
from celeriac.errors import Misconfigured, StoreUnavailable
from celeriac.jobs.model import NewJob
from celeriac.jobs.store import new_id
from celeriac.settings import load_settings
from celeriac.stores import Stores, check_redis, open_stores
from tests.conftest import Valkey
from tests.processes import wait_until


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def replica(own_valkey: Valkey) -> Iterator[Valkey]:
    server = Valkey("--replicaof", f"127.0.0.1 {own_valkey.port}").start()
    wait_until(lambda: server.client().info("replication")["master_link_status"] == "up", "the replica to follow")
    yield server
    server.remove()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is waited for as long as it takes: the machine may be busy."""
    monkeypatch.setattr(connections, "DURABLE_WITHIN", 20_000)


def stores(opened: AsyncExitStack, valkey: Valkey, **facts: Any) -> Stores:
    made = open_stores(load_settings(redis_url=valkey.url, **facts))
    opened.push_async_callback(made.close)
    return made


def job() -> NewJob:
    return NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),))


def commands(valkey: Valkey, name: str) -> int:
    """How often the server was sent this command."""
    return int(valkey.client().info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"])


async def test_by_default_nothing_waits_for_the_disk(opened: AsyncExitStack, own_valkey: Valkey) -> None:
    """`process`: what was answered survives the process, for no further round trip."""
    await stores(opened, own_valkey).jobs.submit(job())
    assert commands(own_valkey, "waitaof") == 0


@pytest.mark.usefixtures("patient")
async def test_disk_answers_once_the_job_is_in_the_file(opened: AsyncExitStack, own_valkey: Valkey) -> None:
    """One round trip for both, over one connection, and the file was synced before the answer."""
    made = stores(opened, own_valkey, durability="disk")
    wanted = job()
    await made.jobs.submit(job())  # the server learns the script
    waited = commands(own_valkey, "waitaof")
    await made.jobs.submit(wanted)
    assert commands(own_valkey, "waitaof") == waited + 1
    own_valkey.stop(kill=True)
    own_valkey.start()
    assert await made.jobs.get(wanted.id, "default") is not None


@pytest.mark.usefixtures("patient")
async def test_a_script_that_the_server_forgot_is_loaded_again(opened: AsyncExitStack, own_valkey: Valkey) -> None:
    """As after a restart: the durable way has no second path for it."""
    made = stores(opened, own_valkey, durability="disk")
    await made.jobs.submit(job())
    own_valkey.client().script_flush()
    await made.jobs.submit(job())
    assert len((await made.jobs.list("default")).jobs) == 2


async def test_scripts_forgotten_while_they_are_loaded_are_an_outage(
    opened: AsyncExitStack, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Redis is started twice in a second: whoever holds what was paid for asks again."""
    made, wanted = stores(opened, own_valkey), job()
    script_load = made.redis.script_load

    async def and_forgotten(text: str) -> str:
        sha: str = await script_load(text)
        own_valkey.client().script_flush()
        return sha

    with monkeypatch.context() as once:
        once.setattr(made.redis, "script_load", and_forgotten)
        with pytest.raises(StoreUnavailable, match="started anew") as caught:
            await made.jobs.submit(wanted)
    assert (caught.value.maybe_accepted, caught.value.job_id) == (True, wanted.id)
    await made.jobs.submit(wanted)
    assert await made.jobs.get(wanted.id, "default") is not None


@pytest.mark.usefixtures("patient")
async def test_replica_answers_once_a_replica_has_it_too(
    opened: AsyncExitStack, own_valkey: Valkey, replica: Valkey
) -> None:
    """What was answered can be asked of the replica."""
    made, wanted = stores(opened, own_valkey, durability="replica"), job()
    await made.jobs.submit(wanted)
    assert replica.client().exists(f"celeriac:job:{wanted.id}")


async def test_without_its_replica_nobody_is_told_that_it_is_safe(opened: AsyncExitStack, own_valkey: Valkey) -> None:
    """It may be stored: the error says so and names the job."""
    made, wanted = stores(opened, own_valkey, durability="replica"), job()
    with pytest.raises(StoreUnavailable) as caught:
        await made.jobs.submit(wanted)
    assert (caught.value.maybe_accepted, caught.value.job_id) == (True, wanted.id)
    assert await made.jobs.get(wanted.id, "default") is not None


@pytest.mark.parametrize(
    ("durability", "options", "said"),
    [
        ("disk", {"appendonly": "no"}, "no append-only file"),
        ("replica", {}, "min-replicas-to-write 1"),
        ("replica", {"min-replicas-to-write": 1, "min-replicas-max-lag": 10}, "at most 7.5"),
    ],
)
async def test_a_redis_that_cannot_promise_it_is_refused_at_the_start(
    opened: AsyncExitStack, own_valkey: Valkey, durability: str, options: dict[str, Any], said: str
) -> None:
    """An operator's mistake is found before the first job, in dev too."""
    for name, value in options.items():
        own_valkey.client().config_set(name, value)
    settings = load_settings(redis_url=own_valkey.url, durability=durability)
    made = stores(opened, own_valkey)
    with pytest.raises(Misconfigured, match=said):
        await check_redis(made.redis, settings)


async def test_what_is_sent_again_is_not_safe_either_before_it_is_in_the_file(
    opened: AsyncExitStack, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes nothing, and its connection has written nothing: it waits for what the first one wrote."""
    monkeypatch.setattr(connections, "DURABLE_WITHIN", 300)
    own_valkey.client().config_set("appendfsync", "no")
    wanted = job()
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            await stores(opened, own_valkey, durability="disk").jobs.submit(wanted)
        assert (caught.value.maybe_accepted, caught.value.job_id) == (True, wanted.id)
    own_valkey.client().config_set("appendfsync", "always")
    assert (await stores(opened, own_valkey, durability="disk").jobs.submit(wanted)).id == wanted.id
