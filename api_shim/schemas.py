"""What goes over the wire: requests as they must be, answers as they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Field,
    model_validator,
)

from celeriac.agents.quotes import Quote
from celeriac.contexts.store import Context
from celeriac.costs.books import COLUMNS, Window
from celeriac.costs.budgets import Use
from celeriac.costs.money import usd
from celeriac.costs.usage import Row
from celeriac.jobs.model import Call, Job, State, rfc_3339
from celeriac.jobs.request import Asked, Dollars, Wire
from celeriac.llm.images import Image
from celeriac.llm.model import CLASSES, Message
from celeriac.settings import Name

RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _moment(value: Any) -> datetime:
    """In UTC and whole milliseconds, as it is stored: the same moment in other words is the same request."""
    if not isinstance(value, str) or not RFC_3339.fullmatch(value):
        raise ValueError("is not an RFC 3339 time with its zone; write it like 2031-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("there is no such time; write it like 2031-01-31T12:00:00Z") from error
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


#: Whether it is to come is the store's to say, by its own clock.
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
#: At most a year.
Seconds = Annotated[float, Field(strict=True, ge=0.001, le=366 * 86_400)]


def duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


class JobRequest(Asked):
    """A job to be done."""

    run_at: Moment | None = Field(
        None, description="Not before this time, at most a year ahead. A time that is over means at once."
    )
    deadline: Moment | None = Field(
        None, description="It expires unless it has ended by then: a waiting job is dropped, a running one is stopped."
    )
    expires_in: Seconds | None = Field(
        None, description="The same in seconds from now. With `deadline`, the earlier one counts."
    )

    def fingerprint(self) -> str:
        """The same for the same request. Without defaults: a field more in the next release changes nothing."""
        asked = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class RetryRequest(Wire):
    """How an ended job is started again."""

    fresh: bool = Field(
        False, strict=True, description="From the beginning: the steps that are stored are thrown away."
    )
    expires_in: Seconds | None = Field(
        None, description="It expires unless it has ended after so many seconds. Its old deadline is gone."
    )


class RetryManyRequest(Wire):
    """Which ended jobs are started again, and how."""

    state: Literal["failed", "cancelled", "expired"] = Field(description="Jobs that ended so.")
    agent: Name | None = Field(None, description="Only jobs of this agent.")
    dead: bool = Field(False, strict=True, description="Only dead letters: failed jobs that killed their workers.")
    fresh: bool = Field(False, strict=True, description="From the beginning, and not after their stored steps.")
    limit: int = Field(200, strict=True, ge=1, le=200, description="At most so many, the newest.")
    cursor: str | None = Field(None, max_length=32, description="As the last answer named it; left out to begin.")

    @model_validator(mode="after")
    def _dead_letters_failed(self) -> RetryManyRequest:
        if self.dead and self.state != "failed":
            raise ValueError('dead: dead letters are failed jobs; ask for "state": "failed"')
        return self


class JobErrorOut(BaseModel):
    code: str
    message: str


class UsageOut(BaseModel):
    """Tokens; each billed token is in exactly one of the first four. The others are parts of these."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = Field(0, description="How many of output_tokens were spent on reasoning.")
    cache_write_1h_tokens: int = Field(0, description="How many of cache_write_tokens are kept for an hour.")


class AttemptOut(BaseModel):
    """One call to a model, as it was booked."""

    id: str
    lane: str
    step: int = Field(1, description="Which step of the job it was made for.")
    stands: Literal["open", "settled", "doubt", "released"] = Field(
        description="`open`: no outcome yet. `settled`: paid. `doubt`: it may have been billed. `released`: it was not."
    )
    started_at: datetime
    waited_seconds: float = Field(0.0, description="How long it waited, in its slot, until its lane might be asked.")
    seconds: float | None = Field(None, description="From asking to having the answer, or the error.")
    error: str | None = Field(None, description="Why the next lane was asked; null for the call that answered.")
    request_id: str = Field("", description="The provider's own name of the request.")
    in_doubt: bool = Field(False, description="Whether the provider may have billed a call that has no answer.")
    late: bool = Field(False, description="Its answer was booked after it had been given up.")
    overrun: bool = Field(False, description="It cost more than its highest possible price was thought to be.")
    model: str | None = Field(None, description="The model that was billed.")
    usage: UsageOut | None = None
    cost_usd: str | None = Field(None, description="What was settled.")
    bound_usd: str | None = Field(None, description="Its highest possible price, while it is open or in doubt.")


