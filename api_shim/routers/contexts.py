"""Contexts: read a conversation, or forget it. For a tenant, its own only."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Request, Response

from api_shim.auth import Tenant
from api_shim.schemas import ContextOut, Problem, context_out
from celeriac.errors import NotFound
from celeriac.logs import bind
from celeriac.settings import NAME
from celeriac.stores import Stores

router = APIRouter(prefix="/v1/contexts", tags=["contexts"])

ContextId = Annotated[str, Path(pattern=NAME)]


def _missing(context_id: str) -> NotFound:
    return NotFound(
        f"there is no context {context_id}", field="context_id", remedy="a context begins with its first job, and ages"
    )


@router.get("/{context_id}", response_model=ContextOut, responses={404: {"model": Problem}})
async def get(context_id: ContextId, request: Request, tenant: Tenant) -> Response:
    """The conversation so far."""
    stores: Stores = request.app.state.stores
    bind(context_id=context_id)
    context = await stores.contexts.get(tenant, context_id)
    if context is None:
        raise _missing(context_id)
    return Response(orjson.dumps(context_out(context)), media_type="application/json")


@router.delete("/{context_id}", status_code=204, responses={404: {"model": Problem}})
async def delete(context_id: ContextId, request: Request, tenant: Tenant) -> None:
    """Forget the conversation. A job that runs in it ends all the same and says that nothing was appended."""
    stores: Stores = request.app.state.stores
    bind(context_id=context_id)
    if not await stores.contexts.delete(tenant, context_id):
        raise _missing(context_id)
