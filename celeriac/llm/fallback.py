"""Ask the next lane where the first has no answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from celeriac.errors import BadCredentials, BadModelRequest, LocalFault, ModelError, QuotaExhausted
from celeriac.llm.model import Answer, Attempt, Lane, ModelClient, ModelRequest

#: What asking the same lane again later does not cure.
LASTING = (BadCredentials, BadModelRequest, QuotaExhausted, LocalFault)


def says_itself(error: ModelError) -> bool:
    return error.next_lane


class Fallback:
    """Asks the lanes in order until one answers. The request's own lane is replaced.

    goes_on: whether the next lane is asked after an error; by default what the error's type says. Each lane has the
    request's whole deadline: a first lane that hangs would leave nothing to the second. The answer, or the error, holds
    the attempts that failed.
    """

    def __init__(
        self, lanes: Sequence[tuple[Lane, ModelClient]], *, goes_on: Callable[[ModelError], bool] = says_itself
    ) -> None:
        if not lanes:
            raise ValueError("a fallback needs at least one lane")
        self._lanes = tuple(lanes)
        self._goes_on = goes_on

    async def answer(self, request: ModelRequest) -> Answer:
        """Raises the first error that time may cure, so that a job that can wait does; if there is none, the first."""
        attempts: list[Attempt] = []
        errors: list[ModelError] = []
        for lane, client in self._lanes:
            began = time.monotonic()
            try:
                answer = await client.answer(replace(request, lane=lane))
            except ModelError as error:
                errors.append(error)
                attempts += (*error.attempts, attempt(error, lane, time.monotonic() - began))
                if not self._goes_on(error):
                    break
            else:
                return replace(answer, attempts=(*attempts, *answer.attempts)) if attempts else answer
        told = errors[-1] if not self._goes_on(errors[-1]) else _most_telling(errors)
        told.attempts = tuple(attempts)
        raise told


def attempt(error: ModelError, lane: Lane, seconds: float) -> Attempt:
    return Attempt(lane, error.code, seconds, error.request_id, error.status, error.in_doubt)


def _most_telling(errors: Sequence[ModelError]) -> ModelError:
    return next((error for error in errors if not isinstance(error, LASTING)), errors[0])
