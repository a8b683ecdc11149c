"""Tools: functions that an agent's model may want called.

    @tool(idempotent=True)
    async def weather(town: str, days: int = 1) -> str:
        \"\"\"The weather in a town.\"\"\"

Name, description and schema of the arguments are the function's own: its name, its docstring, its types. What a model
sends is checked against them before the function is called; what is wrong goes back to the model, which may do better.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar, get_type_hints, overload

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import to_jsonable_python

from celeriac.errors import Misconfigured
from celeriac.llm.model import ToolSpec
from celeriac.logs import get_logger

log = get_logger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

#: Of a tool that names no other.
TIMEOUT: Final = timedelta(seconds=30)
#: Characters of a result that a model is given: it pays for each, in this call and in all that follow.
LONGEST: Final = 50_000
CUT: Final = "\n[cut: the result has {} characters]"
#: What every provider takes for the name of one.
NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
#: Characters of a description: some providers refuse longer ones.
DESCRIPTION_LENGTH: Final = 1024
_MARK: Final = "__celeriac_tool__"


class ToolFailed(Exception):
    """Raise it in a tool: its message goes to the model. Of any other error the model hears its type alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a model is told of a call. failed: the text says what went wrong."""

    text: str = field(repr=False)
    failed: bool = False


class Tool(Protocol):
    """What an agent's model may want called.

    idempotent: whether a call that was cut off may be made again. approval: whether somebody has to allow each call.
    """

    @property
    def spec(self) -> ToolSpec: ...
    @property
    def idempotent(self) -> bool: ...
    @property
    def approval(self) -> bool: ...
    async def call(self, arguments: str) -> Result:
        """arguments: JSON, as the model wrote it. Whatever goes wrong is a result. Cancelled, it is cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """function: plain or async; a plain one runs in a thread. arguments: what it takes."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]
    timeout: timedelta = TIMEOUT
    idempotent: bool = False
    approval: bool = False

    @property
    def spec(self) -> ToolSpec:
        schema = self.arguments.model_json_schema()
        schema.pop("title", None)
        for described in schema.get("properties", {}).values():
            described.pop("title", None)
        return ToolSpec(self.name, self.description, schema)

    async def call(self, arguments: str) -> Result:
        """As any tool. What was cut off and does not heed it goes on by itself: nobody waits for it."""
        try:
            given = self.arguments.model_validate_json(arguments or "{}")
            wanted = {name: getattr(given, name) for name in type(given).model_fields}
        except ValidationError as error:
            return wrong(error)
        except BaseException as error:  # of a type's own validator, which may do what a tool may
            log.error("tool_arguments_failed", tool=self.name, exc_info=error)
            return Result(f"the arguments could not be looked at: {type(error).__name__}", failed=True)
        call = asyncio.create_task(_guarded(self._made(wanted)))
        done: set[asyncio.Task[Any]] = set()
        try:
            done, _ = await asyncio.wait({call}, timeout=self.timeout.total_seconds())
        finally:
            if not done:
                call.cancel()
                call.add_done_callback(self._let_go)
        if not done:
            return late(self.timeout)
        # A tool may end by anything, and must end nothing else: not the job, and not its worker.
        why = asyncio.CancelledError() if call.cancelled() else call.exception()
        if why is None:
            return self._told(call.result())
        if isinstance(why, ToolFailed):
            return Result(cut(str(why) or "the tool failed"), failed=True)
        # Its message may hold anything: the log has it where it may, the model does not.
        log.error("tool_failed", tool=self.name, exc_info=why)
        return Result(f"the tool failed: {type(why).__name__}", failed=True)

    async def _made(self, wanted: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            made = await self.function(**wanted)
        else:
            made = await in_thread(partial(self.function, **wanted))
        # What is decorated plainly may be async all the same.
        return await made if inspect.isawaitable(made) else made

    def _told(self, made: Any) -> Result:
        """It was made, whatever becomes of telling it: a model that hears of a failure calls again."""
        try:
            return Result(as_text(made))
        except Exception as error:
            log.error("tool_result_not_told", tool=self.name, exc_info=error)
            return Result("the call was made, but what it returned cannot be shown. Do not repeat it for that.")

    def _let_go(self, call: asyncio.Task[Any]) -> None:
        """What nobody waits for any more. Where nobody asks for an error asyncio writes it out, in its own words."""
        if not call.cancelled() and (error := call.exception()) is not None:
            log.warning("tool_failed_late", tool=self.name, error=type(error).__name__)


async def _guarded(call: Coroutine[Any, Any, Any]) -> Any:
    """The event loop passes these on to whoever runs it, and the worker would end."""
    try:
        return await call
    except (SystemExit, KeyboardInterrupt) as error:
        raise ToolFailed(f"the tool failed: {type(error).__name__}") from error


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Call it in a thread of its own. One that hangs keeps neither the tools of others waiting nor the process up."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if made.done():
            return
        if error is None:
            made.set_result(result)
        else:
            made.set_exception(error)
            made.exception()  # asked for: whoever waited may have been cancelled in this moment

    def run() -> None:
        result, failed = None, None
        try:
            result = context.run(function)
        except BaseException as error:
            # No future takes it.
            failed = RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="tool", daemon=True).start()
    return made


@overload
def tool(function: F) -> F: ...
@overload
def tool(
    *, name: str = "", timeout: timedelta = TIMEOUT, idempotent: bool = False, approval: bool = False
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    *,
    name: str = "",
    timeout: timedelta = TIMEOUT,
    idempotent: bool = False,
    approval: bool = False,
) -> F | Callable[[F], F]:
    """Make a function a tool; it stays the function that it is.

    timeout: of one call. idempotent: a call that was cut off because its worker died is made again; of any other, the
    model is told that nobody knows what became of it. approval: somebody has to allow each call, by
    `POST /v1/jobs/{id}/resume`; the job waits for that. Raises TypeError for a parameter without a
    type, *args, **kwargs, and for a name or a docstring that providers do not take.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, _made(function, name or function.__name__, timeout, idempotent, approval))
        return function

    return mark(function) if function is not None else mark


