"""Waiting for a job's end without asking for it again and again: one subscription a process, whatever it waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from celeriac import keys
from celeriac.connections import Redis
from celeriac.errors import StoreUnavailable
from celeriac.logs import get_logger

log = get_logger(__name__)


class Ends:
    """Tells that jobs ended. Use it on one event loop.

    Every process hears of every end: a message costs it about 10 us, and a subscription for each waiter would cost two
    round trips and a race at each reconnection. What was published while the connection was away is lost, so every
    waiter is woken when it comes back: being woken means "look again", not "it ended".
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._listening = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set at the job's end, however soon after this is entered that comes.

        Raises StoreUnavailable where nobody listens within 3 s.
        """
        if self._reader is None:
            self._reader = asyncio.create_task(self._listen(), name="ends")
        woken = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(woken)
        try:
            try:
                await asyncio.wait_for(self._listening.wait(), 3)
            except TimeoutError:
                raise StoreUnavailable("Redis does not answer") from None
            yield woken
        finally:
            waiters = self._waiters[job_id]
            waiters.discard(woken)
            if not waiters:
                del self._waiters[job_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(keys.spell("ended"))
                    while True:
                        # Looking up now and then lets the client check that the connection still answers.
                        message = await subscription.get_message(timeout=10)
                        if message is None:
                            continue
                        if message["type"] == "subscribe":
                            # Or again: the client connects anew by itself, and says nothing else of it.
                            if self._listening.is_set():
                                self._wake_all()
                            self._listening.set()
                        else:
                            self._wake(self._waiters.get(message["data"].decode(), ()))
            except (RedisError, OSError) as error:
                self._listening.clear()
                log.warning("ends_interrupted", error=type(error).__name__)
                self._wake_all()
                await asyncio.sleep(0.5)

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            self._wake(waiters)

    @staticmethod
    def _wake(waiters: set[asyncio.Event] | tuple[()]) -> None:
        for woken in waiters:
            woken.set()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
