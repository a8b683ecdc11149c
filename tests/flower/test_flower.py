"""Flower is about jobs: what an operator sees there, and what nobody does."""

from __future__ import annotations

import ast
import base64
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery

from tests.conftest import Valkey
from tests.flower.conftest import ANSWER, QUESTION, SECRET, Flower
from tests.processes import wait_until
from tests.story.conftest import Home

Job = dict[str, Any]


def test_a_job_is_a_row_under_its_own_id(flower: Flower, succeeded: Job) -> None:
    """Its state, its times, its tries; the only argument is the id."""
    task = flower.ended(succeeded["id"])
    assert (task["name"], task["state"], task["retries"]) == ("celeriac.run_job", "SUCCESS", 0)
    assert 0 < task["received"] <= task["started"] <= task["succeeded"]
    assert task["runtime"] > 0
    assert task["args"] == f"['{succeeded['id']}']"


def test_the_result_is_the_summary_that_the_store_has_too(flower: Flower, succeeded: Job) -> None:
    """State, agent, model, tokens and cost, and how long the job waited."""
    result = ast.literal_eval(flower.ended(succeeded["id"])["result"])
    said = {name: result[name] for name in ("state", "agent", "model", "cost_usd")}
    assert said == {name: succeeded[name] for name in said}
    assert (result["input_tokens"], result["output_tokens"]) == (
        succeeded["usage"]["input_tokens"],
        succeeded["usage"]["output_tokens"],
    )
    assert result["waited_seconds"] >= 0


def test_the_tasks_page_has_the_queue_wait_and_the_cost(flower: Flower, succeeded: Job) -> None:
    """In the result column: Flower has no column of its own for what happens before a worker takes the job."""
    flower.ended(succeeded["id"])
    row = flower.rows()[succeeded["id"]]
    assert re.match(r"waited \d+\.\d+ s, ran \d+\.\d+ s: succeeded, assistant, ", row["result"])
    assert row["result"].endswith(f"${succeeded['cost_usd']}")
    columns = re.findall(r'<th data-column="(\w+)"', flower.page("/tasks"))
    assert columns == ["name", "uuid", "state", "result", "received", "started", "runtime", "retries", "worker"]


def test_a_failed_job_is_a_failure_with_its_error(flower: Flower, failed: Job) -> None:
    """In the API, in the list and on the page of the job."""
    assert failed["state"] == "failed"
    code = failed["error"]["code"]
    task = flower.ended(failed["id"])
    assert task["state"] == "FAILURE"
    assert f"JobFailed('{code}: " in task["exception"]
    assert code in flower.rows()[failed["id"]]["result"]
    assert code in flower.page(f"/task/{failed['id']}")


def test_no_prompt_and_no_answer_is_in_flower(flower: Flower, succeeded: Job, failed: Job) -> None:
    """Neither in its API nor in its pages."""
    assert SECRET in succeeded["answer"]
    for job in (succeeded, failed):
        flower.ended(job["id"])
        for path in (f"/api/task/info/{job['id']}", f"/task/{job['id']}"):
            assert job["id"] in flower.page(path)
            assert SECRET not in flower.page(path)
    assert succeeded["id"] in flower.page("/api/tasks")
    assert SECRET not in flower.page("/api/tasks")
    assert SECRET not in json.dumps(flower.rows())
    assert SECRET not in flower.output()


def test_no_prompt_and_no_answer_is_in_the_broker(home: Home, flower: Flower) -> None:
    """Nor among the events that Flower is told: every message of a job's life is read."""
    with Messages(home.valkey) as messages:
        job = home.ask(QUESTION)
        flower.ended(job["id"])
    assert job["answer"] == ANSWER
    about = [message for message in messages.all() if job["id"] in message]
    assert any(message.startswith("LPUSH celeriac ") for message in about), "the bell was read"
    assert any("task-succeeded" in message for message in about), "the last event was read"
    assert not [message for message in messages.all() if SECRET in message]


