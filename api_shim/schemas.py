"""What goes over the wire: requests as they must be, answers as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from celeriac.contexts.store import Context
from celeriac.costs.money import usd
from celeriac.jobs.model import Job, State
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
    """One call to a model."""

    lane: str
    seconds: float
    error: str | None = Field(None, description="Why the next lane was asked; null for the call that answered.")
    request_id: str = Field("", description="The provider's own name of the request.")
    in_doubt: bool = Field(False, description="Whether the provider may have billed a call that has no answer.")


class JobOut(BaseModel):
    id: str
    state: State
    agent: str
    queue: str
    priority: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = Field(description="How many runs it took so far.")
    context_id: str | None = None
    waits_for: str | None = Field(None, description="The job that holds the context and goes first.")
    context_appended: bool | None = Field(None, description="False where the context was deleted meanwhile.")
    metadata: dict[str, str]
    answer: str | None = Field(None, description="Not in lists.")
    error: JobErrorOut | None = None
    model: str | None = Field(None, description="The model that answered, as its provider names it.")
    usage: UsageOut | None = None
    cost_usd: str | None = Field(None, description="Dollars as text, exact to the nano-dollar.")
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
    receipt = job.receipt or {}
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
        "cost_estimated": receipt.get("estimated"),
        "calls": receipt.get("calls"),
        "request_id": job.request_id,
    }


def context_out(context: Context) -> dict[str, Any]:
    return {
        "id": context.id,
        "version": context.version,
        "held_by": context.holder,
        "messages": [{"role": message.role, "content": message.text} for message in context.messages],
    }
