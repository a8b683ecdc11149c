"""Answers that have to be JSON of a certain shape: what a model is told of it, and whether an answer has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from importlib import import_module
from typing import Any, Final, Protocol

import orjson
from pydantic import BaseModel, PydanticUserError, ValidationError

from celeriac.agents.check import Checker, Wrong
from celeriac.agents.tools import in_thread
from celeriac.errors import Misconfigured
from celeriac.jobs.schema import MAX_SCHEMA, checked_schema, cut
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds that the operator's own validators may take.
PATIENCE: Final = 2.0
#: What a model hears of an answer that will not do. It hears it once.
REPAIR: Final = (
    "Your answer cannot be used: {wrong}. Answer again, in full, with one JSON value that is valid against the schema, "
    "and with nothing before or after it."
)
CUT_OFF: Final = "it was cut off, since it reached the most tokens that it may have (max_output_tokens): be briefer; "


class Output(Protocol):
    """What an answer has to be. schema: what the model is told. checkable: the same for another job, None where a
    schema that we take cannot say it.
    """

    @property
    def schema(self) -> Mapping[str, Any]: ...
    @property
    def checkable(self) -> Mapping[str, Any] | None: ...
    async def wrong(self, text: str) -> Wrong | None:
        """What is wrong with a JSON text, None for nothing. Raises OSError: it cannot be found out here and now."""
        ...


class JsonSchema:
    """schema: one that `celeriac.jobs.schema.checked_schema` has taken."""

    def __init__(self, schema: Mapping[str, Any], checker: Checker) -> None:
        self.schema = self.checkable = schema
        self._text = orjson.dumps(schema).decode()
        self._checker = checker

    async def wrong(self, text: str) -> Wrong | None:
        return await self._checker.wrong(self._text, text)


class Model:
    """A pydantic model: its schema is told, its validation is what counts."""

    def __init__(self, model: type[BaseModel]) -> None:
        # A model that refers to itself has no type at its top.
        self.schema: Mapping[str, Any] = {"type": "object"} | model.model_json_schema()
        self.checkable: Mapping[str, Any] | None = None
        with suppress(ValueError):
            self.checkable = checked_schema(self.schema)
        self._model = model

    async def wrong(self, text: str) -> Wrong | None:
        made = in_thread(partial(self._wrong, text))
        # Not by who is heard first: a loop that was held up hears of the time and of the end at once.
        await asyncio.wait([made], timeout=PATIENCE)
        return made.result() if made.done() else self._failed(TimeoutError())

    def _wrong(self, text: str) -> Wrong | None:
        try:
            self._model.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = ".".join(str(part) for part in first["loc"])
            # Names of a mistake's kind are pydantic's or the model's own; where it is may be words of the answer.
            return Wrong(cut(f"{cut(path) or 'the whole'}: {first['msg']}"), cut(first["type"]))
        except BaseException as error:  # of a validator, which may do what a tool may
            return self._failed(error)
        return None

    def _failed(self, error: BaseException) -> Wrong:
        """By a validator's own fault. Its message may hold anything: the log has it."""
        log.error("output_check_failed", model=self._model.__name__, exc_info=error)
        return Wrong(f"its check failed: {type(error).__name__}", f"the check failed: {type(error).__name__}")


def _no_json(text: str) -> Wrong | None:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg:
            return Wrong("it is nested more than 1,024 deep", "nested more than 1,024 deep")
        return Wrong("it is not JSON alone", "no JSON")
    return None


def find_output(path: str) -> Model:
    """The pydantic model at "module:Class". Raises Misconfigured."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise Misconfigured(f"{path}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise Misconfigured(f"{path}: there is no such pydantic model; write module:Class")
    try:
        made = Model(found)
    except PydanticUserError as error:
        raise Misconfigured(f"{path}: it has no JSON schema: {error.message}") from error
    if made.schema["type"] != "object":
        raise Misconfigured(f"{path}: its JSON is no object; put it into a field of a model")
    if len(orjson.dumps(made.schema)) > MAX_SCHEMA:
        raise Misconfigured(
            f"{path}: its schema has more than {MAX_SCHEMA} bytes, and goes to the model with each call"
        )
    return made


def bare(text: str) -> str:
    """The JSON of an answer, without the Markdown fence that many models put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") : -3].strip()
    return text


def digest(output: Output) -> str:
    """Of its schema."""
    return sha256(orjson.dumps(output.schema)).hexdigest()[:16]


async def judge(output: Output, text: str, stop_reason: str) -> Wrong | None:
    """What is wrong with an answer. told: what the model is to hear, whole. Raises OSError."""
    wrong = _no_json(bare(text)) or await output.wrong(bare(text))
    if wrong is None:
        return None
    if stop_reason == "length":
        return Wrong(REPAIR.format(wrong=CUT_OFF + wrong.told), f"{wrong.place} (max_output_tokens was reached)")
    return Wrong(REPAIR.format(wrong=wrong.told), wrong.place)
