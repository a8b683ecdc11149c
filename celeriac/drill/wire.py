"""The three wire formats of the drill's provider: OpenAI's two APIs and Anthropic's, with their errors and headers."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from celeriac.drill.behaviour import Behaviour

Api = Literal["chat", "responses", "messages"]
PATHS: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}

REFUSAL = "I can't help with that."

#: status -> (type, code, message) as OpenAI words it. {model} and {key} are filled in.
OPENAI_ERRORS: dict[int | str, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "Invalid value for 'messages'."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: {key}."),
    402: ("billing_error", "billing_hard_limit_reached", "Billing hard limit has been reached."),
    403: (
        "invalid_request_error",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: ("invalid_request_error", "model_not_found", "The model `{model}` does not exist or you do not have access."),
    408: ("server_error", None, "The request timed out."),
    409: ("invalid_request_error", None, "The resource was updated by another request."),
    413: ("invalid_request_error", None, "Request too large."),
    422: ("invalid_request_error", None, "Unprocessable: {prompt}"),
    429: ("tokens", "rate_limit_exceeded", "Rate limit reached for {model} on tokens per min (TPM): Limit 200000."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
    "insufficient_quota": (
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "context_length_exceeded": (
        "invalid_request_error",
        "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 200000 tokens.",
    ),
    "content_filter": ("invalid_request_error", "content_filter", "The prompt triggered our policy: {prompt}"),
}

#: The same for Anthropic: (type, message).
ANTHROPIC_ERRORS: dict[int | str, tuple[str, str]] = {
    400: ("invalid_request_error", "messages: at least one message is required"),
    401: ("authentication_error", "invalid x-api-key: {key}"),
    402: ("billing_error", "There is an issue with your billing or payment information."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: {model}"),
    408: ("timeout_error", "Request timed out."),
    409: ("conflict_error", "Conflict."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    422: ("invalid_request_error", "Unprocessable: {prompt}"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit of 50 requests per minute."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "Request timed out while processing."),
    529: ("overloaded_error", "Overloaded"),
    "insufficient_quota": (
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    ),
    "context_length_exceeded": ("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
    "content_filter": ("invalid_request_error", "Output blocked by content filtering policy"),
}
#: Where Anthropic uses another status for the same thing.
ANTHROPIC_STATUS = {"insufficient_quota": 400}


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a call really costs, in disjoint classes."""

    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int


