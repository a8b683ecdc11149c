"""What goes over the wire: requests as they must be, answers as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from celeriac.contexts.store import Context
from celeriac.costs.money import usd
from celeriac.jobs.model import Call, Job, State
from celeriac.settings import NAME, Name

#: Characters of one message; the body's own limit comes first for most.
MAX_TEXT = 4_000_000
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
ContextId = Annotated[str, StringConstraints(pattern=NAME)]
ModelName = Annotated[str, StringConstraints(pattern=r"^(openai|anthropic)/\S{1,128}$")]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputMessage(Wire):
    role: Literal["user", "assistant"]
    content: Text


def _kind(value: Any) -> str:
    return "messages" if isinstance(value, list) else "text"


Input = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[InputMessage], Field(min_length=1, max_length=1000), Tag("messages")],
    Discriminator(_kind),
]


class JobRequest(Wire):
    """A job to be done."""

    agent: Name = Field(description="Which agent does it; `GET /v1/agents` lists them.", examples=["assistant"])
    input: Input = Field(
        description="What it is asked: a text, or messages of which the last is the user's.",
        examples=["What is the capital of France?"],
    )
    context_id: ContextId | None = Field(None, description="The conversation it belongs to; made when first named.")
    if_busy: Literal["wait", "reject"] = Field(
        "wait", description="When another job runs in the context: wait behind it, or be refused with 409."
    )
    model: ModelName | None = Field(None, description="Ask this provider/model only, instead of the agent's own.")
    max_output_tokens: int | None = Field(None, gt=0, le=1_000_000, description="Default: the agent's.")
    priority: Literal["low", "normal", "high"] = "normal"
    metadata: Annotated[
        dict[Name, Annotated[str, StringConstraints(max_length=512)]],
        Field(default_factory=dict, max_length=16, description="Yours: up to 16 texts, returned as they are."),
    ]

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> JobRequest:
        if isinstance(self.input, list) and self.input[-1].role != "user":
            raise ValueError("input: the last message is not the user's; end with what the agent should answer")
        return self

    def messages(self) -> tuple[tuple[str, str], ...]:
        if isinstance(self.input, str):
            return (("user", self.input),)
        return tuple((message.role, message.content) for message in self.input)


class JobErrorOut(BaseModel):
    code: str
    message: str


class UsageOut(BaseModel):
    """Tokens; each billed token is in exactly one of the first four."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = Field(0, description="How many of output_tokens were spent on reasoning.")


class AttemptOut(BaseModel):
    """One call to a model, as it was booked."""

    id: str
    lane: str
    stands: Literal["open", "settled", "doubt", "released"] = Field(
        description="`open`: no outcome yet. `settled`: paid. `doubt`: it may have been billed. `released`: it was not."
    )
    started_at: datetime
    seconds: float | None = None
    error: str | None = Field(None, description="Why the next lane was asked; null for the call that answered.")
    request_id: str = Field("", description="The provider's own name of the request.")
    in_doubt: bool = Field(False, description="Whether the provider may have billed a call that has no answer.")
    model: str | None = Field(None, description="The model that was billed.")
    usage: UsageOut | None = None
    cost_usd: str | None = Field(None, description="What was settled.")
    bound_usd: str | None = Field(None, description="Its highest possible price, while it is open or in doubt.")


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
    reason: str | None = Field(None, description="Why it is parked: `scheduled`, `retry`, `agent_unknown`.")
    resume_at: datetime | None = Field(None, description="When a parked job goes on.")
    steps: int = Field(0, description="Steps that are stored: a resumed job goes on after them.")
    crashes: int = Field(0, description="How often its worker died with it since it last made a step.")
    dead: bool = Field(False, description="Its worker died too often: it is kept, and can be started again.")
    replays: int = Field(0, description="How often it was started again after an end.")
    stopping: bool = Field(False, description="It was asked to stop and runs still.")
    context_id: str | None = None
    waits_for: str | None = Field(None, description="The job that holds the context and goes first.")
    context_appended: bool | None = Field(None, description="False where the context was deleted meanwhile.")
    metadata: dict[str, str]
    answer: str | None = Field(None, description="Not in lists.")
    error: JobErrorOut | None = None
    model: str | None = Field(None, description="The model that answered, as its provider names it.")
    usage: UsageOut | None = None
    cost_usd: str | None = Field(None, description="Dollars as text, exact to the nano-dollar.")
    in_doubt_usd: str = Field("0.000000000", description="What calls without a known outcome may have cost at most.")
    cost_estimated: bool | None = Field(None, description="True where the model's price is not known.")
    calls: list[AttemptOut] | None = Field(None, description="Not in lists.")
    request_id: str = ""


class JobsOut(BaseModel):
    """Newest first."""

    jobs: list[JobOut]
    cursor: str | None = Field(description="Hand it back as `?cursor=` for what is older; null at the end.")


class ContextMessage(BaseModel):
    role: str
    content: str


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


def job_out(job: Job) -> dict[str, Any]:
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
        "error": job.error and {"code": job.error.code, "message": job.error.message},
        "model": job.model,
        "usage": job.usage,
        "cost_usd": None if job.cost_nanos is None else usd(job.cost_nanos),
        "in_doubt_usd": usd(job.in_doubt_nanos),
        "cost_estimated": any(call.facts.get("estimated") for call in job.calls) if job.calls else None,
        "calls": [call_out(call) for call in job.calls] if job.calls else None,
        "deadline": job.deadline,
        "reason": job.reason,
        "resume_at": job.resume_at,
        "steps": job.steps,
        "crashes": job.crashes,
        "dead": job.dead,
        "replays": job.replays,
        "stopping": job.stopping,
        "request_id": job.request_id,
    }


def call_out(call: Call) -> dict[str, Any]:
    settled = call.stands == "settled"
    return {
        "id": call.id,
        "lane": call.facts.get("lane", ""),
        "stands": call.stands,
        "started_at": call.at,
        "seconds": call.facts.get("seconds"),
        "error": call.facts.get("error"),
        "request_id": call.facts.get("request_id", ""),
        "in_doubt": call.stands == "doubt",
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
        "messages": [{"role": message.role, "content": message.text} for message in context.messages],
    }
