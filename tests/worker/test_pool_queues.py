"""`TaskPool.consume`: which queues a worker takes messages of, changed while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import psutil
import pytest
from celery import Celery

from tests.conftest import Valkey
from tests.processes import wait_until
from tests.worker.conftest import PoolWorker, tell

Start = Callable[..., PoolWorker]
#: Longer than a blocking pop, with which a dropped queue may still be asked for.
A_POP = 2.0
BOTH = [{"worker_disable_prefetch": True}, {}]
NAMES = ["without prefetch", "by the prefetch count"]


class Steered:
    """A worker whose queues the test decides on; one of its slots is taken by the task that obeys."""

    def __init__(self, valkey: Valkey, worker: PoolWorker) -> None:
        self.valkey, self.worker = valkey, worker
        self.celery = Celery(broker=valkey.url, backend=valkey.url, set_as_current=False)
        self._told = 0
        self.send("follows_the_queues", "steer", queue="celery")

    def send(self, task: str, *args: object, queue: str) -> str:
        return str(self.celery.send_task(f"pool_app.{task}", args, queue=queue).id)

    def consumes(self, *queues: str) -> None:
        self._tell(queues)

    def consumes_as_before(self) -> None:
        self._tell(None)

    def _tell(self, queues: tuple[str, ...] | None) -> None:
        self.valkey.client().rpush("queues:steer", json.dumps(queues))
        self._told += 1
        wait_until(lambda: self.valkey.client().llen("mark:steer:told") >= self._told, "the task to obey")

    def began(self, key: str) -> list[str]:
        return self.valkey.client().lrange(f"mark:{key}:began", 0, -1)

    def waiting(self, queue: str) -> int:
        return self.valkey.client().llen(queue)


@pytest.fixture
def steered(valkey: Valkey, start_worker: Start, request: pytest.FixtureRequest) -> Steered:
    conf = getattr(request, "param", BOTH[0])
    worker = start_worker(valkey.url, "-c", "3", "-Q", "celery", POOL_TEST_CONF=json.dumps(conf), POOL_TEST_NO_ACK="1")
    return Steered(valkey, worker.up())


@pytest.mark.parametrize("steered", BOTH, ids=NAMES, indirect=True)
def test_from_now_on_exactly_these_queues(steered: Steered) -> None:
    """Known ones and new ones; what is sent to a queue that was dropped stays there until it is taken up again."""
    steered.consumes("quarantine", "other")
    for queue in ("quarantine", "other"):
        steered.send("waits", queue, 0, queue=queue)
        wait_until(lambda queue=queue: steered.began(queue), f"the message in {queue}")
    for _ in range(3):
        steered.send("waits", "celery", 0, queue="celery")
    time.sleep(A_POP)
    assert (steered.began("celery"), steered.waiting("celery")) == ([], 3)
    steered.consumes("celery")
    wait_until(lambda: len(steered.began("celery")) == 3, "the messages that waited")
    steered.send("waits", "quarantine", 0, queue="quarantine")
    time.sleep(A_POP)
    assert len(steered.began("quarantine")) == 1


@pytest.mark.parametrize("steered", BOTH, ids=NAMES, indirect=True)
def test_what_was_being_popped_when_its_queue_was_dropped_goes_back(steered: Steered) -> None:
    """A blocking pop cannot be taken back: what it still brings is put back unread, and none is lost."""

    def all_go_back(key: str) -> bool:
        """And whether there was such a pop: on a busy machine it may be over before the first message is sent."""
        steered.consumes("other")
        sent = []
        until = time.monotonic() + A_POP
        while time.monotonic() < until:
            sent.append(steered.send("waits", key, 0, queue="celery"))
            time.sleep(0.05)
        wait_until(lambda: steered.waiting("celery") == len(sent), "all of them to be in the queue")
        assert steered.began(key) == []
        steered.consumes("celery")
        wait_until(lambda: len(steered.began(key)) == len(sent), "all of them to run")
        assert sorted(steered.began(key)) == sorted(sent)
        return "Requeuing undeliverable message for queue 'celery'" in steered.worker.output()

    assert any(all_go_back(f"late{turn}") for turn in range(5))


def test_a_worker_may_be_told_before_it_starts(valkey: Valkey, celery: Celery, start_worker: Start) -> None:
    """What waits in the queues that it was started with is left there from the first moment on."""
    old = celery.send_task("pool_app.waits", ("old", 0), queue="celery")
    celery.send_task("pool_app.waits", ("new", 0), queue="quarantine")
    start_worker(valkey.url, "-c", "3", "-Q", "celery", POOL_TEST_CONSUME="quarantine", POOL_TEST_NO_ACK="1")
    wait_until(lambda: valkey.client().llen("mark:new:began"), "the message in the new queue")
    assert (valkey.client().llen("celery"), old.state) == (1, "PENDING")


def test_no_queue_at_all_is_possible(steered: Steered) -> None:
    """The worker is there and can be spoken to; it takes nothing."""
    steered.consumes()
    steered.send("waits", "none", 0, queue="celery")
    time.sleep(A_POP)
    assert (steered.began("none"), steered.waiting("celery")) == ([], 1)
    assert steered.celery.control.ping(destination=[steered.worker.name], timeout=5)
    steered.consumes("celery")
    wait_until(lambda: steered.began("none"), "the message that waited")


@pytest.mark.parametrize("steered", BOTH, ids=NAMES, indirect=True)
def test_what_was_consumed_before_is_taken_up_again(steered: Steered) -> None:
    """A queue that an operator added while the worker ran as well."""
    steered.celery.control.add_consumer("added", destination=[steered.worker.name])
    # Obeyed first: what is added while other queues are consumed is not what was consumed before.
    steered.worker.logged("Started consuming from added")
    for others in ((), ("quarantine",)):
        steered.consumes("quarantine")
        steered.consumes(*others)
    steered.consumes_as_before()
    for queue in ("celery", "added"):
        steered.send("waits", queue, 0, queue=queue)
        wait_until(lambda queue=queue: steered.began(queue), f"the message in {queue}")
    steered.send("waits", "quarantine", 0, queue="quarantine")
    time.sleep(A_POP)
    assert steered.began("quarantine") == []


def test_a_worker_that_consumed_nothing_goes_back_to_nothing(steered: Steered) -> None:
    """An operator had taken its only queue away."""
    steered.celery.control.cancel_consumer("celery", destination=[steered.worker.name])
    steered.worker.logged("Canceling queue celery")
    steered.consumes("quarantine")
    steered.worker.logged("Consuming from quarantine")
    steered.consumes_as_before()
    steered.worker.logged("Canceling queue quarantine")
    steered.send("waits", "quarantine", 0, queue="quarantine")
    time.sleep(A_POP)
    assert steered.began("quarantine") == []


def test_a_new_queue_is_like_the_first(steered: Steered) -> None:
    """Its messages are not acknowledged where those of the first are not: on Redis that is a round trip for nothing."""
    steered.consumes("quarantine")
    steered.send("waits", "first", 0, queue="quarantine")
    wait_until(lambda: steered.began("first"), "the queue to be consumed")
    steered.valkey.client().config_resetstat()
    steered.send("waits", "second", 0, queue="quarantine")
    wait_until(lambda: steered.began("second"), "the second message")
    assert not {"cmdstat_zrem", "cmdstat_hdel"} & set(steered.valkey.client().info("commandstats"))


@pytest.mark.parametrize("steered", BOTH, ids=NAMES, indirect=True)
def test_a_full_worker_changes_its_queues_too(steered: Steered) -> None:
    """It takes nothing while it is full, and then only of the new queues."""
    for _ in range(2):
        steered.send("waits", "full", None, queue="celery")
    wait_until(lambda: len(steered.began("full")) == 2, "the worker to be full")
    steered.consumes("quarantine")
    steered.send("waits", "old", 0, queue="celery")
    steered.send("waits", "new", 0, queue="quarantine")
    time.sleep(A_POP)
    assert steered.waiting("quarantine") == 1
    tell(steered.valkey, "full", 2)
    wait_until(lambda: steered.began("new"), "the new queue's message")
    assert steered.valkey.client().llen("mark:full:ended") > 0
    time.sleep(A_POP)
    assert (steered.began("old"), steered.waiting("celery")) == ([], 1)


@pytest.mark.parametrize("steered", BOTH, ids=NAMES, indirect=True)
def test_the_queues_survive_a_lost_connection(steered: Steered) -> None:
    """The broker's connections are cut: the worker comes back to what it was told, in the meantime too."""
    steered.consumes("quarantine")
    steered.send("waits", "before", 0, queue="quarantine")
    wait_until(lambda: steered.began("before"), "the queue to be consumed")
    # The worker's only: this process has some, too, and the server is shared.
    its_own = {f"127.0.0.1:{c.laddr.port}" for c in psutil.Process(steered.worker.pid).net_connections("tcp")}
    for client in steered.valkey.client().client_list():
        if client["addr"] in its_own and client["cmd"] in ("brpop", "psubscribe"):
            steered.valkey.client().client_kill_filter(_id=client["id"])
    steered.consumes("quarantine", "other")
    steered.worker.logged("Connection to broker lost")
    steered.send("waits", "celery", 0, queue="celery")
    for queue in ("quarantine", "other"):
        steered.send("waits", queue, 0, queue=queue)
        wait_until(lambda queue=queue: steered.began(queue), f"the message in {queue}")
    time.sleep(A_POP)
    assert (steered.began("celery"), steered.waiting("celery")) == ([], 1)


def test_the_same_queues_again_change_nothing(steered: Steered) -> None:
    """Whoever decides may say so as often as it likes."""
    for _ in range(20):
        steered.consumes("other", "celery")
        steered.consumes("celery", "other", "celery")
    steered.send("waits", "same", 0, queue="celery")
    wait_until(lambda: steered.began("same"), "a message")
    assert steered.worker.output().count("Consuming from celery, other") == 1
    assert "Canceling queue" not in steered.worker.output()
