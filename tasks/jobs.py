"""The doorbell, and the door for Celery's own callers: a message says which job, the room does the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery import shared_task, signals, states
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError

from celeriac.agents.intake import Intake
from celeriac.agents.runner import Runner, Summary
from celeriac.errors import CeleriacError, Invalid, Refused, StoreFull
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.dispatch import RUN_JOB, SUBMIT
from celeriac.jobs.model import State
from celeriac.logs import get_logger
from tasks.base import AsyncRequest, AsyncTask, in_thread, run_body

log = get_logger(__name__)

#: Seconds until a submission that a full store refused goes back to its queue.
FULL: Final = 1.0


class JobFailed(CeleriacError):
    """The job, or one try of it, has no answer; the store says more. Its text is "code: message" of the job's error."""

    code = "job_failed"


class Bell(AsyncRequest):
    """The store alone says what becomes of a job: Celery remembers revoked ids, and would throw away a retry's bell."""

    def revoked(self) -> bool:
        return False


class Doorbell(AsyncTask):
    Request = Bell

    def after_return(self, status: Any, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery's result is written, and its callbacks are sent: the store may forget that this is to be done."""
        summary: Summary | None = self.request.get("summary")
        if summary is None or summary.tell is None:
            return
        # Where a callback cannot be sent, Celery calls that the task's failure. It is told again, then.
        if (status == states.SUCCESS) == (summary.state == State.SUCCEEDED):
            run_body(_runner(self).told(task_id, summary.tell))


@shared_task(name=RUN_JOB, base=Doorbell, bind=True, throws=(JobFailed,), max_retries=None)
async def run_job(self: Doorbell, job_id: str) -> dict[str, Any]:
    """Run the job whose id is this task's. Returns its summary; raises JobFailed with its error.

    `Ignore` where there is nothing to claim: a returned value would be stored as the result of a job that still runs.
    `Retry` where it was parked: Celery and Flower count it, and upkeep sends the next message when it is due.
    """
    try:
        summary = await _runner(self).run(job_id)
    except Exception:
        # Our own fault, and not the job's end: it is run again, and nobody is told anything.
        log.exception("run_broken_off", job_id=job_id)
        raise Ignore from None
    if summary is None:
        raise Ignore
    if summary.again and summary.tell is not None and (claimed := _chord_claimed(self)):
        # Who told this end before, or another member's, brings the chord on. If it died of that, nobody does but we.
        log.info("chord_is_claimed", job_id=job_id, seconds=claimed.total_seconds())
        await _runner(self).told(job_id, summary.tell, later=claimed)
        raise Ignore
    error = JobFailed(f"{summary.error.code}: {summary.error.message}") if summary.error else None
    if summary.state == State.PARKED:
        keep_chords(self, summary.chords)
        raise Retry(summary.error.code if summary.error else "parked", exc=error, when=summary.resume_at)
    if summary.state in (State.CANCELLED, State.EXPIRED):
        tell_revoked(self, expired=summary.state == State.EXPIRED)
        if summary.tell is not None:
            await _runner(self).told(job_id, summary.tell)
        raise Ignore
    self.request.update(summary=summary)
    if error is not None:
        raise error
    return summary.as_result()


def tell_revoked(task: AsyncTask, *, expired: bool) -> None:
    """What Celery does for a task that was revoked, and what it leaves out: the rest of its chain fails too.

    As in Celery, errbacks are not called.
    """
    request = task.request
    in_thread(task.send_event, "task-revoked", terminated=not expired, signum=None, expired=expired)
    task.backend.mark_as_failure(
        request.id,
        TaskRevokedError("expired" if expired else "cancelled"),
        request=request,
        store_result=not request.ignore_result,
        call_errbacks=False,
        state=states.REVOKED,
    )
    signals.task_revoked.send(sender=task, request=request, terminated=not expired, signum=None, expired=expired)


def keep_chords(task: AsyncTask, groups: Iterable[str]) -> None:
    """What Celery remembers of a chord lives as long as its members may wait, whatever the caller's settings were.

    Raises nothing: that would be the end of a job that goes on.
    """
    backend = task.backend
    for group in groups:
        try:
            in_thread(_keep_chord, backend, group)
        except Exception:
            log.warning("chord_not_kept", group=group, exc_info=True)


def _keep_chord(backend: Any, group: str) -> None:
    with backend.client.pipeline(transaction=False) as pipe:
        for part in ("", ".j", ".t", ".s", ".d"):
            pipe.expire(backend.get_key_for_group(group, part), backend.chord_expires, gt=True)
        pipe.execute()


def _chord_claimed(task: AsyncTask) -> timedelta | None:
    """For how long yet Celery lets only one, and nobody knows whom, call the body of the chord that this job is in.

    Celery takes that claim with the result that completes the chord, and keeps it while the body is published: three
    minutes with our policy of retries. Raises Ignore where nobody can say: the end is rung for again.
    """
    if not task.request.chord:
        return None
    try:
        holder, ms = in_thread(_claim_of, task.backend, task.request.group)
    except Exception:
        log.warning("chord_not_looked_at", group=task.request.group, exc_info=True)
        raise Ignore from None
    return timedelta(milliseconds=max(1, ms)) if holder and holder != b"done" else None


def _claim_of(backend: Any, group: str) -> tuple[bytes | None, int]:
    """Whose it is, and how many milliseconds are left of it."""
    key = backend.get_key_for_group(group, ".c")
    with backend.client.pipeline(transaction=False) as pipe:
        holder, ms = pipe.get(key).pttl(key).execute()
    return holder, ms


class SubmissionRequest(AsyncRequest):
    """The message of a submission. It holds what the caller said, and that is shown to nobody."""

    #: Not kept in this process's memory until then: the job waits in the store, where it is safe.
    eta = None
    argsrepr = kwargsrepr = "..."

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.request_dict.update(argsrepr="...", kwargsrepr="...")

    def send_event(self, type: str, **fields: Any) -> Any:
        # The job waits still: it has started when a worker runs it.
        return None if type == "task-started" else super().send_event(type, **fields)


class Submit(AsyncTask):
    Request = SubmissionRequest
    queues = (SUBMIT,)


@shared_task(name=SUBMIT, base=Submit, bind=True, throws=(Refused,), acks_late=True, max_retries=None)
async def submit(self: Submit, *args: Any, request: Any = None) -> None:
    """Store a job under this task's id; its end writes the result of that id.

    submit(request), or submit(previous, request) in a chain, where Celery puts the result before it. request: as
    `POST /v1/jobs` takes it, and `tenant` and `previous`. Raises Refused, whose text names the field.
    """
    given = [*args] if request is None else [*args, request]
    if not 1 <= len(given) <= 2:
        raise Invalid("args: give the request, and before it at most the result of what came before", field="args")
    intake: Intake = self.app.intake  # type: ignore[attr-defined]  # put there by the worker before the first message
    message: Any = self.request  # the stubs have wrong types for half of it
    job_id, canvas = message.id, _canvas(message)
    try:
        await intake.take(
            job_id,
            given[-1],
            canvas,
            previous=given[0] if len(given) == 2 else None,
            ignore_result=bool(message.ignore_result),
            run_at=_time(message.eta),
            deadline=_time(message.expires),
        )
    except StoreFull:
        # It does not hold up the jobs whose ends make room.
        await asyncio.sleep(FULL)
        raise Reject("the store is full", requeue=True) from None
    keep_chords(self, canvas.chords())
    raise Ignore


def _canvas(request: Any) -> Canvas:
    return Canvas(
        root_id=request.root_id or request.id,
        parent_id=request.parent_id,
        group=request.group,
        group_index=request.group_index,
        callbacks=request.callbacks,
        errbacks=request.errbacks,
        chain=request.chain,
        chord=request.chord,
    )


def _time(text: str | None) -> datetime | None:
    time = datetime.fromisoformat(text) if text else None
    # Celery's own default for a time without a zone is that of its configuration, which is UTC here.
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def _runner(task: AsyncTask) -> Runner:
    runner: Runner = task.app.runner  # type: ignore[attr-defined]  # put there by the worker before the first message
    return runner