#: What an image counts for here, whatever its size.
IMAGE_TOKENS = 1000
MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def images_of(api: Api, body: dict[str, Any]) -> list[str]:
    """The images of a request: as URLs, whatever it calls them."""
    items = body.get("input" if api == "responses" else "messages")
    messages = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    if api == "chat":
        return [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    if api == "responses":
        return [part["image_url"] for part in parts if part.get("type") == "input_image"]
    sources = [part["source"] for part in parts if part.get("type") == "image"]
    return [s["url"] if s["type"] == "url" else f"data:{s['media_type']};base64,{s['data']}" for s in sources]


def takes_image(url: str) -> bool:
    """Whether the providers do: none fetches what is not on the web, or decodes what is no image."""
    if not url.startswith("data:"):
        return url.startswith(("https://", "http://"))
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    try:
        return kind in MEDIA_TYPES and bool(base64.b64decode(data, validate=True))
    except ValueError:
        return False


def is_blank(api: Api, body: dict[str, Any]) -> bool:
    """Whether a message says nothing, which the Messages API refuses ("text content blocks must be non-empty")."""
    if api != "messages":
        return False
    contents = [message["content"] for message in body["messages"]]
    texts = [content for content in contents if isinstance(content, str)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any(not text.strip() for text in [*texts, *(b["text"] for b in blocks if b["type"] == "text")])


def prompt_of(api: Api, body: dict[str, Any]) -> str:
    """The last text that the user said."""
    items = body.get("input" if api == "responses" else "messages")
    if isinstance(items, str):
        return items
    last = items[-1] if isinstance(items, list) and items else {}
    content = last.get("content", "") if isinstance(last, dict) else ""
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return str(content)


def answers_in(api: Api, body: dict[str, Any]) -> int:
    """How many answers of a model the conversation holds."""
    items = body.get("input" if api == "responses" else "messages")
    if not isinstance(items, list):
        return 0
    kinds = [item.get("role") or item.get("type") for item in items if isinstance(item, dict)]
    # With Responses an answer is a text, or calls, or both: each run of these is one.
    ours = [kind in ("assistant", "function_call") for kind in kinds]
    return sum(mine and not before for mine, before in zip(ours, [False, *ours], strict=False))


def within_limit(api: Api, body: dict[str, Any], text: str, behaviour: Behaviour) -> tuple[str, Behaviour]:
    """The text up to the output limit of the request, and the behaviour of a model that met it."""
    names = {
        "chat": ("max_completion_tokens", "max_tokens"),
        "responses": ("max_output_tokens",),
        "messages": ("max_tokens",),
    }
    limit = next((body[name] for name in names[api] if isinstance(body.get(name), int)), 0)
    words = text.split()
    if not limit or len(words) <= limit:
        return text, behaviour
    return " ".join(words[:limit]), replace(behaviour, finish="length") if behaviour.finish == "end" else behaviour


def tokens_of(size: int, images: list[str], text: str, behaviour: Behaviour) -> Tokens:
    """Four bytes of the request are a token, but those of its images, and so is a word of the answer."""
    whole = max(1, (size - sum(map(len, images))) // 4) + IMAGE_TOKENS * len(images)
    cached = min(behaviour.cached, whole)
    output = behaviour.output if behaviour.output is not None else max(1, len(text.split())) + behaviour.reasoning
    written = min(behaviour.cache_written, whole - cached)
    return Tokens(whole - cached - written, cached, written, output, behaviour.reasoning)


def answer(
    api: Api, name: str, body: dict[str, Any], text: str, tokens: Tokens, behaviour: Behaviour
) -> dict[str, Any]:
    """The body of a 200."""
    model = behaviour.answer_model or str(body.get("model"))
    make = {"chat": _chat, "responses": _responses, "messages": _messages}[api]
    made = make(name, model, text, behaviour)
    if behaviour.usage != "missing":
        made["usage"] = None if behaviour.usage == "null" else usage(api, tokens, behaviour) | behaviour.also
    if behaviour.tier is not None:
        of = made.get("usage") if api == "messages" else made
        if isinstance(of, dict):
            of["service_tier"] = behaviour.tier
    return made


def in_progress(made: dict[str, Any]) -> dict[str, Any]:
    """A response before it is made."""
    return made | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}


def events(api: Api, name: str, made: dict[str, Any], body: dict[str, Any], behaviour: Behaviour) -> Iterator[bytes]:
    """The same answer as a stream of events, in words."""
    make = {"chat": _chat_events, "responses": _responses_events, "messages": _messages_events}[api]
    said = False
    for event, data in make(made, body):
        if said and behaviour.error_in_stream is not None:
            failing = replace(behaviour, status=behaviour.error_in_stream)
            _, wrong = error(api, name, failing, {"model": "", "key": "", "prompt": ""})
            if api == "responses":
                inner = wrong["error"]
                wrong = inner | {"type": "error", "code": inner["code"] or inner["type"]}
            yield _event("" if api == "chat" else "error", wrong)
            return
        yield _event(event, data)
        said = said or "delta" in event or any(choice["delta"].get("content") for choice in data.get("choices", ()))
    if api == "chat":
        yield b"data: [DONE]\n\n"


def _event(event: str, data: dict[str, Any]) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _pieces(text: str) -> list[str]:
    """Word by word; together they are the text."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or ([text] if text else [])


def _chat_events(made: dict[str, Any], body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    [choice] = made["choices"]
    same = {"id": made["id"], "object": "chat.completion.chunk", "created": made["created"], "model": made["model"]}
    same |= {"service_tier": made["service_tier"]}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> tuple[str, dict[str, Any]]:
        return "", same | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    message = choice["message"]
    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(message["content"] or ""):
        yield chunk({"content": piece})
    if message["refusal"]:
        yield chunk({"refusal": message["refusal"]})
    for number, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        yield chunk({"tool_calls": [call | {"index": number, "function": {"name": function["name"], "arguments": ""}}]})
        for piece in _pieces(function["arguments"]):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    if (body.get("stream_options") or {}).get("include_usage") and "usage" in made:
        yield "", same | {"choices": [], "usage": made["usage"]}


def _responses_events(made: dict[str, Any], body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    def event(kind: str, **facts: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"type": kind, **facts}

    yield event("response.created", response=in_progress(made))
    for number, item in enumerate(made["output"]):
        for part in item.get("content", ()):
            for piece in _pieces(part.get("text", "")):
                yield event("response.output_text.delta", output_index=number, content_index=0, delta=piece)
    yield event(f"response.{made['status']}", response=made)


def _messages_events(made: dict[str, Any], body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    def event(kind: str, **facts: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"type": kind, **facts}

    usage = made.get("usage")
    first = usage | {"output_tokens": 1} if isinstance(usage, dict) else usage
    begun = made | {"content": [], "stop_reason": None}
    yield event("message_start", message=begun if "usage" not in made else begun | {"usage": first})
    yield event("ping")
    for number, block in enumerate(made["content"]):
        is_text = block["type"] == "text"
        empty: dict[str, Any] = {"text": ""} if is_text else {"input": {}}
        yield event("content_block_start", index=number, content_block=block | empty)
        for piece in _pieces(block["text"] if is_text else json.dumps(block["input"])):
            delta = (
                {"type": "text_delta", "text": piece}
                if is_text
                else {"type": "input_json_delta", "partial_json": piece}
            )
            yield event("content_block_delta", index=number, delta=delta)
        yield event("content_block_stop", index=number)
    told = {"usage": {"output_tokens": usage["output_tokens"]}} if isinstance(usage, dict) else {}
    yield event("message_delta", delta={"stop_reason": made["stop_reason"], "stop_sequence": None}, **told)
    yield event("message_stop")


def _calls(name: str, behaviour: Behaviour) -> Iterator[tuple[str, str, str, Any]]:
    """Id, name, arguments as text and as an object, of each tool that is wanted called."""
    for number, call in enumerate(behaviour.calls):
        arguments = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        yield call.get("id", f"call_{name}_{number}"), call["name"], text, arguments


def _chat(name: str, model: str, text: str, behaviour: Behaviour) -> dict[str, Any]:
    refused = behaviour.finish == "refusal"
    reason = {"end": "stop", "length": "length", "refusal": "stop", "filter": "content_filter"}[behaviour.finish]
    calls = [
        {"id": id, "type": "function", "function": {"name": tool, "arguments": arguments}}
        for id, tool, arguments, _ in _calls(name, behaviour)
    ]
    if calls and reason == "stop":
        reason = "tool_calls"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refused else text,
        "refusal": REFUSAL if refused else None,
        "annotations": [],
    }
    if calls:
        message |= {"content": behaviour.text, "tool_calls": calls}
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _responses(name: str, model: str, text: str, behaviour: Behaviour) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    if behaviour.finish == "refusal":
        part = {"type": "refusal", "refusal": REFUSAL}
    why = {"length": "max_output_tokens", "filter": "content_filter"}.get(behaviour.finish)
    message: dict[str, Any] = {
        "id": f"msg_{name}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    calls = [
        {
            "id": f"fc_{id}",
            "type": "function_call",
            "status": "completed",
            "call_id": id,
            "name": tool,
            "arguments": made,
        }
        for id, tool, made, _ in _calls(name, behaviour)
    ]
    said = [message] if behaviour.text or not calls else []
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if why else "completed",
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "model": model,
        "output": [{"id": f"rs_{name}", "type": "reasoning", "summary": []}, *said, *calls],
        "parallel_tool_calls": True,
        "service_tier": "default",
        "store": False,
        "tool_choice": "auto",
        "tools": [],
    }


def _messages(name: str, model: str, text: str, behaviour: Behaviour) -> dict[str, Any]:
    refused = behaviour.finish in ("refusal", "filter")
    reason = "refusal" if refused else {"end": "end_turn", "length": "max_tokens"}[behaviour.finish]
    calls = [
        {"type": "tool_use", "id": id, "name": tool, "input": made} for id, tool, _, made in _calls(name, behaviour)
    ]
    if calls and reason == "end_turn":
        reason = "tool_use"
    said = [{"type": "text", "text": text}] if behaviour.text or not calls else []
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [] if refused else [*said, *calls],
        "stop_reason": reason,
        "stop_sequence": None,
    }


def usage(api: Api, tokens: Tokens, behaviour: Behaviour) -> dict[str, Any]:
    """Tokens as each API counts them: OpenAI's input holds what was cached, Anthropic's does not."""
    said: dict[str, Any] = {"input": tokens.input, "cache_read": tokens.cache_read, "output": tokens.output}
    if isinstance(behaviour.usage, dict):
        said |= behaviour.usage
    if api == "messages":
        return {
            "input_tokens": said["input"],
            "cache_creation_input_tokens": tokens.cache_write,
            "cache_read_input_tokens": said["cache_read"],
            "output_tokens": said["output"],
            "service_tier": "standard",
        }
    whole = said["input"] + tokens.cache_read + tokens.cache_write
    spent = said["output"]
    total = whole + spent if isinstance(spent, (int, float)) else whole
    if behaviour.reasoning_apart:
        spent -= tokens.reasoning
    cached = {"cached_tokens": said["cache_read"], "cache_write_tokens": tokens.cache_write}
    if api == "chat":
        return {
            "prompt_tokens": whole,
            "completion_tokens": spent,
            "total_tokens": total,
            "prompt_tokens_details": {**cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
        }
    return {
        "input_tokens": whole,
        "input_tokens_details": cached,
        "output_tokens": spent,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": total,
    }


def error(api: Api, name: str, behaviour: Behaviour, facts: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and body of an error in the provider's own words. Like the real ones, some name the key or the prompt."""
    if api == "messages":
        status = ANTHROPIC_STATUS.get(behaviour.code, behaviour.status)
        kind, message = ANTHROPIC_ERRORS.get(behaviour.code) or ANTHROPIC_ERRORS.get(
            status, ("invalid_request_error" if status < 500 else "api_error", f"HTTP {status}")
        )
        said = {"type": "error", "error": {"type": kind, "message": message.format(**facts)}, "request_id": name}
        return status, said
    kind, code, message = OPENAI_ERRORS.get(behaviour.code) or OPENAI_ERRORS.get(
        behaviour.status, ("invalid_request_error" if behaviour.status < 500 else "server_error", None, "Error.")
    )
    return behaviour.status, {
        "error": {"message": message.format(**facts), "type": kind, "param": None, "code": code},
    }


def headers(api: Api, name: str) -> dict[str, str]:
    """The headers that both providers put on every answer, errors included."""
    if api == "messages":
        return {
            "request-id": name,
            "anthropic-ratelimit-requests-limit": "1000000",
            "anthropic-ratelimit-requests-remaining": "999999",
            "anthropic-ratelimit-tokens-limit": "1000000000",
            "anthropic-ratelimit-tokens-remaining": "999999000",
        }
    return {
        "x-request-id": name,
        "openai-processing-ms": "12",
        "x-ratelimit-limit-requests": "1000000",
        "x-ratelimit-limit-tokens": "1000000000",
        "x-ratelimit-remaining-requests": "999999",
        "x-ratelimit-remaining-tokens": "999999000",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-reset-tokens": "12ms",
    }
