"""Budgets: what a scope may cost, and what is used of it. To change one, or to look at everybody's, is for operators; a
tenant may look at its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import orjson
from fastapi import APIRouter, HTTPException, Path, Request, Response

from api_shim.auth import Operator, Tenant, is_operator
from api_shim.schemas import BudgetIn, BudgetOut, BudgetsOut, Problem, budget_out
from celeriac.costs.budgets import Cap, check_caps, check_scope
from celeriac.costs.money import nanos
from celeriac.stores import Stores

router = APIRouter(prefix="/v1/budgets", tags=["budgets"])

Scope = Annotated[
    str,
    Path(
        max_length=400,
        description="`all`, `tenant:NAME`, `agent:NAME`, `provider:NAME`, `model:PROVIDER/MODEL` or "
        "`label:NAME=VALUE`.",
    ),
]


def _answer(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


@router.get("", response_model=BudgetsOut)
async def list_budgets(request: Request, tenant: Tenant) -> Response:
    """All budgets, each with what is used of it; for a tenant that is no operator, its own."""
    stores: Stores = request.app.state.stores
    budgets = stores.budgets
    found = await (budgets.all() if is_operator(request, tenant) else budgets.of([f"tenant:{tenant}"]))
    return _answer({"budgets": [budget_out(scope, uses) for scope, uses in found.items()]})


@router.get("/{scope:path}", response_model=BudgetOut, responses={404: {"model": Problem}})
async def get(scope: Scope, request: Request, tenant: Tenant) -> Response:
    """One budget, with what is used of it. For operators, and for a tenant its own."""
    if scope != f"tenant:{tenant}" and not is_operator(request, tenant):
        raise HTTPException(403, "A tenant may look at its own budget; the others are for operators")
    stores: Stores = request.app.state.stores
    check_scope(scope, request.app.state.settings.costs.labels)
    return _answer(budget_out(scope, await stores.budgets.get(scope)))


@router.put("/{scope:path}", response_model=BudgetOut)
async def put(scope: Scope, budget: BudgetIn, request: Request, operator: Operator) -> Response:
    """Set all caps of a scope. What was used before counts; who waits for a higher cap goes on within a second."""
    stores: Stores = request.app.state.stores
    check_scope(scope, request.app.state.settings.costs.labels)
    caps = [Cap(cap.window, nanos(Decimal(cap.cap_usd)), tuple(cap.alert_at)) for cap in budget.caps]
    await stores.budgets.put(scope, check_caps(caps), f"tenant:{operator}")
    return _answer(budget_out(scope, await stores.budgets.get(scope)))


@router.delete("/{scope:path}", status_code=204, responses={404: {"model": Problem}})
async def delete(scope: Scope, request: Request, operator: Operator) -> None:
    """Take all caps of a scope away. What was used stays known."""
    stores: Stores = request.app.state.stores
    # Whatever it is called: its label may not be declared any more.
    await stores.budgets.delete(scope, f"tenant:{operator}")
