"""Ask the next lane where the first has no answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from celeriac.errors import (
    BadCredentials,
    BadModelRequest,
    BudgetFull,
    ContentRefused,
    LocalFault,
    ModelError,
    QuotaExhausted,
)
from celeriac.llm.model import Answer, Attempt, Lane, ModelClient, ModelRequest
from celeriac.llm.patient import attempt

#: What asking the same lane again later does not cure.
LASTING = (BadCredentials, BadModelRequest, ContentRefused, QuotaExhausted, LocalFault)


def says_itself(error: ModelError, lane: Lane) -> bool:
    return error.next_lane


class Fallback:
    """Asks the lanes in order until one answers. The request's own lane is replaced.

    worth: whether a lane is asked after the error of the one before it; by default what the error's type says. Each
    lane has the request's whole deadline: a first lane that hangs would leave nothing to the second. The answer, or the
    error, holds the attempts that failed.
    """

    def __init__(
        self, lanes: Sequence[tuple[Lane, ModelClient]], *, worth: Callable[[ModelError, Lane], bool] = says_itself
    ) -> None:
        if not lanes:
            raise ValueError("a fallback needs at least one lane")
        self._lanes = tuple(lanes)
        self._worth = worth

    async def answer(self, request: ModelRequest) -> Answer:
        """Raises an error that time may cure, so that a job that can wait does; if there is none, the first. A refusal
        that is not shopped around is told, whatever failed before.

        Of several, one that names no time to wait; else the one with the shortest: all lanes are asked again then.
        """
        attempts: list[Attempt] = []
        errors: list[ModelError] = []
        for lane, client in self._lanes:
            if errors and not self._worth(errors[-1], lane):
                continue
            began = time.monotonic()
            try:
                answer = await client.answer(replace(request, lane=lane))
            except ModelError as error:
                errors.append(error)
                attempts += error.attempts or [attempt(error, lane, time.monotonic() - began)]
            else:
                return replace(answer, attempts=(*attempts, *answer.attempts)) if attempts else answer
        last = errors[-1]
        is_refused = isinstance(last, ContentRefused) and not self._worth(last, self._lanes[0][0])
        told = last if is_refused else _most_telling(errors)
        told.attempts = tuple(attempts)
        raise told


def _most_telling(errors: Sequence[ModelError]) -> ModelError:
    curable = [error for error in errors if not is_lasting(error)]
    return min(curable, key=lambda error: (_wait(error), not error.asked)) if curable else errors[0]


def is_lasting(error: ModelError) -> bool:
    """Whether time does not cure it."""
    if isinstance(error, BudgetFull):
        return error.why == "never" or (error.why == "spent" and not error.waits)
    return isinstance(error, LASTING)


def _wait(error: ModelError) -> float:
    """Seconds until its lane may be asked again, as far as the error knows."""
    if isinstance(error, BudgetFull) and error.why == "spent":
        return (error.ends - datetime.now(UTC)).total_seconds() if error.ends else math.inf
    return error.retry_after or 0.0
