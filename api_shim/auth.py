"""Who calls: an API key names a tenant. Without keys everybody is the tenant `default`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import Depends, HTTPException, Request
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr

from api_shim.errors import check_query
from celeriac.logs import bind

DEFAULT: Final = "default"
NO_KEY: Final = "Send a valid API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`"

#: For OpenAPI. As dependencies of FastAPI's, which say it by themselves, they cost a tenth of a submission's CPU.
SCHEMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "HTTPBearer": {"type": "http", "scheme": "bearer", "description": "Your key, as `Authorization: Bearer KEY`."},
    "APIKeyHeader": {
        "type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Your key, as `X-API-Key: KEY`.",
    },
}  # fmt: skip


class Keys:
    """Looks keys up by their digest, so that how long it takes says nothing about them."""

    def __init__(self, keys: Mapping[str, SecretStr]) -> None:
        self._tenants = {_digest(key.get_secret_value()): tenant for tenant, key in keys.items()}

    def tenant(self, key: str | None) -> str | None:
        if not self._tenants:
            return DEFAULT
        return self._tenants.get(_digest(key)) if key else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def tenant(request: Request) -> str:
    """Whose key it is; 401 where it is nobody's. Only then is the query looked at, or what the JSON of a body says."""
    keys: Keys = request.app.state.keys
    scheme, key = get_authorization_scheme_param(request.headers.get("Authorization"))
    found = keys.tenant(key if key and scheme.lower() == "bearer" else request.headers.get("X-API-Key"))
    if found is None:
        raise HTTPException(401, NO_KEY, {"WWW-Authenticate": "Bearer"})
    bind(tenant=found)
    check_query(request)
    return found


#: For every route that belongs to a tenant.
Tenant = Annotated[str, Depends(tenant)]


def is_operator(request: Request, tenant: str) -> bool:
    """Whether this tenant's key may look at everybody's money. Without keys everybody is the same, and may."""
    shim = request.app.state.settings.shim
    return not shim.api_keys or tenant in shim.operators


async def operator(request: Request, tenant: Tenant) -> str:
    """The tenant, if it is an operator; else 403."""
    if not is_operator(request, tenant):
        raise HTTPException(403, f"This is for operators: CELERIAC_SHIM__OPERATORS does not name {tenant}")
    return tenant


#: For routes that change what concerns all tenants.
Operator = Annotated[str, Depends(operator)]
