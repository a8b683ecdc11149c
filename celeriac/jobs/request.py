"""What a caller may ask for, by whatever door it comes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from celeriac.errors import Invalid, Unpriceable
from celeriac.jobs.model import NewJob
from celeriac.jobs.schema import checked_schema
from celeriac.llm.images import MEDIA_TYPES, Image, checked_url
from celeriac.llm.model import Message, Said
from celeriac.settings import NAME, Name

#: Characters of one message; the body's own limit comes first for most.
MAX_TEXT = 4_000_000
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
ContextId = Annotated[str, StringConstraints(pattern=NAME)]
#: It goes into logs, metrics and the provider's request: printable ASCII without spaces.
MODEL = r"^[a-z][a-z0-9_-]{0,63}/[!-~]{1,128}$"
#: What OpenAI and Anthropic take, of a request or of a part of a message, and we do not pass on: it is billed by rules
#: of its own, or changes those of the rest, so that nobody could say beforehand what a call costs at most.
UNPRICEABLE: Final = frozenset(
    {
        "access_programs",
        "audio",
        "background",
        "background_options",
        "best_of",
        "betas",
        "billing_policy",
        "cache_control",
        "compaction",
        "container",
        "context_management",
        "conversation",
        "detail",
        "extra_body",
        "extra_headers",
        "extra_query",
        "fallback_credit_token",
        "fallbacks",
        "functions",
        "inference_geo",
        "mcp_servers",
        "modalities",
        "moderation",
        "n",
        "output_config",
        "prediction",
        "previous_response_id",
        "prompt_cache_breakpoint",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "service_tier",
        "speed",
        "store",
        "thinking",
        "thread",
        "tools",
        "transformations",
        "web_search_options",
    }
)
#: The same of the parts of a message.
UNPRICEABLE_PARTS: Final = frozenset(
    {"audio", "container_upload", "document", "file", "input_audio", "input_file", "input_video", "video", "video_url"}
)
NOT_PRICED: Final = "what a call costs with it cannot be said beforehand, so it is not passed on to a model"
#: Images of a job, and characters of those that are sent as data, together: its record goes through Redis.
MAX_IMAGES: Final = 20
MAX_IMAGE_DATA: Final = 16_000_000
#: How the branches of a union are named: no part of the request.
TAGS: Final = frozenset({"<text>", "<messages>", "<parts>", "<image>"})
#: What a job may be bounded by, beside what its agent is.
LIMITS: Final = ("max_steps", "max_tokens", "max_cost_usd", "max_seconds")
#: Sums stay below what the store's scripts can compare exactly.
Dollars = Annotated[str, StringConstraints(pattern=r"^[0-8]?[0-9]{1,6}(\.[0-9]{1,9})?$")]
ModelName = Annotated[str, StringConstraints(pattern=MODEL)]


def _of_model(given: Any) -> Any:
    """A pydantic model's class says its schema: one that refers to itself has no type at its top."""
    if isinstance(given, type) and issubclass(given, BaseModel):
        return {"type": "object"} | given.model_json_schema()
    return given


OutputSchema = Annotated[dict[str, Any], BeforeValidator(_of_model), AfterValidator(checked_schema)]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(Wire):
    type: Literal["text"]
    text: Text


class ImagePart(Wire):
    type: Literal["image"]
    url: Annotated[str, AfterValidator(checked_url)] = Field(
        repr=False,
        description="Its https address, which the provider fetches (we never do), or `data:TYPE;base64,DATA`, where "
        f"TYPE is one of {', '.join(MEDIA_TYPES)}, of at most four million characters.",
    )


def _known_part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in UNPRICEABLE_PARTS:
        raise PydanticCustomError("unpriceable", f"{kind}: {NOT_PRICED}")
    if isinstance(value, dict) and kind not in ("text", "image"):
        raise ValueError('is no part that we take; send {"type": "text", "text": ...} or {"type": "image", "url": ...}')
    return value


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "")
    return "<image>" if kind == "image" else "<text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(_part_kind),
    BeforeValidator(_known_part),
]


def _content_kind(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


class InputMessage(Wire):
    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1, max_length=100), Tag("<parts>")],
        Discriminator(_content_kind),
    ]

    @model_validator(mode="after")
    def _only_the_user_shows_images(self) -> Self:
        if self.role != "user" and self.message.images:
            raise ValueError("holds an image; only messages of the user may: put it into one of those")
        return self

    @property
    def message(self) -> Message:
        """Its texts are lines of one, also those that an image stands between."""
        if isinstance(self.content, str):
            return Message(self.role, self.content)
        text, images = "", []
        for part in self.content:
            if isinstance(part, ImagePart):
                images.append(Image(part.url, len(text)))
            else:
                text += f"\n{part.text}" if text else part.text
        return Message(self.role, text, images=tuple(images))


def _kind(value: Any) -> str:
    return "<messages>" if isinstance(value, list) else "<text>"


Input = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[InputMessage], Field(min_length=1, max_length=1000), Tag("<messages>")],
    Discriminator(_kind),
]


