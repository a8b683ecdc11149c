"""The shim as an ASGI application in a module, for servers that are given one by name."""

from __future__ import annotations

from api_shim.app import create_app
from celeriac import logs
from celeriac.settings import load_settings

settings = load_settings()
logs.configure(settings.env, settings.log_level, service="shim")
app = create_app(settings)