class Messages:
    """What is pushed into lists, published, or stored as Celery's results, from the moment that this is entered."""

    def __init__(self, valkey: Valkey) -> None:
        self._client = valkey.client()
        self._read: list[str] = []

    def __enter__(self) -> Messages:
        self._monitor = self._client.monitor().__enter__()
        self._reader = threading.Thread(target=self._follow)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.echo(THE_END)
        self._reader.join(10)
        self._monitor.__exit__()

    def _follow(self) -> None:
        for said in self._monitor.listen():
            command = said["command"]
            if THE_END in command:
                return
            if command.partition(" ")[0].upper() in {"LPUSH", "RPUSH", "PUBLISH"} or "celery-task-meta" in command:
                self._read.append(command)

    def all(self) -> list[str]:
        """Bodies in base64 are decoded."""
        return [re.sub(r'(?<="body": ")[\w+/=]+', decoded, text.replace("\\", "")) for text in list(self._read)]


THE_END = "no more messages"


def decoded(found: re.Match[str]) -> str:
    return base64.b64decode(found[0]).decode()


def test_a_parked_job_is_a_retry_with_its_count(home: Home, flower: Flower) -> None:
    """And why; the next bell carries one more."""
    busy = {"status": 429, "headers": {"Retry-After": "3"}}
    home.scripted(busy, busy)
    job = home.the_shim.submit()
    task = flower.in_state(job["id"], "RETRY")
    assert "JobFailed('rate_limited: " in task["exception"]
    assert (task["retries"], home.the_shim.job(job["id"])["state"]) == (0, "parked")
    task = flower.ended(job["id"])
    assert (task["state"], task["retries"]) == ("SUCCESS", 1)


def test_a_cancelled_job_is_revoked(home: Home, flower: Flower) -> None:
    """While it runs; Flower's own button does the same."""
    home.scripted({"hang": True})
    job = home.the_shim.submit()
    flower.in_state(job["id"], "STARTED")
    answer = flower.http.post(f"/api/task/revoke/{job['id']}", params={"terminate": "true"})
    assert answer.status_code == 200, answer.text
    assert home.the_shim.job(job["id"], wait=30)["state"] == "cancelled"
    flower.in_state(job["id"], "REVOKED")


def test_a_job_from_celery_is_a_row_that_says_nothing_of_its_input(home: Home, flower: Flower) -> None:
    """It is received while it waits, and not started before a worker runs it."""
    client = Celery(broker=home.valkey.url, backend=home.valkey.url, set_as_current=False)
    request = {"agent": "assistant", "input": QUESTION, "run_at": str(datetime.now(UTC) + timedelta(seconds=5))}
    result = client.send_task("celeriac.submit", args=[request], queue="celeriac.submit")
    wait_until(
        lambda: home.valkey.client().hget(f"celeriac:job:{result.id}", "place") == "parked", "the job to be stored"
    )
    # Events come in order: after the next job's end all about the submission have come.
    flower.ended(home.ask(QUESTION)["id"])
    task = flower.in_state(result.id, "RECEIVED")
    assert (task["name"], task["args"]) == ("celeriac.submit", "...")
    task = flower.ended(result.id)
    assert (task["name"], task["args"]) == ("celeriac.run_job", f"['{result.id}']")
    assert SECRET not in flower.page(f"/task/{result.id}")
    assert SECRET not in home.the_worker.output()
    result.forget()
    client.close()


def test_the_workers_page_is_about_our_pool(flower: Flower) -> None:
    """Flower's inspection is answered: its pool, its queue, its task."""
    workers = flower.http.get("/api/workers", params={"refresh": 1}).json()
    [(name, worker)] = workers.items()
    assert worker["stats"]["pool"]["implementation"] == "worker.pool:TaskPool"
    assert sorted(queue["name"] for queue in worker["active_queues"]) == ["celeriac", "celeriac.submit"]
    assert {"celeriac.run_job", "celeriac.submit"} <= set(worker["registered"])
    assert "celeriac.run_job" in flower.page(f"/worker/{name}")


def test_flower_imports_no_provider_sdk(flower: Flower, succeeded: Job) -> None:
    """They cost a hundred megabytes, and Flower asks no model."""
    flower.ended(succeeded["id"])
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", flower.output(), re.MULTILINE))
    assert "flower.app" in imported
    assert not imported & {"openai", "anthropic"}
