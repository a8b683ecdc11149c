"""HTTP for every provider's SDK: httpx2 on the outside, since the SDKs speak it, aiohttp underneath.

aiohttp, because at 500 calls in flight httpx2's own pool costs several times the CPU of a call (`bench/http_clients.py`
measures it). A transport of our own, because the one the SDKs bring reports a connection that broke after the request
was sent as a connect timeout, and money that may be spent would be released.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal

import aiohttp
import httpx2
from multidict import istr

#: Seconds to reach a provider: resolve, connect, TLS. Who takes longer will not answer in time either.
CONNECT_TIMEOUT = 10.0
#: Seconds an idle connection is kept. Shorter than the 5 s after which uvicorn, Node and llama.cpp close theirs: a
#: request sent just as the other side closes cannot be told from one that was answered and billed.
KEEPALIVE = 4.0
#: A longer body is not an answer: the longest outputs on offer are about 1 MB.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: Headers of a compressed answer that are not true of an empty one, and what is never handed on.
UNFIT = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"set-cookie"})

Stage = Literal["start", "queued", "connecting", "sent", "answered"]


class Wire:
    """How far one call got, whatever exception it ends with.

    stage "start": nothing happened; "queued": it waits for a free connection; "connecting"; "sent": bytes of the
    request may be on their way; "answered": status and headers are here. Up to "connecting" there is proof that no byte
    of the request was written, so nothing of it can be billed.
    """

    __slots__ = ("headers", "stage", "status")

    def __init__(self) -> None:
        self.stage: Stage = "start"
        self.status = 0
        self.headers: Mapping[str, str] = {}

    @property
    def sent(self) -> bool:
        return self.stage in ("sent", "answered")


#: The wire of the call that is being made in this context.
current_wire: ContextVar[Wire | None] = ContextVar("celeriac_wire", default=None)


class Truncated(httpx2.ReadError):
    """The answer ended before it was complete, or does not end, or may unfold without end."""


#: First match wins.
FAULTS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ServerFingerprintMismatch, httpx2.ConnectError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx2.UnsupportedProtocol),
    (aiohttp.ClientPayloadError, Truncated),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ServerDisconnectedError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
    (TimeoutError, httpx2.ReadTimeout),
    (OSError, httpx2.ReadError),
)


def in_httpx2_words(error: Exception) -> httpx2.TransportError:
    """The same failure for the SDKs, with nothing of the request in it."""
    kind = next((to for of, to in FAULTS if isinstance(error, of)), httpx2.TransportError)
    return kind(type(error).__name__)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends what httpx2 built through one aiohttp session. A whole body is read here; an event stream is passed on."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        wire = current_wire.get() or Wire()
        failed: httpx2.TransportError
        try:
            answer = await self._session.request(
                request.method,
                str(request.url),
                headers=[(_header(name), value.decode("latin-1")) for name, value in request.headers.raw],
                data=request.content or None,
                allow_redirects=False,
                auto_decompress=False,
                trace_request_ctx=wire,
            )
            try:
                wire.status, wire.headers = answer.status, answer.headers
                wire.stage = "answered"
                if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                    # Though we asked for plain: it may unfold to any size. Of a refusal the status says enough.
                    if answer.status < 400:
                        raise Truncated("compressed")
                    answer.close()
                    plain = [(k, v) for k, v in answer.raw_headers if k.lower() not in UNFIT]
                    return httpx2.Response(answer.status, headers=plain, request=request)
                # Cookies would tie calls to each other; nothing here needs one.
                headers = [(name, value) for name, value in answer.raw_headers if name.lower() != b"set-cookie"]
                if answer.content_type == "text/event-stream":
                    return httpx2.Response(answer.status, headers=headers, stream=_Stream(answer), request=request)
                body = await _read(answer)
            except BaseException:
                answer.close()
                raise
            return httpx2.Response(answer.status, headers=headers, content=body, request=request)
        except (aiohttp.ClientError, OSError) as error:
            failed = in_httpx2_words(error)
        except httpx2.TransportError as error:
            failed = error
        # Outside the handler: aiohttp's errors carry the URL and the headers of the answer, and would be the context.
        raise failed

    async def aclose(self) -> None:
        await self._session.close()


@lru_cache(256)
def _header(name: bytes) -> istr:
    """One object for all calls: thousands in flight have the same two dozen names, and aiohttp folds each once."""
    return istr(name.decode("latin-1"))


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        size = _bounded(size + len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _bounded(size: int) -> int:
    if size > MAX_ANSWER_BYTES:
        raise Truncated(f"more than {MAX_ANSWER_BYTES} bytes")
    return size


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failed: httpx2.TransportError
        size = 0
        try:
            async for chunk in self._answer.content.iter_any():
                size = _bounded(size + len(chunk))
                yield chunk
            return
        except (aiohttp.ClientError, OSError) as error:
            failed = in_httpx2_words(error)
        raise failed

    async def aclose(self) -> None:
        self._answer.close()


def _stages() -> aiohttp.TraceConfig:
    """Tell the wire of each request where it is. "sent" is said just before the first byte is written."""
    tracing = aiohttp.TraceConfig()

    def note(stage: Stage) -> object:
        async def on(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
            wire = context.trace_request_ctx
            if isinstance(wire, Wire):
                wire.stage = stage

        return on

    tracing.on_connection_queued_start.append(note("queued"))  # type: ignore[arg-type]  # one shape for all signals
    tracing.on_connection_create_start.append(note("connecting"))  # type: ignore[arg-type]
    tracing.on_request_headers_sent.append(note("sent"))  # type: ignore[arg-type]
    return tracing


@asynccontextmanager
async def open_http(connections: int, *, connect_timeout: float = CONNECT_TIMEOUT) -> AsyncIterator[httpx2.AsyncClient]:
    """The one HTTP client of a process. connections: at most so many at once; further calls wait for one.

    It follows no redirect (a second POST is a second bill, and the key would travel with it), keeps no cookies, and
    reads neither proxies nor `.netrc` from the environment; certificates it does (SSL_CERT_FILE). It has no timeout but
    for connecting: whoever calls has a deadline for the whole call. Open and close it on the loop that uses it.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections,
            keepalive_timeout=KEEPALIVE,
            ttl_dns_cache=60,
            ssl=httpx2.create_ssl_context(),
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[_stages()],
        # Answers are small and bounded as they come; compressed ones would cost CPU and could unfold to any size.
        headers={"Accept-Encoding": "identity"},
    )
    http = httpx2.AsyncClient(
        transport=AiohttpTransport(session),
        trust_env=False,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
    )
    try:
        yield http
    finally:
        await http.aclose()
        # aiohttp closes TLS connections in the background: give the loop its turns, so that none outlives it.
        await asyncio.sleep(0)
