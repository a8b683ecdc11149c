"""The doorbell: a message says which job, the room does the rest."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.exceptions import Ignore, Retry

from celeriac.agents.runner import Runner
from celeriac.errors import CeleriacError
from celeriac.jobs.dispatch import RUN_JOB
from celeriac.jobs.model import State
from tasks.base import AsyncTask, in_thread


class JobFailed(CeleriacError):
    """The job ended without an answer; the store says why. code: the job's error."""

    code = "job_failed"


@shared_task(name=RUN_JOB, base=AsyncTask, bind=True, throws=(JobFailed,), max_retries=None)
async def run_job(self: AsyncTask, job_id: str) -> dict[str, Any]:
    """Run the job whose id is this task's. Returns its summary; raises JobFailed with the code of its error.

    `Ignore` where there is nothing to claim: a returned value would be stored as the result of a job that still runs.
    `Retry` where it was parked: Celery and Flower count it, and upkeep sends the next message when it is due.
    """
    runner: Runner = self.app.runner  # type: ignore[attr-defined]  # put there by the worker before the first message
    summary = await runner.run(job_id)
    if summary is None:
        raise Ignore
    if summary.state == State.PARKED:
        raise Retry(summary.error.code if summary.error else "parked", when=summary.resume_at)
    if summary.state in (State.CANCELLED, State.EXPIRED):
        tell_revoked(self, expired=summary.state == State.EXPIRED)
        raise Ignore
    if summary.error is not None:
        raise JobFailed(f"{summary.error.code}: {summary.error.message}")
    return summary.as_result()


def tell_revoked(task: AsyncTask, *, expired: bool) -> None:
    """What Celery does for a task that was revoked while it ran: its result, if anybody asks for it, and its event."""
    request = task.request
    in_thread(task.send_event, "task-revoked", terminated=not expired, signum=None, expired=expired)
    task.backend.mark_as_revoked(
        request.id,
        "expired" if expired else "cancelled",
        request=request,
        store_result=not request.ignore_result,
    )
