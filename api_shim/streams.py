"""A job's events as server-sent events: what is stored, what comes, and at the end the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api_shim.schemas import job_out, json_of
from celeriac.errors import StoreUnavailable
from celeriac.jobs.events import Event
from celeriac.logs import get_logger
from celeriac.stores import Stores

log = get_logger(__name__)


async def reading(stores: Stores, job_id: str, tenant: str, last: str, closing: asyncio.Event) -> AsyncIterator[bytes]:
    """All after the event `last` until the job ends, the shim stops, or the store is away: clients connect again then,
    and go on where they were.
    """
    try:
        if await stores.events.is_cut(job_id, last):
            yield format_sse_event(event="missed", data_str="{}")
        async with stores.events.follow(job_id, last) as events, aclosing(_until(closing, events)) as told:
            async for event in told:
                if event is None:
                    yield KEEPALIVE_COMMENT
                    continue
                yield format_sse_event(event=event.kind, data_str=event.data, id=event.id)
                # It may have been started again since.
                if event.is_end and not await stores.events.after(job_id, event.id, most=1):
                    job = await stores.jobs.get(job_id, tenant)
                    if job is None or job.state.ended:
                        end = json_of(None if job is None else job_out(job)).decode()
                        yield format_sse_event(event="end", data_str=end, id=event.id)
                        return
    except StoreUnavailable as error:
        log.warning("stream_broken_off", job_id=job_id, reason=str(error))


async def _until(closing: asyncio.Event, events: AsyncIterator[Event | None]) -> AsyncGenerator[Event | None]:
    stop = asyncio.create_task(closing.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(events))
            try:
                await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    return
                yield coming.result()
            finally:
                coming.cancel()
                await asyncio.wait({coming})
    finally:
        stop.cancel()
