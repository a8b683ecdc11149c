"""What the drill's provider can be told to do, and the faults that have a name.

A behaviour is chosen, in this order: by the model's name (`fault-503`, `fault-hang`, `delay-1.5`), by the script that a
test has posted, else the default one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

#: How a call's connection is cut: before the body is read, before a byte is answered, in the middle of the answer.
Reset = Literal["before", "after", "middle"]
#: Why the answer stops, in our words; `wire` puts it in the provider's.
Finish = Literal["end", "length", "refusal", "filter"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What happens to one call.

    model: only calls for this model, "" for any. times: for how many calls, 0 for all that follow. delay: seconds
    before anything is said; jitter: up to so many more. text: the answer, None for an echo. calls: tools that are
    wanted called: name, and arguments, an object or a text that is sent as it is. turns: behaviours of which one is
    chosen by how many answers the conversation holds already, the last one for all more. status: anything but 200 is
    an error in the provider's own words, unless `body` is given. code: which error, where a status has several.
    headers: added to the answer's. body: sent in place of the answer. cut: this many bytes of the body are kept, though
    its length is announced in full. pad: so many spaces follow the body. gzip: the body is compressed, whatever the
    request accepts. drip: seconds between the bytes of the body. pace: seconds between the events of a stream.
    error_in_stream: the status whose error a stream ends with, after its first piece of text. usage: replaces what the
    answer says about tokens; "missing" leaves it out, a mapping replaces single fields. also: fields that are added to
    it, as the API spells them. tier: the service tier that the answer names, None for the ordinary one. cached,
    cache_written: input tokens read from a cache, and written to one. output: output tokens billed, None for a count of
    the words. reasoning_apart: OpenAI's APIs leave reasoning out of the output and in the total, as some who speak them
    do. answer_model: the model named in the answer. billed: whether the call goes on the bill; None for what a provider
    does: every call that it read and did not refuse. keeps: what is to be stored is; its answer is there after `delay`,
    whoever has gone meanwhile. looked_up: the status with which those are answered who look for it.
    """

    model: str = ""
    times: int = 1
    delay: float = 0.0
    jitter: float = 0.0
    text: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    content_type: str = "application/json"
    cut: int | None = None
    pad: int = 0
    gzip: bool = False
    drip: float = 0.0
    pace: float = 0.0
    error_in_stream: int | None = None
    hang: bool = False
    reset: Reset | None = None
    usage: Any = None
    also: dict[str, Any] = field(default_factory=dict)
    tier: str | None = None
    cached: int = 0
    cache_written: int = 0
    output: int | None = None
    reasoning: int = 0
    reasoning_apart: bool = False
    answer_model: str | None = None
    finish: Finish = "end"
    billed: bool | None = None
    keeps: bool = True
    looked_up: int = 200

    @property
    def is_billed(self) -> bool:
        return self.billed if self.billed is not None else self.status == 200 and self.reset != "before"


HTML = "<!DOCTYPE html><html><head><title>Bad gateway</title></head><body><h1>Bad gateway</h1></body></html>"

#: The faults that have a name: `fault-<name>` as a model, or {"fault": "<name>"} in a script.
FAULTS: dict[str, Behaviour] = {
    "html": Behaviour(body=HTML, content_type="text/html"),
    "empty": Behaviour(body=""),
    "object": Behaviour(body="{}"),
    "null": Behaviour(body="null"),
    "list": Behaviour(body="[]"),
    "not-json": Behaviour(body='{"id": '),
    "truncated": Behaviour(cut=40),
    "drip": Behaviour(drip=0.1),
    "overloaded-in-stream": Behaviour(error_in_stream=529),
    "error-in-stream": Behaviour(error_in_stream=500),
    "hang": Behaviour(hang=True),
    "reset-before": Behaviour(reset="before"),
    "reset-after": Behaviour(reset="after"),
    "reset-middle": Behaviour(reset="middle"),
    "no-usage": Behaviour(usage="missing"),
    "null-usage": Behaviour(usage="null"),
    "negative-usage": Behaviour(usage={"input": -5}),
    "float-usage": Behaviour(usage={"output": 7.5}),
    "string-usage": Behaviour(usage={"output": "7"}),
    "true-usage": Behaviour(usage={"output": True}),
    "huge-usage": Behaviour(usage={"output": 10**12}),
    "more-cached-than-input": Behaviour(usage={"cache_read": 10**6}),
    "wrong-model": Behaviour(answer_model="another-model-2026-01-01"),
    "length": Behaviour(finish="length"),
    "refusal": Behaviour(finish="refusal"),
    "filter": Behaviour(finish="filter"),
    "quota": Behaviour(status=429, code="insufficient_quota"),
    "context": Behaviour(status=400, code="context_length_exceeded"),
    "model": Behaviour(status=404, code="model_not_found"),
    "policy": Behaviour(status=400, code="content_filter"),
    "gateway": Behaviour(status=502, body=HTML, content_type="text/html"),
    "unavailable": Behaviour(status=503, body=HTML, content_type="text/html"),
}


def named(name: str) -> Behaviour | None:
    """The fault of that name; any three digits are a status."""
    if name.isdigit() and len(name) == 3:
        return Behaviour(status=int(name))
    return FAULTS.get(name)


def of_model(model: str) -> Behaviour | None:
    """What the name of a model asks for, None where it asks for nothing."""
    if model.startswith("fault-"):
        return named(model.removeprefix("fault-"))
    if model.startswith("delay-"):
        return Behaviour(delay=float(model.removeprefix("delay-")))
    return None


_FIELDS = {f.name for f in fields(Behaviour)}


def from_json(given: dict[str, Any]) -> Behaviour:
    """Read one behaviour of a script. Raises ValueError where a name is unknown: a mistyped fault would pass a test."""
    rest = dict(given)
    fault = rest.pop("fault", None)
    base = Behaviour() if fault is None else named(fault)
    unknown = rest.keys() - _FIELDS
    if base is None or unknown:
        raise ValueError(f"unknown fault {fault!r}" if base is None else f"unknown fields {sorted(unknown)}")
    return replace(base, **rest)