class Asked(Wire):
    """A job to be done, but for its times: each door writes those in its own way."""

    agent: Name = Field(description="Which agent does it; `GET /v1/agents` lists them.", examples=["assistant"])
    input: Input = Field(
        description="What it is asked: a text, or messages of which the last is the user's. What a message holds is a "
        "text, or a list of parts, texts and (in the user's) images.",
        examples=["What is the capital of France?"],
    )
    context_id: ContextId | None = Field(None, description="The conversation it belongs to; made when first named.")
    if_busy: Literal["wait", "reject"] = Field(
        "wait", description="When another job runs in the context: wait behind it, or be refused."
    )
    model: ModelName | None = Field(None, description="Ask this provider/model only, instead of the agent's own.")
    max_output_tokens: int | None = Field(None, strict=True, gt=0, le=1_000_000, description="Default: the agent's.")
    max_steps: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=1000,
        description="How often it may ask its model; this or the agent's, the smaller.",
    )
    max_tokens: int | None = Field(
        None, strict=True, gt=0, le=10**12, description="Tokens that it may use. As `max_steps`."
    )
    max_cost_usd: Dollars | None = Field(
        None, description='Dollars that it may cost, with all that work for it, as "0.25". As `max_steps`.'
    )
    max_seconds: float | None = Field(
        None, strict=True, gt=0, le=366 * 86_400, description="For its steps together. As `max_steps`."
    )
    on_budget: Literal["wait", "fail"] = Field(
        "wait",
        description="When a budget is spent that it is in: wait, as `waiting_budget`, for the next window or a higher "
        "cap, or fail with `budget_exceeded`.",
    )
    output_schema: OutputSchema | None = Field(
        None,
        description="What the answer has to be: a JSON schema (2020-12) of an object, in the words that docs/agents.md "
        "lists, of at most 64 KiB. The answer is checked; one that will not do is asked for once more, then the job "
        "fails with `output_invalid`. Default: the agent's.",
        examples=[{"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}],
    )
    stream: bool = Field(
        False,
        strict=True,
        description="Whether somebody reads along, at `GET /v1/jobs/{id}/events`: see docs/streams.md.",
    )
    priority: Literal["low", "normal", "high"] = "normal"
    metadata: Annotated[
        dict[Name, Annotated[str, StringConstraints(max_length=512)]],
        Field(default_factory=dict, max_length=16, description="Yours: up to 16 texts, returned as they are."),
    ]

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Self:
        if isinstance(self.input, list) and self.input[-1].role != "user":
            raise ValueError("input: the last message is not the user's; end with what the agent should answer")
        return self

    @model_validator(mode="after")
    def _shows_not_too_much(self) -> Self:
        urls = [image[1] for message in self.messages() for image in (message[2] if len(message) == 3 else ())]
        if len(urls) > MAX_IMAGES:
            raise ValueError(f"input: holds {len(urls)} images; send at most {MAX_IMAGES} with one job")
        if (size := sum(len(url) for url in urls if url.startswith("data:"))) > MAX_IMAGE_DATA:
            raise ValueError(
                f"input: its images have {size} characters together; send at most {MAX_IMAGE_DATA}, or their addresses"
            )
        return self

    def messages(self) -> tuple[Said, ...]:
        if isinstance(self.input, str):
            return (("user", self.input),)
        return tuple(message.message.said() for message in self.input)

    def as_job(
        self,
        id: str,
        tenant: str,
        *,
        queue: str,
        limited: bool,
        most: Decimal,
        before: Iterable[Said] = (),
        **facts: Any,
    ) -> NewJob:
        """queue, limited: of its agent. most: dollars that its agent's jobs may cost; it is kept with the job, which
        costs no more whatever that agent may later. before: messages that go before its own. facts: what else a
        `NewJob` has.
        """
        limits = {name: value for name in LIMITS if (value := getattr(self, name)) is not None}
        limits["max_cost_usd"] = f"{min(most, Decimal(limits.get('max_cost_usd', most))):f}"
        return NewJob(
            id=id,
            tenant=tenant,
            agent=self.agent,
            queue=queue,
            input=(*before, *self.messages()),
            priority=self.priority,
            context_id=self.context_id,
            if_busy=self.if_busy,
            model=self.model,
            max_output_tokens=self.max_output_tokens,
            limits=limits,
            on_budget=self.on_budget,
            output_schema=self.output_schema,
            stream=self.stream,
            metadata=self.metadata,
            limited=limited,
            **facts,
        )


class Submission(Asked):
    """A job that comes through Celery, as `celeriac.submit` takes it."""

    run_at: AwareDatetime | None = Field(None, description="It waits until then, outside every slot.")
    deadline: AwareDatetime | None = Field(None, description="It expires unless it has ended by then.")
    expires_in: timedelta | None = Field(
        None, gt=timedelta(0), description="Seconds until it expires; the earlier of this and `deadline` counts."
    )

    tenant: Name = Field("default", description="Who pays. Over HTTP the key says it.")
    previous: Literal["ignore", "input"] = Field(
        "ignore",
        description="In a chain, or as the body of a chord: what becomes of the result before it. `input`: it is put "
        "before the job's own input, of one of our jobs its answer.",
    )


def read_submission(asked: Any) -> Submission:
    """Raises Invalid, naming each field that is wrong. What the caller said is not repeated."""
    try:
        return Submission.model_validate(asked)
    except ValidationError as error:
        mistakes, kind = [], Invalid
        for mistake in error.errors(include_url=False, include_input=False, include_context=False):
            field = ".".join(str(part) for part in mistake["loc"] if part not in TAGS)
            message = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                message = f"there is no such field; known are {', '.join(Submission.model_fields)}"
                if mistake["loc"][-1] in UNPRICEABLE:
                    kind, message = Unpriceable, NOT_PRICED
            elif mistake["type"] == "unpriceable":
                kind = Unpriceable
            mistakes.append(f"{field}: {message}" if field else message)
        first = error.errors(include_url=False)[0]["loc"]
        raise kind("; ".join(mistakes), field=str(first[0]) if first else "request") from None
