"""What we ask a model and what it answers, in our own words: no provider's types pass this line.

Texts stay out of every `repr`: error reporters and debuggers print the variables of a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, runtime_checkable

import orjson

from celeriac.llm.images import Image, most_tokens
from celeriac.llm.limits import Limit

#: The providers that a deployment has without naming them.
BUILT_IN: Final = ("openai", "anthropic")

#: The disjoint classes of billed tokens, as `Usage` has them.
CLASSES: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning")
#: Those of them that are read, and those that are made.
READ: Final = CLASSES[:4]
MADE: Final = CLASSES[4:]

#: A tool's message is the result of a call that the assistant wanted made.
Role = Literal["user", "assistant", "tool"]
#: Why the model stopped: it was done, it met the output limit, or it wants a tool.
StopReason = Literal["end", "length", "tool"]
#: A message as it is stored: role and text, and only where there are images these too, as (at, url). What has none is
#: read by every release; one that knows of none stops at a message that has some, and answers nothing without them.
Said = tuple[str, str] | tuple[str, str, Sequence[tuple[int, str]]]


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
    error. images: of a user's message, in the order of their places in the text.
    """

    role: Role
    text: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    failed: bool = False
    images: tuple[Image, ...] = ()

    def parts(self) -> Iterator[str | Image]:
        """Texts and images in their order. Providers take no text of white space beside an image; the line that ends
        before an image ends there.
        """
        begin = 0
        for image in self.images:
            if (text := self.text[begin : image.at].removeprefix("\n" if begin else "")).strip():
                yield text
            yield image
            begin = image.at
        if (text := self.text[begin:].removeprefix("\n" if begin else "")).strip() or not self.images:
            yield text

    def reworded(self, text: str) -> Message:
        """With another text, which the images stand before: their places were in the old one."""
        return replace(self, text=text, images=tuple(Image(image.url) for image in self.images))

    def said(self) -> Said:
        if not self.images:
            return self.role, self.text
        return self.role, self.text, [(image.at, image.url) for image in self.images]

    @classmethod
    def read(cls, said: Sequence[Any]) -> Message:
        """Raises ValueError for what is no message."""
        role, text, *more = said
        return cls(role, text, images=tuple(Image(url, at) for pairs in more for at, url in pairs))


