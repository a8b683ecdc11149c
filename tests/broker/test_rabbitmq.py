"""RabbitMQ as the broker: bells go through it, jobs do not."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from celery import Celery, Signature, chain, chord
from celery.exceptions import TaskRevokedError
from kombu import Connection

from celeriac.jobs.dispatch import SUBMIT
from tests.broker.conftest import TwoServers
from tests.processes import Shim, free_port, running, wait_until

pytestmark = pytest.mark.rabbitmq

#: What prod asks for; there a log line is JSON.
KEY = "a-key-for-tests-only"


def depth(house: TwoServers, queue: str = "celeriac") -> int:
    """Messages that wait in RabbitMQ; those that a worker has been sent are not among them."""
    with Connection(house.rabbitmq.url) as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def submit(shim: Shim, count: int) -> list[str]:
    """None of them takes long: the broker is no part of the answer."""
    ids = []
    for _ in range(count):
        began = time.monotonic()
        ids.append(shim.submit()["id"])
        assert time.monotonic() - began < 2, "the submission waited for the broker"
    return ids


def test_a_job_goes_through_rabbitmq_and_a_restart_of_it(house: TwoServers) -> None:
    """While it is away jobs are accepted; when it is back they run, and no process was started anew."""
    shim, worker = house.shim(), house.worker()
    first = shim.job(shim.submit()["id"], wait=30)
    assert (first["state"], first["attempts"]) == ("succeeded", 1)

    house.rabbitmq.stop()
    waiting = submit(shim, 20)
    assert {shim.job(job)["state"] for job in waiting} == {"queued"}
    house.rabbitmq.start()
    assert {shim.job(job, wait=60)["state"] for job in waiting} == {"succeeded"}
    assert worker.running()
    assert house.bill()["calls"] == 21
    wait_until(lambda: depth(house) == 0, "the doubled bells to be taken")


def test_a_broker_that_hangs_holds_up_nobody(house: TwoServers) -> None:
    """It takes connections and says nothing: worse than away. Submissions and questions are answered as ever."""
    shim = house.shim()
    house.worker()
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded"
    assert house.rabbitmq.process is not None
    os.kill(house.rabbitmq.process.pid, signal.SIGSTOP)
    try:
        jobs = submit(shim, 20)
        answer = shim.http.get("/readyz")
        assert (answer.status_code, answer.json()["missing"]) == (200, ["broker"])
    finally:
        os.kill(house.rabbitmq.process.pid, signal.SIGCONT)
    assert {shim.job(job, wait=60)["state"] for job in jobs} == {"succeeded"}
    ready = {"status": "ok", "missing": [], "store": "ok", "broker": "ok", "workers": 1}
    wait_until(lambda: shim.http.get("/readyz").json() == ready, "the broker to be found again")


def test_a_shim_that_cannot_reach_the_broker_is_no_less_of_a_shim(house: TwoServers) -> None:
    """The worker's upkeep rings for its jobs, and bells that nobody takes do not keep it from stopping."""
    house.worker()
    nobody = f"amqp://127.0.0.1:{free_port()}//"
    with running(Shim(house.valkey.url, CELERIAC_BROKER_URL=nobody)) as shim:
        [job, *_] = submit(shim, 5)
        assert shim.job(job, wait=30)["state"] == "succeeded"
        submit(shim, 1)
        wait_until(lambda: "bells_not_rung" in shim.output(), "the failure to be logged")
        shim.signal(signal.SIGTERM)
        assert shim.wait(4) in {0, -signal.SIGTERM}


def test_a_full_worker_leaves_the_bells_to_others(house: TwoServers) -> None:
    """It is sent as many as it has slots; the others stay in RabbitMQ, and a second worker has them at once."""
    shim = house.shim()
    house.worker("-c", "2")
    house.always(hang=True)
    jobs = submit(shim, 6)
    wait_until(lambda: house.in_flight() == 2, "the worker to be full")
    wait_until(lambda: depth(house) == 2, "the margin to wait in RabbitMQ")
    house.always(text="Paris")
    began = time.monotonic()
    house.worker("-n", "second@%h")
    ended = wait_until(
        lambda: [job for job in jobs if shim.job(job)["state"] == "succeeded"][3:], "the second worker to do the others"
    )
    assert len(ended) == 1
    assert time.monotonic() - began < 15
    assert house.in_flight() == 2


def test_messages_are_acknowledged_and_none_is_left(house: TwoServers) -> None:
    """More jobs than slots, one after the other: each slot that falls free is used, and RabbitMQ ends empty."""
    shim, worker = house.shim(), house.worker("-c", "2")
    house.always(delay=0.05, text="Paris")
    jobs = submit(shim, 30)
    assert {shim.job(job, wait=60)["state"] for job in jobs} == {"succeeded"}
    wait_until(lambda: depth(house) == 0, "RabbitMQ to be empty")
    assert house.peak() == 2
    worker.stop()
    assert depth(house) == 0, "what a worker had and did not acknowledge comes back"


