"""What an operator may rely on: limits, the broker, shutdowns and crashes of one worker process each."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.conftest import Valkey
from tests.processes import wait_until
from tests.worker.conftest import PATIENCE, PoolWorker, tell

Start = Callable[..., PoolWorker]
#: How long "nothing happens" is watched.
A_WHILE = 1.0


def marks(valkey: Valkey, key: str) -> list[str]:
    return valkey.client().lrange(f"mark:{key}", 0, -1)


def marked(valkey: Valkey, key: str, n: int = 1) -> list[str]:
    return wait_until(lambda: found if len(found := marks(valkey, key)) >= n else [], f"{n} marks of {key}")


def send(celery: Celery, task: str, *args: Any, **options: Any) -> Any:
    return celery.send_task(f"pool_app.{task}", args, **options)


def queued(valkey: Valkey, queue: str = "celery") -> int:
    return valkey.client().llen(queue)


def stays(value: Callable[[], Any], expected: Any) -> bool:
    """Whether a value is what it should be, and remains so."""
    end = time.monotonic() + A_WHILE
    while time.monotonic() < end:
        if value() != expected:
            return False
        time.sleep(0.05)
    return True


def test_concurrency_is_limited_and_follows_grow_and_shrink(
    valkey: Valkey, celery: Celery, start_worker: Start
) -> None:
    """`-c` slots; `pool_grow` adds some at once, `pool_shrink` takes them back as tasks end."""
    conf = json.dumps({"worker_prefetch_multiplier": 4})
    worker = start_worker(valkey.url, "-c", "2", POOL_TEST_CONF=conf).up()
    tasks = [send(celery, "waits_late", "limit") for _ in range(6)]
    marked(valkey, "limit:began", 2)
    assert stays(lambda: len(marks(valkey, "limit:began")), 2)
    celery.control.pool_grow(2, destination=[worker.name], reply=True, timeout=5)
    marked(valkey, "limit:began", 4)
    assert stays(lambda: len(marks(valkey, "limit:began")), 4)
    celery.control.pool_shrink(3, destination=[worker.name], reply=True, timeout=5)
    began = marks(valkey, "limit:began")
    for task in tasks:
        if task.id in began[:3]:
            task.revoke(terminate=True)
    marked(valkey, "limit:cancelled", 3)
    assert stays(lambda: len(marks(valkey, "limit:began")), 4)


@pytest.mark.parametrize(
    ("conf", "no_ack"),
    [({"worker_disable_prefetch": True}, "1"), ({"worker_disable_prefetch": True}, "0"), ({}, "0")],
    ids=["without acknowledgement", "acknowledged early", "by the prefetch count"],
)
def test_a_full_worker_takes_no_message(
    valkey: Valkey, celery: Celery, start_worker: Start, conf: dict[str, Any], no_ack: str
) -> None:
    """What it cannot run stays in the queue for another, and is taken when a slot is free."""
    start_worker(valkey.url, "-c", "3", POOL_TEST_CONF=json.dumps(conf), POOL_TEST_NO_ACK=no_ack).up()
    first = [send(celery, "waits", "full") for _ in range(3)]
    marked(valkey, "full:began", 3)
    for _ in range(4):
        send(celery, "waits", "full", 0.2)
    assert stays(lambda: (queued(valkey), len(marks(valkey, "full:began"))), (4, 3))
    first[0].revoke(terminate=True)
    marked(valkey, "full:ended", 4)
    assert len(marks(valkey, "full:began")) == 7


def test_messages_are_acknowledged_when_celery_says(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """Early: as soon as the task begins. Late: when it has ended."""
    start_worker(valkey.url, "-c", "10").up()
    send(celery, "waits", "early", 60)
    marked(valkey, "early:began")
    wait_until(lambda: valkey.client().hlen("unacked") == 0, "the early acknowledgement")
    late = send(celery, "waits_late", "late", None)
    marked(valkey, "late:began")
    assert stays(lambda: valkey.client().hlen("unacked"), 1)
    tell(valkey, "late")
    assert late.get(timeout=PATIENCE) == "late"
    wait_until(lambda: valkey.client().hlen("unacked") == 0, "the late acknowledgement")


def test_a_message_that_needs_no_acknowledgement_gets_none(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """On Redis it would be a synchronous round trip for nothing: a third of the worker's CPU time a task."""
    start_worker(valkey.url, "-c", "10", POOL_TEST_NO_ACK="1").up()
    valkey.client().config_resetstat()
    assert send(celery, "add", 1, 2).get(timeout=PATIENCE) == 3
    assert send(celery, "waits_late", "no_ack", 0).get(timeout=PATIENCE) == "no_ack"
    assert not {"cmdstat_zrem", "cmdstat_hdel"} & set(valkey.client().info("commandstats"))


