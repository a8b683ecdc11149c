"""The worker in Celery's own house: what pytest-celery and a Celery client that knows nothing of ours see and do."""

from __future__ import annotations

from pytest_celery import CeleryTestSetup

from celeriac.jobs.dispatch import RUN_JOB
from tests.processes import wait_until
from tests.story.conftest import House


def test_a_job_is_a_celery_task_under_its_own_id(house: House, celery_setup: CeleryTestSetup) -> None:
    """Inspection finds it by the job's id while it runs, and the worker logs its end as Celery does, with our facts."""
    shim, worker = house.shim(), celery_setup.worker
    house.scripted({"hang": True}, {"text": "Paris"})
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    found = celery_setup.app.control.inspect([worker.hostname()]).query_task(job["id"])
    [[where, task]] = found[worker.hostname()].values()
    assert (where, task["id"], task["name"], task["args"]) == ("active", job["id"], RUN_JOB, [job["id"]])

    celery_setup.app.control.revoke(job["id"], terminate=True)
    assert shim.job(job["id"], wait=30)["state"] == "cancelled"
    other = shim.submit()
    worker.assert_log_exists(f"{RUN_JOB}[{other['id']}] succeeded")
    [line] = [line for line in worker.logs().splitlines() if f"{RUN_JOB}[{other['id']}] succeeded" in line]
    assert all(fact in line for fact in (f"job_id={other['id']}", f"task={RUN_JOB}", "worker="))
    assert shim.job(other["id"])["answer"] == "Paris"


def test_a_job_submitted_while_no_worker_lives_runs_when_it_is_back(
    house: House, celery_setup: CeleryTestSetup
) -> None:
    """The worker was killed, and said goodbye to nobody."""
    shim, worker = house.shim(), celery_setup.worker
    worker.kill()
    job = shim.submit()
    assert shim.job(job["id"])["state"] == "queued"
    worker.restart()
    worker.assert_log_exists(f"{RUN_JOB}[{job['id']}] succeeded")
    assert shim.job(job["id"])["state"] == "succeeded"
    assert house.bill()["calls"] == 1


def test_a_worker_outlives_the_broker_and_the_backend(house: House, celery_setup: CeleryTestSetup) -> None:
    """Both are one Valkey. It was killed: the same process finds the new one and runs the next job."""
    shim, worker = house.shim(), celery_setup.worker
    celery_setup.broker.kill()
    assert celery_setup.backend.container.status == "exited"
    worker.assert_log_exists("Connection to broker lost")
    celery_setup.broker.restart()
    wait_until(lambda: shim.http.get("/readyz").status_code == 200, "the store to be found again")
    job = shim.submit()
    worker.assert_log_exists(f"{RUN_JOB}[{job['id']}] succeeded")
    assert shim.job(job["id"])["state"] == "succeeded"
    assert celery_setup.ready()


def test_a_celery_client_inspects_the_worker_and_shuts_it_down(house: House, celery_setup: CeleryTestSetup) -> None:
    """Warmly: the call that was paid for is waited for, and the worker leaves the fleet."""
    shim, worker, control = house.shim(), celery_setup.worker, celery_setup.app.control
    assert control.ping([worker.hostname()]) == [{worker.hostname(): {"ok": "pong"}}]
    inspect = control.inspect([worker.hostname()])
    assert inspect.stats()[worker.hostname()]["pool"]["implementation"] == "worker.pool:TaskPool"
    assert RUN_JOB in inspect.registered()[worker.hostname()]
    assert [queue["name"] for queue in inspect.active_queues()[worker.hostname()]] == ["celeriac", "celeriac.submit"]

    house.scripted({"delay": 2, "text": "Paris"})
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    control.shutdown(destination=[worker.hostname()])
    wait_until(lambda: worker.container.status == "exited", "the worker to end")
    assert shim.job(job["id"])["state"] == "succeeded"
    assert shim.http.get("/readyz").json()["workers"] == 0
    assert house.bill()["calls"] == 1
