"""Sessions with MCP servers: one with each, shared by all jobs of a worker, and opened anew where it broke off."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from encodings import utf_8
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import httpx2
import mcp_types as types
from anyio import EndOfStream
from mcp.client import Client, ClientSession, Transport, stdio
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import SecretStr, ValidationError
from pydantic_core import to_json

from celeriac.agents.agent import McpServer
from celeriac.agents.check import TOO_MUCH, Checker, Wrong
from celeriac.errors import Misconfigured
from celeriac.logs import get_logger

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, TransportStreams

log = get_logger(__name__)

#: Tools of one server. Each is told to the model in every call, and paid for.
MOST_TOOLS: Final = 200
#: Pages of a list of tools: a server that never ends its list does not hold up the worker.
MOST_PAGES: Final = 200
#: Bytes of one answer, and of all of a list of tools.
MOST_BYTES: Final = 4 * 1024**2
#: Characters of the name of a tool, as MCP has it.
LONGEST_NAME: Final = 128
#: Seconds. A server that broke off is opened anew at once; one that does so again, after a pause that doubles.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 10.0
#: Calls of a child that may be late one after the other, with no answer of its in between, before it is ended.
MOST_LATE: Final = 3
#: Seconds after an opening from which on the next one is at once again.
STEADY: Final = 60.0
#: Seconds for all servers to end. The package kills a child after three and a half; a worker that stops has five.
CLOSING: Final = 4.8
#: Seconds for a server to hear that its session is over.
GOODBYE: Final = 2.0

#: The package's word for a session that ended. Its code for that is one that servers use too.
CLOSED: Final = "Connection closed"
# JSON-RPC errors by which our HTTP client tells what happened; no server uses these codes.
_UNREACHABLE: Final = -32951
_BROKEN: Final = -32952
_SESSION_GONE: Final = -32953
#: Less an HTTP status.
_STATUS: Final = -33000

# Seconds from SIGTERM to SIGKILL. With the package's own two, a child might outlive the worker, and for ever.
stdio.FORCE_KILL_TIMEOUT = 1.0


class BrokeOff(Exception):
    """The session ended under a call: nobody knows what became of it."""


class Away(Exception):
    """There is no session, and none could be opened: nothing was called. The message says why, to an operator."""


class _Gone(Exception):
    """The session is none any more, and nothing was called. The message says why, to an operator."""


class Connection:
    """The session with one server. It is opened anew, by the next call, where it broke off."""

    def __init__(self, server: McpServer) -> None:
        """Raises Misconfigured for a variable that is not set."""
        self.server = server
        self._secrets = {
            variable: SecretStr(os.environ.get(variable, ""))
            for variable in (*server.environment, server.token_variable)
            if variable
        }
        for variable, secret in self._secrets.items():
            key = "token_env" if variable == server.token_variable else "environment"
            if variable not in os.environ or (key == "token_env" and not secret.get_secret_value()):
                raise Misconfigured(f"mcp.{server.name}.{key}: {variable} is not set; set it for the worker")
        self._life: _Life | None = None
        self._lives: set[_Life] = set()
        self._opening: asyncio.Task[_Life] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._pause = 0.0
        self._closed = False
        # Of its own: what a server's schemas cost holds up its own calls alone.
        self._checker = Checker("mcp_check_lost")

    async def open(self) -> Sequence[types.Tool]:
        """What tools the server has. Raises Misconfigured."""
        server = self.server
        try:
            life = await self._begin()
        except Away as error:
            remedy = "correct its url or token_env, or start it"
            if server.command:
                remedy = "correct its command, or see what it wrote to stderr"
            raise Misconfigured(f"mcp.{server.name}: the server {error}; {remedy}") from None
        return life.tools

    async def wrong(self, schema: str, arguments: str) -> Wrong | None:
        """What is wrong with arguments, None for nothing. Both are JSON."""
        try:
            return await self._checker.wrong(schema, arguments)
        except OSError:
            return TOO_MUCH

    async def ask(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Raises TimeoutError, Away, BrokeOff, MCPError; ValidationError for an answer that is none."""
        seconds, again = self.server.timeout.total_seconds(), False
        opened_by = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                async with asyncio.timeout_at(opened_by):
                    life = await self._living()
            except TimeoutError:
                raise Away("is being opened anew") from None
            # Its time begins now: a server that was opened anew meanwhile is not late with it.
            task = asyncio.create_task(self._ask(life, tool, arguments))
            self._calls.add(task)
            task.add_done_callback(self._ended)
            try:
                await asyncio.wait({task}, timeout=seconds)
            finally:
                # It is not waited for: it tells the server, which may not be listening.
                given_up = task.cancel()
            if given_up:
                life.late()
                raise TimeoutError
            try:
                return task.result()
            except _Gone as error:
                # No call was made: it may be asked once more.
                if again:
                    raise Away(str(error)) from None
                again = True

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()

    async def _ask(self, life: _Life, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        if not life.open:
            raise _Gone("broke off before the call")
        params = types.CallToolRequestParams(name=tool, arguments=arguments)
        try:
            with life.used() as session:
                return await session.send_request(types.CallToolRequest(params=params), types.CallToolResult)
        except MCPError as error:
            if error.code == _SESSION_GONE:
                # The server has forgotten us.
                life.retire()
                raise _Gone(error.message) from None
            if error.code == _UNREACHABLE:
                raise Away(error.message) from None
            if error.code == types.CONNECTION_CLOSED and (life.over.is_set() or error.message == CLOSED):
                life.over.set()
                raise BrokeOff from None
            if error.code == _BROKEN or (error.code == types.CONNECTION_CLOSED and _is_broken_stream(error)):
                raise BrokeOff from None
            raise

    async def _living(self) -> _Life:
        """The session, opened anew if need be: by one caller, while the others wait with it. Raises Away."""
        if self._closed:
            raise Away("is closed")
        if self._life is not None and self._life.open:
            return self._life
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._begin_again())
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._opening)

    async def _begin_again(self) -> _Life:
        before = self._life
        if before is not None and time.monotonic() - before.began > STEADY:
            self._pause = 0.0
        if before is not None and not before.retired:
            await asyncio.wait({before.task})
        await asyncio.sleep(self._pause)
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        try:
            return await self._begin()
        except Away as error:
            log.warning("mcp_server_away", server=self.server.name, reason=str(error))
            raise

    async def _begin(self) -> _Life:
        if self._closed:
            raise Away("is closed")
        self._life = life = _Life(self.server, self._secrets)
        self._lives.add(life)
        life.task.add_done_callback(lambda _: self._lives.discard(life))
        await asyncio.wait({life.opened})
        life.opened.result()
        log.info("mcp_server_opened", server=self.server.name, seconds=round(time.monotonic() - life.began, 3))
        return life

    async def close(self) -> None:
        """The session ends, and a child has ended then, or was killed."""
        self._closed = True
        ending = set(self._calls)
        if self._opening is not None:
            ending.add(self._opening)
        for task in ending:
            task.cancel()
        for life in self._lives:
            life.leave()
            ending.add(life.task)
        if ending and (await asyncio.wait(ending, timeout=CLOSING))[1]:
            # Left to itself: cancelled, the package would not come to kill a child.
            log.warning("mcp_server_not_closed", server=self.server.name)
        await self._checker.close()