def test_a_warm_shutdown_finishes_what_runs(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """Tasks end, are stored and acknowledged; a message that comes meanwhile is left in the queue; the exit code is 0.
    The owner's hooks run before the first task, when the drain begins and after the last task."""
    worker = start_worker(valkey.url, "-c", "10", "-E").up()
    assert marks(valkey, "life") == ["opened"]
    tasks = [send(celery, "waits", "warm", None), send(celery, "waits_late", "warm", None)]
    marked(valkey, "warm:began", 2)
    worker.signal(signal.SIGTERM)
    marked(valkey, "life", 2)
    late = send(celery, "waits", "too late")
    assert stays(lambda: marks(valkey, "too late:began"), [])
    tell(valkey, "warm", 2)
    assert worker.wait() == 0
    assert [task.state for task in tasks] == ["SUCCESS", "SUCCESS"]
    assert valkey.client().hlen("unacked") == 0
    assert (queued(valkey), late.state) == (1, "PENDING")
    assert marks(valkey, "life") == ["opened", "draining with 2 running and 0 free", "closed with 0 running"]


def test_a_drain_is_bounded_by_its_grace(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """What still runs after `grace` is cancelled and is no success; a late acknowledgement brings it back."""
    worker = start_worker(valkey.url, "-c", "10", POOL_TEST_GRACE="1").up()
    early, late = send(celery, "waits", "grace"), send(celery, "waits_late", "grace")
    marked(valkey, "grace:began", 2)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert sorted(marks(valkey, "grace:cancelled")) == sorted([early.id, late.id])
    assert "SUCCESS" not in {early.state, late.state}
    assert queued(valkey) == 1
    assert marks(valkey, "life")[-1] == "closed with 0 running"


def test_a_cold_shutdown_cancels_at_once(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """During a warm one, too: nothing that it kills is a success, and what is acknowledged late is delivered again."""
    worker = start_worker(valkey.url, "-c", "2").up()
    early, late = send(celery, "waits", "cold"), send(celery, "waits_late", "cold")
    marked(valkey, "cold:began", 2)
    worker.signal(signal.SIGTERM)
    marked(valkey, "life", 2)
    worker.signal(signal.SIGQUIT)
    began = time.monotonic()
    worker.wait()
    assert time.monotonic() - began < 10
    assert sorted(marks(valkey, "cold:cancelled")) == sorted([early.id, late.id])
    assert "SUCCESS" not in {early.state, late.state}
    assert queued(valkey) == 1


def test_a_soft_shutdown_lets_short_tasks_end(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """Celery's worker_soft_shutdown_timeout: short tasks succeed and are acknowledged, long ones come back."""
    conf = json.dumps({"worker_soft_shutdown_timeout": 4})
    worker = start_worker(valkey.url, "-c", "10", POOL_TEST_CONF=conf).up()
    short, long = send(celery, "waits_late", "soft", None), send(celery, "waits_late", "soft", 60)
    marked(valkey, "soft:began", 2)
    worker.signal(signal.SIGQUIT)
    worker.logged("Initiating Soft Shutdown")
    assert stays(lambda: marks(valkey, "soft:cancelled"), [])
    tell(valkey, "soft")
    worker.wait()
    assert (marks(valkey, "soft:ended"), marks(valkey, "soft:cancelled")) == ([short.id], [long.id])
    assert short.state == "SUCCESS"
    wait_until(lambda: queued(valkey) == 1, "the long task's message")
    assert json.loads(str(valkey.client().lindex("celery", 0)))["headers"]["id"] == long.id


def test_a_crashed_loop_ends_the_process(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """Not a deaf worker: a clear line, a failing exit code, and the late acknowledged task goes back."""
    worker = start_worker(valkey.url, "-c", "10").up()
    send(celery, "waits_late", "crash")
    marked(valkey, "crash:began")
    send(celery, "crashes_the_loop")
    assert worker.wait() == 1
    assert "The event loop ended (SystemExit(3))" in worker.output()
    assert queued(valkey) == 1


def test_a_failing_start_hook_ends_the_process(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """One clear line, a failing exit code, and no message is taken."""
    send(celery, "waits", "hook")
    worker = start_worker(valkey.url, POOL_TEST_FAILING_HOOK="1")
    assert worker.wait() == 1
    assert "Worker cannot start: open_stores failed: the store is not there" in worker.output()
    assert queued(valkey) == 1


def test_another_pool_is_refused_for_async_tasks(valkey: Valkey, start_worker: Start) -> None:
    """At the start, with the remedy, and not at the first message."""
    worker = start_worker(valkey.url, "-P", "threads")
    assert worker.wait() == 1
    assert "on queue celery is an async task" in worker.output()
    assert "set worker_pool = 'worker.pool:TaskPool'" in worker.output()
    assert "Traceback" not in worker.output()


def test_ordinary_tasks_keep_prefork_on_another_queue(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """The same app serves both; an async task that strays there fails with the remedy."""
    start_worker(
        valkey.url, "-P", "prefork", "-c", "1", "-Q", "other", POOL_TEST_CONF='{"worker_pool": "prefork"}'
    ).up()
    assert send(celery, "plain", 21, queue="other").get(timeout=PATIENCE) == 42
    with pytest.raises(RuntimeError, match="is an async task"):
        send(celery, "add", 1, 2, queue="other").get(timeout=PATIENCE)


def test_a_worker_without_its_broker_stops_ticking(own_valkey: Valkey, start_worker: Start, tmp_path: Path) -> None:
    """A heartbeat on the loop sees it and can offer no slots."""
    status = tmp_path / "status"
    start_worker(own_valkey.url, "-c", "7", POOL_TEST_STATUS=str(status)).up()

    def age() -> float:
        return float(json.loads(status.read_text())["age"])

    wait_until(lambda: age() < 1.0, "the hub to tick")
    assert json.loads(status.read_text())["free"] == 7
    own_valkey.stop(kill=True)
    wait_until(lambda: age() > 3.0, "the hub to be late")


def test_two_thousand_tasks_are_in_flight_at_once(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """In one process, and the loop stays responsive: the task that lets them go runs beside them."""
    conf = json.dumps({"worker_disable_prefetch": True})
    start_worker(valkey.url, "-c", "2001", POOL_TEST_CONF=conf, POOL_TEST_NO_ACK="1").up()
    with celery.producer_pool.acquire() as producer:
        for _ in range(2000):
            send(celery, "at_the_gate", producer=producer, ignore_result=True)
    wait_until(lambda: valkey.client().get("inside") == "2000", "2,000 tasks")
    send(celery, "opens_the_gate", ignore_result=True)
    assert marked(valkey, "gate") == ["empty"]
