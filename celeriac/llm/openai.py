"""OpenAI and whoever speaks like it: Chat Completions by default, Responses where the request says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import httpx2
import openai

from celeriac.errors import BadAnswer, ContentRefused, LocalFault, ModelError, ModelTimeout, ProviderFailed, Unreachable
from celeriac.llm.adapter import Adapter, Declined, post
from celeriac.llm.failures import failure, kind_of, request_id
from celeriac.llm.images import Image
from celeriac.llm.model import Answer, Message, ModelRequest, StopReason, ToolSpec
from celeriac.llm.reading import (
    NotAnAnswer,
    billed_model,
    json_object,
    kept_as,
    member,
    objects,
    openai_usage,
    stopped,
    tier,
    tool_calls,
)
from celeriac.llm.streams import ChatGatherer, Gatherer, ResponsesGatherer
from celeriac.llm.terms import OPENAI_URL, is_openai, region_of
from celeriac.llm.transport import Wire, current_wire
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Under this key the metadata of what is stored name its call.
CALL: Final = "celeriac_call"
#: A response that is still being made.
UNFINISHED: Final = ("queued", "in_progress")
#: Seconds before a response is looked at first, and at most between two looks.
FIRST_LOOK: Final = 0.25
LONGEST_LOOK: Final = 4.0
#: How often a completion is looked for, and how often in a row a look at a response may fail.
LOOKS: Final = 4
#: Seconds that one look may take: what is kept there is only read.
ONE_LOOK: Final = 5.0
#: What a look fails with.
LOOK_FAILED: Final = (openai.OpenAIError, httpx2.HTTPError, NotAnAnswer, TimeoutError)
NOT_LOOKED_AT: Final = "it could not be looked at any more"

STOP: Mapping[str, StopReason] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool",
    "function_call": "tool",
}


class OpenAI(Adapter):
    """own: whether OpenAI itself is at the other end, None to tell by the URL. asks_for_usage, stores: as `Endpoint`
    has them.

    OpenAI is sent `max_completion_tokens` (its reasoning models refuse the older name), `store=false` and the service
    tier. Everybody else is sent `max_tokens` and nothing that is OpenAI's own: it is the one name that llama.cpp, vLLM,
    Ollama, Mistral and the others all take, some refuse fields they do not know, and none stores chat completions.

    What may be stored is, by whoever stores: chat completions under the name of their call, by which they are looked
    up, and responses, made in the background, under a name that the provider gives them before it makes them. All
    others are asked as if nothing might be.
    """

    status_error = openai.APIStatusError
    errors: ClassVar[Mapping[type[BaseException], type[ModelError]]] = {
        openai.APIStatusError: ProviderFailed,
        openai.APITimeoutError: ModelTimeout,
        openai.APIConnectionError: Unreachable,
        openai.APIResponseValidationError: BadAnswer,
        openai.LengthFinishReasonError: BadAnswer,
        openai.ContentFilterFinishReasonError: ContentRefused,
        openai.APIError: ProviderFailed,
        # Everything else is raised before anything is sent: missing packages, credentials, wrong use.
        openai.OpenAIError: LocalFault,
    }

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        key: str,
        base_url: str | None = None,
        own: bool | None = None,
        asks_for_usage: bool = True,
        stores: bool = True,
    ) -> None:
        # The URL is always given: else the SDK would take OPENAI_BASE_URL from the environment, past our settings.
        self._sdk = openai.AsyncOpenAI(api_key=key, base_url=base_url or OPENAI_URL, max_retries=0, http_client=http)
        # And whose call it is, from OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and the like: no argument says "none".
        self._sdk._custom_headers = {}
        self._sdk.organization = self._sdk.project = self._sdk.admin_api_key = None
        self._own = is_openai(base_url or OPENAI_URL) if own is None else own
        self.region = region_of(base_url or OPENAI_URL)
        self._asks_for_usage = asks_for_usage
        self._stores = stores

    async def answer(self, request: ModelRequest) -> Answer:
        if request.stored and not self._stores:
            request = replace(request, stored=False, on_stored=None)
        return await super().answer(request)

    async def _ask(self, request: ModelRequest) -> httpx2.Response:
        path, body = (
            ("/responses", self._responses) if request.api == "responses" else ("/chat/completions", self._chat)
        )
        return await post(self._sdk, openai.AsyncStream, path, body(request), request)

    def _gatherer(self, request: ModelRequest) -> Gatherer:
        return ResponsesGatherer() if request.api == "responses" else ChatGatherer()

    def _read(self, made: dict[str, Any], request: ModelRequest) -> Answer:
        return read_responses(made, request) if request.api == "responses" else read_chat(made, request)

    def _chat(self, request: ModelRequest) -> dict[str, Any]:
        messages = [chat_message(message) for message in request.messages]
        if request.instructions:
            messages.insert(0, {"role": "system", "content": request.instructions})
        body: dict[str, Any] = {"model": request.lane.model, "messages": messages}
        if request.tools:
            body["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": _format(request.schema)}
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.on_text is not None and self._asks_for_usage:
            body["stream_options"] = {"include_usage": True}
        kept = {"store": True, "metadata": {CALL: request.call}} if request.stored else {}
        if not self._own:
            return body | {"max_tokens": request.max_output_tokens} | kept
        own = {"max_completion_tokens": request.max_output_tokens, "store": False, "service_tier": "default"}
        return body | own | kept

    def _responses(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.lane.model,
            "input": [item for message in request.messages for item in response_items(message)],
            "max_output_tokens": request.max_output_tokens,
            "store": False,
        }
        if request.instructions:
            body["instructions"] = request.instructions
        if request.tools:
            body["tools"] = [{"type": "function", **_function(tool)} for tool in request.tools]
        if request.schema is not None:
            body["text"] = {"format": {"type": "json_schema", **_format(request.schema)}}
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.stored:
            body |= {"store": True, "background": True, "metadata": {CALL: request.call}}
        return body | {"service_tier": "default"} if self._own else body

    async def _finished(self, made: dict[str, Any], request: ModelRequest) -> dict[str, Any]:
        if request.api != "responses" or made.get("status") not in UNFINISHED or not (response := kept_as(made)):
            return made
        if request.on_stored is not None:
            await request.on_stored(response)
        return await self._awaited(made, response, request.call)

    async def _awaited(self, made: dict[str, Any], response: str, call: str) -> dict[str, Any]:
        """The same response, finished; the caller's deadline is the end of it. Another call's is a look that failed.

        Raises NotAnAnswer, and nothing that says what became of the call: that it cannot be looked at proves nothing.
        """
        wait, failed = FIRST_LOOK, 0
        while made.get("status") in UNFINISHED:
            await asyncio.sleep(wait)
            wait = min(LONGEST_LOOK, wait * 1.5)
            try:
                looked_at = await self._get(f"/responses/{response}")
                if looked_at.get("id") != response or not _may_be_of(call, looked_at):
                    raise NotAnAnswer("another call's")
                made, failed = looked_at, 0
            except LOOK_FAILED as error:
                failed += 1
                if failed == LOOKS or not _may_pass(error):
                    break
        else:
            return made
        raise NotAnAnswer(NOT_LOOKED_AT)

    async def _get(self, path: str, **query: Any) -> dict[str, Any]:
        # The wire of the call says how far that got, and not how far this did.
        token = current_wire.set(Wire())
        try:
            async with asyncio.timeout(ONE_LOOK):
                response = await self._sdk.get(path, cast_to=httpx2.Response, options={"params": query})
            return json_object(response.content)
        finally:
            current_wire.reset(token)

    def may_find(self, request: ModelRequest, response: str | None) -> bool:
        return self._stores and (request.api == "chat" or response != "")

    async def look_up(self, request: ModelRequest, response: str) -> Answer | None:
        """As `LooksUp` has it, within the request's deadline. What fails here is logged, and None."""
        if not self.may_find(request, response):
            return None
        refused: dict[str, Any] = {}
        wire = Wire()
        try:
            async with asyncio.timeout(request.deadline):
                made = await (
                    self._awaited({"status": UNFINISHED[0]}, response, request.call)
                    if request.api == "responses"
                    else self._completion(request.call)
                )
            if made is not None:
                wire.headers = {"x-request-id": str(made.get("request_id") or "")}
                answer = self._read(made, request)
                return replace(answer, region=answer.region or self.region, request_id=request_id(wire.headers))
            why = "unknown there"
        except Declined as error:
            # With its usage it is settled like an answer.
            if error.kind is ContentRefused and not error.in_doubt:
                refused = {"region": self.region, **error.facts}
            why = error.kind.code
        except NotAnAnswer as error:
            why = str(error)
        except Exception as error:  # whatever it is, the call stays in doubt as it was
            why = type(error).__name__
        if refused:
            raise failure(ContentRefused, request.lane, wire, in_doubt=False, **refused)
        log.info("stored_answer_not_found", call=request.call, lane=str(request.lane), why=why)
        return None

    async def _completion(self, call: str) -> dict[str, Any] | None:
        """It is listed as soon as it is whole, which may be a moment after its connection broke. A look that failed
        tells no more than one that found nothing yet.

        Raises NotAnAnswer where the last look failed, or where there are several: each was billed, and one is booked.
        """
        wait, is_last_failed = 2 * FIRST_LOOK, False
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(wait)
                wait *= 2
            try:
                listed = member(await self._get("/chat/completions", metadata={CALL: call}), "data", list)
            except LOOK_FAILED as error:
                is_last_failed = True
                if not _may_pass(error):
                    break
                continue
            is_last_failed = False
            # Some who speak this API know no such filter, and list the answers to others.
            found: list[dict[str, Any]] = [made for made in listed if _call_of(made) == call]
            # A list may name one twice; those without a name are each one of its own.
            if (answers := len({kept_as(made) or number for number, made in enumerate(found)})) > 1:
                log.warning("several_stored_answers", call=call, answers=answers)
                raise NotAnAnswer("several answers to one call")
            if found:
                return found[0]
        if is_last_failed:
            raise NotAnAnswer(NOT_LOOKED_AT)
        return None