class ResumeRequest(Wire):
    """What somebody decides about calls of tools that a job waits to be allowed."""

    approve: bool = Field(strict=True, description="False: they are not made, and the model is told.")
    reason: str = Field("", max_length=2000, description="The model is told of it where they are refused.")
    calls: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=1000)] = Field(
        description="Which of the job's `approvals`, by their `call`: what was looked at, and nothing else."
    )


class ApprovalOut(BaseModel):
    """A call of a tool that somebody has to allow."""

    call: str
    tool: str
    arguments: str = Field(description="JSON, as the model wrote it: nobody has checked it.")


class QuoteOut(BaseModel):
    """What a job costs and when it starts, as far as that can be said beforehand. Amounts in dollars as text."""

    max_cost_usd: str = Field(
        description="What it may cost at most, with all that work for it: the smallest of its own `max_cost_usd`, its "
        "agent's and the deployment's. No call is made that could cross it."
    )
    expected_cost_usd: str = Field(description="What it will probably cost.")
    expected_from: Literal["history", "prices"] = Field(
        description="`history`: what jobs of this agent cost lately. `prices`: one call at its first model's price, "
        "while no such job has ended, or where the job asks a model of its own choice."
    )
    budget_left_usd: str | None = Field(
        description="What the tightest budget leaves that it is in; with less than a call may cost, it waits. A tenant "
        "that is no operator is told of its own budget alone: a job may wait for another one, which "
        "`expected_start_at` then counts. Null for no budget."
    )
    position: int | None = Field(
        description="About how many jobs of its line go before it; null where that does not say when it starts."
    )
    expected_start_at: datetime | None = Field(description="Null where nobody can say.")


class JobOut(BaseModel):
    id: str
    state: State
    agent: str
    queue: str
    priority: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = Field(None, description="It expires unless it has ended by then.")
    attempts: int = Field(description="How many runs it took so far.")
    reason: str | None = Field(
        None,
        description="Why it is parked. `scheduled`: its `run_at` is to come. `retry`: it met an error that time may "
        "cure, and is tried again. `lane_closed`: its providers fail, asked for time, or let no more through. "
        "`waiting_children`: its agent has asked others, whose jobs are its `children`. "
        "`waiting_approval`: somebody has to decide about its `approvals`. "
        "`agent_unknown`: the worker that had it does not know its agent; where no worker knows it for "
        "`CELERIAC_JOBS__UNKNOWN_AGENT_TTL`, it fails with this as its error's code.",
    )
    resume_at: datetime | None = Field(
        None,
        description="When a parked job goes on; of one that waits for a lane, not before. Null where no time is known: "
        "for a budget that has no window.",
    )
    steps: int = Field(0, description="How many finished steps are stored. A job that goes on does not repeat them.")
    crashes: int = Field(0, description="How often its worker died with it since it last made a step.")
    dead: bool = Field(False, description="A dead letter: its workers died with it too often. It can be retried.")
    replays: int = Field(0, description="How often it was started again after it had ended.")
    stopping: bool = Field(False, description="It was asked to stop, and still runs.")
    stream: bool = Field(False, description="Its `events` can be read as they come.")
    context_id: str | None = None
    waits_for: str | None = Field(None, description="The job that holds the context and goes first.")
    context_appended: bool | None = Field(
        None, description="False where the context was deleted meanwhile, or the store lost what it held."
    )
    metadata: dict[str, str]
    answer: str | None = Field(None, description="Not in lists.")
    output: Any = Field(
        None,
        description="The answer as the JSON that it is, where the job, or its agent, said what it had to be, and it is "
        "that. Not in lists.",
    )
    error: JobErrorOut | None = None
    model: str | None = Field(None, description="The model that answered, as its provider names it.")
    usage: UsageOut | None = None
    cost_usd: str | None = Field(None, description="Dollars as text, exact to the nano-dollar.")
    in_doubt_usd: str = Field("0.000000000", description="What calls without a known outcome may have cost at most.")
    max_cost_usd: str | None = Field(None, description="What it may cost at most, as it was quoted.")
    cost_estimated: bool | None = Field(None, description="True where the model's price is not known.")
    calls: list[AttemptOut] | None = Field(None, description="Not in lists.")
    parent_id: str | None = Field(None, description="The job that asked for it.")
    children: list[str] | None = Field(None, description="Jobs that it asked for. Not in lists.")
    children_cost_usd: str = Field(
        "0.000000000", description="What all that work for it cost, at any depth; `cost_usd` is its own alone."
    )
    children_in_doubt_usd: str = Field("0.000000000", description="The same of calls without a known outcome, at most.")
    approvals: list[ApprovalOut] | None = Field(
        None, description="What it waits to be allowed, by `POST /v1/jobs/{id}/resume`. Not in lists."
    )
    request_id: str = ""
    quote: QuoteOut | None = Field(None, description="Only in the answer to its submission.")


