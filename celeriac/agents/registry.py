"""The agents of a deployment, read from a TOML file at start. A wrong file is refused with the line and the reason."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from celeriac.agents.agent import Agent, McpServer
from celeriac.errors import Invalid, Misconfigured, NotFound
from celeriac.gate.lanes import Caps
from celeriac.jobs.request import Dollars, OutputSchema
from celeriac.llm.limits import MOST
from celeriac.llm.model import BUILT_IN, Endpoint, Lane, Said
from celeriac.settings import MAX_JOB_USD, NAME, BaseUrl, Name, is_reserved

PROVIDER: Final = r"[a-z][a-z0-9_-]{0,63}"
#: Characters of the description of an agent that others ask: as that of a tool, with what stands before it.
MOST_DESCRIPTION: Final = 900
#: The highest temperature that Anthropic's models take.
MOST_TEMPERATURE: Final = 1
LANE: Final = rf"^{PROVIDER}/\S+$"
#: Names that are built in are not given anew.
OWN_PROVIDER: Final = rf"(?!(openai|anthropic|scripted)$){PROVIDER}"
#: A function in a module that the worker can import.
TOOL: Final = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
#: Its tools are called after it, and a tool's name has 64 characters.
MCP: Final = r"[a-z][a-z0-9_-]{0,31}"
VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
TABLES: Final = frozenset({"agents", "lanes", "mcp", "providers"})
KNOWN_TABLES: Final = '[agents.assistant], [lanes."openai/gpt-5.4"], [mcp.shop], [providers.local]'
NO_NAME: Final = "no name for an agent; use letters, digits, . _ -"
NO_PROVIDER: Final = "no name for a provider of yours; use lower-case letters, digits, _ -, and none that is built in"
NO_MCP: Final = "no name for an MCP server; use lower-case letters, digits, _ -, at most 32"
NO_LANE: Final = 'not a lane; write provider/model, as "openai/gpt-5.4" or "anthropic/claude-haiku-5-5"'
NO_VARIABLE: Final = "not the name of an environment variable"
#: What to say of a text that does not look as its key wants it.
WANTED: Final = {
    "lanes": NO_LANE,
    "tools": "not a tool; write module:function",
    "api_key_env": NO_VARIABLE,
    "environment": NO_VARIABLE,
    "token_env": NO_VARIABLE,
}
T = TypeVar("T", bound=BaseModel)
LaneText = Annotated[str, StringConstraints(pattern=LANE)]
Text = Annotated[str, StringConstraints(min_length=1)]
Variable = Annotated[str, StringConstraints(pattern=VARIABLE)]


def _of_jobs(queue: str) -> str:
    if is_reserved(queue):
        raise ValueError("this queue is Celeriac's own; name another")
    return queue


def _either(path: str, info: ValidationInfo) -> str:
    if not re.fullmatch(TOOL, path):
        raise ValueError("write module:Class, of a pydantic model that workers can import")
    if info.data.get("output_schema") is not None:
        raise ValueError("output_schema says it already; leave one of the two out")
    return path


class _AgentTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    description: str
    instructions: str = ""
    lanes: Annotated[list[LaneText], Field(min_length=1)]
    max_output_tokens: int = Field(1024, gt=0, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    timeout_seconds: float = Field(120, gt=0, le=3600)
    queue: Annotated[Name, AfterValidator(_of_jobs)] = "celeriac"
    api: Literal["chat", "responses"] = "chat"
    tries_per_lane: int = Field(2, ge=1, le=10)
    patience_seconds: float = Field(0, ge=0, le=86_400)
    too_long: Literal["fail", "trim"] = "fail"
    stored: bool = False
    refused: Literal["fail", "next"] = "fail"
    tools: list[Annotated[str, StringConstraints(pattern=TOOL)]] = []
    mcp: list[Text] = []
    max_steps: int = Field(32, ge=1, le=1000)
    max_tokens: int | None = Field(None, gt=0, le=10**12)
    max_cost_usd: Dollars | None = None
    max_seconds: float | None = Field(None, gt=0, le=366 * 86_400)
    approval_seconds: float = Field(86_400, gt=0, le=30 * 86_400)
    asks: list[str] = []
    hands_over_to: list[str] = []
    split_over: int | None = Field(None, ge=1000, le=1_000_000)
    split_to: str | None = None
    output_schema: OutputSchema | None = None
    output_type: Annotated[str, AfterValidator(_either)] | None = None
    follow_ups: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] = []
    max_running: int | None = Field(None, gt=0)
    max_retries: int = Field(3, ge=0, le=100)
    retry_backoff_seconds: float = Field(1, gt=0, le=86_400)
    retry_backoff_max_seconds: float = Field(60, gt=0, le=86_400)


class _LaneTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: int = Field(0, gt=0, le=MOST)
    tokens_per_minute: int = Field(0, gt=0, le=MOST)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("it allows nothing: write requests_per_minute, tokens_per_minute, or both")
        return self


class _ProviderTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    api: Literal["openai", "anthropic"] = "openai"
    base_url: BaseUrl
    api_key_env: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    stream_options: bool = True
    stores: bool = False


class _McpTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    command: Annotated[list[Text], Field(min_length=1)] | None = None
    url: BaseUrl | None = None
    environment: list[Variable] = []
    token_env: Variable | None = None
    tools: Annotated[list[Text], Field(min_length=1)] | None = None
    idempotent: list[Text] = []
    approval: list[Text] = []
    timeout_seconds: float = Field(30, gt=0, le=3600)
    start_timeout_seconds: float = Field(30, gt=0, le=3600)


class Registry:
    """Agents by name. caps: what the deployment allows its lanes. providers, mcp: those of its own, by name."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        caps: Mapping[Lane, Caps] | None = None,
        providers: Mapping[str, Endpoint] | None = None,
        mcp: Mapping[str, McpServer] | None = None,
    ) -> None:
        self._agents = dict(sorted(agents.items()))
        self.caps = dict(caps or {})
        self.providers = dict(providers or {})
        self.mcp = dict(mcp or {})

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    def __getitem__(self, name: str) -> Agent:
        """Raises NotFound, naming the agents that there are."""
        try:
            return self._agents[name]
        except KeyError:
            raise NotFound(
                f"there is no agent {name!r}", field="agent", remedy=f"use one of: {', '.join(self._agents)}"
            ) from None

    def asking(self, providers: Collection[str]) -> Registry:
        """The same agents, with those of their lanes that are of these providers."""
        agents = {
            agent.name: replace(agent, lanes=tuple(lane for lane in agent.lanes if lane.provider in providers))
            for agent in self
        }
        return Registry(agents, self.caps, self.providers, self.mcp)

    def check_model(self, agent: Agent, model: str | None) -> None:
        """Raises Invalid for a model of a provider that this deployment does not have, or that the agent cannot ask."""
        if model is None:
            return
        known = (*BUILT_IN, *self.providers)
        if lane(model).provider not in known:
            raise Invalid(
                "there is no such provider",
                field="model",
                remedy=f"write provider/model, with one of: {', '.join(known)}",
            )
        if _is_too_warm(agent) and _speaks_anthropic(lane(model), self.providers):
            raise Invalid(
                f"it takes a temperature of at most {MOST_TEMPERATURE}, and {agent.name} has {agent.temperature:g}",
                field="model",
                remedy="name a model that speaks OpenAI's API, or use another agent",
            )

    @staticmethod
    def check_input(agent: Agent, input: Sequence[Said]) -> None:
        """Raises Invalid for a question that its agent could not even split."""
        if agent.longest is not None and len(input[-1][1]) > agent.longest:
            raise Invalid(
                f"the last message has {len(input[-1][1])} characters, {agent.name} takes at most {agent.longest}",
                field="input",
                remedy="send less, or in several jobs",
            )


