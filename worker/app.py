"""The worker's Celery application: `celery -A worker.app worker`, and `... flower` for operators.

Importing it is light: the stores and the models are opened by the pool, in the worker only.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery, bootsteps, signals

from celeriac import logs
from celeriac.errors import Misconfigured
from celeriac.jobs.dispatch import celery_app
from celeriac.settings import Settings, load_settings
from tasks import jobs as jobs  # registers the tasks
from worker.lifecycle import JobPool

POOL = f"{JobPool.__module__}:{JobPool.__qualname__}"


class RightPool(bootsteps.Step):  # type: ignore[misc]  # Celery's base is untyped
    """Refuse, before anything is started, to take jobs with a pool that cannot run them."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        jobs = set(worker.app.settings.worker.queues) & set(worker.app.amqp.queues.consume_from)
        if jobs and not issubclass(worker.pool_cls, JobPool):
            name = worker.pool_cls.__module__.rpartition(".")[2]
            stop(
                f"the pool {name} cannot run jobs: queue {', '.join(sorted(jobs))} needs {POOL}; "
                "leave out --pool, or name other queues with -Q"
            )


def stop(reason: object) -> None:
    print(f"celeriac: {reason}", file=sys.stderr)  # noqa: T201  # the operator is at a terminal or reads the last line
    raise SystemExit(2)


def make_app(settings: Settings) -> Celery:
    app = celery_app(settings)
    app.set_current()
    app.settings = settings
    app.conf.update(
        worker_pool=POOL,
        worker_concurrency=settings.worker.concurrency,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    app.steps["worker"].add(RightPool)
    return app


@signals.setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(app.settings.env, app.settings.log_level, service="worker")


try:
    app = make_app(load_settings())
except Misconfigured as error:
    stop(error)