def _made(
    function: Callable[..., Any], name: str, timeout: timedelta, idempotent: bool, approval: bool
) -> FunctionTool:
    if not NAME.fullmatch(name):
        remedy = 'give it another by @tool(name="...")'
        raise TypeError(f"tool {name}: providers take letters of ASCII, digits, _ and -, at most 64; {remedy}")
    description = inspect.getdoc(function) or name
    if len(description) > DESCRIPTION_LENGTH:
        raise TypeError(
            f"tool {name}: its docstring has {len(description)} characters, and providers take {DESCRIPTION_LENGTH}; "
            "say less there, or say it in the agent's instructions"
        )
    hints, fields = get_type_hints(function, include_extras=True), {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {name}: {parameter} cannot be described to a model; name each argument")
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: argument {parameter.name} has no type")
        default = Field() if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    arguments: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)  # type: ignore[call-overload]
    return FunctionTool(name, description, function, arguments, timeout, idempotent, approval)


def find_tool(path: str) -> FunctionTool:
    """The tool at "module:function". Raises Misconfigured."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, TypeError) as error:  # TypeError: what @tool refuses
        raise Misconfigured(f"{path}: {error}") from error
    made = getattr(found, _MARK, None)
    if not isinstance(made, FunctionTool):
        raise Misconfigured(f"{path}: there is no such tool; write module:function, and @tool above the function")
    return made


def wrong(error: ValidationError) -> Result:
    """What the model is told of arguments that pydantic refuses."""
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    return not_valid((mistake["loc"], mistake["msg"]) for mistake in mistakes)


def not_valid(mistakes: Iterable[tuple[Iterable[str | int], str]]) -> Result:
    """What the model is told of arguments that are wrong: where in them, and why."""
    said = (f"{'.'.join(str(part) for part in where) or 'arguments'}: {why}" for where, why in mistakes)
    return Result(cut("the arguments are not valid: " + "; ".join(said)), failed=True)


def late(timeout: timedelta) -> Result:
    """What the model is told of a call that took too long."""
    return Result(f"the tool did not answer within {timeout.total_seconds():g} s", failed=True)


def as_text(made: Any) -> str:
    """As the model is told what was made: a text as it is, anything else as JSON."""
    return cut(made if isinstance(made, str) else _json(to_jsonable_python(made)))


def _json(made: Any) -> str:
    try:
        return orjson.dumps(made).decode()
    except TypeError:  # half a character, or a number of more than 64 bits
        return json.dumps(made)


def cut(text: str) -> str:
    """As a model may be given it, and as it may be stored: half a character is none."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= LONGEST else text[:LONGEST] + CUT.format(len(text))
