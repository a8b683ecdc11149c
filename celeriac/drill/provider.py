"""A provider that fails on demand: OpenAI's and Anthropic's wire formats over HTTP, a script of faults, and a bill.

    python -m celeriac.drill.provider --port 0

prints `{"port": 40123, "url": "http://127.0.0.1:40123"}` and serves until SIGTERM. Tests, the chaos drill and the
benchmark talk to it through `celeriac.drill.process.ProviderProcess`.

    POST /v1/chat/completions, /v1/responses, /v1/messages
    POST /script     a list of behaviours (`celeriac.drill.behaviour`), added to what is left; DELETE drops it
    POST /default    one behaviour for every call that nothing else is said about; DELETE drops it
    GET  /v1/chat/completions?metadata[name]=value, /v1/responses/{id}: answers that were to be stored
    GET  /bill       what was billed: totals, and with ?lines=1 one line a call; DELETE starts a new one
    GET  /state      calls seen, in flight, most in flight at once, behaviours left, looks at what is
                     stored, and how much of it is ready
    GET  /open       the calls in flight, each as a line of the bill
    GET  /requests   the last 100 requests as they came, keys cut to their last four characters
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
import uvloop
from aiohttp import web

from celeriac.drill import behaviour, wire
from celeriac.drill.behaviour import Behaviour

#: A longer request is refused.
MAX_BYTES = 64 * 1024 * 1024
#: Characters of a prompt that the bill shows.
ABOUT = 80
#: What is written at once while an answer is dripped.
DRIP_BYTES = 1
#: Answers that are kept for those who look them up.
KEPT = 10_000


@dataclass(slots=True)
class Line:
    """One line of the bill.

    written: the answer left this process completely. key: the end of the caller's key, about: the beginning of what it
    asked, at: when (seconds since 1970): whose call it was, for those who drill.
    """

    id: str
    api: wire.Api
    model: str
    input: int
    cache_read: int
    cache_write: int
    output: int
    written: bool = False
    key: str = ""
    about: str = ""
    at: float = 0.0


@dataclass(slots=True)
class Kept:
    """An answer that is stored. ready: when it is made, on the monotonic clock. line: of the bill."""

    api: wire.Api
    made: dict[str, Any]
    ready: float
    todo: Behaviour
    line: Line

    @property
    def is_ready(self) -> bool:
        return time.monotonic() >= self.ready


class Provider:
    """Answers calls and keeps the bill. One event loop, no locks."""

    def __init__(self) -> None:
        self.default = Behaviour()
        self.script: list[Behaviour] = []
        self.bill: list[Line] = []
        self.open: dict[str, Line] = {}
        self.requests: deque[dict[str, Any]] = deque(maxlen=100)
        self.seen = 0
        self.in_flight = 0
        self.peak = 0
        self.looks = 0
        #: By its own name of the answer.
        self.kept: dict[str, Kept] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        api = wire.PATHS.get(request.path)
        if request.method == "GET" and request.path.startswith("/v1/"):
            return self._look_up(request)
        if api is None or request.method != "POST":
            return await self._admin(request)
        self.seen += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        name = f"req_{self.seen:08d}"
        try:
            return await self._call(request, api, name)
        finally:
            self.in_flight -= 1
            self.open.pop(name, None)

    def next_behaviour(self, model: str) -> Behaviour:
        if (named := behaviour.of_model(model)) is not None:
            return named
        for i, scripted in enumerate(self.script):
            if scripted.model in ("", model):
                if scripted.times == 1:
                    del self.script[i]
                elif scripted.times > 1:
                    self.script[i] = replace(scripted, times=scripted.times - 1)
                return scripted
        return self.default

    async def _call(self, request: web.BaseRequest, api: wire.Api, name: str) -> web.StreamResponse:
        if self.script and self.script[0].reset == "before" and not self.script[0].model:
            self.next_behaviour("")
            return _cut_off(request)
        raw = await request.read()
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            body = orjson.loads(raw)
            model = str(body["model"])
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return _json(
                400, wire.error(api, name, Behaviour(status=400), _facts("", "", ""))[1], wire.headers(api, name)
            )
        self.requests.append({"path": request.path, "headers": _shown(request.headers), "body": raw.decode()})
        todo = self.next_behaviour(model) if key and key != "bad-key" else Behaviour(status=401)
        images = wire.images_of(api, body)
        if wire.is_blank(api, body) or not all(map(wire.takes_image, images)):
            todo = Behaviour(status=400)
        if todo.turns:
            todo = behaviour.from_json(todo.turns[min(wire.answers_in(api, body), len(todo.turns) - 1)])
        if todo.reset == "before":
            return _cut_off(request)
        prompt = wire.prompt_of(api, body)
        text = todo.text if todo.text is not None else f"You said: {prompt}"
        text, todo = wire.within_limit(api, body, text, todo)
        tokens = wire.tokens_of(len(raw), images, text, todo)
        line = Line(name, api, model, tokens.input, tokens.cache_read, tokens.cache_write, tokens.output)
        line.key, line.about, line.at = key[-4:], prompt[:ABOUT], time.time()
        self.open[name] = line
        if todo.is_billed:  # as a provider would: once it has the request, whether or not anybody waits for the answer
            self.bill.append(line)
        kept = self._keep(api, name, body, text, tokens, todo, line)
        if kept is not None and body.get("background") is True:
            return await self._in_background(request, kept, body, todo, line)
        if todo.delay or todo.jitter:
            await asyncio.sleep(todo.delay + todo.jitter * random.random())  # noqa: S311  # no secret depends on it
        if todo.hang:
            await asyncio.Event().wait()
        if todo.reset == "after":
            return _cut_off(request)

        head = wire.headers(api, name) | todo.headers
        if todo.body is not None:
            status, content = todo.status, todo.body.encode()
        elif todo.status != 200:
            status, said = wire.error(api, name, todo, _facts(model, key, prompt))
            content = orjson.dumps(said)
        else:
            status, made = 200, wire.answer(api, name, body, text, tokens, todo)
            if body.get("stream") is True:
                events = list(wire.events(api, name, made, body, todo))
                todo, content = replace(todo, content_type="text/event-stream"), b"".join(events)
                if todo.pace:
                    return await _at_pace(request, events, head, todo, line)
            else:
                content = orjson.dumps(made)
        content += b" " * todo.pad
        if todo.gzip:
            content, head = gzip.compress(content), head | {"content-encoding": "gzip"}
        if todo.cut is not None or todo.drip or todo.reset == "middle":
            await _write_badly(request, status, content, head, todo)
            line.written = todo.cut is None and todo.reset is None
            return _nothing_more(request)
        answer = web.Response(status=status, body=content, headers=head, content_type=todo.content_type)
        await answer.prepare(request)
        await answer.write_eof()
        line.written = True
        return answer

    def _keep(
        self,
        api: wire.Api,
        name: str,
        body: dict[str, Any],
        text: str,
        tokens: wire.Tokens,
        todo: Behaviour,
        line: Line,
    ) -> Kept | None:
        if body.get("store") is not True or not todo.is_billed or todo.body is not None or not todo.keeps:
            return None
        made = wire.answer(api, name, body, text, tokens, todo) | {"metadata": body.get("metadata") or {}}
        made |= {"request_id": name} if api == "chat" else {"store": True, "background": body.get("background", False)}
        ready = math.inf if todo.hang else time.monotonic() + todo.delay
        kept = self.kept[made["id"]] = Kept(api, made, ready, todo, line)
        if len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return kept

    async def _in_background(
        self, request: web.BaseRequest, kept: Kept, body: dict[str, Any], todo: Behaviour, line: Line
    ) -> web.StreamResponse:
        """Said at once that it is being made; a stream is told the rest when it is."""
        head = wire.headers(kept.api, line.id) | todo.headers
        if todo.reset == "after":
            return _cut_off(request)
        if body.get("stream") is not True:
            return _json(200, wire.in_progress(kept.made), head)
        first, *rest = wire.events(kept.api, line.id, kept.made, body, todo)
        answer = web.StreamResponse(headers={**head, "content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(first)
        if todo.reset == "middle":
            await asyncio.sleep(0.02)
            return _cut_off(request)
        await asyncio.sleep(kept.ready - time.monotonic() if kept.ready < math.inf else 3600)
        for event in rest:
            await answer.write(event)
            await asyncio.sleep(todo.pace)
        await answer.write_eof()
        line.written = True
        return answer

    def _look_up(self, request: web.BaseRequest) -> web.Response:
        """A response says how far it is; a completion is listed once it is made."""
        self.looks += 1
        named = self.kept.get(request.path.removeprefix("/v1/responses/"))
        found = [named] if named is not None and named.api == "responses" else []
        is_list = request.path == "/v1/chat/completions"
        if is_list:
            asked = {key[9:-1]: value for key, value in request.query.items() if key.startswith("metadata[")}
            found = [
                kept
                for kept in self.kept.values()
                if kept.api == "chat" and kept.is_ready and asked.items() <= kept.made["metadata"].items()
            ]
        elif not found:
            return _json(404, {"error": {"message": "Not found.", "type": "invalid_request_error", "code": None}})
        for kept in found:
            if kept.todo.looked_up != 200:
                failing, facts = replace(kept.todo, status=kept.todo.looked_up), _facts(kept.line.model, "", "")
                return _json(*wire.error(kept.api, kept.line.id, failing, facts))
            kept.line.written |= kept.is_ready
        said = [kept.made if kept.is_ready else wire.in_progress(kept.made) for kept in found]
        return _json(200, {"object": "list", "data": said, "has_more": False} if is_list else said[0])

    async def _admin(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path:
            case "POST", "/script":
                given = orjson.loads(await request.read())
                try:
                    self.script += [behaviour.from_json(one) for one in given]
                except ValueError as mistake:
                    return _json(422, {"error": str(mistake)})
            case "DELETE", "/script":
                self.script.clear()
            case "POST", "/default":
                try:
                    self.default = behaviour.from_json(orjson.loads(await request.read()))
                except ValueError as mistake:
                    return _json(422, {"error": str(mistake)})
            case "DELETE", "/default":
                self.default = Behaviour()
            case "DELETE", "/bill":
                self.bill.clear()
            case "GET", "/bill":
                return _json(200, self._bill("lines" in request.query))
            case "GET", "/open":
                return _json(200, list(self.open.values()))
            case "GET", "/requests":
                return _json(200, list(self.requests))
            case "GET", "/state":
                pass
            case _:
                return _json(404, {"error": {"message": "no such page", "type": "invalid_request_error"}})
        state = {"seen": self.seen, "in_flight": self.in_flight, "peak": self.peak, "script": len(self.script)}
        state |= {"looks": self.looks, "kept": sum(kept.is_ready for kept in self.kept.values())}
        return _json(200, state)

    def _bill(self, lines: bool) -> dict[str, Any]:
        made: dict[str, Any] = {
            "calls": len(self.bill),
            "written": sum(line.written for line in self.bill),
            "input": sum(line.input for line in self.bill),
            "cache_read": sum(line.cache_read for line in self.bill),
            "cache_write": sum(line.cache_write for line in self.bill),
            "output": sum(line.output for line in self.bill),
        }
        if lines:
            made["lines"] = self.bill  # orjson writes dataclasses as they are
        return made


def _facts(model: str, key: str, prompt: str) -> dict[str, str]:
    return {"model": model, "key": key, "prompt": prompt}


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    secret = ("authorization", "x-api-key")
    return {name.lower(): f"...{value[-4:]}" if name.lower() in secret else value for name, value in headers.items()}


def _json(status: int, said: object, head: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(said), headers=head, content_type="application/json")


def _cut_off(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _nothing_more(request: web.BaseRequest) -> web.Response:
    """The answer was written by hand, and its connection ends with it."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def _write_badly(
    request: web.BaseRequest, status: int, content: bytes, head: Mapping[str, str], todo: Behaviour
) -> None:
    """Cut short, in drops, or until the connection breaks: by hand, since a good server refuses to."""
    transport = request.transport
    if transport is None:
        return
    lines = [f"HTTP/1.1 {status} As Told", f"content-type: {todo.content_type}", f"content-length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    transport.write("\r\n".join([*lines, "", ""]).encode())
    kept = content[: todo.cut] if todo.cut is not None else content
    if todo.reset == "middle":
        transport.write(kept[: len(kept) // 2])
        await asyncio.sleep(0.02)  # an abort drops what the kernel has not sent yet
        transport.abort()
    elif todo.drip:
        for i in range(0, len(kept), DRIP_BYTES):
            transport.write(kept[i : i + DRIP_BYTES])
            await asyncio.sleep(todo.drip)
            if transport.is_closing():
                raise ConnectionResetError
    else:
        transport.write(kept)


async def _at_pace(
    request: web.BaseRequest, events: list[bytes], head: Mapping[str, str], todo: Behaviour, line: Line
) -> web.StreamResponse:
    answer = web.StreamResponse(headers={**head, "content-type": todo.content_type})
    await answer.prepare(request)
    for event in events:
        await answer.write(event)
        await asyncio.sleep(todo.pace)
    await answer.write_eof()
    line.written = True
    return answer


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """As aiohttp's own, for conversations of more than a megabyte."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BYTES)


async def serve(port: int, host: str = "127.0.0.1") -> None:
    """Serve until SIGTERM or SIGINT."""
    provider = Provider()
    # A caller that goes away cancels its call: the bill then says that the answer was not written.
    server = web.Server(provider.handle, handler_cancellation=True, request_factory=_request)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=8192).start()
    taken = runner.addresses[0][1]
    sys.stdout.write(json.dumps({"port": taken, "url": f"http://{host}:{taken}"}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()
    await runner.cleanup()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m celeriac.drill.provider", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_args(arguments)
    uvloop.run(serve(given.port, given.host))


if __name__ == "__main__":
    main()
