"""`python -m api_shim`: serve the shim until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType

import uvicorn

from api_shim.app import create_app
from celeriac import logs
from celeriac.errors import Misconfigured
from celeriac.settings import load_settings
from celeriac.telemetry import open_sentry


class Server(uvicorn.Server):
    """A server that ends long polls when it is told to stop."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)


def main() -> int:
    try:
        settings = load_settings()
        logs.configure(settings.env, settings.log_level, service="shim")
        open_sentry(settings, "shim")
        app = create_app(settings)
    except Misconfigured as error:
        print(error, file=sys.stderr)  # noqa: T201  # the operator is at a terminal or reads the last line
        return 2
    config = uvicorn.Config(
        app,
        host=settings.shim.host,
        port=settings.shim.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=8,
    )
    Server(config, app.state.closing).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
