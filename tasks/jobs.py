"""The doorbell: a message says which job, the room does the rest."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.exceptions import Ignore
from celery.worker import state

from celeriac.agents.runner import Runner
from celeriac.errors import CeleriacError
from celeriac.jobs.dispatch import RUN_JOB
from tasks.base import AsyncTask


class JobFailed(CeleriacError):
    """The job ended without an answer; the store says why. code: the job's error."""

    code = "job_failed"


@shared_task(name=RUN_JOB, base=AsyncTask, bind=True, throws=(JobFailed,), max_retries=None)
async def run_job(self: AsyncTask, job_id: str) -> dict[str, Any]:
    """Run the job whose id is this task's. Returns its summary; raises JobFailed with the code of its error.

    `Ignore` where there is nothing to claim: a returned value would be stored as the result of a job that still runs.
    """
    runner: Runner = self.app.runner  # type: ignore[attr-defined]  # put there by the worker before the first message
    summary = await runner.run(job_id, revoked=lambda: job_id in state.revoked)
    if summary is None:
        raise Ignore
    if summary.error is not None:
        raise JobFailed(f"{summary.error.code}: {summary.error.message}")
    return summary.as_result()
