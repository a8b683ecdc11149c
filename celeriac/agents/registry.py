"""The agents of a deployment, read from a TOML file at start. A wrong file is refused with the line and the reason."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from celeriac.agents.agent import Agent
from celeriac.errors import Misconfigured, NotFound
from celeriac.llm.model import Lane
from celeriac.settings import NAME, Name, is_reserved

LaneText = Annotated[str, StringConstraints(pattern=r"^(openai|anthropic|scripted)/\S+$")]


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
    follow_ups: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] = []
    max_running: int | None = Field(None, gt=0)
    max_retries: int = Field(3, ge=0, le=100)
    retry_backoff_seconds: float = Field(1, gt=0, le=86_400)
    retry_backoff_max_seconds: float = Field(60, gt=0, le=86_400)


class Registry:
    """Agents by name."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = dict(sorted(agents.items()))

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
    mistakes = [
        f"{file}:{_line(text, key)}: there is no table [{key}]; agents are [agents.NAME]"
        for key in tables
        if key != "agents"
    ]
    given = tables.get("agents")
    if not isinstance(given, dict) or not given:
        raise Misconfigured("\n".join([*mistakes, f"{file}:1: names no agent; begin with [agents.assistant]"]))
    agents = {}
    for name, table in given.items():
        if not re.fullmatch(NAME, name):
            mistakes.append(f"{file}:{_line(text, name)}: {name!r} is no name for an agent; use letters, digits, . _ -")
            continue
        try:
            agents[name] = _agent(name, _AgentTable.model_validate(table))
        except ValidationError as error:
            mistakes += [
                f"{file}:{_line(text, name, str(e['loc'][0]) if e['loc'] else '')}: agents.{name}"
                f"{''.join(f'.{part}' for part in e['loc'])}: {_why(e['type'], e['msg'])}"
                for e in error.errors(include_url=False)
            ]
    if mistakes:
        raise Misconfigured("\n".join(mistakes))
    return Registry(agents)


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
        follow_ups=tuple(table.follow_ups),
        max_running=table.max_running,
        max_retries=table.max_retries,
        retry_backoff=timedelta(seconds=table.retry_backoff_seconds),
        retry_backoff_max=timedelta(seconds=table.retry_backoff_max_seconds),
    )


def _why(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no such key; known are {', '.join(_AgentTable.model_fields)}"
    if kind == "string_pattern_mismatch":
        return 'not a lane; write provider/model, as "openai/gpt-5.4" or "anthropic/claude-haiku-5-5"'
    return message


def _line(text: str, table: str, key: str = "") -> int:
    """The line of a key in its table, or of the table's header; TOML readers do not keep them."""
    header = re.compile(rf"^\s*\[(agents\.)?[\"']?{re.escape(table)}[\"']?[].]")
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