def _is_broken_stream(error: MCPError) -> bool:
    # The package's own words for one answer that broke off; the session goes on.
    return error.message.startswith("SSE stream ")


class _Life:
    """One session from its beginning to its end, in a task of its own: who enters it has to leave it.

    opened: done once it may be used; fails with Away. over: set when it ended, and to end it. retired: it is used for
    no further call, and ends with the last that is under way.
    """

    def __init__(self, server: McpServer, secrets: Mapping[str, SecretStr]) -> None:
        self.over = asyncio.Event()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tools: Sequence[types.Tool] = ()
        self.began = time.monotonic()
        self.retired = False
        self._left = False
        self._users = 0
        self._late = 0
        self._server = server
        self._secrets = secrets
        self._client: Client | None = None
        self.task = asyncio.create_task(self._live(), name=f"mcp-{server.name}")

    @property
    def open(self) -> bool:
        return self.opened.done() and not self.over.is_set() and not self.retired

    @contextmanager
    def used(self) -> Iterator[ClientSession]:
        """The session, for one call."""
        if self._client is None:
            raise RuntimeError("the session is not open")
        self._users += 1
        try:
            yield self._client.session
        finally:
            self._users -= 1
            if self.retired and not self._users:
                self.leave()

    def retire(self) -> None:
        self.retired = True
        if not self._users:
            self.leave()

    def late(self) -> None:
        """A call timed out. A child that hangs would keep what every one of them was given."""
        self._late += 1
        if self._server.command and self._late >= MOST_LATE:
            self.over.set()

    def answered(self) -> None:
        self._late = 0

    def leave(self) -> None:
        """End it, for good."""
        self._left = True
        self.over.set()
        if not self.opened.done():
            self.task.cancel()

    async def _live(self) -> None:
        seconds = self._server.start_timeout.total_seconds()
        why = "was left before it shook hands"
        try:
            async with asyncio.timeout(seconds) as limit, AsyncExitStack() as open_:
                transport = await self._transport(open_)
                self._client = await open_.enter_async_context(
                    Client(_watched(transport, self, self._server.name), cache=None)
                )
                self.tools = await _listed(self._client, self._server)
                limit.reschedule(None)
                self.opened.set_result(None)
                await self.over.wait()
        except Exception as error:
            why = f"did not shake hands within {seconds:g} s" if limit.expired() else _why(error)
        finally:
            self.over.set()
            if not self.opened.done():
                self.opened.set_exception(Away(why))
                self.opened.exception()  # whoever waited may be gone
            elif not self._left:
                lasted = round(time.monotonic() - self.began, 1)
                log.warning("mcp_server_broke_off", server=self._server.name, seconds=lasted)

    async def _transport(self, open_: AsyncExitStack) -> Transport:
        server, secrets = self._server, self._secrets
        if server.url:
            http = await open_.enter_async_context(_Http(server, secrets.get(server.token_variable)))
            return streamable_http_client(server.url, http_client=http, max_sse_event_size=MOST_BYTES)
        given = {variable: secret.get_secret_value() for variable, secret in secrets.items()}
        command, *args = server.command
        child = StdioServerParameters(
            command=command, args=args, env=given, encoding=_LINES, encoding_error_handler="replace"
        )
        return stdio_client(child, errlog=_stderr())