def _is_too_warm(agent: Agent) -> bool:
    return agent.temperature is not None and agent.temperature > MOST_TEMPERATURE


def _speaks_anthropic(of: Lane, providers: Mapping[str, Endpoint]) -> bool:
    own = providers.get(of.provider)
    return own.api == "anthropic" if own else of.provider == "anthropic"


def lane(text: str) -> Lane:
    """ "openai/gpt-5.4" as a lane."""
    provider, _, model = text.partition("/")
    return Lane(provider, model)


def read_agents(file: Path, max_cost: Decimal = MAX_JOB_USD) -> Registry:
    """max_cost: dollars that a job may cost where its agent says nothing of that.

    Raises Misconfigured with `file:line: what is wrong`, one line a mistake.
    """
    try:
        text = file.read_text()
        tables = tomllib.loads(text)
    except OSError as error:
        raise Misconfigured(
            f"{file}: {error.strerror}; CELERIAC_AGENTS_FILE names the agents of this deployment"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise Misconfigured(f"{file}:{line[1] if line else 1}: {error}") from error
    return _Reading(file, text, tables, max_cost).registry()


class _Reading:
    """Of one file: everything that is wrong with it is said at once."""

    def __init__(self, file: Path, text: str, tables: Mapping[str, Any], max_cost: Decimal) -> None:
        self._file = file
        self._max_cost = max_cost
        self._text = text
        self._tables = tables
        self._mistakes: list[str] = []

    def registry(self) -> Registry:
        for key in sorted(self._tables.keys() - TABLES):
            self._wrong(f"there is no table [{key}]; there are {KNOWN_TABLES}", key)
        if not self._tables.get("agents"):
            self._mistakes.append(f"{self._file}:1: names no agent; begin with [agents.assistant]")
        providers = {
            name: Endpoint(table.api, table.base_url, table.api_key_env, table.stream_options, table.stores)
            for name, table in self._section("providers", _ProviderTable, OWN_PROVIDER, NO_PROVIDER)
        }
        caps = {
            lane(name): Caps(table.requests_per_minute, table.tokens_per_minute)
            for name, table in self._section("lanes", _LaneTable, LANE, NO_LANE)
        }
        mcp = {name: self._mcp(name, table) for name, table in self._section("mcp", _McpTable, MCP, NO_MCP)}
        agents = {
            name: _agent(name, table, self._max_cost)
            for name, table in self._section("agents", _AgentTable, NAME, NO_NAME)
        }
        known = (*BUILT_IN, *providers)
        for of in caps:
            if of.provider not in {*known, "scripted"}:
                self._wrong(
                    f"lanes.{of}: there is no provider {of.provider!r}; use one of: {', '.join(known)}", str(of)
                )
        for agent in agents.values():
            for provider in sorted({lane.provider for lane in agent.lanes} - {*known, "scripted"}):
                self._wrong(
                    f"agents.{agent.name}.lanes: there is no provider {provider!r}; "
                    f"add [providers.{provider}], or use one of: {', '.join(known)}",
                    agent.name,
                    "lanes",
                )
            for server in sorted(set(agent.mcp) - mcp.keys()):
                self._wrong(
                    f"agents.{agent.name}.mcp: there is no MCP server {server!r}; add [mcp.{server}]"
                    + (f", or use one of: {', '.join(mcp)}" if mcp else ""),
                    agent.name,
                    "mcp",
                    section="agents",
                )
            known_agents = ", ".join(sorted(agents))
            for key, others in (("asks", agent.asks), ("hands_over_to", agent.hands_over_to)):
                for other in sorted({*others} - agents.keys()):
                    what = f"agents.{agent.name}.{key}: there is no agent {other!r}; there are {known_agents}"
                    self._wrong(what, agent.name, key)
            asked_by = [other.name for other in agents.values() if agent.name in (*other.asks, *other.hands_over_to)]
            if asked_by and len(agent.description) > MOST_DESCRIPTION:
                self._wrong(
                    f"agents.{agent.name}.description: it has {len(agent.description)} characters; since "
                    f"{asked_by[0]} asks it, at most {MOST_DESCRIPTION}: say less, or say it in the instructions",
                    agent.name,
                    "description",
                )
            for of in agent.lanes if _is_too_warm(agent) else ():
                if _speaks_anthropic(of, providers):
                    self._wrong(
                        f"agents.{agent.name}.temperature: {of} takes at most {MOST_TEMPERATURE}; "
                        "lower it, or leave that lane out",
                        agent.name,
                        "temperature",
                    )
            self._check_split(agent, agents)
        if self._mistakes:
            raise Misconfigured("\n".join(self._mistakes))
        return Registry(agents, caps, providers, mcp)

    def _check_split(self, agent: Agent, agents: Mapping[str, Agent]) -> None:
        if (agent.split_over is None) == bool(agent.split_to):
            key, other = ("split_over", "split_to") if agent.split_over else ("split_to", "split_over")
            self._wrong(f"agents.{agent.name}.{key}: it says nothing without {other}; add that", agent.name, key)
            return
        way = [agent.name]
        while to := agents[way[-1]].split_to:
            if to not in agents:
                if way == [agent.name]:
                    what = f"there is no agent {to!r}; there are {', '.join(sorted(agents))}"
                    self._wrong(f"agents.{agent.name}.split_to: {what}", agent.name, "split_to")
                return
            if to in way:
                what = f"its parts would be split in a circle: {' -> '.join([*way, to])}"
                self._wrong(f"agents.{agent.name}.split_to: {what}", agent.name, "split_to")
                return
            way.append(to)

    def _mcp(self, name: str, table: _McpTable) -> McpServer:
        def wrong(key: str, what: str) -> None:
            self._wrong(f"mcp.{name}{key and '.'}{key}: {what}", name, key, section="mcp")

        if (table.command is None) == (table.url is None):
            wrong("", 'give it either a command, as ["uvx", "some-server"], or a url')
        elif table.url is None and table.token_env is not None:
            wrong("token_env", "a token is sent to a url; hand a command its variables by environment")
        elif table.command is None and table.environment:
            wrong("environment", "variables are handed to a command; a url is sent the token that token_env names")
        for key, named in (("idempotent", table.idempotent), ("approval", table.approval)):
            for tool in named if table.tools is not None else ():
                if tool not in (table.tools or ()):
                    wrong(key, f"{tool!r} is not one of its tools")
        return McpServer(
            name=name,
            command=tuple(table.command or ()),
            url=table.url or "",
            environment=tuple(table.environment),
            token_variable=table.token_env or "",
            tools=frozenset(table.tools or ()),
            idempotent=frozenset(table.idempotent),
            approval=frozenset(table.approval),
            timeout=timedelta(seconds=table.timeout_seconds),
            start_timeout=timedelta(seconds=table.start_timeout_seconds),
        )

    def _section(self, section: str, kind: type[T], pattern: str, otherwise: str) -> Iterator[tuple[str, T]]:
        """Its tables by name. otherwise: what to say of a name that is none."""
        tables = self._tables.get(section, {})
        if not isinstance(tables, dict):
            self._wrong(f"{section} are tables; write them as one of {KNOWN_TABLES}", section)
            return
        for name, table in tables.items():
            if not re.fullmatch(pattern, name):
                self._wrong(f"{name!r} is {otherwise}", name)
                continue
            try:
                yield name, kind.model_validate(table)
            except ValidationError as error:
                for wrong in error.errors(include_url=False):
                    key = str(wrong["loc"][0]) if wrong["loc"] else ""
                    path = ".".join(str(part) for part in (section, name, *wrong["loc"]))
                    self._wrong(f"{path}: {_why(kind, key, wrong['type'], wrong['msg'])}", name, key, section=section)

    def _wrong(self, what: str, table: str, key: str = "", *, section: str = "") -> None:
        self._mistakes.append(f"{self._file}:{_line(self._text, table, key, section)}: {what}")


def _agent(name: str, table: _AgentTable, max_cost: Decimal) -> Agent:
    return Agent(
        name=name,
        description=table.description,
        instructions=table.instructions.strip(),
        lanes=tuple(lane(text) for text in table.lanes),
        max_output_tokens=table.max_output_tokens,
        temperature=table.temperature,
        timeout=timedelta(seconds=table.timeout_seconds),
        queue=table.queue,
        api=table.api,
        tries_per_lane=table.tries_per_lane,
        patience=timedelta(seconds=table.patience_seconds),
        too_long=table.too_long,
        stored=table.stored,
        refused=table.refused,
        tools=tuple(table.tools),
        mcp=tuple(dict.fromkeys(table.mcp)),
        max_steps=table.max_steps,
        max_tokens=table.max_tokens,
        max_cost=max_cost if table.max_cost_usd is None else Decimal(table.max_cost_usd),
        max_time=None if table.max_seconds is None else timedelta(seconds=table.max_seconds),
        approval_time=timedelta(seconds=table.approval_seconds),
        asks=tuple(table.asks),
        hands_over_to=tuple(table.hands_over_to),
        split_over=table.split_over,
        split_to=table.split_to or "",
        output_schema=table.output_schema,
        output_type=table.output_type or "",
        follow_ups=tuple(table.follow_ups),
        max_running=table.max_running,
        max_retries=table.max_retries,
        retry_backoff=timedelta(seconds=table.retry_backoff_seconds),
        retry_backoff_max=timedelta(seconds=table.retry_backoff_max_seconds),
    )


def _why(table: type[BaseModel], key: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no such key; known are {', '.join(table.model_fields)}"
    if kind == "string_pattern_mismatch":
        return WANTED.get(key, message)
    return message.removeprefix("Value error, ")


def _line(text: str, table: str, key: str = "", section: str = "") -> int:
    """The line of a key in its table, or of the table's header; TOML readers do not keep them."""
    of = rf"{section}\." if section else rf"(({'|'.join(TABLES)})\.)?"
    header = re.compile(rf"^\s*\[{of}[\"']?{re.escape(table)}[\"']?[].]")
    found, inside = 1, False
    # What stands in a text of several lines is no key.
    text = re.sub(r"(\"\"\"|\'\'\').*?\1", lambda long: "\n" * long[0].count("\n"), text, flags=re.DOTALL)
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            found, inside = number, True
        elif inside and re.match(r"^\s*\[", line):
            break
        elif inside and key and re.match(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return found
