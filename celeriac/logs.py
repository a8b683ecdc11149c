"""Structured logs: one JSON object a line in prod, readable lines in dev; Celery's own lines too.

An event is a constant and its facts are fields. `bound(...)` puts facts on every line that is logged inside it, in
this task of the event loop only: job_id, agent, context_id, tenant, task, worker, request_id. No line ever holds a
prompt, an answer or a key: tracebacks therefore come without the values of variables and, in prod, without the messages
of errors that are not ours, and the libraries that log what they send are kept at WARNING whatever the level is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.config
import re
import sys
import traceback
from typing import Any, Literal

import orjson
import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, merge_contextvars
from structlog.typing import EventDict, WrappedLogger

from celeriac.settings import RUN_JOB, SUBMIT

bound = bound_contextvars
bind = bind_contextvars

#: Their lines name every request, and below INFO its body: what we want to know of a call is in our own line.
QUIET = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp.access", "uvicorn.access")


def get_logger(name: str) -> Any:
    return structlog.get_logger(name)


def is_ours(error: BaseException) -> bool:
    """Whether the message of this error was written here, and so holds nothing that anybody said."""
    return type(error).__module__.partition(".")[0] in OURS


def _traceback(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The stack and the types of what was raised; the message only of errors that are ours."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = _described(error)
    return event


def _described(error: BaseException) -> str:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = [_described(before), "\nwhich led to:\n"] if before is not None else []
    parts += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    parts.append(f"{name}: {error if is_ours(error) else '(withheld)'}")
    if isinstance(error, BaseExceptionGroup):
        parts += [f"\n{_described(inner)}" for inner in error.exceptions]
    return "".join(parts)


OURS = frozenset({"celeriac", "tasks", "worker", "api_shim", "ops"})

#: Tasks whose Celery id is a job's.
JOB_TASKS = frozenset({RUN_JOB, SUBMIT})
#: Celery's loggers that say of each task that it came and how it went.
OF_TASKS = ("celery.worker.strategy", "celery.app.trace")
#: And the one that tells of messages which are no task of ours.
OF_MESSAGES = "celery.worker.consumer.consumer"
#: The one of event loops.
OF_LOOPS = "asyncio"
#: Where something of a line of theirs is left out.
CUT = "..."


def _not_what_was_sent(record: logging.LogRecord) -> bool:
    """The SDKs set their own level when they are imported, from OPENAI_LOG and ANTHROPIC_LOG, and would log prompts."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in QUIET


def _not_twice(record: logging.LogRecord) -> bool:
    """Of a run of a job `job_ended` says that and more; a line costs as much as a query to Redis."""
    data = getattr(record, "data", None)
    return record.levelno > logging.INFO or not isinstance(data, dict) or data.get("name") != RUN_JOB