def _stderr() -> TextIO:
    # Not sys.stderr, which somebody may have replaced by what is no file.
    return sys.__stderr__ if sys.__stderr__ is not None else open(os.devnull, "w")  # once a process


async def _listed(client: Client, server: McpServer) -> list[types.Tool]:
    """All tools that the server tells of, up to the bound and one. Raises Away for a list without end."""
    tools: list[types.Tool] = []
    size, cursor = 0, None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        if (size := size + len(to_json(page.tools))) > MOST_BYTES:
            raise Away(f"has a list of tools of more than {MOST_BYTES} bytes")
        tools += page.tools
        cursor = page.next_cursor
        wanted = [tool for tool in tools if not server.tools or tool.name in server.tools]
        if cursor is None or len(wanted) > MOST_TOOLS:
            return tools
    raise Away(f"does not end its list of tools within {MOST_PAGES} pages")


def _why(error: BaseException) -> str:
    """For an operator, without words of the server's: they may hold what it was sent."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case Away():
            return str(error)
        case MCPError() if error.code == types.CONNECTION_CLOSED:
            return "ended before it shook hands"
        case MCPError() if error.code == _UNREACHABLE:
            return "cannot be reached"
        case MCPError() if error.code == _BROKEN:
            return "broke off"
        case MCPError() if _STATUS - 1000 < error.code < _STATUS:
            return f"refused: {_status(_STATUS - error.code)}"
        case MCPError():
            return f"refused: error {str(error.code)[:20]}"
        case OSError():
            return f"cannot be started: {error.strerror}"
        case ValidationError():
            return "answered with what is no answer"
    return f"cannot be spoken to: {type(error).__name__}"


#: A notification that no server sends, and the name of our encoding.
_TOO_LONG: Final = "notifications/celeriac/too_long"
_LINES: Final = "celeriac_lines"


class _Lines(utf_8.IncrementalDecoder):
    """Of UTF-8. The package keeps a line until it ends, however long; in place of one that is too long, and of all that
    follows, it is given a notification.
    """

    _length = 0

    def decode(self, data: Any, final: bool = False) -> str:
        if self._length > MOST_BYTES:
            return ""
        given = bytes(data)
        self._length += len(given) if (end := given.find(b"\n")) < 0 else end
        if self._length > MOST_BYTES:
            return f'\n{{"jsonrpc":"2.0","method":"{_TOO_LONG}"}}\n'
        if end >= 0:
            self._length = len(given) - given.rfind(b"\n") - 1
        return super().decode(given, final)


def _codec(name: str) -> codecs.CodecInfo | None:
    utf8 = codecs.lookup("utf-8")
    return codecs.CodecInfo(utf8.encode, utf8.decode, incrementaldecoder=_Lines) if name == _LINES else None


codecs.register(_codec)


@asynccontextmanager
async def _watched(transport: Transport, life: _Life, server: str) -> AsyncIterator[TransportStreams]:
    """A transport that tells when nothing more will come from it."""
    async with transport as (read, write):
        yield _Watched(read, life, server), write


class _Watched:
    """What comes from a server, without tools whose schema is not of an object: for one of them the package would
    refuse the whole list.
    """

    def __init__(self, inner: ReadStream[SessionMessage | Exception], life: _Life, server: str) -> None:
        self._inner = inner
        self._life = life
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _sifted(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, types.JSONRPCNotification) and message.method == _TOO_LONG:
            log.warning("mcp_answer_too_long", server=self._server)
            raise EndOfStream
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._life.answered()
        if isinstance(message, types.JSONRPCResponse) and isinstance(listed := message.result.get("tools"), list):
            message.result["tools"] = [tool for tool in listed if self._takes_an_object(tool)]
        return item

    def _takes_an_object(self, tool: object) -> bool:
        match tool:
            case {"name": str(name)} if len(name) > LONGEST_NAME:
                reason = f"its name has more than {LONGEST_NAME} characters"
            case {"inputSchema": {"type": "object"}}:
                return True
            case {"name": str(name)}:
                reason = "its schema is not of an object"
            case _:
                return False
        log.warning("mcp_tool_left_out", server=self._server, tool=name[:LONGEST_NAME], reason=reason)
        return False

    async def receive(self) -> SessionMessage | Exception:
        try:
            return self._sifted(await self._inner.receive())
        except BaseException:
            self._life.over.set()
            raise

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _Watched:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Http(httpx2.AsyncClient):
    """What fails is an answer, of the one call that it fails: as an error it would end the session, and all others."""

    def __init__(self, server: McpServer, token: SecretStr | None) -> None:
        # An answer that comes later has nobody who waits for it. Idle connections go before most servers end them.
        seconds = max(server.timeout, server.start_timeout).total_seconds() + 5
        limits = httpx2.Limits(max_connections=1000, keepalive_expiry=3)
        super().__init__(
            auth=_Bearer(token) if token is not None else None,
            headers={"Accept-Encoding": "identity"},
            timeout=seconds,
            limits=limits,
        )

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(GOODBYE if request.method == "DELETE" else None):
                response = await super().send(request, **options | {"stream": True})
                # Unpacked, a few bytes may be gigabytes. The request asks for none that are packed.
                response.headers.pop("content-encoding", None)
                if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                    return response
                response.stream = _Bounded(cast(httpx2.AsyncByteStream, response.stream))
                await response.aread()
        except _TooLong:
            said = f"its answer has more than {MOST_BYTES} bytes"
            return _as_error(request, 502, types.INTERNAL_ERROR, said)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return _as_error(request, 502, _UNREACHABLE, type(error).__name__)
        except httpx2.TransportError as error:
            return _as_error(request, 502, _BROKEN, type(error).__name__)
        if request.method != "POST" or response.status_code < 400:
            return response
        if response.status_code == 404 and MCP_SESSION_ID in request.headers:
            return _as_error(request, 404, _SESSION_GONE, "the session is gone")
        if b'"jsonrpc"' in response.content:
            return response
        status = response.status_code
        return _as_error(request, status, _STATUS - status, _status(status))


class _TooLong(Exception):
    pass


class _Bounded(httpx2.AsyncByteStream):
    """What a response still has to say."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async with aclosing(self):
            async for part in self._inner:
                if (size := size + len(part)) > MOST_BYTES:
                    raise _TooLong
                yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def _status(status: int) -> str:
    return f"HTTP {status} {httpx2.codes.get_reason_phrase(status)}".strip()


def _as_error(request: httpx2.Request, status: int, code: int, message: str) -> httpx2.Response:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return httpx2.Response(status, request=request, json=error)


class _Bearer(httpx2.Auth):
    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        yield request
