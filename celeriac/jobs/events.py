"""What happens to jobs, for those who wait: their ends, and what the readers of a job are told.

One subscription a process, whatever is listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from redis.asyncio.client import PubSub
from redis.exceptions import ResponseError

from celeriac import keys
from celeriac.connections import Redis, answering
from celeriac.jobs.model import ENDS
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Gets what was published; None: something may have been lost, look again.
Heard = Callable[[bytes | None], None]

#: Seconds for which nobody waits for a subscription.
LISTENING_WITHIN: Final = 3.0
#: Seconds of silence after which a reader looks for itself, and says that it is there.
SILENCE: Final = 15.0
#: What a reader may be behind before it looks into the store instead.
BEHIND: Final = 1000
PAGE: Final = 500
#: Channels to which nobody listens any more, until they are left.
LEFT_BEHIND: Final = 100


class Channels:
    """What is published, for whoever listens in this process. Use it on one event loop.

    What was published while the connection was away is lost: everybody hears None when there is one again. One task
    alone has the subscription: the client is not made for two. Who wants another channel wakes it, by a word that is
    published to it.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._own = keys.spell("reader", process=secrets.token_hex(8)).encode()
        #: Channel -> who listens, and how often.
        self._heard: dict[bytes, Counter[Heard]] = {}
        #: Set once Redis has said that it is subscribed to. Some may have nobody left who listens.
        self._listening: dict[bytes, asyncio.Event] = {}
        self._reader: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def hear(self, channel: str, heard: Heard) -> AsyncIterator[None]:
        """All that is published there while this is entered, however soon.

        Raises StoreUnavailable where nobody listens within 3 s.
        """
        name = channel.encode()
        self._heard.setdefault(name, Counter())[heard] += 1
        try:
            listening = self._listening.setdefault(name, asyncio.Event())
            if self._reader is None:
                self._reader = asyncio.create_task(self._listen(), name="channels")
            async with answering(within=LISTENING_WITHIN):
                if not listening.is_set():
                    await self._redis.publish(self._own, b"")
                    await listening.wait()
            yield
        finally:
            self._heard[name] -= Counter([heard])  # who is left with none is gone
            if not self._heard[name]:
                del self._heard[name]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await self._follow(subscription)
            except Exception as error:  # whatever it is: nobody else would listen
                log.warning("channels_interrupted", error=type(error).__name__)
                await asyncio.sleep(0.5)

    async def _follow(self, subscription: PubSub) -> None:
        asked: set[bytes] = set()
        # Of those that nobody listens to, nobody is to believe that they are heard. The others are told of the new one.
        self._listening = {name: listening for name, listening in self._listening.items() if name in self._heard}
        while True:
            if new := {self._own, *self._heard} - asked:
                await subscription.subscribe(*new)
                asked |= new
            # Looking up now and then lets the client check that the connection still answers.
            message = await subscription.get_message(timeout=10)
            left = asked - self._heard.keys() - {self._own}
            if message is not None:
                kind, name = message["type"], message["channel"]
                self._take(kind, name, message["data"])
                if len(left) <= LEFT_BEHIND:
                    left = set()
                # Over a new connection the client subscribes to what it was about to leave.
                if kind in ("subscribe", "message") and name not in asked and name not in self._heard:
                    left.add(name)
            if left:
                # First: whoever wants one of them again from now on asks for it.
                asked -= left
                for name in left:
                    self._listening.pop(name, None)
                await subscription.unsubscribe(*left)

    def _take(self, kind: str, name: bytes, data: Any) -> None:
        if kind == "subscribe":
            # Or again, over a new connection: the client makes one by itself, and says nothing else of it.
            if (listening := self._listening.get(name)) is not None:
                if listening.is_set():
                    self._say(name, None)
                listening.set()
        elif kind == "message":
            self._say(name, data)

    def _say(self, name: bytes, data: bytes | None) -> None:
        for heard in tuple(self._heard.get(name, ())):
            heard(data)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


