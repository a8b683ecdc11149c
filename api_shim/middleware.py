"""Around every request: its id, its log line and metrics, limits on its body, headers that browsers obey."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_shim.errors import TooLarge, TooSlow, http_error, unexpected
from celeriac.jobs.store import new_id
from celeriac.logs import bound, get_logger

log = get_logger(__name__)

REQUEST_ID: Final = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
#: Probes and scrapes come every few seconds and say nothing.
QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})

#: Seconds that a body may take to arrive: who sends half of one must not hold a connection for ever.
BODY_WITHIN: Final = 10.0
#: What is still read of a body that is refused, while the answer is on its way: many clients read no answer before they
#: have sent all, and find a closed connection instead. Seconds, and bytes at least.
READ_ON_WITHIN: Final = 5.0
READ_ON_BYTES: Final = 32 * 1024 * 1024

#: No answer has one of its own.
HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=31536000"),  # ignored over plain HTTP
    (b"cache-control", b"no-store"),
)
#: The documentation is a page with a script and a style of its own.
DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


class HttpMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["method", "route", "status"]
        self.requests = Counter("celeriac_http_requests", "Requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "celeriac_http_request_duration_seconds", "Time to answer", ["method", "route"], registry=registry
        )


class Around:
    """The outermost: id, log line, metrics, headers. Pure ASGI: with `Within`, a request costs it 30 us."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.match(given) else new_id()
        scope["celeriac.request_id"] = request_id
        status, began, answered = 500, time.perf_counter(), None

        async def answer(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                if out.get("content-type", "").startswith("text/event-stream"):
                    answered = time.perf_counter()  # how long somebody reads along says nothing of us
                out["X-Request-ID"] = request_id
                out.raw.extend(HEADERS)
                if scope["path"] == "/docs":
                    out["Content-Security-Policy"] = DOCS_POLICY
            await send(message)

        with bound(request_id=request_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                ended = time.perf_counter()
                self._tell(scope, status, (answered or ended) - began, ended - began)

    def _tell(self, scope: Scope, status: int, until_answered: float, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.seconds.labels(scope["method"], route).observe(until_answered)
        if route not in QUIET:
            log.info("http_request", method=scope["method"], route=route, status=status, seconds=round(seconds, 6))


class Within:
    """Limits on a body, and an answer to every error. Inside of CORS, or a browser could not read what it refuses."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._within_limit(scope, Headers(scope=scope), receive, answer)
        except Exception as error:  # nobody foresaw it: said here, where the request's facts are bound
            if started:
                raise
            await unexpected(Request(scope), error)(scope, receive, answer)

    async def _within_limit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        length = headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else 0
        read, whole, until = 0, False, asyncio.get_running_loop().time() + BODY_WITHIN

        async def limited() -> Message:
            nonlocal read, whole
            try:
                # Behind the body comes nothing but the end of the connection, which may take its time.
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                raise TooSlow(BODY_WITHIN) from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max:
                raise TooLarge(self._max)
            return message

        async def answer(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and not whole and max(read, announced) > self._max:
                await send({**message, "more_body": True})
                await self._read_on(receive, max(0, announced - read))
                message = {"type": "http.response.body"}
            await send(message)

        if announced > self._max:
            response = await http_error(Request(scope), TooLarge(self._max))
            await response(scope, receive, answer)
        else:
            await self._app(scope, limited, answer)

    async def _read_on(self, receive: Receive, expected: int) -> None:
        """Read and drop the rest of a body, unless it is hopelessly long."""
        left = max(READ_ON_BYTES, 8 * self._max)
        if expected > left:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_ON_WITHIN):
                while left > 0 and (message := await receive()).get("more_body", False):
                    left -= len(message.get("body", b""))