class SumsOut(BaseModel):
    """In dollars as text, exact to the nano-dollar."""

    cost_usd: str = Field(description="What was settled.")
    in_doubt_usd: str = Field(description="What calls without a known outcome may have cost at most.")
    reserved_usd: str = Field(description="What calls under way may cost at most.")
    unlisted_cost_usd: str = Field(
        description="The part of `cost_usd` that is not listed: the store lost the calls, or has forgotten the jobs."
    )
    unlisted_in_doubt_usd: str = Field(description="The same of `in_doubt_usd`.")


class OwnSumsOut(SumsOut):
    calls: int
    usage: dict[str, int] = Field(description="Tokens by class, of all settled calls.")


class LineOut(BaseModel):
    """One call, also one that failed."""

    call_id: str
    attempt: int | None = Field(description="Which run of the job made it, the first is 1.")
    step: int = Field(description="Which step of the job it was made for.")
    lane: str = Field(description="The provider that was asked, and the model that it was asked for.")
    model: str | None = Field(description="The model that was billed.")
    stands: Literal["open", "settled", "doubt", "released"] = Field(
        description="`open`: no outcome yet. `settled`: paid. `doubt`: it may have been billed. `released`: it was not."
    )
    error: str | None
    started_at: str
    waited_seconds: str | None = Field(description="How long it waited, in its slot, until its lane might be asked.")
    seconds: str | None = Field(description="From asking to having the answer, or the error.")
    request_id: str = Field(description="The provider's own name of the request.")
    tier: str = Field(description="The service tier that the provider says it billed.")
    usage: dict[str, int] | None = Field(description="Tokens, as `usage` of the job has them.")
    region: str = Field(description="Where its model ran, as far as its price depends on that.")
    price_source: str | None = Field(description="The file where its price stood, or the library with its version.")
    price_row: str | None = Field(description="Under which name it stood there.")
    price_date: str | None = Field(description="Since when, or as of when, that price holds.")
    estimated: bool = Field(description="The model's price is not known: it is that of its provider's dearest one.")
    overrun: bool = Field(description="It cost more than `bound_usd`.")
    late: bool = Field(description="Its answer was booked after it had been given up.")
    cost_usd: str | None = Field(description="What was settled; null for a call that is not.")
    cost_by_class_usd: dict[str, str] | None = Field(
        description="What each class of its tokens cost: together `cost_usd`, exactly. Null where today's prices do "
        "not make that: they have changed since, or the call itself costs something."
    )
    bound_usd: str = Field(description="Its highest possible price, as it was booked before it was sent.")


