"""An agent: a named recipe that jobs follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from celeriac.llm.model import Lane
from celeriac.settings import MAX_JOB_USD

#: So many others may one job ask for, each time that it is started.
MOST_OTHERS: Final = 200
#: Of them so many for the parts of the caller's question: what those answer may have to be split in turn.
MOST_PARTS: Final = MOST_OTHERS * 3 // 4


@dataclass(frozen=True, slots=True)
class Agent:
    """lanes: in order of preference. timeout: the longest one model call may take. queue: whose workers run it.
    tries_per_lane: how often a lane is asked for one answer before the next one is, where asking again may help.
    patience: how long a job rather waits for a lane that may not be asked than asks a dearer one. too_long: what to do
    with a conversation that is too long for all lanes: "trim" leaves out older turns. refused: what to do where a model
    declines to answer: "next" asks the next lane. stored: providers may keep what it asks and is answered, so that an
    answer that got lost is looked up before it is bought again.

    tools: "module:function" each, imported by workers alone. mcp: names of MCP servers, whose tools it may use.
    max_steps, max_tokens, max_cost, max_time: how often a job may ask its model, how many tokens it may use, how many
    dollars it may cost with all that work for it, how long its steps may take together; then it ends, with what there
    is. approval_time: how long
    a job waits for somebody to allow a call. asks: agents that its model may ask, each time by a job of its own.
    hands_over_to: those to which it may leave the answer. split_over: of a question of more characters, `split_to`, an
    agent too, is asked for each part, and the model is shown what those answered; None and "" for agents that do not.

    output_schema: what the answer has to be, a JSON schema. output_type: the same as a pydantic model, "module:Class",
    imported by workers alone; one of the two, "" and None for neither.

    follow_ups: asked after the caller's question, one after the other; the last answer is the job's. max_running: jobs
    of this agent at once, in the whole fleet. max_retries: how often a job that met errors which time may cure is tried
    again, after `retry_backoff`, doubling up to `retry_backoff_max`, with full jitter; meanwhile it holds no slot.
    """

    name: str
    description: str
    instructions: str
    lanes: tuple[Lane, ...]
    max_output_tokens: int = 1024
    temperature: float | None = None
    timeout: timedelta = timedelta(seconds=120)
    queue: str = "celeriac"
    api: Literal["chat", "responses"] = "chat"
    tries_per_lane: int = 2
    patience: timedelta = timedelta(0)
    too_long: Literal["fail", "trim"] = "fail"
    stored: bool = False
    refused: Literal["fail", "next"] = "fail"
    tools: tuple[str, ...] = ()
    mcp: tuple[str, ...] = ()
    max_steps: int = 32
    max_tokens: int | None = None
    max_cost: Decimal = MAX_JOB_USD
    max_time: timedelta | None = None
    approval_time: timedelta = timedelta(days=1)
    asks: tuple[str, ...] = ()
    hands_over_to: tuple[str, ...] = ()
    split_over: int | None = None
    split_to: str = ""
    output_schema: Mapping[str, Any] | None = field(default=None, repr=False)
    output_type: str = ""
    follow_ups: tuple[str, ...] = ()
    max_running: int | None = None
    max_retries: int = 3
    retry_backoff: timedelta = timedelta(seconds=1)
    retry_backoff_max: timedelta = timedelta(seconds=60)

    @property
    def longest(self) -> int | None:
        """So many characters may its question have; None for any number."""
        return None if self.split_over is None else MOST_PARTS * self.split_over

    def within(self, limits: Mapping[str, Any]) -> Agent:
        """The same, for a job with limits of its own (`celeriac.jobs.request.LIMITS`): the smaller one counts."""
        own = {
            "max_steps": limits.get("max_steps"),
            "max_tokens": limits.get("max_tokens"),
            "max_cost": Decimal(limits["max_cost_usd"]) if "max_cost_usd" in limits else None,
            "max_time": timedelta(seconds=limits["max_seconds"]) if "max_seconds" in limits else None,
        }
        less: dict[str, Any] = {
            name: most
            for name, most in own.items()
            if most is not None and (getattr(self, name) is None or most < getattr(self, name))
        }
        return replace(self, **less) if less else self


@dataclass(frozen=True, slots=True)
class McpServer:
    """An MCP server whose tools agents may use: a child of the worker by its command, or another machine's by its URL.

    environment: the worker's variables that a child is given. token_variable: of the worker, "" for none. tools: the
    only ones that are used, all if empty; idempotent, approval: as of any tool, by the names that the server gives
    them. timeout: of one call once the session is open, and as long for that. start_timeout: of the start and the
    handshake, whenever it is begun with anew.
    """

    name: str
    command: tuple[str, ...] = field(default=(), repr=False)
    url: str = field(default="", repr=False)
    environment: tuple[str, ...] = ()
    token_variable: str = ""
    tools: frozenset[str] = frozenset()
    idempotent: frozenset[str] = frozenset()
    approval: frozenset[str] = frozenset()
    timeout: timedelta = timedelta(seconds=30)
    start_timeout: timedelta = timedelta(seconds=30)
