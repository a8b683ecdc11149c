"""Async tasks outside a worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore

from tasks.base import AsyncTask, refuse_wrong_pool
from worker.pool import TaskPool


@pytest.fixture
def app() -> Celery:
    app = Celery("eager", broker="memory://", set_as_current=False)
    # Celeriac's own tasks are shared with every app of a process: here they have a queue that nobody consumes.
    app.conf.task_routes = {"routed": {"queue": "jobs"}, "celeriac.*": {"queue": "elsewhere"}}
    return app


def test_an_async_task_is_applied_eagerly(app: Celery) -> None:
    """`.apply()`, a call and task_always_eager work where no loop runs: in a shell, in a test."""

    @app.task(shared=False, base=AsyncTask, bind=True)
    async def twice(self: Any, x: int) -> tuple[int, bool]:
        await asyncio.sleep(0)
        return x * 2, self.request.id is not None

    assert twice.apply((2,)).get() == (4, True)
    assert twice(2) == (4, False)
    app.conf.task_always_eager = True
    assert twice.delay(2).get() == (4, True)


def test_an_eager_async_task_fails_retries_and_ignores_as_others_do(app: Celery) -> None:
    @app.task(shared=False, base=AsyncTask, bind=True, autoretry_for=(KeyError,), retry_kwargs={"countdown": 0})
    async def moody(self: Any, mood: str) -> int:
        await asyncio.sleep(0)
        if mood == "ignore":
            raise Ignore
        if mood == "fail" or self.request.retries < 2:
            raise {"fail": ValueError, "retry": KeyError}[mood](mood)
        return int(self.request.retries)

    assert moody.apply(("fail",)).state == "FAILURE"
    assert moody.apply(("ignore",)).state == "IGNORED"
    assert moody.apply(("retry",)).get() == 2


async def test_inside_a_running_loop_the_caller_is_told_what_to_do(app: Celery) -> None:
    """Rather than blocking the loop that it would have to wait for."""

    @app.task(shared=False, base=AsyncTask)
    async def nothing() -> None:
        await asyncio.sleep(0)

    result = nothing.apply()
    assert result.state == "FAILURE"
    assert "use apply_async" in str(result.result)


def test_a_def_task_may_share_the_base(app: Celery) -> None:
    @app.task(shared=False, base=AsyncTask)
    def plain(x: int) -> int:
        return x + 1

    assert plain.apply((1,)).get() == 2
    assert not plain.is_async


@pytest.mark.parametrize(
    ("options", "consumed", "refused"),
    [
        ({"name": "routed"}, ["jobs"], True),
        ({"name": "routed"}, ["celery"], False),
        ({"name": "unrouted"}, ["celery"], True),
        ({"name": "declared", "queues": ("jobs", "gpu")}, ["gpu"], True),
        ({"name": "declared", "queues": ("jobs", "gpu")}, ["celery"], False),
    ],
)
def test_the_queues_of_async_tasks_are_known(
    app: Celery, options: dict[str, Any], consumed: list[str], refused: bool
) -> None:
    """By `task_routes`, or by what the task itself declares; our own pool is never refused."""

    @app.task(shared=False, base=AsyncTask, **options)
    async def nothing() -> None:
        await asyncio.sleep(0)

    app.finalize()
    app.amqp.queues.select(consumed)
    refuse_wrong_pool(app, TaskPool)
    if refused:
        with pytest.raises(SystemExit):
            refuse_wrong_pool(app, object)
    else:
        refuse_wrong_pool(app, object)
