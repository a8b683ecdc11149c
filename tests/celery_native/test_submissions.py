"""What is promised for a submission before it is stored: it is an ordinary message, acknowledged once it is a job."""

from __future__ import annotations

import base64
import json
import os
import signal

import pytest

from celeriac.jobs.dispatch import SUBMIT
from tests.celery_native.conftest import Town, get
from tests.processes import Worker, wait_until


def test_submissions_wait_in_the_broker_for_a_worker(town: Town) -> None:
    """Nobody has to be there when they come."""
    results = [town.ask().apply_async() for _ in range(3)]
    town.worker()
    assert {get(result)["state"] for result in results} == {"succeeded"}
    client = town.valkey.client()
    wait_until(lambda: client.hlen("unacked") == 0, "them to be acknowledged")


def test_a_submission_that_its_worker_did_not_live_to_store_comes_back(town: Town) -> None:
    """After Celery's visibility timeout, an hour by default: the test moves the clock's hand."""
    dying = town.dying_worker("begun")
    result = town.ask().apply_async()
    assert dying.wait() == -signal.SIGKILL
    client = town.valkey.client()
    assert (client.llen(SUBMIT), client.hlen("unacked"), town.record(result)) == (0, 1, {})
    client.zadd("unacked_index", dict.fromkeys(client.zrange("unacked_index", 0, -1), 0))
    town.worker()
    assert get(result)["state"] == "succeeded"


def test_a_full_redis_keeps_the_submissions_that_it_has(town: Town) -> None:
    """Taken and not stored they go back, the worker lives, and they are jobs as soon as there is room."""
    worker = town.worker()
    os.kill(worker.pid, signal.SIGSTOP)
    results = [town.ask().apply_async() for _ in range(5)]
    client = town.valkey.client()
    client.config_set("maxmemory", 1)
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: worker.output().count("the store is full") >= 10, "each to be refused twice")
    assert worker.running()
    assert [town.record(result) for result in results] == [{}] * 5
    client.config_set("maxmemory", 0)
    assert {get(result)["state"] for result in results} == {"succeeded"}
    wait_until(lambda: client.hlen("unacked") == 0, "the last to be acknowledged, which is after its result is stored")


def test_a_worker_for_submissions_alone_is_refused_at_its_start(town: Town) -> None:
    """It would take jobs and be none of their workers: one clear line."""
    worker = Worker(town.valkey.url, "-Q", SUBMIT, **town.env)
    assert worker.wait(60) != 0
    assert "celeriac.submit goes with a queue of jobs: add one to -Q" in worker.output()
    assert "Traceback" not in worker.output()
    worker.stop()


def test_a_worker_may_leave_submissions_to_others(town: Town) -> None:
    """`-Q` names the queues that it serves: jobs alone, if one likes."""
    only_jobs = town.worker("-Q", "celeriac", "-n", "jobs@%h")
    result = town.ask().apply_async()
    town.worker("-Q", f"celeriac,{SUBMIT}", "-n", "both@%h")
    assert get(result)["state"] == "succeeded"
    assert SUBMIT not in only_jobs.output()


def test_a_message_that_is_no_utf8_is_told_without_what_is_in_it(town: Town) -> None:
    """Python's own error holds all of it."""
    worker = town.worker()
    message = {
        "body": base64.b64encode("[[\"my-secret-prompt caf\xe9\"], {}, {}]".encode("latin-1")).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": SUBMIT, "id": "1"},
        "properties": {
            "body_encoding": "base64", "delivery_tag": "1", "delivery_mode": 2, "priority": 0, "correlation_id": "1",
            "delivery_info": {"exchange": SUBMIT, "routing_key": SUBMIT},
        },
    }  # fmt: skip
    town.valkey.client().lpush(SUBMIT, json.dumps(message))
    wait_until(lambda: "Can't decode message body: 'DecodeError' It was discarded." in worker.output(), "the line")
    assert "my-secret-prompt" not in worker.output()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "celeriac.sumbit"}, "Received unregistered task of type 'celeriac.sumbit'"),
        ({"eta": "soon"}, "Received invalid task message"),
    ],
)
def test_a_message_that_is_no_task_is_told_without_what_is_in_it(town: Town, wrong: dict[str, str], said: str) -> None:
    """A slip of the pen in a caller's code must not put its prompts into our log."""
    worker = town.worker()
    with town.client.producer_or_acquire() as producer:
        producer.publish(
            [["my-secret-prompt"], {}, {}],
            routing_key=SUBMIT,
            serializer="json",
            headers={"task": SUBMIT, "id": "1", "argsrepr": "my-secret-prompt"} | wrong,
        )
    wait_until(lambda: said in worker.output(), "the line")
    assert "It was discarded." in worker.output()
    assert "my-secret-prompt" not in worker.output()
