"""Tools of MCP servers: their names, their schemas, and what a model is told of a call.

Imported in workers alone, and only where an agent names a server: the package `mcp` costs 0.7 s and 55 MB.

What a server says of itself is not trusted. Its hints (`idempotentHint` and the like) count for nothing, its schemas
may name nothing outside of themselves, and of the worker's environment it is given what the operator names.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import mcp_types as types
import orjson
from jsonschema_rs import ValidationError as SchemaError
from mcp.client import session as of_the_package
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from celeriac.agents.agent import McpServer
from celeriac.agents.mcp_session import MOST_TOOLS, Away, BrokeOff, Connection
from celeriac.agents.tools import DESCRIPTION_LENGTH, Result, cut, late, not_valid
from celeriac.errors import Misconfigured
from celeriac.jobs.schema import MAX_SCHEMA, compiled
from celeriac.llm.model import ToolSpec
from celeriac.logs import get_logger

log = get_logger(__name__)

#: What a model's provider takes for the name of a tool.
NAME_LENGTH: Final = 64
#: The providers refuse these at the top of a schema. The arguments are checked against them all the same.
NOT_AT_THE_TOP: Final = frozenset({"allOf", "anyOf", "enum", "not", "oneOf"})
#: Characters of arguments: what is longer is neither checked nor sent.
ARGUMENTS_LENGTH: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool of a server. name: for the model. of: the name that the server knows."""

    connection: Connection = field(repr=False)
    name: str
    of: str
    description: str
    schema: Mapping[str, Any]
    idempotent: bool = False
    approval: bool = False

    @property
    def spec(self) -> ToolSpec:
        shown = {key: value for key, value in self.schema.items() if key not in NOT_AT_THE_TOP}
        return ToolSpec(self.name, self.description, {"properties": {}} | shown)

    async def call(self, arguments: str) -> Result:
        """As any tool. A call that is cut off may go on at the server, which is told."""
        server = self.connection.server
        if len(arguments) > ARGUMENTS_LENGTH:
            return Result("the arguments are too long", failed=True)
        try:
            given = from_json(arguments or "{}", allow_inf_nan=False)
        except ValueError as error:
            return not_valid([((), f"Invalid JSON: {error}")])
        if not isinstance(given, dict):
            return not_valid([((), "Input should be an object")])
        wrong = await self.connection.wrong(orjson.dumps(self.schema).decode(), to_json(given).decode())
        if wrong is not None:
            return Result(f"the arguments are not valid: {wrong.told}", failed=True)
        try:
            return _told(await self.connection.ask(self.of, given))
        except TimeoutError:
            return late(server.timeout)
        except BrokeOff:
            what = f"the MCP server {server.name} broke off in the middle of this call: nobody knows what became of it"
            return Result(what, failed=True)
        except Away:
            return Result(f"the MCP server {server.name} cannot be reached: nothing was called", failed=True)
        except MCPError as error:
            return Result(cut(f"the MCP server {server.name} refused: {error.message}"), failed=True)
        except ValidationError:
            return Result(f"the MCP server {server.name} answered with what is no result", failed=True)
        except Exception as error:
            # Without its words: they may hold what the server answered.
            log.warning("mcp_call_failed", server=server.name, tool=self.of, reason=type(error).__name__)
            return Result(f"the tool failed: {type(error).__name__}", failed=True)


def _told(made: types.CallToolResult) -> Result:
    texts, notes = [], []
    for part in made.content:
        match part:
            case types.TextContent():
                texts.append(part.text)
            case types.ImageContent() | types.AudioContent():
                notes.append(f"[{part.type}: {part.mime_type}]")
            case types.ResourceLink():
                notes.append(f"[resource: {part.uri}]")
            case types.EmbeddedResource():
                notes.append(f"[resource: {part.resource.uri}]")
    if not texts and made.structured_content is not None:
        texts.append(to_json(made.structured_content).decode())
    text = cut("\n".join([*texts, *notes]))
    return Result(text or "the tool failed", failed=True) if made.is_error else Result(text)


