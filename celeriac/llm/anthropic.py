"""Anthropic's Messages API, and whoever speaks like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import anthropic
import httpx2
import orjson

from celeriac.errors import BadAnswer, ContentRefused, LocalFault, ModelError, ModelTimeout, ProviderFailed, Unreachable
from celeriac.llm.adapter import Adapter, Declined, post
from celeriac.llm.images import Image
from celeriac.llm.model import Answer, Message, ModelRequest, StopReason, ToolCall
from celeriac.llm.reading import (
    NotAnAnswer,
    anthropic_region,
    anthropic_tier,
    anthropic_usage,
    billed_model,
    member,
    stopped,
    tool_calls,
)
from celeriac.llm.shape import closed
from celeriac.llm.streams import Gatherer, MessagesGatherer
from celeriac.llm.terms import ANTHROPIC_URL, is_anthropic, runs_where_it_is_told

#: Before a schema that the provider's own field does not take.
IN_WORDS = "Answer with one JSON object, and nothing else, that is valid against this JSON schema: "

STOP: Mapping[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool",
}


class Anthropic(Adapter):
    """own: whether Anthropic itself is at the other end, None to tell by the URL; only then are tier and region sent.

    region: where models have to run, `global` for anywhere; those that do not let it be chosen are not told.
    """

    status_error = anthropic.APIStatusError
    errors: ClassVar[Mapping[type[BaseException], type[ModelError]]] = {
        anthropic.APIStatusError: ProviderFailed,
        anthropic.APITimeoutError: ModelTimeout,
        anthropic.APIConnectionError: Unreachable,
        anthropic.APIResponseValidationError: BadAnswer,
        anthropic.APIError: ProviderFailed,
        # Everything else is raised before anything is sent: missing packages, credentials, wrong use.
        anthropic.AnthropicError: LocalFault,
    }

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        key: str,
        base_url: str | None = None,
        own: bool | None = None,
        region: str = "global",
    ) -> None:
        # The URL is always given: else the SDK would take ANTHROPIC_BASE_URL from the environment, past our settings.
        # Spans are ours to make; its own would name the call a second time.
        self._sdk = anthropic.AsyncAnthropic(
            api_key=key, base_url=base_url or ANTHROPIC_URL, max_retries=0, http_client=http, open_telemetry=False
        )
        # And headers, the key among them, from ANTHROPIC_CUSTOM_HEADERS: no argument says "none".
        self._sdk._custom_headers = {}
        self._own = is_anthropic(base_url or ANTHROPIC_URL) if own is None else own
        self._region = region

    async def _ask(self, request: ModelRequest) -> httpx2.Response:
        return await post(self._sdk, anthropic.AsyncStream, "/v1/messages", self._body(request), request)

    def _gatherer(self, request: ModelRequest) -> Gatherer:
        return MessagesGatherer()

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.lane.model,
            "messages": messages(request.messages),
            "max_tokens": request.max_output_tokens,
        }
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
                for tool in request.tools
            ]
        instructions = [request.instructions] if request.instructions else []
        if request.schema is not None:
            if (schema := closed(request.schema)) is not None:
                body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
            else:
                instructions.append(IN_WORDS + orjson.dumps(request.schema).decode())
        if instructions:
            body["system"] = "\n\n".join(instructions)
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if not self._own:
            return body
        if runs_where_it_is_told(request.lane.model):
            body["inference_geo"] = self._region
        return body | {"service_tier": "standard_only"}

    def _read(self, made: dict[str, Any], request: ModelRequest) -> Answer:
        blocks = member(made, "content", list)
        reason = member(made, "stop_reason", str)
        usage = anthropic_usage(made, request)
        model = billed_model(made, request.lane.model)
        billed_tier, region = anthropic_tier(made["usage"]), anthropic_region(made["usage"])
        if reason == "refusal":
            raise Declined(ContentRefused, usage=usage, billed_model=model, tier=billed_tier, region=region)
        if reason not in STOP:
            raise NotAnAnswer("an unknown reason to stop")
        text = "".join(member(block, "text", str) for block in blocks if member(block, "type", str) == "text")
        calls = tool_calls(
            (member(block, "name", str), _arguments(block)) for block in blocks if block["type"] == "tool_use"
        )
        stop = stopped(STOP[reason], calls)
        return Answer(text, usage, request.lane, model, stop, tier=billed_tier, region=region, calls=calls)


def messages(said: Sequence[Message]) -> list[dict[str, Any]]:
    """As the Messages API has them: results of tools are the user's, all of one turn in one message."""
    made: list[dict[str, Any]] = []
    results: list[dict[str, Any]] | None = None
    for message in said:
        if message.role != "tool":
            results = None
            made.append({"role": message.role, "content": _content(message)})
            continue
        if results is None:
            results = []
            made.append({"role": "user", "content": results})
        results.append(
            {
                "type": "tool_result",
                "tool_use_id": message.call_id,
                "content": message.text,
                "is_error": message.failed,
            }
        )
    return made


def _content(message: Message) -> str | list[dict[str, Any]]:
    if message.images:
        return [_block(part) for part in message.parts()]
    if not message.calls:
        return message.text
    calls = [{"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call)} for call in message.calls]
    return [{"type": "text", "text": message.text}, *calls] if message.text else calls


def _block(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.data is None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    media_type, data = part.data
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _arguments(block: dict[str, Any]) -> str:
    try:
        return orjson.dumps(member(block, "input", dict)).decode()
    except orjson.JSONEncodeError as error:  # it reads what is deeper than what it writes
        raise NotAnAnswer("arguments of a tool that are too deep") from error


def _object(call: ToolCall) -> dict[str, Any]:
    """Another model's arguments may be no JSON, which it has been told; here only an object can be said again."""
    try:
        made = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return {}
    return made if isinstance(made, dict) else {}