@dataclass(frozen=True, slots=True)
class Lane:
    """One provider and one of its models. provider: built in, one of the deployment's own, or a scripted one."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider of the deployment's own. api: whose it speaks. key_variable: in the environment, "" for no key.
    asks_for_usage: whether a stream has to ask for its usage (OpenAI's `stream_options`), which some refuse. stores:
    whether it may be told to keep answers (OpenAI's `store` and `metadata`), which most do not and some refuse.
    """

    api: Literal["openai", "anthropic"]
    base_url: str
    key_variable: str = ""
    asks_for_usage: bool = True
    stores: bool = False


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call.

    instructions: the system text, "" for none. messages: oldest first, the last one is the user's, or a tool's. tools:
    that the model may want called. schema: of a JSON answer, as a hint: nobody has checked the answer against it.
    max_output_tokens: always sent; reasoning counts. deadline: seconds the whole call may take, from the first byte
    sent to the last byte read. api: which of OpenAI's two APIs; others ignore it. on_text: is told the text piece by
    piece as it comes; where it is given the answer is asked for as a stream, and is the same in the end.

    stored: the provider may keep question and answer, where it can: one that got lost is looked up then, by `call`, the
    name under which the call is booked. on_stored: is told the provider's own name of the answer, where that is needed
    to find it, as soon as there is one.
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
    stored: bool = False
    call: str = field(default="", compare=False)
    on_stored: Callable[[str], Awaitable[None]] | None = field(default=None, repr=False, compare=False)

    def digest(self) -> str:
        """The same for the same question, whichever lane is asked. Another release may make another one of it."""
        asked = (
            *(self.instructions, self.messages, self.tools, self.schema),
            *(self.max_output_tokens, self.temperature, self.api),
        )
        return hashlib.sha256(orjson.dumps(asked, default=dict)).hexdigest()[:32]

    def texts(self) -> Iterator[str]:
        """All that the model is given to read; the images are no text."""
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

    def image_tokens(self) -> int:
        """That all its images count for, at most."""
        images = sum(len(message.images) for message in self.messages)
        return images * most_tokens(self.lane.provider, self.lane.model)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in disjoint classes: each billed token is in exactly one of the six.

    input: neither read from a cache nor written to one. cache_read: read from one. cache_write: written to one for five
    minutes, or for as long as its provider keeps it without being asked (OpenAI names no time). output: what was said,
    without what was thought. reasoning: what was thought. cache_write_1h: written for an hour.

    As it is stored and as callers see it (`as_dict`) some classes are sums: see there.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    cache_write_1h: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.output + other.output,
            self.reasoning + other.reasoning,
            self.cache_write_1h + other.cache_write_1h,
        )

    @property
    def written(self) -> int:
        """To a cache, for however long."""
        return self.cache_write + self.cache_write_1h

    @property
    def prompt(self) -> int:
        """All that the model read, from wherever: what long-context prices go by."""
        return self.input + self.cache_read + self.cache_write + self.cache_write_1h

    @property
    def made(self) -> int:
        """All that the model made, said or thought."""
        return self.output + self.reasoning

    @property
    def total(self) -> int:
        return self.prompt + self.made

    def classes(self) -> dict[str, int]:
        """The six disjoint classes, as the ledger has them."""
        return {name: getattr(self, name) for name in CLASSES}

    def as_dict(self) -> dict[str, int]:
        """As it is stored with a step, and as callers see it.

        The first four add up to all billed tokens: `cache_write_tokens` is what was written for however long, and
        `output_tokens` what was said and thought. The others are parts of these: `reasoning_tokens` of the output, and
        `cache_write_1h_tokens` of what was written. It is left out where it is 0: a release that does not know it reads
        the same steps.
        """
        said = {
            "input_tokens": self.input,
            "cache_read_tokens": self.cache_read,
            "cache_write_tokens": self.written,
            "output_tokens": self.made,
            "reasoning_tokens": self.reasoning,
        }
        return said | {"cache_write_1h_tokens": self.cache_write_1h} if self.cache_write_1h else said

    @classmethod
    def from_dict(cls, stored: Mapping[str, int]) -> Usage:
        """Of `as_dict`. Of a class that it does not know, the tokens are in one of the sums."""
        reasoning, hour = stored.get("reasoning_tokens", 0), stored.get("cache_write_1h_tokens", 0)
        return cls(
            stored.get("input_tokens", 0),
            stored.get("cache_read_tokens", 0),
            stored.get("cache_write_tokens", 0) - hour,
            stored.get("output_tokens", 0) - reasoning,
            reasoning,
            hour,
        )


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

    model: the name the provider billed, which may be longer than the one asked for. tier, region: the service tier that
    it says it billed, and where the model ran, as it or its address says; "" if neither does. call: the name under
    which the call is booked, if it is. seconds: from asking to having read the answer. attempts: the calls that failed
    before this one, oldest first, where a wrapper asked more than once. limits: of the provider's rates, as it says
    them. calls: tools that the model wants called before it goes on.
    """

    text: str = field(repr=False)
    usage: Usage
    lane: Lane
    model: str
    stop_reason: StopReason = "end"
    request_id: str = ""
    seconds: float = 0.0
    tier: str = ""
    region: str = ""
    call: str = ""
    attempts: tuple[Attempt, ...] = ()
    limits: tuple[Limit, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class ModelClient(Protocol):
    """Whatever answers like this is a model client: an adapter, a fallback over several, a script."""

    async def answer(self, request: ModelRequest) -> Answer:
        """Ask once. Raises a `ModelError`, and nothing else, where there is no usable answer."""
        ...


@runtime_checkable
class LooksUp(Protocol):
    """A model client of whom an answer can be had that was asked for before, and kept."""

    def may_find(self, request: ModelRequest, response: str | None) -> bool:
        """Whether `look_up` can find anything. response: as it takes it; None before the request was sent."""
        ...

    async def look_up(self, request: ModelRequest, response: str) -> Answer | None:
        """The answer that the call of the request's name was given; None where there is none to be had, or not in time.

        response: the provider's own name of it, "" where nobody knows that. It is no call: nothing is billed for it.
        Raises ContentRefused, with its usage, where the model had declined.
        """
        ...
