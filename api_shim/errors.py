"""Every refusal is `application/problem+json` (RFC 9457) and names the field, what is wrong with it, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from celeriac.errors import (
    CeleriacError,
    Conflict,
    Invalid,
    KeyReused,
    NotFound,
    Refused,
    StoreUnavailable,
    Unpriceable,
)
from celeriac.jobs.request import MODEL, NOT_PRICED, TAGS, UNPRICEABLE
from celeriac.logs import get_logger
from celeriac.settings import NAME

log = get_logger(__name__)

#: Seconds after which a store that was away is worth asking again.
RETRY_AFTER: Final = 2

STATUS: Final[Mapping[type[CeleriacError], tuple[int, str]]] = {
    Invalid: (422, "The request is not valid"),
    NotFound: (404, "Not found"),
    Conflict: (409, "Not now"),
    KeyReused: (422, "The key stands for another request"),
    StoreUnavailable: (503, "The job store is away"),
}


class BadBody(HTTPException):
    """A body that is not read to its end. remedy: what would be accepted."""

    def __init__(self, status: int, message: str, remedy: str) -> None:
        super().__init__(status, message, {"Connection": "close"})
        self.remedy = remedy


class TooLarge(BadBody):
    def __init__(self, limit: int) -> None:
        remedy = "send less, or raise CELERIAC_SHIM__MAX_BODY_BYTES"
        super().__init__(413, f"the body is larger than {limit} bytes", remedy)


class TooSlow(BadBody):
    def __init__(self, seconds: float) -> None:
        remedy = "send the whole body at once, over a faster line or in a smaller request"
        super().__init__(408, f"the body did not arrive within {seconds:g} seconds", remedy)


REMEDIES: Final[Mapping[str, str]] = {
    "extra_forbidden": "leave it out, or look for a typing mistake",
    "missing": "give it a value",
    "json_invalid": "send valid JSON",
    "unpriceable": "leave it out; messages hold text and images",
    "string_unicode": "send valid Unicode; a lone surrogate is not",
}


#: How pydantic's names of mistakes begin -> what would be right.
TYPES: Final[Mapping[str, str]] = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "datetime": "a time with its zone, like 2031-01-31T12:00:00Z",
    "timezone": "a time with its zone, like 2031-01-31T12:00:00Z",
}
BOUNDS: Final[Mapping[str, str]] = {
    "ge": "a number of at least",
    "gt": "a number above",
    "le": "a number of at most",
    "lt": "a number below",
    "min_length": "at least",
    "max_length": "at most",
}
_NAME_WORDS: Final = "1 to 64 letters, digits, dots, hyphens or underscores, the first a letter or a digit"
PATTERNS: Final[Mapping[str, str]] = {
    NAME: _NAME_WORDS,
    f"{NAME}|^$": _NAME_WORDS,
    MODEL: "a provider, / and one of its models, as openai/gpt-5.4, in at most 128 printable ASCII characters",
}
#: Characters of a field's name that a refusal repeats.
LONGEST: Final = 40


def problem(
    request: Request, status: int, title: str, detail: str, code: str, *, headers: Mapping[str, str] = {}, **more: Any
) -> Response:
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request.scope.get("celeriac.request_id", ""),
        **more,
    }
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def check_query(request: Request) -> None:
    """Refuse a query parameter that the route does not have, as an unknown field in a body: it may be a typing mistake
    that asks for everything."""
    if not request.scope["query_string"]:
        return
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    if unknown := [name for name in request.query_params if name not in known]:
        raise RequestValidationError(
            [{"type": "extra_forbidden", "loc": ("query", name), "msg": "", "input": None} for name in unknown]
        )


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, CeleriacError)  # noqa: S101  # registered for nothing else
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    more: dict[str, Any] = {}
    headers = {}
    if isinstance(error, Refused) and error.field:
        more["errors"] = [{"field": error.field, "message": str(error), "remedy": error.remedy}]
    if isinstance(error, StoreUnavailable):
        headers["Retry-After"] = str(RETRY_AFTER)
        if error.maybe_accepted:
            more |= {"maybe_accepted": True, "job_id": error.job_id}
    return problem(request, status, title, str(error), error.code, headers=headers, **more)


async def invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    found = [_field_problem(e) for e in error.errors()]
    malformed = any(e["type"] == "json_invalid" for e in error.errors())
    detail = "; ".join(f"{p['field'] or 'body'}: {p['message']}" for p in found)
    unpriceable = any(p["message"].endswith(NOT_PRICED) for p in found)
    code = Unpriceable.code if unpriceable else Invalid.code
    return problem(request, 400 if malformed else 422, "The request is not valid", detail, code, errors=found)


#: Of errors that have no type of their own.
CODES: Final = {
    401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 408: "too_slow",
    413: "too_large",
}  # fmt: skip


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = CODES.get(error.status_code, "refused")
    more: dict[str, Any] = {}
    if error.status_code == 400:  # FastAPI's own, for a body that no JSON reader takes
        message = "the body cannot be read as JSON"
        remedy = "send JSON in UTF-8, nested less than a hundred deep, with numbers of ordinary length"
        more["errors"] = [{"field": "body", "message": message, "remedy": remedy}]
        return problem(request, 400, "The request is not valid", message, "invalid", **more)
    if isinstance(error, BadBody):
        more["errors"] = [{"field": "body", "message": error.detail, "remedy": error.remedy}]
    return problem(request, error.status_code, error.detail, error.detail, code, headers=error.headers or {}, **more)


def unexpected(request: Request, error: Exception) -> Response:
    log.error("request_failed", error=type(error).__name__, exc_info=error)
    return problem(request, 500, "Something went wrong here", "the request id names the log line", "internal")


def _field_problem(error: Mapping[str, Any]) -> dict[str, str]:
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    field = _path(error["loc"])
    if kind == "json_invalid":
        field, message = "", f"not JSON: {error.get('ctx', {}).get('error', 'malformed')}"
    elif not field and kind in {"model_attributes_type", "missing"}:
        message = "the body is not a JSON object; send one, with Content-Type: application/json"
    elif kind == "extra_forbidden":
        message = NOT_PRICED if error["loc"][-1] in UNPRICEABLE else "there is no such field"
    elif kind == "string_pattern_mismatch":
        message = _mismatch(error)
    elif not field and ": " in message:  # a rule over several fields names the one it means
        field, message = message.split(": ", 1)
    message, _, remedy = message.partition("; ")
    return {"field": field, "message": message, "remedy": remedy or REMEDIES.get(kind, _expected(error))}


def _mismatch(error: Mapping[str, Any]) -> str:
    if error.get("input") == "":
        return "is empty"
    if error["ctx"]["pattern"] == MODEL:
        return "does not name a provider and one of its models"
    return "has characters that are not allowed here, or too many"


def _expected(error: Mapping[str, Any]) -> str:
    """What to send instead, in words."""
    kind, context = error["type"], error.get("ctx") or {}
    if "expected" in context:
        return f"send {context['expected']}"
    if "pattern" in context:
        # A pattern without words of its own is still more than nothing.
        return f"send {PATTERNS.get(context['pattern'], 'what matches ' + context['pattern'])}"
    for name, words in BOUNDS.items():
        if name in context:
            if not name.endswith("length"):
                return f"send {words} {context[name]}"
            one, more = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
            return f"send {words} {context[name]} {one if context[name] == 1 else more}"
    return f"send {TYPES[kind]}" if (kind := kind.partition("_")[0]) in TYPES else "see /docs for what is accepted"


def _path(loc: Sequence[str | int]) -> str:
    """("body", "input", "<messages>", 0, "role") as input[0].role; the tag of a union is not part of the request."""
    path = ""
    for i, part in enumerate(loc):
        if part in {"body", "query", "path", "header"} and i == 0:
            continue
        if part in TAGS:
            continue
        if isinstance(part, int):
            path += f"[{part}]" if path else ""
        elif part and not (part == "[key]" and i == len(loc) - 1):  # a key that is wrong itself, or empty
            part = part if len(part) <= LONGEST else part[:LONGEST] + "..."
            path += f".{part}" if path else part
    return path


def install(app: FastAPI) -> None:
    app.add_exception_handler(CeleriacError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
