"""What we ask a model and what it answers, in our own words: no provider's types pass this line.

Texts stay out of every `repr`: error reporters and debuggers print the variables of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import orjson

from celeriac.llm.limits import Limit

#: The providers that a deployment has without naming them.
BUILT_IN: Final = ("openai", "anthropic")

#: A tool's message is the result of a call that the assistant wanted made.
Role = Literal["user", "assistant", "tool"]
#: Why the model stopped: it was done, it met the output limit, or it wants a tool.
StopReason = Literal["end", "length", "tool"]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool. schema: of its arguments, a JSON schema of an object."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wants made. arguments: JSON, as it wrote it: nobody has looked at it yet."""

    id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """calls: what an assistant wants called. call_id: of a tool's message, which of them it answers; failed: with an
    error.
    """

    role: Role
    text: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """One provider and one of its models. provider: built in, one of the deployment's own, or a scripted one."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider of the deployment's own. api: whose it speaks. key_variable: in the environment, "" for no key."""

    api: Literal["openai", "anthropic"]
    base_url: str
    key_variable: str = ""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call.

    instructions: the system text, "" for none. messages: oldest first, the last one is the user's, or a tool's. tools:
    that the model may want called. schema: of a JSON answer, as a hint: nobody has checked the answer against it.
    max_output_tokens: always sent; reasoning counts. deadline: seconds the whole call may take, from the first byte
    sent to the last byte read. api: which of OpenAI's two APIs; others ignore it. on_text: is told the text piece by
    piece as it comes; where it is given the answer is asked for as a stream, and is the same in the end.
    """

    lane: Lane
    messages: tuple[Message, ...]
    instructions: str = field(default="", repr=False)
    tools: tuple[ToolSpec, ...] = ()
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    max_output_tokens: int = 1024
    temperature: float | None = None
    deadline: float = 120.0
    api: Literal["chat", "responses"] = "chat"
    on_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)

    def texts(self) -> Iterator[str]:
        """All that the model is given to read."""
        yield self.instructions
        for message in self.messages:
            yield message.text
            for call in message.calls:
                yield call.name
                yield call.arguments
        for tool in self.tools:
            yield tool.name
            yield tool.description
            yield orjson.dumps(tool.schema).decode()
        if self.schema is not None:
            yield orjson.dumps(self.schema).decode()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in disjoint classes: each billed token is in exactly one of the first four.

    reasoning: how many of `output` were spent on reasoning; a part, not a class of its own.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = field(default=0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )

    @property
    def total(self) -> int:
        return self.input + self.cache_read + self.cache_write + self.output

    def as_dict(self) -> dict[str, int]:
        """As it is stored, and as callers see it."""
        return {
            "input_tokens": self.input,
            "cache_read_tokens": self.cache_read,
            "cache_write_tokens": self.cache_write,
            "output_tokens": self.output,
            "reasoning_tokens": self.reasoning,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, int]) -> Usage:
        return cls(**{name.removesuffix("_tokens"): count for name, count in stored.items()})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that failed, as a receipt shows it.

    code: of the error. in_doubt: it may have been billed. asked: whether the provider was, or only our memory of it.
    """

    lane: Lane
    code: str
    seconds: float
    request_id: str = ""
    status: int = 0
    in_doubt: bool = False
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    model: the name the provider billed, which may be longer than the one asked for. tier: the service tier that it says
    it billed, "" if it says nothing. call: the name under which the call is booked, if it is. seconds: from asking to
    having read the answer. attempts: the calls that failed before this one, oldest first, where a wrapper asked more
    than once. limits: of the provider's rates, as it says them. calls: tools that the model wants called before it goes
    on.
    """

    text: str = field(repr=False)
    usage: Usage
    lane: Lane
    model: str
    stop_reason: StopReason = "end"
    request_id: str = ""
    seconds: float = 0.0
    tier: str = ""
    call: str = ""
    attempts: tuple[Attempt, ...] = ()
    limits: tuple[Limit, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class ModelClient(Protocol):
    """Whatever answers like this is a model client: an adapter, a fallback over several, a script."""

    async def answer(self, request: ModelRequest) -> Answer:
        """Ask once. Raises a `ModelError`, and nothing else, where there is no usable answer."""
        ...
