"""Every way in which a call can fail, translated into our errors: by the provider's code, by status, by exception.

Nothing of the provider's text is kept: real error messages quote keys, organisations and prompts. What is kept is the
kind, the status, the request id, the time to wait, and whether the call may have been billed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from celeriac.errors import (
    BadAnswer,
    BadCredentials,
    BadModelRequest,
    ContentRefused,
    ContextTooLong,
    LocalFault,
    ModelError,
    ModelTimeout,
    Overloaded,
    ProviderFailed,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from celeriac.llm.limits import SHORTEST_WAIT, limits
from celeriac.llm.model import Lane
from celeriac.llm.transport import Truncated, Wire

#: HTTP status -> what it means. What is not named is BadModelRequest below 500 and ProviderFailed from there on.
STATUS: Mapping[int, type[ModelError]] = {
    400: BadModelRequest,
    401: BadCredentials,
    402: QuotaExhausted,
    403: BadCredentials,
    404: UnknownModel,
    408: ProviderFailed,
    409: ProviderFailed,
    413: BadModelRequest,
    422: BadModelRequest,
    425: ProviderFailed,
    429: RateLimited,
    499: ProviderFailed,
    500: ProviderFailed,
    502: ProviderFailed,
    503: Overloaded,
    504: ProviderFailed,
    529: Overloaded,
}

#: The provider's own code or type, from the body of an error, where it says more than the status.
CODE: Mapping[str, type[ModelError]] = {
    # OpenAI
    "insufficient_quota": QuotaExhausted,
    "billing_hard_limit_reached": QuotaExhausted,
    "billing_not_active": QuotaExhausted,
    "rate_limit_exceeded": RateLimited,
    "context_length_exceeded": ContextTooLong,
    "model_not_found": UnknownModel,
    "invalid_api_key": BadCredentials,
    "content_filter": ContentRefused,
    "content_policy_violation": ContentRefused,
    "invalid_prompt": ContentRefused,
    "bio_policy": ContentRefused,
    "misalignment_policy_violation": ContentRefused,
    "server_error": ProviderFailed,
    "slow_down": Overloaded,
    # Anthropic
    "authentication_error": BadCredentials,
    "permission_error": BadCredentials,
    "billing_error": QuotaExhausted,
    "contract_spend_limit_reached": QuotaExhausted,
    "enforced_spend_limit_reached": QuotaExhausted,
    "not_found_error": UnknownModel,
    "rate_limit_error": RateLimited,
    "overloaded_error": Overloaded,
    "timeout_error": ProviderFailed,
    "api_error": ProviderFailed,
    # llama.cpp
    "exceed_context_size_error": ContextTooLong,
}
#: Codes that are broader than the status they come with: a 503 of type "server_error" is still an overload.
BROAD = frozenset({"server_error", "api_error", "timeout_error", "rate_limit_exceeded"})

#: For what has no code of its own: how the message of a 400 begins or what it holds, in lower case.
SAID: tuple[tuple[str, type[ModelError]], ...] = (
    ("prompt is too long", ContextTooLong),  # Anthropic
    ("exceed context limit", ContextTooLong),  # Anthropic: input and max_tokens together
    ("maximum context length", ContextTooLong),  # vLLM and others that speak OpenAI
    ("credit balance is too low", QuotaExhausted),  # Anthropic
    ("content filtering policy", ContentRefused),  # Anthropic
)

#: What httpx2 reports -> what it means. First match wins, by class.
TRANSPORT: tuple[tuple[type[Exception], type[ModelError]], ...] = (
    (httpx2.PoolTimeout, LocalFault),
    (httpx2.TimeoutException, ModelTimeout),
    (Truncated, BadAnswer),
    (httpx2.UnsupportedProtocol, LocalFault),
    (httpx2.LocalProtocolError, LocalFault),
    (httpx2.TransportError, Unreachable),
    (httpx2.DecodingError, BadAnswer),
    (httpx2.TooManyRedirects, ProviderFailed),
    (httpx2.RequestError, Unreachable),
)

#: A provider that asks for a longer wait is waited for this long, then asked again. Seconds.
LONGEST_WAIT = 3600.0
#: A provider's clock that is so far from ours is not believed. Seconds.
ANOTHER_DAY = 86_400.0

_MESSAGES: Mapping[type[ModelError], str] = {
    RateLimited: "asked us to slow down",
    QuotaExhausted: "has no money of ours left",
    Overloaded: "is overloaded",
    ProviderFailed: "failed",
    ModelTimeout: "did not answer in time",
    Unreachable: "could not be reached, or broke the connection",
    BadAnswer: "sent something that is not an answer",
    BadCredentials: "does not accept our key for this",
    BadModelRequest: "does not accept the request",
    ContextTooLong: "says that the conversation is too long for the model",
    UnknownModel: "does not know the model",
    ContentRefused: "declined to answer",
    LocalFault: "was not asked: our own side failed",
}


def failure(
    kind: type[ModelError], lane: Lane, wire: Wire, *, in_doubt: bool, why: str = "", **facts: Any
) -> ModelError:
    """The error of that kind, with what the wire knows. why: our own words, in addition."""
    status = f" (HTTP {wire.status})" if wire.status >= 300 else ""
    return kind(
        f"{lane.provider} {_MESSAGES[kind]}{status}" + (f": {why}" if why else ""),
        provider=lane.provider,
        model=lane.model,
        status=wire.status,
        request_id=request_id(wire.headers),
        in_doubt=in_doubt,
        limits=limits(wire.headers),
        **facts,
    )


def refused(lane: Lane, wire: Wire, status: int, body: object) -> ModelError:
    """An answer whose status is not 2xx. body: as the SDK decoded it, text where it is no JSON."""
    wire.status = wire.status or status
    kind = kind_of(status, body)
    # A refusal below 500 says that nothing was run. From 500 on only the provider itself can say so: a gateway's page
    # does not tell whether the model behind it has worked, and neither do timeouts and redirects.
    sure = own_words(body) if status >= 500 or status in (408, 409, 425, 499) else status >= 400
    wait = retry_after(wire.headers)
    if wait is not None and kind is RateLimited:
        wait = max(wait, SHORTEST_WAIT)
    return failure(kind, lane, wire, in_doubt=not sure, retry_after=wait)


def kind_of(status: int, body: object) -> type[ModelError]:
    """Code, then message, then status. A code that is broader than the status does not overrule it."""
    codes = list(_codes(body))
    for code in codes:
        if code in CODE and code not in BROAD:
            return CODE[code]
    if 400 <= status < 500:
        said = _message(body).lower()
        for words, kind in SAID:
            if words in said:
                return kind
    if status in STATUS:
        return STATUS[status]
    for code in codes:
        if code in CODE:
            return CODE[code]
    return BadModelRequest if 400 <= status < 500 else ProviderFailed


def broken(
    error: BaseException, lane: Lane, wire: Wire, own: Mapping[type[BaseException], type[ModelError]]
) -> ModelError:
    """A call that ended without an answer. own: what the SDK raises -> what it means, most telling class first wins."""
    cause = error.__cause__
    found = _transport_kind(error) or (_transport_kind(cause) if cause is not None else None)
    kind = found or next((own[of] for of in type(error).__mro__ if of in own), LocalFault)
    if isinstance(error, TimeoutError):
        kind = LocalFault if wire.stage in ("start", "queued") else ModelTimeout
    ours = kind is LocalFault
    if wire.sent and ours:
        kind = BadAnswer  # our own side failed on what came back
    why = {"queued": "no connection was free", "connecting": "no connection was made"}.get(wire.stage, "")
    return failure(kind, lane, wire, in_doubt=wire.sent, why=why, ours=ours)


def _transport_kind(error: BaseException) -> type[ModelError] | None:
    return next((kind for of, kind in TRANSPORT if isinstance(error, of)), None)


def own_words(body: object) -> bool:
    """Whether the body is the error of a model's API: one that has a type and a message.

    A gateway in front of it answers in JSON too, as `{"message": "Endpoint request timed out"}`.
    """
    return any(isinstance(part.get("type"), str) and isinstance(part.get("message"), str) for part in _parts(body))


def _parts(body: object) -> Iterator[dict[str, Any]]:
    """The places where an error may hold its codes: the SDKs hand out the inner or the outer object."""
    if isinstance(body, dict):
        inner = body.get("error")
        if isinstance(inner, dict):
            details = inner.get("details")
            if isinstance(details, dict):
                yield details
            yield inner
        yield body


def _codes(body: object) -> Iterator[str]:
    for part in _parts(body):
        for name in ("error_code", "code", "type"):
            if isinstance(code := part.get(name), str):
                yield code


def _message(body: object) -> str:
    return next((said for part in _parts(body) if isinstance(said := part.get("message"), str)), "")


_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """The provider's name of the call, "" if it gave none or something that cannot be one."""
    for name in ("x-request-id", "request-id"):
        if _REQUEST_ID.fullmatch(said := headers.get(name, "")):
            return said
    return ""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait, up to `LONGEST_WAIT`; None if the provider named no time that can be read, or one that is over:
    "at once" is no answer to when. Of two that it named the first that is not over counts. now: by our clock.
    """
    said = headers.get("retry-after")
    times = _number(headers.get("retry-after-ms"), 0.001), _number(said, 1.0), _until(said, headers.get("date"), now)
    return next((min(seconds, LONGEST_WAIT) for seconds in times if seconds is not None and seconds > 0), None)


def _until(said: str | None, date: str | None, now: float | None) -> float | None:
    """Seconds until a date. date: when that was said."""
    if (then := _moment(said)) is None:
        return None
    now, its = time.time() if now is None else now, _moment(date)
    # A date is by the clock of whoever named it; ours may be minutes off.
    return then - (its if its is not None and abs(its - now) < ANOTHER_DAY else now)


def _moment(said: str | None) -> float | None:
    """Of a date as HTTP writes it, in seconds since 1970."""
    try:
        return parsedate_to_datetime(said or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _number(said: str | None, unit: float) -> float | None:
    try:
        number = float(said or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number * unit
