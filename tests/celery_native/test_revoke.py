"""Celery's `revoke` on a job's id cancels the job, whatever it is doing; what Celery remembers of it stops no retry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import NewJob, State
from celeriac.jobs.store import new_id
from celeriac.stores import Stores
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
    # Read, and not waited for: what Celery's client hears of an id may be older than what is stored.
    assert home.client.AsyncResult(result.id).result["job_id"] == result.id
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


def test_a_submission_that_was_revoked_is_cancelled_by_whoever_takes_it(town: Town) -> None:
    """Also by a worker that started after the revocation, when nobody is left who heard it."""
    old = town.worker("-n", "old@%h")
    wait_until(lambda: town.valkey.client().pubsub_numpat() > 0, "it to listen")
    town.revoke("order-9")
    wait_until(lambda: town.valkey.client().exists("celeriac:revoked:order-9"), "the store to remember it")
    old.stop()
    town.worker("-n", "new@%h")
    result = town.ask().apply_async(task_id="order-9")
    assert town.stored(result)["state"] == "cancelled"
    with pytest.raises(TaskRevokedError):
        get(result)
    assert town.asked() == []


async def test_a_revoked_id_is_remembered_for_submissions_through_celery_alone(stores: Stores) -> None:
    """Under an id of theirs: whoever comes over HTTP is given one by us."""
    canvas = Canvas(root_id="order-10")
    assert await stores.jobs.cancel("order-12", None, remember=timedelta(0)) is None
    assert await stores.jobs.cancel("order-10", None, remember=timedelta(seconds=60)) is None
    for id, through, state in (("order-10", canvas, State.CANCELLED), ("order-11", canvas, State.QUEUED)):
        job = NewJob(
            id=id, tenant="default", agent="assistant", queue="celeriac", input=(("user", "hi"),), canvas=through
        )
        await stores.jobs.submit(job)
        stored = await stores.jobs.get(id, "default")
        assert stored is not None
        assert stored.state == state
