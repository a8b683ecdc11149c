"""A model that answers from a script: for tests, for trying an agent without spending, where no local model runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import isawaitable

from celeriac.errors import ModelError, ModelTimeout
from celeriac.llm.model import Answer, Lane, ModelRequest, Usage

#: One answer: its text, all of it, an error to raise, or a function that makes any of these from the request.
Line = str | Answer | ModelError | Callable[[ModelRequest], "Line | Awaitable[Line]"]


class OutOfLines(AssertionError):
    """A script was asked more often than it has lines: a mistake of the test, not of a model."""


class Scripted:
    """Answers with its lines, one a call, in order.

    Without lines it echoes what the user said, for ever. With `cycle` it begins again after the last line; else a call
    too many raises `OutOfLines`. delay: seconds before each answer, within the request's deadline. `requests` holds
    what it was asked, oldest first.
    """

    def __init__(self, *lines: Line, cycle: bool = False, delay: float = 0.0) -> None:
        self._lines = lines
        self._cycle = cycle
        self._delay = delay
        self.requests: list[ModelRequest] = []

    async def answer(self, request: ModelRequest) -> Answer:
        began = time.monotonic()
        line: Line | Awaitable[Line] = self._next(request)
        self.requests.append(request)
        if self._delay:
            await asyncio.sleep(min(self._delay, request.deadline))
            if self._delay > request.deadline:
                raise ModelTimeout(
                    "scripted did not answer in time",
                    provider=request.lane.provider,
                    model=request.lane.model,
                    in_doubt=True,
                )
        while callable(line):
            line = line(request)
            if isawaitable(line):
                line = await line
        if isinstance(line, ModelError):
            raise line
        if isinstance(line, Answer):
            return line
        made = Answer(str(line), Usage(), request.lane, request.lane.model)
        return replace(
            _cut(made, request), request_id=f"scripted-{len(self.requests)}", seconds=time.monotonic() - began
        )

    def _next(self, request: ModelRequest) -> Line:
        if not self._lines:
            return echo
        asked = len(self.requests)
        if asked >= len(self._lines) and not self._cycle:
            raise OutOfLines(f"the script has {len(self._lines)} lines and was asked once more, by {request.lane}")
        return self._lines[asked % len(self._lines)]


class Echo:
    """Answers for every lane by saying back what the user said, as the lane scripted/echo. Keeps nothing."""

    LANE = Lane("scripted", "echo")

    async def answer(self, request: ModelRequest) -> Answer:
        return _cut(Answer(echo(request), Usage(), self.LANE, self.LANE.model), request)


def echo(request: ModelRequest) -> str:
    """What the user said last."""
    return f"You said: {request.messages[-1].text if request.messages else ''}"


def _cut(answer: Answer, request: ModelRequest) -> Answer:
    """Count a word as a token, and stop at the output limit as a model would."""
    words = answer.text.split()
    asked = len(request.instructions.split()) + sum(len(message.text.split()) for message in request.messages)
    if len(words) > request.max_output_tokens:
        text = " ".join(words[: request.max_output_tokens])
        return replace(
            answer, text=text, usage=Usage(input=asked, output=request.max_output_tokens), stop_reason="length"
        )
    return replace(answer, usage=Usage(input=asked, output=len(words)))
