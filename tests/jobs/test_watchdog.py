"""One more lease for a worker whose loop is blocked, and only one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celeriac.errors import Fenced
from celeriac.jobs.watchdog import Watchdog
from celeriac.settings import Settings
from celeriac.stores import open_watchdog
from tests.jobs.conftest import CLOCK, Queue

LEASE = 15_000


@pytest.fixture
def watchdog(queue: Queue, settings: Settings) -> Iterator[Watchdog]:
    opened = open_watchdog(settings, queue.stores, clock=CLOCK)
    yield opened
    opened.close()


def left(queue: Queue, worker: str) -> float:
    """ms until the lease ends."""
    return float(queue.redis.zscore("celeriac:workers", worker)) - queue.now


def free(queue: Queue) -> int:
    return int(queue.redis.hget("celeriac:free", "celeriac") or 0)


async def test_the_lease_runs_anew_and_no_bell_is_rung_for_it(queue: Queue, watchdog: Watchdog) -> None:
    """What waits is for others: a blocked loop could not begin it."""
    worker = await queue.worker(slots=10)
    queue.later(10_000)
    assert watchdog.extend(worker)
    assert left(queue, worker) == LEASE
    assert free(queue) == 0
    await queue.submit()
    assert queue.rung() == []


async def test_there_is_one_extension_until_the_next_heartbeat(queue: Queue, watchdog: Watchdog) -> None:
    """Asked again, as after an answer that was lost, nothing moves; so the lease of a loop that stays blocked ends."""
    worker = await queue.worker()
    queue.later(10_000)
    assert watchdog.extend(worker)
    queue.later(10_000)
    assert watchdog.extend(worker)
    assert left(queue, worker) == LEASE - 10_000
    queue.later(5_000)
    assert not watchdog.extend(worker)
    assert left(queue, worker) == 0


async def test_a_heartbeat_brings_back_slots_and_the_next_extension(queue: Queue, watchdog: Watchdog) -> None:
    """The loop runs again: it is a worker like any other."""
    worker = await queue.worker(slots=10)
    queue.later(10_000)
    watchdog.extend(worker)
    queue.later(5_000)
    await queue.fleet.heartbeat(worker, 10, taking=True)
    assert free(queue) == 10
    queue.later(10_000)
    assert watchdog.extend(worker)
    assert left(queue, worker) == LEASE


async def test_a_job_that_runs_is_kept_and_counted(queue: Queue, watchdog: Watchdog) -> None:
    """Its claim holds, and its end frees no slot of a worker that takes nothing."""
    worker = await queue.worker(slots=2)
    claim = await queue.claim(await queue.submit(), worker)
    queue.later(10_000)
    watchdog.extend(worker)
    queue.later(10_000)
    await queue.finish(claim)
    assert free(queue) == 0
    await queue.fleet.heartbeat(worker, 2, taking=True)
    assert free(queue) == 2


async def test_a_worker_that_the_store_gave_up_is_not_brought_back(queue: Queue, watchdog: Watchdog) -> None:
    """Its jobs may be others' by now. Nor does the watchdog make a worker that was never there."""
    assert not watchdog.extend("nobody")
    worker = await queue.worker()
    await queue.fleet.leave(worker)
    assert not watchdog.extend(worker)
    assert queue.redis.zcard("celeriac:workers") == 0
    with pytest.raises(Fenced):
        await queue.fleet.heartbeat(worker, 1, taking=True)


async def test_a_full_store_does_not_look_like_a_dead_worker(queue: Queue, watchdog: Watchdog) -> None:
    """Like a heartbeat, the extension is never refused for want of memory."""
    worker = await queue.worker()
    queue.later(10_000)
    queue.redis.config_set("maxmemory", 1)
    try:
        assert watchdog.extend(worker)
    finally:
        queue.redis.config_set("maxmemory", 0)
