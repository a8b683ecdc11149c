"""`python -m api_shim`: serve the shim until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api_shim.app import create_app
from celeriac import logs
from celeriac.connections import open_redis
from celeriac.errors import Misconfigured, StoreUnavailable
from celeriac.logs import get_logger
from celeriac.settings import Settings, load_settings
from celeriac.stores import check_redis
from celeriac.telemetry import open_sentry

log = get_logger(__name__)


#: Seconds that the head of a request may take to arrive: who sends half of one must not hold a connection for ever.
HEAD_WITHIN: Final = 10.0


class Connection(HttpToolsProtocol):
    """A connection that ends if the head of a request does not arrive in time; uvicorn would wait without end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's own
        super().connection_made(transport)
        self._wait_for_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(HEAD_WITHIN, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the request before it is being answered
            self._wait_for_head()

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()


class Server(uvicorn.Server):
    """A server that ends long polls when it is told to stop."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m api_shim",
        description="Serve the HTTP shim until SIGTERM. `celeriac settings` lists the variables that set it up.",
    )
    parser.parse_args(arguments)
    try:
        settings = load_settings()
        logs.configure(settings.env, settings.log_level, service="shim")
        open_sentry(settings, "shim")
        app = create_app(settings)
        app.state.store_checked = asyncio.run(look_at_the_store(settings))
    except Misconfigured as error:
        print(error, file=sys.stderr)  # noqa: T201  # the operator is at a terminal or reads the last line
        return 2
    config = uvicorn.Config(
        app,
        host=settings.shim.host,
        port=settings.shim.port,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=8,
    )
    Server(config, app.state.closing).run()
    return 0


async def look_at_the_store(settings: Settings) -> bool:
    """False: it is away, and has to be looked at once it is there. Raises Misconfigured for one that is unsafe."""
    redis = open_redis(settings.redis_url.get_secret_value(), connections=1, timeout=2.0, retries=0)
    try:
        await check_redis(redis, settings)
        return True
    except StoreUnavailable as error:  # it may come up after us; until then every answer is a 503
        log.warning("store_away_at_start", reason=str(error))
        return False
    finally:
        await redis.aclose()


if __name__ == "__main__":
    sys.exit(main())