class ChildOut(BaseModel):
    """A job that this one asked for. All but `job_id` is null once its record has aged out."""

    job_id: str
    agent: str | None
    state: State | None
    revision: int | None
    final: bool | None
    cost_usd: str | None = Field(description="Its own, as on its own receipt.")
    in_doubt_usd: str | None
    children_cost_usd: str | None = Field(description="What those cost that work for it.")
    children_in_doubt_usd: str | None


class ChildSumsOut(SumsOut):
    """Of all that work for the job, at any depth. Their calls are lines of their own receipts, and of no other."""

    jobs: list[ChildOut] = Field(description="Those that it asked for itself.")


class SignatureOut(BaseModel):
    algorithm: Literal["HMAC-SHA256"]
    key: str = Field(description="The name of the key.")
    value: str = Field(
        description="In hexadecimal: of the receipt by RFC 8785, with this `signature` in it but for its `value`."
    )


class ReceiptOut(BaseModel):
    format: Literal["celeriac-receipt/1"]
    job_id: str
    tenant: str
    agent: str
    parent_id: str | None = Field(description="The job that asked for it.")
    state: State
    submitted_at: str
    ended_at: str | None
    currency: Literal["USD"]
    revision: int = Field(
        description="How often its sums were changed, its own or its children's: of two receipts of a job the one with "
        "the higher revision is the later one."
    )
    final: bool = Field(
        description="The job and all that work for it have ended, and nothing of them is under way or in doubt. It is "
        "false again once one of them is retried."
    )
    own: OwnSumsOut = Field(description="What the job itself cost: add up these, and no call is counted twice.")
    lines: list[LineOut] = Field(description="Its own calls, oldest first.")
    children: ChildSumsOut
    signature: SignatureOut | None = Field(description="Null where the deployment has no key to sign with.")


class RetriedOut(JobOut):
    fresh: bool = Field(
        description="False: it goes on after its stored `steps`. True: it starts from the beginning, because you asked "
        "for it or because its conversation has changed since."
    )


class RefusedOut(BaseModel):
    id: str
    reason: str


class RetriedManyOut(BaseModel):
    retried: list[str] = Field(
        description="Jobs that were started again, in this order: those that others asked for, then the oldest first."
    )
    refused: list[RefusedOut] = Field(description="Jobs that had changed meanwhile.")
    more: bool = Field(description="There may be more of them: ask again, with `cursor`.")
    cursor: str | None = Field(description="Hand it back as `cursor` for what is older; null at the end.")


class JobsOut(BaseModel):
    """Newest first."""

    jobs: list[JobOut]
    cursor: str | None = Field(description="Hand it back as `?cursor=` for what is older; null at the end.")


class ContextImage(BaseModel):
    """An image of a message; of one that was sent as data, what it is, and not the data."""

    at: int = Field(description="Characters of `content` that stand before it.")
    url: str | None = Field(None, description="Its address; null where it was sent as data.")
    media_type: str | None = Field(None, description="As `image/png`; null where it was sent by its address.")
    bytes: int | None = Field(None, description="Its size; null where it was sent by its address.")


class ContextMessage(BaseModel):
    role: str
    content: str
    images: list[ContextImage] | None = Field(None, description="Those of a message that has any.")


class CapIn(Wire):
    """What a scope may cost in one window."""

    window: Window = Field(
        description="`ever`, or one that begins by the deployment's clock, `CELERIAC_COSTS__TIME_ZONE`."
    )
    cap_usd: Dollars = Field(description='Dollars as text, "250.00"; "0" stops all that cost anything.')
    alert_at: list[Annotated[int, Field(strict=True, ge=1, le=1000)]] = Field(
        default=[80, 100],
        max_length=10,
        description="Percents of the cap that are told once a window, by what is settled and in doubt.",
    )


