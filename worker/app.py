"""The worker's Celery application: `celery -A worker.app worker`, and `... flower` for operators.

Importing it is light: the stores and the models are opened by the pool, in the worker only.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery, signals

from celeriac import logs
from celeriac.errors import Misconfigured
from celeriac.jobs.dispatch import RUN_JOB, celery_app
from celeriac.settings import Settings, load_settings
from celeriac.telemetry import open_sentry
from tasks import jobs as jobs  # registers the tasks
from tasks.base import Application
from worker import control as control  # replaces Celery's own commands
from worker.events import EventBatches
from worker.lifecycle import Lifecycle
from worker.live_usage import UsageEvents
from worker.submissions import Submissions, write_when_full


def stop(reason: object) -> None:
    print(f"celeriac: {reason}", file=sys.stderr)  # noqa: T201  # the operator is at a terminal or reads the last line
    raise SystemExit(2)


def make_app(settings: Settings) -> Celery:
    app = celery_app(settings, Application)
    app.set_current()
    app.settings = settings  # type: ignore[attr-defined]  # ours, for the bootstep and the signal below
    app.tasks[RUN_JOB].queues = settings.worker.queues  # type: ignore[attr-defined]  # of our AsyncTask
    app.conf.update(
        worker_pool="worker.pool:TaskPool",
        worker_concurrency=settings.worker.concurrency,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Flower asks for events only seconds after it has started: the jobs before would never have a row. Nobody keeps
        # them where nobody listens.
        worker_send_task_events=True,
        # A broker that is away for a moment must not turn a job that succeeded into one whose callback failed.
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 30, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 2},
    )
    if settings.broker_is_store:
        write_when_full()
    app.steps["worker"].add(Lifecycle)
    app.steps["consumer"].add(EventBatches)
    app.steps["consumer"].add(UsageEvents)
    app.steps["consumer"].add(Submissions)
    return app


@signals.setup_logging.connect
def _open_logs(**_: Any) -> None:
    settings: Settings = app.settings  # type: ignore[attr-defined]  # put there by make_app
    logs.configure(settings.env, settings.log_level, service="worker")
    open_sentry(settings, "worker")


try:
    app = make_app(load_settings())
except Misconfigured as error:
    stop(error)
