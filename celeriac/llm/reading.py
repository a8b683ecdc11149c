"""Believing an answer only after looking at it: both SDKs hand out HTML, `{}` and `null` as if they were answers."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from celeriac.llm.model import ModelRequest, StopReason, ToolCall, Usage

#: A reported count may be this many times what the request could cause before it is taken for nonsense.
SLACK = 10
#: Tokens a provider may add unseen: templates, tool prompts, hidden instructions.
HIDDEN = 4096

_MODEL = re.compile(r"[\w.:/@+-]{1,200}")
_KEPT = re.compile(r"[\w-]{1,200}", re.ASCII)
#: Of a call's name: all that every provider takes back. Mistral wants nine letters and digits, no more and no fewer.
_LETTERS, _LENGTH = string.ascii_letters + string.digits, 9
_TOOL = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_UNSENDABLE, _NAME_LENGTH = re.compile(r"[^a-zA-Z0-9_-]"), 64


class NotAnAnswer(Exception):
    """why: in our own words, never a piece of the body."""


def json_object(content: bytes) -> dict[str, Any]:
    try:
        made = orjson.loads(content)
    except orjson.JSONDecodeError:
        made = None
        why = "no JSON" if content else "nothing"
    else:
        why = "JSON, but no object"
    if not isinstance(made, dict):
        raise NotAnAnswer(why)
    return made


def member(of: object, name: str, kind: type | tuple[type, ...]) -> Any:
    """`of[name]`, which must be there and of that kind."""
    value = of.get(name) if isinstance(of, dict) else None
    if not isinstance(value, kind):
        raise NotAnAnswer(f"no {name}")
    return value


def optional(of: object, name: str, kind: type) -> Any:
    """The same; None where there is nothing."""
    value = of.get(name) if isinstance(of, dict) else None
    return None if value is None else member(of, name, kind)


def objects(of: object, name: str, *, needed: bool = False) -> list[dict[str, Any]]:
    """A list of objects, and of nothing else. Absent or null is empty where it is not needed."""
    found = (member if needed else optional)(of, name, list) or []
    if not all(isinstance(part, dict) for part in found):
        raise NotAnAnswer(f"{name} that are no objects")
    return found


def count(of: object, name: str, *, needed: bool = False) -> int:
    """A number of tokens: whole and not negative. Absent or null is 0 where it is not needed."""
    value = of.get(name) if isinstance(of, dict) else None
    if value is None and not needed:
        return 0
    if type(value) is not int:  # a bool is an int, and true is no number of tokens
        raise NotAnAnswer(f"{name} is no whole number")
    if value < 0:
        raise NotAnAnswer(f"{name} is negative")
    return value


def billed_model(made: dict[str, Any], asked: str) -> str:
    """The model that the provider says it used; the one asked for where it says nothing."""
    said = made.get("model")
    if said is None:
        return asked
    if not isinstance(said, str) or not _MODEL.fullmatch(said):
        raise NotAnAnswer("model is no name")
    return said


def tool_calls(found: Iterable[tuple[str, str]]) -> tuple[ToolCall, ...]:
    """Of name and arguments each. They get names of our own: some servers send the same ids in each turn, and some send
    longer ones than the next provider takes. A tool that the model made up gets a name that every provider takes back.
    """
    made = list(found)
    if not all(_TOOL.fullmatch(name) for name, _ in made):
        raise NotAnAnswer("a call of a tool without a proper name")
    return tuple(ToolCall(_call_id(), _sendable(name), arguments) for name, arguments in made)


def _sendable(name: str) -> str:
    """Another name is not one that a tool could have by chance."""
    said = _UNSENDABLE.sub("_", name)[:_NAME_LENGTH]
    return name if said == name else f"unknown_{said}"[:_NAME_LENGTH]


def _call_id() -> str:
    """Unlike all others of a job: of a thousand, two are alike in less than one of ten thousand million jobs."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def stopped(reason: StopReason, calls: Sequence[ToolCall]) -> StopReason:
    """Some who speak OpenAI's API want tools called and say that they are done; who met the limit wants nothing."""
    if reason == "tool" and not calls:
        raise NotAnAnswer("it wants tools called, and names none")
    return "tool" if calls and reason != "length" else reason


