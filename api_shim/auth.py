"""Who calls: an API key names a tenant. Without keys everybody is the tenant `default`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from celeriac.logs import bind

DEFAULT: Final = "default"

bearer = HTTPBearer(auto_error=False, description="Your key, as `Authorization: Bearer KEY`.")
header = APIKeyHeader(name="X-API-Key", auto_error=False, description="Your key, as `X-API-Key: KEY`.")


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


async def tenant(
    request: Request,
    authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    api_key: Annotated[str | None, Depends(header)],
) -> str:
    keys: Keys = request.app.state.keys
    found = keys.tenant(authorization.credentials if authorization else api_key)
    if found is None:
        raise HTTPException(401, "Send a valid API key", {"WWW-Authenticate": "Bearer"})
    bind(tenant=found)
    return found


#: For every route that belongs to a tenant.
Tenant = Annotated[str, Depends(tenant)]
