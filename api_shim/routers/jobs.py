"""Jobs: submit, look, wait, cancel, retry, list. For a tenant, its own jobs only."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator

from api_shim.auth import Tenant, is_operator
from api_shim.schemas import (
    JobOut,
    JobRequest,
    JobsOut,
    Problem,
    QuoteOut,
    ReceiptOut,
    ResumeRequest,
    RetriedManyOut,
    RetriedOut,
    RetryManyRequest,
    RetryRequest,
    duration,
    job_out,
    json_of,
    quote_out,
)
from api_shim.streams import reading
from celeriac.accounts import receipt
from celeriac.agents.quotes import own_scopes, quote, scopes_of
from celeriac.agents.registry import Registry
from celeriac.costs.prices import Prices
from celeriac.errors import Conflict, Invalid, NotFound
from celeriac.jobs.model import Accepted, Job, State, as_retried
from celeriac.jobs.store import new_id
from celeriac.logs import bind, get_logger
from celeriac.settings import NAME
from celeriac.stores import Stores

log = get_logger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="As the 202 named it.", max_length=64)]

MILLISECOND: Final = timedelta(milliseconds=1)
VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,255}")


def _key(value: str | None) -> str | None:
    if value is not None and not VISIBLE.fullmatch(value):
        raise ValueError("is not 1 to 255 visible ASCII characters; make one for each job, a UUID for example")
    return value


IdempotencyKey = Annotated[
    str | None,
    AfterValidator(_key),
    Header(
        alias="Idempotency-Key",
        description="Yours, 1 to 255 visible ASCII characters: sent again with the same body, it is the same job and "
        "no second one. It counts as long as the job can be asked for, and at least 24 hours.",
    ),
]
MISSING: Final[dict[int | str, dict[str, Any]]] = {404: {"model": Problem, "description": "No such job"}}


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_of(body), status, headers, media_type="application/json")


@router.post(
    "",
    status_code=202,
    response_model=JobOut,
    responses={
        200: {"model": QuoteOut, "description": "With `dry_run`: what the job would cost, and when it would start"},
        202: {
            "description": "The job is stored",
            "headers": {
                "Location": {"description": "Where to ask for it", "schema": {"type": "string"}},
                "Idempotency-Replayed": {
                    "description": "`true` where the key was used before: this is that job, as it stands now",
                    "schema": {"type": "string"},
                },
            },
        },
        409: {"model": Problem, "description": "The context is busy, and the job would not wait"},
    },
)
async def submit(
    body: JobRequest,
    request: Request,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Check the request and quote it; store nothing.")] = False,
) -> Response:
    """Hand over a job. Once this answers 202 the job is stored and will reach an end."""
    stores: Stores = request.app.state.stores
    registry: Registry = request.app.state.registry
    try:
        agent = registry[body.agent]
    except NotFound as error:
        raise Invalid(str(error), field="agent", remedy=error.remedy) from error
    registry.check_model(agent, body.model)
    registry.check_input(agent, body.messages())
    job_id = new_id()
    bind(job_id=job_id, agent=agent.name)
    if body.context_id is not None:
        bind(context_id=body.context_id)
    new = body.as_job(
        job_id,
        tenant,
        queue=agent.queue,
        limited=agent.max_running is not None,
        most=agent.max_cost,
        request_id=request.scope["celeriac.request_id"],
        run_at=body.run_at,
        deadline=body.deadline,
        expires_in=duration(body.expires_in),
        idempotency_key=idempotency_key,
        fingerprint=body.fingerprint() if idempotency_key else "",
        scopes=scopes_of(tenant, agent, body.model, body.metadata, request.app.state.settings.costs),
        told=None if is_operator(request, tenant) else own_scopes(tenant),
    )
    prices: Prices = request.app.state.prices
    accepted = await stores.jobs.submit(new, dry_run=dry_run)
    if accepted.known:
        bind(job_id=accepted.id)
        known = await stores.jobs.get(accepted.id, tenant)
        if known is None:  # it has aged out since
            return await submit(body, request, tenant, idempotency_key, dry_run)
        outlook = await stores.jobs.outlook(replace(new, id=known.id))
        quoted = quote(new, agent, outlook, prices, known.max_cost_nanos)
        if dry_run:
            return _json(quote_out(quoted))
        return _json(
            job_out(known, quoted),
            202,
            {"Location": f"/v1/jobs/{known.id}", "Idempotency-Replayed": "true"},
        )
    quoted = quote(new, agent, accepted.outlook, prices)
    if dry_run:
        return _json(quote_out(quoted))
    job = Job(
        id=job_id,
        tenant=tenant,
        agent=agent.name,
        state=State.PARKED if accepted.resume_at else State.QUEUED,
        queue=agent.queue,
        priority=body.priority,
        created_at=accepted.created_at,
        context_id=body.context_id,
        waits_for=accepted.waits_for,
        metadata=body.metadata,
        request_id=request.scope["celeriac.request_id"],
        deadline=_deadline(body, accepted),
        reason="scheduled" if accepted.resume_at else None,
        resume_at=accepted.resume_at,
        stream=body.stream,
        max_cost_nanos=quoted.most,
    )
    return _json(job_out(job, quoted), 202, {"Location": f"/v1/jobs/{job_id}"})


def _deadline(body: JobRequest, accepted: Accepted) -> datetime | None:
    """As it was stored: the earlier one, in whole milliseconds."""
    given = [body.deadline] if body.deadline else []
    if expiry := duration(body.expires_in):
        given.append(accepted.created_at + expiry // MILLISECOND * MILLISECOND)
    return min(given, default=None)


def _missing(job_id: str) -> NotFound:
    return NotFound(
        f"there is no job {job_id}",
        field="job_id",
        remedy="ended jobs are kept for CELERIAC_JOBS__RESULT_TTL, by default a day; take the id from the 202",
    )


async def _found(stores: Stores, job_id: str, tenant: str) -> Job:
    job = await stores.jobs.get(job_id, tenant)
    if job is None:
        raise _missing(job_id)
    return job


@router.post("/retry", response_model=RetriedManyOut)
async def retry_many(body: RetryManyRequest, request: Request, tenant: Tenant) -> Response:
    """Start many ended jobs again, up to `limit` at a time. Repeat it with the answer's `cursor` while there are more.

    After a 503 repeat it as it was. An answer may be empty and not the last: it looks at some thousand jobs at most.
    """
    stores: Stores = request.app.state.stores
    page = await stores.jobs.list(
        tenant,
        state=State(body.state),
        dead=body.dead,
        agent=body.agent or "",
        cursor=body.cursor,
        limit=body.limit,
    )
    retried, refused = [], []
    for job in as_retried(page.jobs):
        try:
            replayed = await stores.jobs.replay(job.id, tenant, fresh=body.fresh)
        except Conflict as error:
            refused.append({"id": job.id, "reason": str(error)})
        else:
            if replayed is not None:  # else it has aged out since
                retried.append(job.id)
    log.info("jobs_retried", retried=len(retried), refused=len(refused))
    return _json({"retried": retried, "refused": refused, "more": page.cursor is not None, "cursor": page.cursor})


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=RetriedOut,
    responses={
        **MISSING,
        202: {"description": "It is started again, under its id"},
        409: {"model": Problem, "description": "It has not ended, or it succeeded"},
    },
)
async def retry(job_id: JobId, request: Request, tenant: Tenant, body: RetryRequest | None = None) -> Response:
    """Start a job again that failed, was cancelled or expired. It goes on after the steps that are stored."""
    stores: Stores = request.app.state.stores
    bind(job_id=job_id)
    asked = body or RetryRequest()
    replayed = await stores.jobs.replay(job_id, tenant, fresh=asked.fresh, expires_in=duration(asked.expires_in))
    if replayed is None:
        raise _missing(job_id)
    job = await _found(stores, job_id, tenant)
    return _json(job_out(job) | {"fresh": replayed.fresh}, 202)


@router.post(
    "/{job_id}/cancel",
    response_model=JobOut,
    responses={
        **MISSING,
        200: {"description": "It is cancelled, now or since before"},
        202: {"model": JobOut, "description": "It runs, and was asked to stop; that takes about a second"},
        409: {"model": Problem, "description": "It has ended in another way"},
    },
)
async def cancel(job_id: JobId, request: Request, tenant: Tenant) -> Response:
    """Stop a job. A running one is asked to: if it finishes first, it has finished. What was spent stays counted."""
    stores: Stores = request.app.state.stores
    bind(job_id=job_id)
    if await stores.jobs.cancel(job_id, tenant) is None:
        raise _missing(job_id)
    job = await _found(stores, job_id, tenant)
    if job.state.ended and job.state != State.CANCELLED:
        raise Conflict(f"job {job_id} is {job.state}", field="job_id", remedy="a job that has ended stays as it is")
    return _json(job_out(job), 200 if job.state.ended else 202)


@router.post(
    "/{job_id}/resume",
    status_code=202,
    response_model=JobOut,
    responses={
        **MISSING,
        202: {"description": "It is decided; the job goes on once nothing is left to be"},
        409: {"model": Problem, "description": "It waits for no approval, or that was decided otherwise"},
    },
)
async def resume(job_id: JobId, body: ResumeRequest, request: Request, tenant: Tenant) -> Response:
    """Allow calls of tools that need it, or refuse them. Sent again it changes nothing."""
    stores: Stores = request.app.state.stores
    bind(job_id=job_id)
    left = await stores.jobs.resume(job_id, tenant, approve=body.approve, reason=body.reason.strip(), calls=body.calls)
    if left is None:
        raise _missing(job_id)
    job = await _found(stores, job_id, tenant)
    log.info("approval_decided", approved=body.approve, calls=body.calls, left=left)
    return _json(job_out(job), 202)


@router.get("/{job_id}", response_model=JobOut, responses=MISSING)
async def get(
    job_id: JobId,
    request: Request,
    tenant: Tenant,
    wait: Annotated[float, Query(ge=0, description="Answer when the job has ended, or after so many seconds.")] = 0,
) -> Response:
    """The job as it stands; with `?wait=`, as soon as it has ended."""
    stores: Stores = request.app.state.stores
    if wait > 0:
        limit = request.app.state.settings.shim.max_wait.total_seconds()
        job = await _ended(stores, job_id, tenant, min(wait, limit), request.app.state.closing)
    else:
        job = await stores.jobs.get(job_id, tenant)
    if job is None:
        raise _missing(job_id)
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


@router.get("/{job_id}/receipt", response_model=ReceiptOut, responses=MISSING)
async def get_receipt(job_id: JobId, request: Request, tenant: Tenant) -> Response:
    """Each call that the job made, also those that failed, what it cost, and what those cost that it asked for.

    Signed where `CELERIAC_COSTS__RECEIPT_KEYS` is set; docs/money.md says how it is verified.
    """
    stores: Stores = request.app.state.stores
    account = await stores.jobs.account(job_id, tenant)
    if account is None:
        raise _missing(job_id)
    # In a thread: the first one reads the table of prices.
    made = await asyncio.to_thread(receipt, account, request.app.state.prices)
    return _json(request.app.state.signing.signed(made))


LastEvent = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        pattern=r"^(\d{1,15}-\d{1,15})?$",
        description="The `id` of the last event that you have: the stream goes on after it. Without it, it begins at "
        "the first that is kept. Clients send it by themselves when they connect again.",
    ),
]


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        **MISSING,
        200: {
            "description": "Server-sent events: `state`, `start`, `delta`, `step`, `missed`, and `end` with the job as "
            "`GET /v1/jobs/{id}` has it; docs/streams.md says what they hold",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "It has ended, and there is nothing after `Last-Event-ID`: do not connect again"},
        409: {"model": Problem, "description": "The job was not submitted with `stream`"},
    },
)
async def events(job_id: JobId, request: Request, tenant: Tenant, last_event_id: LastEvent = "") -> Response:
    """What happens to a job that was submitted with `"stream": true`, as it happens, until it ends."""
    stores: Stores = request.app.state.stores
    job = await _found(stores, job_id, tenant)
    if not job.stream:
        raise Conflict(
            f"job {job_id} was submitted without a stream",
            field="job_id",
            remedy='submit it with "stream": true, or ask for the job with ?wait=',
        )
    if job.state.ended and last_event_id and not await stores.events.after(job_id, last_event_id, most=1):
        return Response(status_code=204)
    told = reading(stores, job, last_event_id)
    # Some proxies hold an answer back until it is whole.
    return StreamingResponse(told, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("", response_model=JobsOut)
async def list_jobs(
    request: Request,
    tenant: Tenant,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    agent: Annotated[str, Query(pattern=f"{NAME}|^$", description="Only jobs of this agent.")] = "",
    dead: Annotated[bool, Query(description="Only dead letters: failed jobs that killed their workers.")] = False,
    cursor: Annotated[str | None, Query(max_length=32, description="As the last page named it.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Your jobs, newest first, without their answers."""
    stores: Stores = request.app.state.stores
    if dead and state not in (None, State.FAILED):
        raise Invalid("dead letters are failed jobs", field="state", remedy="leave it out, or ask for failed")
    page = await stores.jobs.list(tenant, state=state, dead=dead, agent=agent, cursor=cursor, limit=limit)
    return _json({"jobs": [job_out(job) for job in page.jobs], "cursor": page.cursor})
