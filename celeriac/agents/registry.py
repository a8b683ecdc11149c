"""The agents of a deployment, read from a TOML file at start. A wrong file is refused with the line and the reason."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from celeriac.agents.agent import Agent
from celeriac.errors import Invalid, Misconfigured, NotFound
from celeriac.gate.lanes import Caps
from celeriac.llm.limits import MOST
from celeriac.llm.model import BUILT_IN, Endpoint, Lane
from celeriac.settings import NAME, BaseUrl, Name, is_reserved

PROVIDER: Final = r"[a-z][a-z0-9_-]{0,63}"
LANE: Final = rf"^{PROVIDER}/\S+$"
#: Names that are built in are not given anew.
OWN_PROVIDER: Final = rf"(?!(openai|anthropic|scripted)$){PROVIDER}"
TABLES: Final = frozenset({"agents", "lanes", "providers"})
KNOWN_TABLES: Final = '[agents.assistant], [lanes."openai/gpt-5.4"], [providers.local]'
NO_NAME: Final = "no name for an agent; use letters, digits, . _ -"
NO_PROVIDER: Final = "no name for a provider of yours; use lower-case letters, digits, _ -, and none that is built in"
NO_LANE: Final = 'not a lane; write provider/model, as "openai/gpt-5.4" or "anthropic/claude-haiku-5-5"'
T = TypeVar("T", bound=BaseModel)
LaneText = Annotated[str, StringConstraints(pattern=LANE)]


def _of_jobs(queue: str) -> str:
    if is_reserved(queue):
        raise ValueError("this queue is Celeriac's own; name another")
    return queue


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


class Registry:
    """Agents by name. caps: what the deployment allows its lanes. providers: those of its own."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        caps: Mapping[Lane, Caps] | None = None,
        providers: Mapping[str, Endpoint] | None = None,
    ) -> None:
        self._agents = dict(sorted(agents.items()))
        self.caps = dict(caps or {})
        self.providers = dict(providers or {})

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
        return Registry(agents, self.caps, self.providers)

    def check_model(self, model: str | None) -> None:
        """Raises Invalid for a model of a provider that this deployment does not have."""
        known = (*BUILT_IN, *self.providers)
        if model is not None and lane(model).provider not in known:
            raise Invalid(
                "there is no such provider",
                field="model",
                remedy=f"write provider/model, with one of: {', '.join(known)}",
            )


def lane(text: str) -> Lane:
    """ "openai/gpt-5.4" as a lane."""
    provider, _, model = text.partition("/")
    return Lane(provider, model)


def read_agents(file: Path) -> Registry:
    """Raises Misconfigured with `file:line: what is wrong`, one line a mistake."""
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
    return _Reading(file, text, tables).registry()


class _Reading:
    """Of one file: everything that is wrong with it is said at once."""

    def __init__(self, file: Path, text: str, tables: Mapping[str, Any]) -> None:
        self._file = file
        self._text = text
        self._tables = tables
        self._mistakes: list[str] = []

    def registry(self) -> Registry:
        for key in sorted(self._tables.keys() - TABLES):
            self._wrong(f"there is no table [{key}]; there are {KNOWN_TABLES}", key)
        if not self._tables.get("agents"):
            self._mistakes.append(f"{self._file}:1: names no agent; begin with [agents.assistant]")
        providers = {
            name: Endpoint(table.api, table.base_url, table.api_key_env)
            for name, table in self._section("providers", _ProviderTable, OWN_PROVIDER, NO_PROVIDER)
        }
        caps = {
            lane(name): Caps(table.requests_per_minute, table.tokens_per_minute)
            for name, table in self._section("lanes", _LaneTable, LANE, NO_LANE)
        }
        agents = {name: _agent(name, table) for name, table in self._section("agents", _AgentTable, NAME, NO_NAME)}
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
        if self._mistakes:
            raise Misconfigured("\n".join(self._mistakes))
        return Registry(agents, caps, providers)

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
                    self._wrong(f"{path}: {_why(kind, wrong['type'], wrong['msg'])}", name, key)

    def _wrong(self, what: str, table: str, key: str = "") -> None:
        self._mistakes.append(f"{self._file}:{_line(self._text, table, key)}: {what}")


def _agent(name: str, table: _AgentTable) -> Agent:
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
        follow_ups=tuple(table.follow_ups),
        max_running=table.max_running,
        max_retries=table.max_retries,
        retry_backoff=timedelta(seconds=table.retry_backoff_seconds),
        retry_backoff_max=timedelta(seconds=table.retry_backoff_max_seconds),
    )


def _why(table: type[BaseModel], kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no such key; known are {', '.join(table.model_fields)}"
    if kind == "string_pattern_mismatch":
        return NO_LANE
    return message.removeprefix("Value error, ")


def _line(text: str, table: str, key: str = "") -> int:
    """The line of a key in its table, or of the table's header; TOML readers do not keep them."""
    header = re.compile(rf"^\s*\[((agents|lanes|providers)\.)?[\"']?{re.escape(table)}[\"']?[].]")
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