def _celery_task(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Celery's own lines about a task say which task, and which job; its arguments and result stay out."""
    data = getattr(event.get("_record"), "data", None)
    if isinstance(data, dict) and "name" in data:
        event.setdefault("task", data["name"])
        if data["name"] in JOB_TASKS:
            event.setdefault("job_id", data.get("id"))
    return event


def _without_body(record: logging.LogRecord) -> bool:
    """Of a message that it cannot take Celery says all that was in it: what is left here is why."""
    if isinstance(record.msg, str) and isinstance(record.args, tuple) and "body" in record.msg:
        why = record.msg.partition("\n")[0].partition(" [")[0]
        # What cannot be decoded is in the error that says so.
        told = [type(arg).__name__ if "decode" in why else arg for arg in record.args[: why.count("%")]]
        record.msg, record.args = f"{why} It was discarded.", tuple(told)
    return True


_NAME = r"(?:\w+|<locals>|<lambda>)(?:\.(?:\w+|<locals>|<lambda>))*"
#: How asyncio writes a task, or anything else that the loop calls.
_CALLED = re.compile(rf"coro=<({_NAME})\(\)|^<(?:Timer)?Handle (?:when=[\d.]+ )?({_NAME})[ (]")


class _Word(str):
    """Written without quotes, whatever the line says."""

    __repr__ = str.__str__


def _without_objects(record: logging.LogRecord) -> bool:
    """Of errors that nobody asked for, and of what it calls, asyncio writes all that it has, errors and arguments in
    their own words too: what is left here is what happened, how long it took, and in which coroutine or callback. The
    error itself is with the line, and told as any.
    """
    if record.args and isinstance(record.args, tuple):
        # What it says is a constant: objects are in what it says it of.
        with contextlib.suppress(TypeError, ValueError):
            record.msg = str(record.msg) % tuple(_named(arg) for arg in record.args)
        record.args = ()
        return True
    said = record.getMessage()
    what = _of_first_line(said)
    where = match[1] if (match := _CALLED.search(said)) else None
    if what.startswith("Exception in callback"):
        what, where = "Exception in callback", _callback(record)
    record.msg, record.args = f"{what}: {where}" if where else what, ()
    return True


def _named(arg: object) -> object:
    if isinstance(arg, int | float):
        return arg
    if not isinstance(arg, str):
        return _Word(type(arg).__name__)
    found = _CALLED.search(arg)
    return _Word((found[1] or found[2]) if found else CUT)


def _of_first_line(said: str) -> str:
    """Without objects and what is quoted. An object may be written in several lines, and hold what ends another: it
    goes up to the last end of one.
    """
    line = said.partition("\n")[0]
    if "<" in line and (objects := re.search(r"<.*>|<.*", said, re.DOTALL)):
        after = "" if "\n" in objects[0] else said[objects.end() :].partition("\n")[0]
        line = said[: objects.start()] + CUT + after
    return re.sub(r"""(['"]).*\1""", CUT, line).strip() or CUT


def _callback(record: logging.LogRecord) -> str | None:
    """What was called: the loop's own frame calls it."""
    trace = record.exc_info[2] if isinstance(record.exc_info, tuple) else None
    called = trace.tb_next if trace is not None else None
    return called.tb_frame.f_code.co_qualname if called is not None else None


def _handed_on(logger: WrappedLogger, name: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    """The exception of a line also where the standard library keeps it: Sentry's handler looks nowhere else."""
    line, more = structlog.stdlib.ProcessorFormatter.wrap_for_formatter(logger, name, event)
    return line, more | {"exc_info": event["exc_info"]} if "exc_info" in event else more


_facts: dict[str, str] = {}


def always(**facts: str) -> None:
    """Put facts on every line of this process from now on, Celery's own included."""
    _facts.update(facts)


def _process_facts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for name, value in _facts.items():
        event.setdefault(name, value)
    return event


SHARED: list[Any] = [
    merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _json(event: EventDict, default: Any) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:  # half a character, or a number of more than 64 bits
        return json.dumps(event, default=default)


def configure(env: Literal["dev", "prod"], level: str = "INFO", **facts: str) -> None:
    """Send everything this process logs to stderr. facts: put on every line, as `service="shim"`."""
    ending: list[Any]
    if env == "prod":
        ending = [_traceback, structlog.processors.JSONRenderer(serializer=_json)]
    else:
        # The default prints the values of variables where `rich` is installed.
        plain = structlog.dev.plain_traceback
        ending = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]

    always(**facts)
    shared = [*SHARED, _process_facts]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "celeriac": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*shared, _celery_task],
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
                }
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "celeriac",
                    "stream": sys.stderr,
                    "filters": [_not_what_was_sent],
                }
            },
            "root": {"level": level, "handlers": ["stderr"]},
            "loggers": {name: {"level": "WARNING"} for name in QUIET},
        }
    )
    logging.getLogger(OF_MESSAGES).addFilter(_without_body)
    logging.getLogger(OF_LOOPS).addFilter(_without_objects)
    for name in OF_TASKS:
        (logging.getLogger(name).removeFilter if level == "DEBUG" else logging.getLogger(name).addFilter)(_not_twice)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            _handed_on,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