class Ends:
    """Tells that jobs ended.

    Every process hears of every end: a message costs it about 10 us, and a subscription for each waiter would cost two
    round trips. Being woken means "look again", not "it ended".
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._waiters: dict[bytes, set[asyncio.Event]] = {}

    @contextlib.asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set at the job's end, however soon after this is entered that comes.

        Raises StoreUnavailable where nobody listens within 3 s.
        """
        woken = asyncio.Event()
        name = job_id.encode()
        self._waiters.setdefault(name, set()).add(woken)
        try:
            async with self._channels.hear(keys.spell("ended"), self._heard):
                yield woken
        finally:
            self._waiters[name].discard(woken)
            if not self._waiters[name]:
                del self._waiters[name]

    def _heard(self, job: bytes | None) -> None:
        for waiters in self._waiters.values() if job is None else [self._waiters.get(job, set())]:
            for woken in waiters:
                woken.set()


@dataclass(frozen=True, slots=True)
class Event:
    """What a reader of a job is told. id: grows; where to go on after it. kind: "state", "start", "delta" or "step".
    data: JSON.
    """

    id: str
    kind: str
    data: str = field(repr=False)

    @property
    def is_end(self) -> bool:
        return self.kind == "state" and orjson.loads(self.data)["state"] in ENDS


class Events:
    """What the readers of jobs are told. After an id means after "" from the first that is kept."""

    def __init__(self, redis: Redis, channels: Channels) -> None:
        self._redis = redis
        self._channels = channels
        self._readers: set[Behind] = set()
        self._stopped = False

    def stop(self) -> None:
        """All who follow are told no more: the process ends."""
        self._stopped = True
        for behind in self._readers:
            behind.woken.set()

    async def after(self, job_id: str, last: str, *, most: int = PAGE) -> Sequence[Event]:
        """The next ones that are stored. Raises StoreUnavailable."""
        async with answering(within=LISTENING_WITHIN):
            entries: Any = await self._redis.xrange(
                keys.spell("events", id=job_id), f"({last}" if last else "-", "+", count=most
            )
        return [
            Event(id.decode(), kind.decode(), data.decode()) for id, facts in entries for kind, data in facts.items()
        ]

    async def is_cut(self, job_id: str, last: str) -> bool:
        """Whether some that came after this one may not be kept any more. Raises StoreUnavailable."""
        key = keys.spell("events", id=job_id)
        async with answering(within=LISTENING_WITHIN):
            try:
                facts: Any = await self._redis.xinfo_stream(key)
            except ResponseError:  # there is none
                return False
            if facts["entries-added"] == facts["length"]:
                return False
            return not last or not await self._redis.xrange(key, last, last)

    @contextlib.asynccontextmanager
    async def follow(self, job_id: str, last: str) -> AsyncIterator[AsyncIterator[Event | None]]:
        """All after this one, as they come, until `stop`; None after 15 s of silence.

        Raises StoreUnavailable, also later.
        """
        behind = Behind()
        self._readers.add(behind)
        channel = keys.spell("events", id=job_id)
        told = self._told(job_id, last, behind)
        try:
            async with self._channels.hear(channel, behind.take), contextlib.aclosing(told):
                yield told
        finally:
            self._readers.discard(behind)

    async def _told(self, job_id: str, last: str, behind: Behind) -> AsyncGenerator[Event | None]:
        while not self._stopped:
            events: Iterable[Event]
            if behind.look:
                behind.look = False
                events = page = await self.after(job_id, last)
                behind.look |= len(page) == PAGE
            elif not behind.heard:
                behind.woken.clear()
                try:
                    await asyncio.wait_for(behind.woken.wait(), SILENCE)
                except TimeoutError:
                    behind.look = True
                    yield None
                continue
            else:
                events = behind.all()
            for event in events:
                if _place(event.id) > _place(last or "0-0"):
                    last = event.id
                    yield event


class Behind:
    """What one reader has not been told yet. look: whether there may be more of it in the store."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.look = True
        self.woken = asyncio.Event()

    def take(self, message: bytes | None) -> None:
        if message is None or len(self.heard) >= BEHIND:
            self.heard, self.look = [], True
        if message is not None:
            self.heard.append(Event(*message.decode().split(" ", 2)))
        self.woken.set()

    def all(self) -> list[Event]:
        heard, self.heard = self.heard, []
        return heard


def _place(id: str) -> tuple[int, int]:
    """Ids are two numbers, and are compared as such."""
    at, _, number = id.partition("-")
    return int(at), int(number or 0)
