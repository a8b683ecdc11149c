"""Celery's `revoke` and `terminate` for jobs: they cancel in the store, whatever state the job is in.

A queued or parked job has no message that could be revoked, and Celery's workers remember a revoked id for hours: they
would throw away the bell of a later retry. Every worker that hears the command cancels; the first one does it. With or
without `terminate` is the same: a running job is stopped.
With no worker up, nobody hears it: `POST /v1/jobs/{id}/cancel` needs none. Whoever may publish to the broker may
revoke, as ever with Celery; no tenant is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker.control import control_command
from celery.worker.state import REVOKE_EXPIRES

from celeriac.connections import patiently
from celeriac.jobs.model import State
from celeriac.logs import get_logger
from worker.lifecycle import Lease

log = get_logger(__name__)

_celerys_revoke: Any = control.revoke  # type: ignore[attr-defined]  # the stubs leave it out
#: As long as Celery's workers remember a revoked id.
REMEMBERED = timedelta(seconds=REVOKE_EXPIRES)
#: Cancellations under way: asyncio keeps no reference of its own.
_busy: set[asyncio.Task[None]] = set()


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
    """Cancel jobs by id; other tasks are revoked as Celery does it."""
    ids = sorted(set(maybe_list(task_id) or []))
    lease: Lease | None = getattr(state.app, "lease", None)
    if lease is None:
        return _celerys_revoke(state, ids, terminate, signal, **kwargs)

    async def others(ids: list[str]) -> None:
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_hub() -> None:
            try:
                _celerys_revoke(state, ids, terminate, signal, **kwargs)
            finally:
                loop.call_soon_threadsafe(done.set)

        state.consumer.hub.call_soon(on_hub)
        await done.wait()

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(_revoke(lease, ids, others), name="revoke")
        _busy.add(task)
        task.add_done_callback(_busy.discard)

    state.consumer.pool.loop.call_soon_threadsafe(begin)
    return {"ok": f"stopping {', '.join(ids)}"}


@control_command(
    name="terminate",
    variadic="task_id",
    args=[("signal", str)],
    signature="<signal> [id1 [id2 [... [idN]]]]",
)
def terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    """As `revoke`, and other tasks are ended while they run."""
    return revoke(state, task_id, terminate=True, signal=signal)


async def _revoke(lease: Lease, ids: Iterable[str], others: Callable[[list[str]], Awaitable[None]]) -> None:
    jobs, unknown = lease.parts.stores.jobs, []
    for job_id in ids:
        # It may be a submission that waits in the broker, for a worker that has not started yet.
        try:
            now = await patiently(partial(jobs.cancel, job_id, None, remember=REMEMBERED))
        except Exception:
            # One record that makes no sense does not keep the others.
            log.exception("job_not_revoked", job_id=job_id)
            continue
        if now is None:
            unknown.append(job_id)
            continue
        log.info("job_revoked", job_id=job_id, state=now)
        if now == State.RUNNING:
            lease.parts.runner.stop(job_id)
    if unknown:
        await others(unknown)
