"""Usage: what calls used and cost. For operators, everybody's; for a tenant, its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import orjson
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from api_shim.auth import Tenant, is_operator
from api_shim.schemas import UsageReportOut, usage_report_out
from celeriac.costs.ledger import as_csv, as_json
from celeriac.costs.usage import check_groups, this_month
from celeriac.errors import Invalid
from celeriac.jobs.model import rfc_3339
from celeriac.settings import Name
from celeriac.stores import Stores

router = APIRouter(prefix="/v1/usage", tags=["usage"])

From = Annotated[
    str | None,
    Query(alias="from", description="A day, 2026-11-01, or a time, 2026-11-01T00:00:00Z. Default: this month's begin."),
]
To = Annotated[str | None, Query(alias="to", description="As `from`; before it. Default: the end of today.")]
Whose = Annotated[Name | None, Query(alias="tenant", description="Only this tenant's; for operators.")]


def _time(text: str, field: str, zone: str) -> datetime:
    """A day begins at the deployment's midnight."""
    try:
        if not "1971" <= text[:4] <= "8999":
            raise ValueError(text)
        if len(text) == 10:
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), ZoneInfo(zone)).astimezone(UTC)
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Invalid(
        f"{text!r} is no day and no time with its zone",
        field=field,
        remedy="write 2026-11-01 or 2026-11-01T12:00:00Z",
    )


def _span(request: Request, start: str | None, end: str | None) -> tuple[datetime, datetime]:
    zone = request.app.state.settings.costs.time_zone
    first, last = this_month(zone, datetime.now(UTC))
    first = first if start is None else _time(start, "from", zone)
    last = last if end is None else _time(end, "to", zone)
    if last <= first:
        raise Invalid("it ends before it begins", field="to", remedy="name a later time")
    return first, last


def _tenant(request: Request, tenant: str, whose: str | None) -> str | None:
    """Whose usage may be looked at; None for everybody's."""
    if is_operator(request, tenant):
        return whose
    if whose not in (None, tenant):
        raise HTTPException(403, "A tenant may look at its own usage; the others' is for operators")
    return tenant


@router.get("", response_model=UsageReportOut)
async def report(
    request: Request,
    tenant: Tenant,
    start: From = None,
    end: To = None,
    group_by: Annotated[
        str,
        Query(max_length=200, description="Of day or hour, tenant, agent, provider, model, label:NAME, with commas."),
    ] = "",
    whose: Whose = None,
) -> Response:
    """Sums of the calls that were admitted in a time. Days and hours count whole, if they begin in it."""
    stores: Stores = request.app.state.stores
    settings = request.app.state.settings
    first, last = _span(request, start, end)
    groups = check_groups([group for group in group_by.split(",") if group], settings.costs.labels)
    rows = await stores.usage.report(first, last, groups, tenant=_tenant(request, tenant, whose))
    body = usage_report_out(first, last, settings.costs.time_zone, groups, rows)
    return Response(orjson.dumps(body), media_type="application/json")


@router.get("/entries", response_class=StreamingResponse)
async def entries(
    request: Request,
    tenant: Tenant,
    start: From = None,
    end: To = None,
    form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
    whose: Whose = None,
) -> StreamingResponse:
    """The ledger's entries that were written in a time, one a line, sent as they are read."""
    stores: Stores = request.app.state.stores
    first, last = _span(request, start, end)
    only = _tenant(request, tenant, whose)

    async def lines() -> AsyncIterator[str]:
        if form == "csv":
            yield as_csv(None)
        async for entry in stores.ledger.entries(first, last, tenant=only):
            yield as_csv(entry) if form == "csv" else as_json(entry)

    kind = "text/csv" if form == "csv" else "application/jsonl"
    name = f"celeriac-{rfc_3339(first)[:10]}-{rfc_3339(last - timedelta(seconds=1))[:10]}.{form}"
    return StreamingResponse(
        lines(), media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
