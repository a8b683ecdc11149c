"""Celery's `revoke` on a job's id cancels the job, whatever it is doing; what Celery remembers of it stops no retry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, TaskRevokedError
from celery.result import AsyncResult
from celery.worker import state as worker_state

from celeriac.agents.intake import Intake
from celeriac.agents.registry import read_agents
from celeriac.jobs.dispatch import SUBMIT, celery_app
from celeriac.jobs.model import NewJob, State
from celeriac.jobs.store import new_id
from celeriac.settings import SHIPPED_AGENTS, Settings
from celeriac.stores import Stores, open_stores
from tasks import jobs as jobs  # registers the tasks
from tests.celery_native.conftest import Home, Town, get
from tests.processes import wait_until


@pytest.fixture(scope="module")
def one_home() -> Iterator[Home]:
    """Only our worker, as a stock one would mark what is revoked by itself."""
    home = Town()
    home.worker()
    yield home  # type: ignore[misc]  # without the shop
    home.close()


def in_state(home: Home, state: str) -> AsyncResult[Any]:
    """A job that is, and stays, in this state."""
    if state == "parked":
        result = home.ask(run_at=str(datetime.now(UTC) + timedelta(hours=1))).apply_async()
    elif state == "running":
        home.scripted({"hang": True})
        result = home.ask().apply_async()
        wait_until(lambda: home.in_flight() == 1, "the call to be under way")
    else:
        home.scripted({"hang": True})
        home.stored(home.ask(context_id="one").apply_async(task_id=f"holder-{new_id()}"), "running")
        result = home.ask(context_id="one").apply_async()
        state = "behind"
    home.stored(result, state)
    return result


@pytest.mark.parametrize("terminate", [False, True], ids=["revoke", "terminate"])
@pytest.mark.parametrize("state", ["queued", "parked", "running"])
def test_a_revoked_job_is_cancelled_and_a_retry_succeeds(home: Home, state: str, terminate: bool) -> None:
    """Under the same id, by the worker that heard the revocation; Celery's result follows both times."""
    result = in_state(home, state)
    home.revoke(result, terminate=terminate)
    with pytest.raises(TaskRevokedError, match="cancelled"):
        get(result)
    assert home.record(result)["state"] == "cancelled"
    if state == "running":
        wait_until(lambda: home.in_flight() == 0, "the request to be aborted")
    if state == "queued":
        [holder] = home.valkey.client().keys("celeriac:job:holder-*")
        home.revoke(holder.removeprefix("celeriac:job:"))
        wait_until(lambda: home.valkey.client().hget(holder, "place") == "ended", "the context to be free")
        home.valkey.client().delete(holder)
    assert result.id not in str(home.client.control.inspect().revoked())

    home.retry(result)
    wait_until(lambda: home.state(result) == "SUCCESS", "the retry to succeed")
    assert get(result)["job_id"] == result.id
    wait_until(lambda: not home.untold(), "the end to be told")


def test_a_job_that_has_ended_is_not_changed_by_a_revocation(home: Home) -> None:
    """The first end counts, and its result stays."""
    result = home.ask().apply_async()
    summary = get(result)
    home.revoke(result, terminate=True)
    # Commands are obeyed in order: when this one is answered, the one before it was heard.
    home.client.control.ping()
    assert home.record(result)["state"] == "succeeded"
    assert get(result) == summary


def test_other_ids_are_revoked_as_celery_does_it(home: Home) -> None:
    """Also a submission that no worker has taken yet: it is discarded, and its id has a result."""
    home.revoke("order-8")
    wait_until(lambda: "order-8" in str(home.client.control.inspect().revoked()), "the worker to remember the id")
    with pytest.raises(TaskRevokedError):
        get(home.ask().apply_async(task_id="order-8"))
    assert home.valkey.client().exists("celeriac:job:order-8") == 0


def test_a_bell_is_answered_whatever_celery_remembers_of_its_id(home: Home) -> None:
    """An id that was revoked before there was a job, on the only worker there is."""
    job = NewJob(id=new_id(), tenant="default", agent="assistant", queue="celeriac", input=(("user", "hi"),))
    home.revoke(job.id)
    wait_until(lambda: job.id in str(home.client.control.inspect().revoked()), "the worker to remember the id")
    asyncio.run(home._with_stores(lambda stores: stores.jobs.submit(job)))
    record = f"celeriac:job:{job.id}"
    wait_until(lambda: home.valkey.client().hget(record, "state") == "succeeded", "the job to succeed")


async def test_a_submission_that_is_stored_while_it_is_revoked_is_cancelled(stores: Stores) -> None:
    """Unknown to the store when the revocation came, known when Celery's own revoke had been done."""
    from worker.control import _revoke

    job = NewJob(id=new_id(), tenant="default", agent="assistant", queue="celeriac", input=(("user", "hi"),))

    async def celerys_own(ids: list[str]) -> None:
        assert ids == [job.id]
        await stores.jobs.submit(job)

    lease = SimpleNamespace(parts=SimpleNamespace(stores=stores))
    await _revoke(lease, [job.id], celerys_own)  # type: ignore[arg-type]  # all of a lease that it looks at
    stored = await stores.jobs.get(job.id, "default")
    assert stored is not None
    assert stored.state == State.CANCELLED


def test_a_submission_that_celery_revoked_while_it_was_stored_is_cancelled(settings: Settings) -> None:
    """The other half: Celery's own revoke came first, and the store knew the job only after it was asked."""
    app = celery_app(settings)
    stores = open_stores(settings)
    app.intake = Intake(stores.jobs, read_agents(SHIPPED_AGENTS), chord_ttl=timedelta(days=1))  # type: ignore[attr-defined]
    worker_state.revoked.add("order-9")
    try:
        request = {"agent": "assistant", "input": "hi"}
        outcome = app.tasks[SUBMIT].apply(args=[request], task_id="order-9")
    finally:
        worker_state.revoked.discard("order-9")
    assert isinstance(outcome.result, Ignore)

    async def state() -> State:
        again = open_stores(settings)
        stored = await again.jobs.get("order-9", "default")
        await again.close()
        assert stored is not None
        return stored.state

    assert asyncio.run(state()) == State.CANCELLED