class BudgetIn(Wire):
    """All caps of a scope: those that it had are replaced."""

    caps: list[CapIn] = Field(min_length=1, max_length=5, description="One for each window.")


class CapOut(BaseModel):
    window: Window
    cap_usd: str
    alert_at: list[int]
    settled_usd: str = Field(description="Paid for calls that were admitted in the window.")
    in_doubt_usd: str = Field(description="What may have been billed besides, at most.")
    reserved_usd: str = Field(description="What calls may cost, at most, that are being made.")
    left_usd: str = Field(description="What may still be admitted.")
    starts_at: datetime | None = Field(None, description="Of the window that is open now.")
    ends_at: datetime | None = None


class BudgetOut(BaseModel):
    scope: str
    caps: list[CapOut]


class BudgetsOut(BaseModel):
    budgets: list[BudgetOut]


class UsageRowOut(BaseModel):
    """Tokens are in one class each."""

    group: dict[str, str] = Field(description="By what was asked for; day and hour are the time at which they begin.")
    calls: int
    errors: int = Field(description="Calls without an answer when they ended; it may have come later.")
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: str = Field(description="Settled.")
    saved_usd: str = Field(description="What tokens that were read from a cache would have cost more.")


class UsageReportOut(BaseModel):
    starts_at: datetime
    ends_at: datetime
    time_zone: str
    group_by: list[str]
    rows: list[UsageRowOut]
    total: UsageRowOut


class ContextOut(BaseModel):
    id: str
    version: int = Field(description="How often it was changed.")
    held_by: str | None = Field(description="The job that runs in it now.")
    messages: list[ContextMessage]


class AgentOut(BaseModel):
    name: str
    description: str
    lanes: list[str]
    max_output_tokens: int
    queue: str
    tools: list[str] = Field(description="Functions that its model may want called.")
    mcp: list[str] = Field(description="MCP servers whose tools it may use.")
    asks: list[str] = Field(description="Agents that it may ask, each time by a job of its own.")
    hands_over_to: list[str] = Field(description="Agents to which it may leave the answer.")
    split_over: int | None = Field(description="Characters above which its input is split into parts.")
    split_to: str | None = Field(description="The agent that is asked for each part, by a job of its own.")


class AgentsOut(BaseModel):
    agents: list[AgentOut]


class FieldProblem(BaseModel):
    field: str
    message: str
    remedy: str = ""


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] = []
    maybe_accepted: bool | None = None
    job_id: str | None = None


def json_of(body: Any) -> bytes:
    return orjson.dumps(body, default=rfc_3339, option=orjson.OPT_PASSTHROUGH_DATETIME)


def quote_out(quote: Quote) -> dict[str, Any]:
    """As `QuoteOut` describes it."""
    return {
        "max_cost_usd": usd(quote.most),
        "expected_cost_usd": usd(quote.expected),
        "expected_from": quote.basis,
        "budget_left_usd": None if quote.budget_left is None else usd(quote.budget_left),
        "position": quote.position,
        "expected_start_at": quote.starts_at,
    }


