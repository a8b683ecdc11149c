"""An MCP server for tests, with the official package: `python mcp_server.py [--http PORT] [...]`. By path: a child of a
worker is not given our PYTHONPATH."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from starlette.types import ASGIApp, Receive, Scope, Send

read = argparse.ArgumentParser()
read.add_argument("--http", type=int, help="a port; without, it speaks over stdin and stdout")
read.add_argument("--token", help="refuse who does not send it")
read.add_argument("--old", action="store_true", help="speak as servers did before 2026, with sessions")
read.add_argument("--log", type=Path, help="note what is called here")
read.add_argument("--starts", type=Path, help="note each start here, with the process id")
read.add_argument("--names", nargs="*", default=[], help="further tools, that do nothing")
read.add_argument("--page", type=int, default=1000, help="tools in a page")
read.add_argument("--none", action="store_true", help="have no tools")
read.add_argument("--broken", action="store_true", help="have tools whose schemas are none")
read.add_argument("--heavy", action="store_true", help="have tools whose schemas are work to check, or unusual")
read.add_argument("--elsewhere", help="have a tool whose schema is there")
read.add_argument("--noise", help="print this first")
read.add_argument("--silent", action="store_true", help="say nothing at all")
read.add_argument("--leave", action="store_true", help="end at once")
read.add_argument("--stubborn", action="store_true", help="go on when told to end")
read.add_argument("--loose", action="store_true", help="take the protocol lightly, and speak as before 2026")
options = read.parse_args()


def tool(name: str, properties: dict[str, Any] | None = None, **more: Any) -> types.Tool:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "required": list(properties or {})}
    if properties:
        schema["properties"] = properties
    return types.Tool(name=name, description=f"Does {name}.", input_schema=schema | more)


TOOLS = [
    tool("add", {"a": {"type": "integer"}, "b": {"type": "integer"}}),
    tool("say", {"what": {"enum": ["texts", "image", "structured", "wrong", "long", "refuse"]}}),
    tool("environment"),
    tool("headers"),
    tool("hang", {"note": {"type": "string"}}),
    tool("die"),
    tool("who"),
]
if options.none:
    TOOLS = []
if options.broken:
    TOOLS += [
        tool("nonsense", {"a": {"type": "nonsense"}}),
        tool("huge", {"a": {"type": "integer", "maximum": 2**70}}),
        tool("either", oneOf=[{"required": ["a"]}, {"required": ["b"]}], additionalProperties=True),
    ]
if options.heavy:
    doubled: dict[str, Any] = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}
    TOOLS += [
        tool("pattern", {"a": {"type": "string", "pattern": "^(a+)+$"}}),
        tool("unique", {"a": {"type": "array", "uniqueItems": True, "format": "of-the-shop"}}),
        tool("doubles", {"a": {"$ref": "#/$defs/0"}}, **{"$defs": doubled | {"60": True}}),
        tool("old", {"a": {"items": [{"type": "integer"}]}}, **{"$schema": "http://json-schema.org/draft-07/schema#"}),
        tool("wordy").model_copy(update={"description": "w" * 2000}),
        tool("vast").model_copy(update={"description": "w" * 70_000}),
    ]
if options.elsewhere:
    TOOLS += [tool("elsewhere", {"a": {"$ref": options.elsewhere}})]
TOOLS += [tool(name) for name in options.names]
TOOLS[0:1] = [
    one.model_copy(update={"annotations": types.ToolAnnotations(idempotent_hint=True, read_only_hint=True)})
    for one in TOOLS[0:1]
]
LONG = "x" * 60_000


def note(line: str) -> None:
    if options.log:
        with options.log.open("a") as log:
            log.write(line + "\n")


def text(*texts: str, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=said) for said in texts], **more)


async def list_tools(_: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    first = int(params.cursor) if params is not None and params.cursor else 0
    last = first + options.page
    return types.ListToolsResult(tools=TOOLS[first:last], next_cursor=str(last) if last < len(TOOLS) else None)


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    given = params.arguments or {}
    note(f"{params.name} {json.dumps(given)}")
    match params.name:
        case "add":
            return text(str(given["a"] + given["b"]))
        case "say":
            return said(given["what"])
        case "environment":
            return text(json.dumps(dict(os.environ)))
        case "headers":
            return text(json.dumps(dict(ctx.request.headers)))
        case "hang":
            try:
                await asyncio.sleep(600)
            finally:
                note("hang was cancelled")
        case "nap":
            await asyncio.sleep(6.5)
        case "die":
            os._exit(3)
        case "who":
            return text(str(os.getpid()))
    return text("done")


def said(what: str) -> types.CallToolResult:
    image = types.ImageContent(type="image", data="aGk=", mime_type="image/png")
    link = types.ResourceLink(type="resource_link", name="plan", uri="file:///plan.txt")
    match what:
        case "texts":
            both = text("one", "two", structured_content={"left": "out"})
            return both.model_copy(update={"content": [*both.content, image, link]})
        case "image":
            return types.CallToolResult(content=[image])
        case "structured":
            return types.CallToolResult(content=[], structured_content={"town": "Lyon", "id": 2**70})
        case "wrong":
            return text("the shop is closed on Sundays", is_error=True)
        case "long":
            return text(LONG)
    raise ValueError("told to refuse")


class Door:
    """Before the server: who has no token is refused, and an old server does not know what new ones are asked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        status = 0
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if options.token and headers.get(b"authorization") != f"Bearer {options.token}".encode():
            status = 401
        elif options.old and headers.get(b"mcp-method") == b"server/discover":
            status = 400
        if not status:
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": status, "headers": []})
        return await send({"type": "http.response.body", "body": b"no"})


async def over_stdio(server: Server[Any]) -> None:
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def loosely() -> None:
    """Without the package, which would not say what is said here."""
    tools = [
        {"name": "add", "inputSchema": {"type": "object"}},
        {"name": "text", "inputSchema": {"type": "string"}},
        {"name": "none", "inputSchema": {}},
        {"name": "odd", "inputSchema": {"type": "object"}},
        {"name": "flood", "inputSchema": {"type": "object"}},
    ]
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "loose", "version": "1"},
        },
        "tools/list": {"tools": tools},
        "add": {"content": [{"type": "text", "text": "2"}]},
        "odd": {"content": "2", "password": "hunter2"},
    }
    for line in sys.stdin:
        asked = json.loads(line)
        result = results.get(asked.get("params", {}).get("name", asked["method"]))
        answer = {"result": result} if result else {"error": {"code": -32601, "message": "no such method"}}
        if asked.get("params", {}).get("name") == "flood":
            sys.stdout.buffer.write(b"x" * 5_000_000)
            sys.stdout.buffer.flush()
        elif "id" in asked:
            sys.stdout.buffer.write(b"caf\xe9\n")
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)  # noqa: T201  # as above


def main() -> None:
    if options.starts:
        with options.starts.open("a") as starts:
            starts.write(f"{os.getpid()}\n")
    if options.leave:
        sys.exit(3)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.noise:
        print(options.noise, flush=True)  # noqa: T201  # it is what is tested
    if options.loose:
        loosely()
    elif not options.silent:
        server: Server[Any] = Server("test", on_list_tools=list_tools, on_call_tool=call_tool)
        if options.http:
            app = Door(server.streamable_http_app())
            uvicorn.run(app, host="127.0.0.1", port=options.http, log_level="warning", timeout_graceful_shutdown=1)
        else:
            anyio.run(over_stdio, server)
    while options.silent or options.stubborn:
        time.sleep(1)


main()
