"""Anthropic's Messages API, and whoever speaks like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anthropic
import httpx2

from celeriac.errors import BadAnswer, ContentRefused, LocalFault, ModelError, ModelTimeout, ProviderFailed, Unreachable
from celeriac.llm.adapter import Adapter, Declined
from celeriac.llm.model import Answer, ModelRequest, StopReason
from celeriac.llm.reading import NotAnAnswer, anthropic_usage, billed_model, member, tier

URL = "https://api.anthropic.com"

STOP: Mapping[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool",
}


class Anthropic(Adapter):
    """own: whether Anthropic itself is at the other end, None to tell by the URL; only then is the tier sent."""

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
        self, http: httpx2.AsyncClient, *, key: str, base_url: str | None = None, own: bool | None = None
    ) -> None:
        # The URL is always given: else the SDK would take ANTHROPIC_BASE_URL from the environment, past our settings.
        # Spans are ours to make; its own would name the call a second time.
        self._sdk = anthropic.AsyncAnthropic(
            api_key=key, base_url=base_url or URL, max_retries=0, http_client=http, open_telemetry=False
        )
        # And headers, the key among them, from ANTHROPIC_CUSTOM_HEADERS: no argument says "none".
        self._sdk._custom_headers = {}
        self._own = urlsplit(base_url or URL).hostname == "api.anthropic.com" if own is None else own

    async def _ask(self, request: ModelRequest) -> httpx2.Response:
        return await self._sdk.post(
            "/v1/messages",
            body=self._body(request),
            cast_to=httpx2.Response,
            options={"timeout": request.deadline},
        )

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.lane.model,
            "messages": [{"role": message.role, "content": message.text} for message in request.messages],
            "max_tokens": request.max_output_tokens,
        }
        if request.instructions:
            body["system"] = request.instructions
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body | {"service_tier": "standard_only"} if self._own else body

    def _read(self, made: dict[str, Any], request: ModelRequest) -> Answer:
        blocks = member(made, "content", list)
        reason = member(made, "stop_reason", str)
        usage = anthropic_usage(made, request)
        model, billed_tier = billed_model(made, request.lane.model), tier(made["usage"])
        if reason == "refusal":
            raise Declined(ContentRefused, usage=usage, billed_model=model, tier=billed_tier)
        if reason not in STOP:
            raise NotAnAnswer("an unknown reason to stop")
        text = "".join(member(block, "text", str) for block in blocks if member(block, "type", str) == "text")
        return Answer(text, usage, request.lane, model, STOP[reason], tier=billed_tier)
