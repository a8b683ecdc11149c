"""Ask the same lane again where that may help: soon, a few times, and not for long. Longer waits are not for a slot."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from celery.utils.time import get_exponential_backoff_interval

from celeriac.errors import LaneClosed, ModelError
from celeriac.llm.model import Answer, Attempt, Lane, ModelClient, ModelRequest

#: Between two tries of a lane: what the first wait may be, and what any may be. The slot is held meanwhile.
FIRST: Final = timedelta(milliseconds=250)
LONGEST: Final = timedelta(seconds=1.5)
#: A lane is not asked again once so much time has gone by since it was asked first: a provider that hangs for two
#: minutes is not waited for twice.
WITHIN: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Patience:
    """tries: how often a lane is asked for one answer, the first time included. within: after that, not again."""

    tries: int = 2
    within: timedelta = WITHIN


class Patient:
    """Asks `client`, and asks it again after an error that says it may help (`ModelError.again`).

    A provider that asks for more time than a slot may be held is not asked again. The answer, or the error, holds the
    attempts that failed.
    """

    def __init__(self, client: ModelClient, patience: Patience = Patience()) -> None:
        self._client = client
        self._patience = patience

    async def answer(self, request: ModelRequest) -> Answer:
        """Raises the last error."""
        attempts: list[Attempt] = []
        failed: ModelError | None = None
        first = time.monotonic()
        while True:
            began = time.monotonic()
            try:
                answer = await self._client.answer(request)
            except LaneClosed as closed:
                if failed is None:
                    raise
                # It was closed by what we met ourselves, or while we waited: that tells more, and this says how long.
                failed.retry_after = closed.retry_after
                raise failed from None
            except ModelError as error:
                attempts += error.attempts or [attempt(error, request.lane, time.monotonic() - began)]
                error.attempts = tuple(attempts)
                wait = max(backoff(len(attempts) - 1, FIRST, LONGEST), timedelta(seconds=error.retry_after or 0.0))
                if wait > LONGEST or not self._again(error, attempts, time.monotonic() - first):
                    raise
                failed = error
            else:
                return replace(answer, attempts=(*attempts, *answer.attempts)) if attempts else answer
            await asyncio.sleep(wait.total_seconds())

    def _again(self, error: ModelError, attempts: list[Attempt], seconds: float) -> bool:
        if not error.again or sum(a.code == error.code for a in attempts) > error.again:
            return False
        return len(attempts) < self._patience.tries and seconds < self._patience.within.total_seconds()


def attempt(error: ModelError, lane: Lane, seconds: float) -> Attempt:
    return Attempt(lane, error.code, seconds, error.request_id, error.status, error.in_doubt, error.asked)


def was_asked(error: ModelError) -> bool:
    """Whether a provider was, on the way to this error."""
    return any(attempt.asked for attempt in error.attempts)


def backoff(retries: int, first: timedelta, longest: timedelta) -> timedelta:
    """How long to wait before try number `retries` + 2: exponential, full jitter."""
    millisecond = timedelta(milliseconds=1)
    ms = get_exponential_backoff_interval(
        factor=first // millisecond, retries=retries, maximum=longest // millisecond, full_jitter=True
    )
    return timedelta(milliseconds=ms)