def test_a_worker_changes_its_queues_and_keeps_to_them(house: TwoServers) -> None:
    """What is sent to a queue that was dropped stays in RabbitMQ, over a restart too, until it is taken up again."""
    worker = house.worker("-c", "2", app="tests.fleet.own_tasks", CELERIAC_ENV="prod", CELERIAC_SHIM__API_KEYS__A=KEY)

    def said() -> list[str]:
        # Each once: RabbitMQ gives out again what was not acknowledged when it stopped.
        return list(dict.fromkeys(line["text"] for line in worker.lines() if line["event"] == "said"))

    with Celery(broker=house.rabbitmq.url, set_as_current=False) as client:

        def send(task: str, *args: str, queue: str) -> None:
            client.send_task(task, args, queue=queue, ignore_result=True)

        send("consumes", "aside", queue="celeriac")
        wait_until(lambda: "Consuming from aside" in worker.output(), "the worker to obey")
        send("says", "one", queue="celeriac")
        send("says", "two", queue="aside")
        wait_until(lambda: said() == ["two"], "the message in the new queue")
        assert (depth(house), depth(house, "aside")) == (1, 0)

    house.rabbitmq.stop()
    house.rabbitmq.start()
    with Celery(broker=house.rabbitmq.url, set_as_current=False) as client:
        send("says", "three", queue="aside")
        wait_until(lambda: said() == ["two", "three"], "the worker to come back", 60)
        assert depth(house) == 1
        send("consumes", "celeriac", queue="aside")
        wait_until(lambda: said() == ["two", "three", "one"], "the message that waited")
    assert worker.running()


@pytest.mark.parametrize("needed", [True, False], ids=["RabbitMQ", "Redis"])
def test_the_shim_imports_celery_only_for_another_broker(house: TwoServers, needed: bool) -> None:
    """Where the store rings by itself the shim is spared 0.2 s and the memory."""
    env = {"PYTHONPROFILEIMPORTTIME": "1"} | ({"CELERIAC_BROKER_URL": house.rabbitmq.url} if needed else {})
    with running(Shim(house.valkey.url, **env)) as shim:
        shim.submit()
        assert (" celery.app" in shim.output()) is needed
        assert (" kombu" in shim.output()) is needed


def test_a_chord_of_jobs_goes_through_rabbitmq(house: TwoServers) -> None:
    """Submissions are acknowledged once they are stored; what hangs on a job is on its bells here too."""
    worker = house.worker()
    client = Celery(broker=house.rabbitmq.url, backend=house.valkey.url, set_as_current=False)
    request = {"agent": "assistant", "input": "hi"}

    def ask() -> Signature[Any]:
        return client.signature(SUBMIT, args=[request], queue=SUBMIT)

    body = chord([ask() for _ in range(3)], ask(), app=client).apply_async()
    summary = client.AsyncResult(body.id).get(timeout=60)
    assert (summary["job_id"], summary["state"]) == (body.id, "succeeded")
    parked = client.signature(SUBMIT, args=[request], queue=SUBMIT).apply_async(countdown=3600)
    wait_until(lambda: house.valkey.client().hget(f"celeriac:job:{parked.id}", "place") == "parked", "it to be parked")
    client.control.revoke(parked.id)
    with pytest.raises(TaskRevokedError):
        client.AsyncResult(parked.id).get(timeout=60)
    worker.stop()
    assert depth(house, SUBMIT) == 0, "what a worker had and did not acknowledge comes back"
    client.backend.result_consumer.subscribed_to.clear()
    client.close()


def test_a_callback_waits_for_a_broker_that_is_away(house: TwoServers) -> None:
    """The job's end is stored, Celery's result is a success, and what comes after it is sent once it can be."""
    house.worker()
    client = Celery(broker=house.rabbitmq.url, backend=house.valkey.url, set_as_current=False)
    request = {"agent": "assistant", "input": "hi"}

    def two_jobs() -> Signature[Any]:
        first, second = (client.signature(SUBMIT, args=[request], queue=SUBMIT, immutable=True) for _ in range(2))
        return chain(first.on_error(client.signature("shop.failed", queue="shop.errors")), second, app=client)

    # So that the worker has a connection, which then breaks without its noticing.
    assert client.AsyncResult(two_jobs().apply_async().id).get(timeout=60)["state"] == "succeeded"
    house.scripted({"delay": 3, "text": "Paris"})
    last = two_jobs().apply_async()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    house.rabbitmq.stop()
    record = f"celeriac:job:{last.parent.id}"
    wait_until(lambda: house.valkey.client().hget(record, "state") == "succeeded", "the end to be stored")
    house.rabbitmq.start()
    assert client.AsyncResult(last.id).get(timeout=90)["state"] == "succeeded"
    assert client.AsyncResult(last.parent.id).get(timeout=30)["state"] == "succeeded"
    wait_until(lambda: not house.valkey.client().exists("celeriac:untold"), "both ends to be told")
    with Connection(house.rabbitmq.url) as connection:
        errors = connection.default_channel.queue_declare("shop.errors", durable=True, auto_delete=False)
        assert errors.message_count == 0, "nobody is told that the job failed"
    client.backend.result_consumer.subscribed_to.clear()
    client.close()