@asynccontextmanager
async def open_servers(servers: Sequence[McpServer]) -> AsyncIterator[dict[str, tuple[McpTool, ...]]]:
    """The tools of each server by its name; the sessions are open while inside.

    Raises Misconfigured, with one line for each mistake, for a variable that is not set, a server that cannot be
    reached or does not shake hands, and a tool that is named and not there.
    """
    # What they log holds what servers say, and was said to them. What went wrong is in our own lines.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    logging.getLogger("client").addFilter(_not_of_the_package)
    connections, mistakes = [], []
    for server in servers:
        try:
            connections.append(Connection(server))
        except Misconfigured as error:
            mistakes.append(str(error))
    try:
        found: dict[str, tuple[McpTool, ...]] = {}
        opened = await asyncio.gather(*(connection.open() for connection in connections), return_exceptions=True)
        for connection, listed in zip(connections, opened, strict=True):
            if isinstance(listed, Misconfigured):
                mistakes.append(str(listed))
            elif isinstance(listed, BaseException):
                raise listed
            else:
                try:
                    found[connection.server.name] = _tools(connection, listed)
                except Misconfigured as error:
                    mistakes.append(str(error))
        if mistakes:
            raise Misconfigured("\n".join(mistakes))
        yield found
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


def _not_of_the_package(record: logging.LogRecord) -> bool:
    # Its logger has a name that others may have too.
    return record.pathname != of_the_package.__file__


def _tools(connection: Connection, listed: Sequence[types.Tool]) -> tuple[McpTool, ...]:
    """Raises Misconfigured."""
    server, mistakes = connection.server, list[str]()
    there = {tool.name for tool in listed}
    if not there:
        mistakes.append(f"mcp.{server.name}: the server has no tools")
    for key in ("tools", "idempotent", "approval"):
        for name in sorted(getattr(server, key) - there) if there else ():
            known = ", ".join(sorted(there)[:20]) + (", ..." if len(there) > 20 else "")
            mistakes.append(f"mcp.{server.name}.{key}: the server has no tool {name!r}; it has {known}")
    found: dict[str, McpTool] = {}
    for tool in listed:
        if server.tools and tool.name not in server.tools:
            continue
        try:
            made = _tool(connection, tool)
        except ValueError as error:
            if tool.name in server.tools:
                mistakes.append(f"mcp.{server.name}.tools: {tool.name!r} cannot be used: {error}")
            else:
                log.warning("mcp_tool_left_out", server=server.name, tool=tool.name, reason=str(error))
            continue
        if (other := found.get(made.name)) is not None:
            mistakes.append(
                f"mcp.{server.name}: {other.of!r} and {made.of!r} would both be called {made.name}; "
                'use one of them, by tools = ["..."]'
            )
        found[made.name] = made
    if len(found) > MOST_TOOLS:
        mistakes.append(
            f"mcp.{server.name}: the server has more than {MOST_TOOLS} tools; "
            'name those that are wanted, by tools = ["..."]'
        )
    if mistakes:
        raise Misconfigured("\n".join(mistakes))
    return tuple(found.values())


def _tool(connection: Connection, tool: types.Tool) -> McpTool:
    """Raises ValueError, without words of the server's."""
    server, schema = connection.server, tool.input_schema
    try:
        if len(orjson.dumps([tool.description, schema])) > MAX_SCHEMA:  # as it will be sent to models
            raise ValueError(f"its description and schema have more than {MAX_SCHEMA} bytes")
        compiled(schema)
    except TypeError:
        raise ValueError("its schema cannot be sent to a model") from None
    except SchemaError as error:
        raise ValueError(f"its schema is not valid: {error.kind.name}") from None
    return McpTool(
        connection,
        re.sub(r"[^a-zA-Z0-9_-]", "_", f"{server.name}_{tool.name}")[:NAME_LENGTH],
        tool.name,
        (tool.description or tool.title or tool.name)[:DESCRIPTION_LENGTH],
        schema,
        tool.name in server.idempotent,
        tool.name in server.approval,
    )
