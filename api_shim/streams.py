"""A job's events as server-sent events: what is stored, what comes, and at the end the job."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api_shim.schemas import job_out, json_of
from celeriac.errors import StoreUnavailable
from celeriac.jobs.model import Job
from celeriac.logs import get_logger
from celeriac.stores import Stores

log = get_logger(__name__)


async def reading(stores: Stores, job: Job, last: str) -> AsyncIterator[bytes]:
    """All after the event `last` until the job ends, the shim stops, or the store is away: clients connect again then,
    and go on where they were. job: as it was just now.
    """
    job_id, tenant = job.id, job.tenant
    try:
        if await stores.events.is_cut(job_id, last):
            yield format_sse_event(event="missed", data_str="{}")
        if job.state.ended and (end := await _end(stores, job_id, tenant, last)) is not None:
            yield end
            return
        async with stores.events.follow(job_id, last) as events:
            async for event in events:
                # Also after a silence: the store may have lost the event.
                end = None
                if event is None or event.is_end:
                    end = await _end(stores, job_id, tenant, last if event is None else event.id)
                if event is None:
                    yield KEEPALIVE_COMMENT
                else:
                    last = event.id
                    # What the end follows has no id: who has that alone comes back for the end.
                    yield format_sse_event(event=event.kind, data_str=event.data, id=None if end else last)
                if end is not None:
                    yield end
                    return
    except StoreUnavailable as error:
        log.warning("stream_broken_off", job_id=job_id, reason=str(error))


async def _end(stores: Stores, job_id: str, tenant: str, last: str) -> bytes | None:
    """What the stream ends with, where the job has ended and nothing is left to be told: it may be started again."""
    job = await stores.jobs.get(job_id, tenant)
    if job is not None and (not job.state.ended or await stores.events.after(job_id, last, most=1)):
        return None
    told = json_of(None if job is None else job_out(job)).decode()
    return format_sse_event(event="end", data_str=told, id=last or None)
