"""Text of a call, on its way to whoever reads along: in batches, so that a token is no Redis command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from celeriac.connections import patiently
from celeriac.errors import Fenced, StoreFull
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds between two of them: short enough to read along, and five commands a second for each job.
BATCH: Final = 0.2


class Deltas:
    """Of one call, which begins now. say: tells of a text that begins after so many characters, "" for none yet."""

    def __init__(self, say: Callable[[int, str], Awaitable[None]]) -> None:
        self._say = say
        self._pieces = [""]
        self._said = 0
        self._closing = asyncio.Event()
        # Also of a call that brings none: what came of its step before is not its.
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._tell(), name="deltas")

    def take(self, piece: str) -> None:
        if self._closing.is_set():
            return
        self._pieces.append(piece)
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), name="deltas")

    async def _tell(self) -> None:
        """The first piece at once, until there is none left that came in the time of a batch."""
        try:
            while self._pieces:
                text = "".join(self._pieces)
                self._pieces.clear()
                # What a reader is told is worth no failure of the job, and not the last memory of a full store.
                await patiently(partial(self._say, self._said, text), unless=(StoreFull,))
                self._said += len(text)
                with suppress(TimeoutError):
                    async with asyncio.timeout(BATCH):
                        await self._closing.wait()
            self._task = None
        except Fenced:
            self._closing.set()  # another run tells the readers
        except Exception as error:
            log.warning("deltas_dropped", error=type(error).__name__)
            self._closing.set()

    async def close(self) -> None:
        """All that came is told."""
        self._closing.set()
        if self._task is not None:
            await self._task

    def drop(self) -> None:
        """Nothing more is told: the job stops."""
        self._closing.set()
        self._pieces.clear()
        if self._task is not None:
            self._task.cancel()
