"""What happens to jobs when something around them goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from tests.processes import ROOT, Shim, Worker, wait_until
from tests.story.conftest import House


def test_a_job_waits_until_there_is_a_worker(house: House) -> None:
    """Nobody to run it is no reason to refuse it."""
    shim = house.shim()
    job = shim.submit()
    assert shim.http.get("/readyz").json()["workers"] == 0
    house.worker()
    assert shim.job(job["id"], wait=60)["state"] == "succeeded"


def test_a_lost_bell_is_rung_again(house: House) -> None:
    """The broker's list is deleted with the bells in it: seconds later they are rung again."""
    shim, worker = house.shim(), house.worker()
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        jobs = [shim.submit()["id"] for _ in range(20)]
        house.valkey.client().delete("celeriac")
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    for job in jobs:
        assert shim.job(job, wait=60)["state"] == "succeeded"
    assert house.bill()["calls"] == 20


def test_a_worker_that_is_told_to_stop_finishes_what_it_runs(house: House) -> None:
    """SIGTERM: the call that was paid for is waited for, and the exit is clean."""
    shim, worker = house.shim(), house.worker()
    house.always(delay=2, text="Paris")
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    worker.signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert shim.job(job["id"])["state"] == "succeeded"
    assert shim.http.get("/readyz").json()["workers"] == 0


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGQUIT]], ids=["grace ends", "cold"])
def test_a_job_that_does_not_fit_into_the_grace_is_handed_to_another_worker(
    house: House, signals: list[signal.Signals]
) -> None:
    """Given back in good order: the next worker has it at once, not after the lease."""
    shim = house.shim()
    worker = house.worker(CELERIAC_WORKER__GRACE="1")
    house.scripted({"hang": True}, {"text": "Paris"})
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    other = house.worker("-n", "other@%h")
    for number in signals:
        worker.signal(number)
    worker.wait(30)
    job = shim.job(job["id"], wait=30)
    assert (job["state"], job["attempts"], job["answer"]) == ("succeeded", 2, "Paris")
    assert "job_given_back" in worker.output()
    assert other.running()


def test_a_stopping_worker_takes_no_new_job(house: House) -> None:
    """What is submitted while it drains goes to the other."""
    shim, worker = house.shim(), house.worker()
    house.scripted({"delay": 4, "text": "slow"})
    slow = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.output(), "the shutdown to begin")
    house.worker("-n", "other@%h")
    jobs = [shim.submit()["id"] for _ in range(10)]
    assert {shim.job(job, wait=30)["state"] for job in [*jobs, slow["id"]]} == {"succeeded"}
    worker.wait(30)
    assert all(job not in worker.output() for job in jobs)


def test_a_restart_of_redis_loses_no_job(house: House) -> None:
    """The append-only file brings the jobs back; worker and shim find the new server by themselves."""
    shim = house.shim()
    house.always(delay=4, text="Paris")
    # Before there is a worker: then all calls begin at once.
    jobs = [shim.submit()["id"] for _ in range(20)]
    house.worker()
    wait_until(lambda: house.in_flight() == 20, "the calls to be under way")
    house.valkey.stop()
    house.valkey.start()
    wait_until(lambda: shim.http.get("/readyz").status_code == 200, "the store to be found again")
    for job in jobs:
        assert shim.job(job, wait=60)["state"] == "succeeded"
    assert house.bill()["calls"] == 20, "no finished call is bought again"
    house.always(text="Paris")
    assert shim.job(shim.submit()["id"], wait=60)["state"] == "succeeded"


def test_celerys_revoke_cancels_a_running_job(house: House) -> None:
    """`terminate=True` aborts the provider's request, and the job ends as cancelled."""
    shim = house.shim()
    house.worker()
    house.scripted({"hang": True})
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    from celery import Celery

    Celery(broker=house.valkey.url).control.revoke(job["id"], terminate=True)
    assert shim.job(job["id"], wait=30)["state"] == "cancelled"
    wait_until(lambda: house.in_flight() == 0, "the request to be aborted")


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_a_pool_that_cannot_run_jobs_is_refused_at_the_start(house: House, pool: str) -> None:
    """One clear line and an exit that is not clean, before a job is lost in it."""
    worker = Worker(house.valkey.url, "-P", pool, **house.env)
    assert worker.wait(30) != 0
    assert (
        "celeriac.run_job on queue celeriac is an async task and runs on worker.pool:TaskPool only" in worker.output()
    )
    assert "Traceback" not in worker.output()
    worker.stop()