def job_out(job: Job, quote: Quote | None = None) -> dict[str, Any]:
    """As `JobOut` describes it; built by hand, since it is most of what an answer costs."""
    return {
        "id": job.id,
        "state": job.state,
        "agent": job.agent,
        "queue": job.queue,
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "attempts": job.attempts,
        "context_id": job.context_id,
        "waits_for": job.waits_for,
        "context_appended": job.context_appended,
        "metadata": job.metadata,
        "answer": job.answer,
        # It was read as JSON when it was checked, and stands here as the model wrote it.
        "output": orjson.Fragment(job.answer) if job.is_checked and job.answer is not None else None,
        "error": job.error and {"code": job.error.code, "message": job.error.message},
        "model": job.model,
        "usage": job.usage,
        "cost_usd": None if job.cost_nanos is None else usd(job.cost_nanos),
        "in_doubt_usd": usd(job.in_doubt_nanos),
        "max_cost_usd": None if job.max_cost_nanos is None else usd(job.max_cost_nanos),
        "cost_estimated": any(call.facts.get("estimated") for call in job.calls) if job.calls else None,
        "calls": [call_out(call) for call in job.calls] if job.calls else None,
        "parent_id": job.parent_id,
        "children": list(job.children) or None,
        "children_cost_usd": usd(job.children_cost_nanos),
        "children_in_doubt_usd": usd(job.children_in_doubt_nanos),
        "approvals": list(job.approvals) or None,
        "deadline": job.deadline,
        "reason": job.reason,
        "resume_at": job.resume_at,
        "steps": job.steps,
        "crashes": job.crashes,
        "dead": job.dead,
        "replays": job.replays,
        "stopping": job.stopping,
        "stream": job.stream,
        "request_id": job.request_id,
        "quote": quote and quote_out(quote),
    }


def call_out(call: Call) -> dict[str, Any]:
    settled = call.stands == "settled"
    return {
        "id": call.id,
        "lane": call.facts.get("lane", ""),
        "step": call.facts.get("step", 1),
        "stands": call.stands,
        "started_at": call.at,
        "waited_seconds": call.facts.get("waited", 0.0),
        "seconds": call.facts.get("seconds"),
        "error": call.facts.get("error"),
        "request_id": call.facts.get("request_id", ""),
        "in_doubt": call.stands == "doubt",
        "late": call.facts.get("late", False),
        "overrun": call.facts.get("overrun", False),
        "model": call.facts.get("model"),
        "usage": call.facts.get("usage"),
        "cost_usd": usd(call.nanos) if settled else None,
        "bound_usd": None if settled else usd(call.nanos),
    }


def context_out(context: Context) -> dict[str, Any]:
    return {
        "id": context.id,
        "version": context.version,
        "held_by": context.holder,
        "messages": [_message_out(message) for message in context.messages],
    }


def _message_out(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.text}
    return said | {"images": [_image_out(image) for image in message.images]} if message.images else said


def _image_out(image: Image) -> dict[str, Any]:
    if image.data is None:
        return {"at": image.at, "url": image.url, "media_type": None, "bytes": None}
    media_type, data = image.data
    return {"at": image.at, "url": None, "media_type": media_type, "bytes": len(data.rstrip("=")) * 3 // 4}


def budget_out(scope: str, uses: Sequence[Use]) -> dict[str, Any]:
    return {
        "scope": scope,
        "caps": [
            {
                "window": use.cap.window,
                "cap_usd": usd(use.cap.nanos),
                "alert_at": list(use.cap.alert_at),
                "settled_usd": usd(use.settled),
                "in_doubt_usd": usd(use.in_doubt),
                "reserved_usd": usd(use.reserved),
                "left_usd": usd(use.left),
                "starts_at": use.starts and rfc_3339(use.starts),
                "ends_at": use.ends and rfc_3339(use.ends),
            }
            for use in uses
        ],
    }


def usage_report_out(
    starts: datetime, ends: datetime, zone: str, group_by: Sequence[str], rows: Sequence[Row]
) -> dict[str, Any]:
    total = Row({}, {name: sum(row.sums[name] for row in rows) for name in COLUMNS})
    return {
        "starts_at": rfc_3339(starts),
        "ends_at": rfc_3339(ends),
        "time_zone": zone,
        "group_by": list(group_by),
        "rows": [_usage_row_out(row) for row in rows],
        "total": _usage_row_out(total),
    }


def _usage_row_out(row: Row) -> dict[str, Any]:
    sums = row.sums
    return {
        "group": dict(row.group),
        "calls": sums["calls"],
        "errors": sums["errors"],
        **{f"{name}_tokens": sums[name] for name in CLASSES},
        "cost_usd": usd(sums["cost"]),
        "saved_usd": usd(sums["saved"]),
    }
