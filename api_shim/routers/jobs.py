"""Jobs: submit one, look at it, wait for it, list them. For a tenant, its own jobs only."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from api_shim.auth import Tenant
from api_shim.schemas import JobOut, JobRequest, JobsOut, Problem, job_out
from celeriac.agents.registry import Registry
from celeriac.errors import Invalid, NotFound
from celeriac.jobs.model import Job, NewJob, State
from celeriac.jobs.store import new_id
from celeriac.logs import bind, get_logger
from celeriac.settings import NAME
from celeriac.stores import Stores

log = get_logger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="As the 202 named it.", max_length=64)]


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), status, headers, media_type="application/json")


@router.post(
    "",
    status_code=202,
    response_model=JobOut,
    responses={409: {"model": Problem}, 422: {"model": Problem}, 503: {"model": Problem}},
)
async def submit(body: JobRequest, request: Request, tenant: Tenant) -> Response:
    """Hand over a job. Once this answers 202 the job is stored and will reach an end."""
    stores: Stores = request.app.state.stores
    registry: Registry = request.app.state.registry
    try:
        agent = registry[body.agent]
    except NotFound as error:
        raise Invalid(str(error), field="agent", remedy=error.remedy) from error
    job_id = new_id()
    bind(job_id=job_id, agent=agent.name)
    accepted = await stores.jobs.submit(
        NewJob(
            id=job_id,
            tenant=tenant,
            agent=agent.name,
            queue=agent.queue,
            input=body.messages(),
            priority=body.priority,
            context_id=body.context_id,
            if_busy=body.if_busy,
            model=body.model,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata,
            request_id=request.scope["celeriac.request_id"],
        )
    )
    job = Job(
        id=job_id,
        tenant=tenant,
        agent=agent.name,
        state=State.QUEUED,
        queue=agent.queue,
        priority=body.priority,
        created_at=accepted.created_at,
        context_id=body.context_id,
        waits_for=accepted.waits_for,
        metadata=body.metadata,
        request_id=request.scope["celeriac.request_id"],
    )
    return _json(job_out(job), 202, {"Location": f"/v1/jobs/{job_id}"})


@router.get("/{job_id}", response_model=JobOut, responses={404: {"model": Problem}})
async def get(
    job_id: JobId,
    request: Request,
    tenant: Tenant,
    wait: Annotated[float, Query(ge=0, description="Answer when the job has ended, or after so many seconds.")] = 0,
) -> Response:
    """The job as it stands; with `?wait=`, as soon as it has ended."""
    stores: Stores = request.app.state.stores
    job = await stores.jobs.get(job_id, tenant)
    if job is not None and not job.state.ended and wait > 0:
        limit = request.app.state.settings.shim.max_wait.total_seconds()
        job = await _ended(stores, job_id, tenant, min(wait, limit), request.app.state.closing)
    if job is None:
        raise NotFound(
            f"there is no job {job_id}",
            field="job_id",
            remedy="ended jobs are kept for a day; take the id from the 202",
        )
    return _json(job_out(job))


async def _ended(stores: Stores, job_id: str, tenant: str, seconds: float, closing: asyncio.Event) -> Job | None:
    """The job once it has ended; as it stands when the time is up or the shim stops."""
    async with stores.ends.watch(job_id) as woken:
        stop = asyncio.create_task(closing.wait())
        try:
            async with asyncio.timeout(seconds):
                while True:
                    job = await stores.jobs.get(job_id, tenant)
                    if job is None or job.state.ended or closing.is_set():
                        return job
                    wake = asyncio.create_task(woken.wait())
                    try:
                        await asyncio.wait({wake, stop}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        wake.cancel()
                    woken.clear()
        except TimeoutError:
            return await stores.jobs.get(job_id, tenant)
        finally:
            stop.cancel()


@router.get("", response_model=JobsOut)
async def list_jobs(
    request: Request,
    tenant: Tenant,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    agent: Annotated[str, Query(pattern=f"{NAME}|^$", description="Only jobs of this agent.")] = "",
    cursor: Annotated[str | None, Query(max_length=32, description="As the last page named it.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Your jobs, newest first, without their answers."""
    stores: Stores = request.app.state.stores
    page = await stores.jobs.list(tenant, state=state, agent=agent, cursor=cursor, limit=limit)
    return _json({"jobs": [job_out(job) for job in page.jobs], "cursor": page.cursor})