def kept_as(made: object) -> str:
    """The provider's own name of an answer; "" where it is none that could stand in an address."""
    said = made.get("id") if isinstance(made, dict) else None
    return said if isinstance(said, str) and _KEPT.fullmatch(said) else ""


def tier(of: object) -> str:
    return _word(of, "service_tier")


def anthropic_tier(usage: dict[str, Any]) -> str:
    """The fast mode is a price of its own, beside the service tiers."""
    return "fast" if usage.get("speed") == "fast" else tier(usage)


def anthropic_region(usage: dict[str, Any]) -> str:
    """Where the model ran, "" where that makes no difference or nobody says it."""
    said = _word(usage, "inference_geo")
    return "" if said == "not_available" else said


def _word(of: object, name: str) -> str:
    said = of.get(name) if isinstance(of, dict) else None
    return said if isinstance(said, str) and _MODEL.fullmatch(said) else ""


def openai_usage(made: dict[str, Any], request: ModelRequest, *, sides: tuple[str, str]) -> Usage:
    """OpenAI's counts overlap: its input holds what was read from a cache and written to one, its output what was
    thought. sides: what the API calls input and output.
    """
    usage = member(made, "usage", dict)
    whole, output = count(usage, f"{sides[0]}_tokens", needed=True), count(usage, f"{sides[1]}_tokens", needed=True)
    # Some who speak this API leave reasoning out of the output and put it in the total only: it is billed all the same.
    output = max(output, count(usage, "total_tokens") - whole)
    before = usage.get(f"{sides[0]}_tokens_details")
    read, written = count(before, "cached_tokens"), count(before, "cache_write_tokens")
    if read + written > whole:
        raise NotAnAnswer("more tokens cached than there were")
    reasoning = count(usage.get(f"{sides[1]}_tokens_details"), "reasoning_tokens")
    return checked(Usage(whole - read - written, read, written, _said(output, reasoning), reasoning), request)


def anthropic_usage(made: dict[str, Any], request: ModelRequest) -> Usage:
    """Anthropic's input comes disjoint; its output holds what was thought, and the tokens written to a cache are a
    total with its parts by lifetime beside it.

    What the parts leave unnamed is written for as long as the longest that they do name: it is never booked too low. A
    total alone is of five minutes. An hour has to be asked for, which no request of ours does, and Anthropic itself
    always names it: to take the dearer one would book what nobody billed.
    """
    usage = member(made, "usage", dict)
    output = count(usage, "output_tokens", needed=True)
    reasoning = count(usage.get("output_tokens_details"), "thinking_tokens")
    parts = usage.get("cache_creation")
    five, hour = count(parts, "ephemeral_5m_input_tokens"), count(parts, "ephemeral_1h_input_tokens")
    written = count(usage, "cache_creation_input_tokens")
    if usage.get("cache_creation_input_tokens") is None:
        written = five + hour
    if five + hour > written:
        raise NotAnAnswer("more tokens written to the cache by lifetime than in all")
    if hour:
        hour = written - five
    return checked(
        Usage(
            input=count(usage, "input_tokens", needed=True),
            cache_read=count(usage, "cache_read_input_tokens"),
            cache_write=written - hour,
            cache_write_1h=hour,
            output=_said(output, reasoning),
            reasoning=reasoning,
        ),
        request,
    )


def _said(output: int, reasoning: int) -> int:
    if reasoning > output:
        raise NotAnAnswer("more tokens of reasoning than of output")
    return output - reasoning


def checked(usage: Usage, request: ModelRequest) -> Usage:
    """The same usage, if this request can have caused it."""
    said = sum(len(text.encode(errors="replace")) for text in request.texts()) + request.image_tokens()
    if usage.prompt > SLACK * (said + HIDDEN):
        raise NotAnAnswer("more input tokens than the request can have")
    if usage.made > SLACK * request.max_output_tokens:
        raise NotAnAnswer("more output tokens than were allowed")
    return usage