def _may_be_of(call: str, made: dict[str, Any]) -> bool:
    """By the metadata that it was sent; some who speak this API give none back."""
    return not made.get("metadata") or _call_of(made) == call


def _call_of(made: object) -> object:
    metadata = made.get("metadata") if isinstance(made, dict) else None
    return metadata.get(CALL) if isinstance(metadata, dict) else None


def _may_pass(error: BaseException) -> bool:
    """Whether the next look may show more than this one, which failed."""
    status: int = getattr(error, "status_code", 500)
    return status >= 500 or status in (408, 429)


def _function(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.schema}


def _format(schema: Mapping[str, Any]) -> dict[str, Any]:
    # Not strict: that is a dialect of its own, which refuses most schemas that people write.
    return {"name": "answer", "schema": schema, "strict": False}


def chat_message(message: Message) -> dict[str, Any]:
    """As Chat Completions has it."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
    if not message.calls:
        content = [_chat_part(part) for part in message.parts()] if message.images else message.text
        return {"role": message.role, "content": content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.calls
    ]
    return {"role": message.role, "content": message.text or None, "tool_calls": calls}


def _chat_part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # Never "auto": its newest models then take an image of any size as it is, and nobody could say what that costs.
    return {"type": "image_url", "image_url": {"url": part.url, "detail": "high"}}


def response_items(message: Message) -> Iterator[dict[str, Any]]:
    """As Responses has it: calls and their results are items of their own."""
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.call_id, "output": message.text}
        return
    if message.images:
        yield {"role": message.role, "content": [_response_part(part) for part in message.parts()]}
    elif message.text or not message.calls:
        yield {"role": message.role, "content": message.text}
    for call in message.calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _response_part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    return {"type": "input_image", "image_url": part.url, "detail": "high"}


def read_chat(made: dict[str, Any], request: ModelRequest) -> Answer:
    choices = member(made, "choices", list)
    message = member(choices[0] if choices else None, "message", dict)
    reason = member(choices[0], "finish_reason", str)
    usage = openai_usage(made, request, sides=("prompt", "completion"))
    model = billed_model(made, request.lane.model)
    if reason == "content_filter" or message.get("refusal"):
        raise Declined(ContentRefused, usage=usage, billed_model=model, tier=tier(made))
    if reason not in STOP:
        raise NotAnAnswer("an unknown reason to stop")
    calls = tool_calls(_chat_call(call) for call in objects(message, "tool_calls"))
    stop = stopped(STOP[reason], calls)
    text = message.get("content")
    if text is None and stop != "end":
        text = ""  # all of the output went into reasoning, or into a tool call
    if not isinstance(text, str):
        raise NotAnAnswer("no content")
    return Answer(text, usage, request.lane, model, stop, tier=tier(made), calls=calls)


def _chat_call(made: object) -> tuple[str, str]:
    function = member(made, "function", dict)
    return member(function, "name", str), member(function, "arguments", str)


def read_responses(made: dict[str, Any], request: ModelRequest) -> Answer:
    status = member(made, "status", str)
    if status == "failed":
        # After a 200: what was spent is in the usage, if anywhere.
        usage = openai_usage(made, request, sides=("input", "output")) if made.get("usage") else None
        kind = kind_of(500, {"error": made.get("error")})
        if kind is not ContentRefused:
            raise Declined(kind, in_doubt=True)
        model = billed_model(made, request.lane.model)
        raise Declined(kind, in_doubt=usage is None, usage=usage, billed_model=model, tier=tier(made))
    items = member(made, "output", list)
    usage = openai_usage(made, request, sides=("input", "output"))
    model = billed_model(made, request.lane.model)
    details = made.get("incomplete_details")
    why = details.get("reason") if isinstance(details, dict) else None
    messages = [item for item in items if isinstance(item, dict) and item.get("type") == "message"]
    parts = [part for item in messages for part in objects(item, "content", needed=True)]
    if why == "content_filter" or any(part.get("type") == "refusal" for part in parts):
        raise Declined(ContentRefused, usage=usage, billed_model=model, tier=tier(made))
    if status == "incomplete" and why != "max_output_tokens":
        raise NotAnAnswer("an unknown reason to stop")
    if status not in ("completed", "incomplete"):
        raise NotAnAnswer("not finished")
    text = "".join(member(part, "text", str) for part in parts if part.get("type") == "output_text")
    calls = tool_calls(
        (member(item, "name", str), member(item, "arguments", str))
        for item in items
        if isinstance(item, dict) and item.get("type") == "function_call"
    )
    stop = stopped("length" if status == "incomplete" else "end", calls)
    if not messages and stop == "end":
        raise NotAnAnswer("no message")
    return Answer(text, usage, request.lane, model, stop, tier=tier(made), calls=calls)