def test_prefork_still_works_for_ordinary_tasks_of_other_queues(house: House) -> None:
    """The application may have tasks of its own, with the pool that they need: Celery calls it `processes`, too."""
    worker = house.worker("-P", "processes", "-c", "1", "-Q", "reports")
    code = (
        "from worker.app import app; from celery import signature;"
        "r = app.signature('celery.accumulate', args=(1, 2), queue='reports').apply_async(); print(r.get(timeout=30))"
    )
    env = {**os.environ, "CELERIAC_REDIS_URL": house.valkey.url}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, cwd=ROOT, text=True).strip() == "[1, 2]"
    assert "concurrency: 1 (prefork)" in worker.output()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CELERIAC_WORKER__CONCURRENCY": "none"}, "CELERIAC_WORKER__CONCURRENCY"),
        ({"CELERIAC_AGENTS_FILE": "/none.toml"}, "CELERIAC_AGENTS_FILE"),
        ({"CELERIAC_PRICES_FILE": "/none.toml"}, "/none.toml"),
        (
            {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}
            | {"CELERIAC_OPENAI_BASE_URL": "", "CELERIAC_ANTHROPIC_BASE_URL": ""},
            "no lane can be asked",
        ),
    ],
    ids=["setting", "agents", "prices", "keys"],
)
def test_an_operators_mistake_stops_the_worker_at_its_start(house: House, env: dict[str, str], said: str) -> None:
    """Said in a line that names it, and the exit is not clean."""
    worker = Worker(house.valkey.url, **(house.env | env))
    assert worker.wait(60) != 0
    assert said in worker.output()
    assert "Traceback" not in worker.output()
    worker.stop()


def suspect(house: House, shim: Shim) -> str:
    """A job that has crashed two processes, ready in a moment."""
    id = shim.submit(run_at=(datetime.now(UTC) + timedelta(seconds=2)).isoformat())["id"]
    house.valkey.client().hset(f"celeriac:job:{id}", "crashes", 2)
    return str(id)


def quarantined(house: House) -> bool:
    return house.valkey.client().scard("celeriac:quarantined") == 1


def test_a_full_redis_ends_no_worker_and_lets_new_ones_start(house: House) -> None:
    """One that has to consume another queue lives, and one that starts comes up: what kombu notes is written."""
    shim, redis = house.shim(), house.valkey.client()
    first = house.worker("-n", "first@%h")
    id = suspect(house, shim)
    redis.config_set("maxmemory", 1)
    second = house.worker("-n", "second@%h")
    wait_until(lambda: quarantined(house), "one of them to be quarantined")
    worker = first if redis.smembers("celeriac:quarantined") & names(first) else second
    wait_until(lambda: "Consuming from celeriac.suspects" in worker.output(), "it to consume the suspects' queue")
    redis.config_set("maxmemory", 0)
    assert shim.job(id, wait=60)["state"] == "succeeded"
    assert (first.running(), second.running()) == (True, True)


def names(worker: Worker) -> set[str]:
    return set(re.findall(r"worker_registered.*worker=(\S+)", worker.output()))


def test_a_broker_that_refuses_a_queue_ends_no_worker(house: House) -> None:
    """It is said, and tried again."""
    shim, worker = house.shim(), house.worker()
    house.valkey.client().set("_kombu.binding.celeriac.suspects", "nonsense")
    id = suspect(house, shim)
    wait_until(lambda: "The queues could not be changed" in worker.output(), "it to be refused")
    assert shim.job(id, wait=60)["state"] == "succeeded"
    assert shim.job(shim.submit()["id"], wait=60)["state"] == "succeeded", "and the other queues are consumed again"
