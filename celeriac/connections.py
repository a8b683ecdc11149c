"""How we speak to Redis: pools, scripts, and how a value is packed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import orjson
import redis.asyncio as aioredis
import zstandard
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import AsyncScript

from celeriac import keys
from celeriac.errors import StoreFull, StoreUnavailable
from celeriac.logs import get_logger

Redis = aioredis.Redis
T = TypeVar("T")

log = get_logger(__name__)


class InTurn(aioredis.ConnectionPool):
    """Who finds no connection free waits up to `timeout` seconds, and is served in the order of coming.

    The library's own pool that waits gives what is released to whoever asks next: under load those who wait get nothing
    for as long as others come (one asker more than connections: that one got none in 5 s, the others 30,000 in all).
    """

    def __init__(self, *, max_connections: int, timeout: float, **facts: Any) -> None:
        super().__init__(max_connections=max_connections, **facts)
        self._turns = asyncio.Semaphore(max_connections)
        self._timeout = timeout

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Raises the library's ConnectionError for none in time, or one that could not be made."""
        if self._turns.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await self._turns.acquire()
            except TimeoutError as error:
                raise exceptions.ConnectionError("No connection available.") from error
        else:
            await self._turns.acquire()
        try:
            async with self._lock:  # held while a managed Redis moves elsewhere
                connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]  # redis-py's
        except BaseException:
            self._turns.release()
            raise
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        try:
            await super().release(connection)
        finally:
            # Cut off before, it is still in use.
            if connection not in self._in_use_connections:
                self._turns.release()


def open_redis(url: str, *, connections: int, timeout: float = 5.0, retries: int = 3, name: str = "celeriac") -> Redis:
    """A client with a pool of its own; it connects when first used.

    connections: at most this many; who finds none free waits up to `timeout` seconds, in turn. retries: how often a
    command is sent again over a new connection, after 0.05 s to 1 s with full jitter; every script may arrive twice.
    """
    pool = InTurn.from_url(
        url,
        max_connections=connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), retries),
        client_name=name,
        decode_responses=False,
    )
    return Redis.from_pool(pool)


@contextlib.asynccontextmanager
async def answering(job_id: str = "", *, within: float | None = None) -> AsyncIterator[None]:
    """Translate what the Redis client raises. job_id: a write names the job that may have been written.

    within: seconds for all of it, the wait for a connection and every repetition included; None for no limit.
    """
    try:
        if within is None:
            yield
            return
        # Cut off twice: the client waits with `asyncio.wait_for`, which in Python 3.11 may swallow what cuts it off.
        # The client closes a connection that is cut off; the TimeoutError is an OSError.
        async with asyncio.timeout(within + 0.25), asyncio.timeout(within):
            yield
    except exceptions.OutOfMemoryError as error:
        raise StoreFull("Redis is full and takes no new work") from error
    except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, OSError) as error:
        raise StoreUnavailable("Redis does not answer", maybe_accepted=bool(job_id), job_id=job_id) from error
    except exceptions.NoScriptError as error:  # once it was loaded again: started anew twice within one question
        raise StoreUnavailable("Redis was started anew", maybe_accepted=bool(job_id), job_id=job_id) from error
    except exceptions.ReadOnlyError as error:
        raise StoreUnavailable("Redis is a replica and takes no writes") from error
    except exceptions.ResponseError as error:
        if why := next((why for code, why in NOT_NOW.items() if str(error).startswith(code)), None):
            raise StoreUnavailable(why) from error
        raise


#: How Redis begins when it refuses a whole command for a reason that goes away -> what it means. Nothing was written.
NOT_NOW: Final = {
    "NOREPLICAS": "Redis has too few replicas and takes no writes",
    "MISCONF": "Redis cannot write to its disk and takes no writes",
    "BUSY": "Redis is busy with a script",
    "MASTERDOWN": "Redis is a replica without its primary",
    "TRYAGAIN": "Redis asks to be asked again",
    "CLUSTERDOWN": "Redis says that its cluster is down",
}


#: Seconds between tries while the store is away: from the first, doubling up to the second.
FIRST_RETRY, SLOWEST_RETRY = 0.1, 2.0


async def patiently(ask: Callable[[], Awaitable[T]], *, unless: tuple[type[StoreUnavailable], ...] = ()) -> T:
    """Repeat until the store answers: what was paid for is held until it is stored, or refused for good.

    unless: raised at once; waiting here does not help.
    """
    wait = FIRST_RETRY
    while True:
        try:
            return await ask()
        except StoreUnavailable as error:
            if isinstance(error, unless):
                raise
            log.warning("store_away", reason=str(error), again_in_seconds=wait)
            await asyncio.sleep(wait)
            wait = min(SLOWEST_RETRY, wait * 2)


#: The clock of every script. Tests put another text in its place to have time under their hand.
CLOCK: Final = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

#: Refused whole when Redis is full; never refused; never writes. (See the rules of the store for which is which.)
NEW_WORK: Final = "#!lua\n"
ALWAYS: Final = "#!lua flags=allow-oom\n"
READ: Final = "#!lua flags=no-writes\n"


#: What an answer means. process: the server has it, and its append-only file will. disk: it is in the primary's file.
#: replica: in a replica's as well.
Durability = Literal["process", "disk", "replica"]
#: Milliseconds that a write may take to reach the disk, or the replica's. Then the caller is told that nobody knows.
DURABLE_WITHIN: Final = 2000


class Scripts:
    """Lua texts, each put behind the same helpers: keys, clock, arguments `a` (JSON, ARGV[1])."""

    def __init__(
        self,
        redis: Redis,
        helpers: str,
        clock: str = CLOCK,
        durability: Durability = "process",
        *,
        within: float | None = None,
    ) -> None:
        """within: as `answering` takes it, for each script."""
        self.within = within
        self._redis = redis
        self._helpers = clock + "local a = cjson.decode(ARGV[1])\n" + helpers
        self._durability = durability

    def text(self, path: Path, flags: str, before: str = "") -> str:
        """The whole script, for a client of another kind too. before: helpers for this script alone."""
        text = self._helpers + before + path.read_text()
        return flags + keys.lua(text) + text

    def load(self, path: Path, flags: str, *, before: str = "", durable: bool = False) -> Script:
        """durable: its answer is given as `durability` promises."""
        script = self._redis.register_script(self.text(path, flags, before))
        if durable and self._durability != "process":
            return DurableScript(script, self.within, replicas=int(self._durability == "replica"))
        return Script(script, self.within)


class Script:
    def __init__(self, script: AsyncScript, within: float | None) -> None:
        self._script = script
        self._within = within

    async def __call__(self, *blobs: bytes, job_id: str = "", **arguments: Any) -> Any:
        """Run it. arguments: `a` in the script. blobs: ARGV[2] and on, untouched."""
        async with answering(job_id, within=self._within):
            return await self._run((orjson.dumps(arguments), *blobs), job_id)

    async def _run(self, args: tuple[bytes, ...], job_id: str) -> Any:
        return await self._script(keys=(), args=args)


#: WAITAOF waits for what its own connection wrote: a repetition that changes nothing would wait for nothing.
TOUCH: Final = f"{ALWAYS}return redis.call('SET', '{keys.spell('durable')}', ARGV[1])"


class DurableScript(Script):
    """One round trip for the script and the wait for the disk: both go over the same connection, as WAITAOF needs."""

    def __init__(self, script: AsyncScript, within: float | None, *, replicas: int) -> None:
        super().__init__(script, within)
        self._replicas = replicas

    async def _run(self, args: tuple[bytes, ...], job_id: str) -> Any:
        client = self._script.registered_client
        while True:
            async with client.pipeline(transaction=False) as pipe:
                pipe.evalsha(self._script.sha, 0, *args)
                pipe.eval(TOUCH, 0, self._script.sha)
                pipe.execute_command("WAITAOF", 1, self._replicas, DURABLE_WITHIN)
                answer, _, stored = await pipe.execute(raise_on_error=False)
            if isinstance(answer, exceptions.NoScriptError):
                await client.script_load(self._script.script)
                continue
            for failed in (answer, stored):
                if isinstance(failed, Exception):
                    raise failed
            if stored[0] < 1 or stored[1] < self._replicas:
                raise StoreUnavailable(
                    "Redis has it, but not on disk within the time", maybe_accepted=bool(job_id), job_id=job_id
                )
            return answer


def pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Of what one script each looks at: Redis is not held up by all of them at once."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


#: Indexes that one script counts: about half a millisecond.
COUNTED_AT_ONCE: Final = 500
CARDS: Final = f"""{READ}
local found = {{}}
for i, key in ipairs(KEYS) do
  local members = redis.pcall('ZCARD', key)
  found[i] = type(members) == 'number' and members or 0
end
return found
"""


async def cards(redis: Redis, names: Sequence[str]) -> list[int]:
    """How many members each of these sorted sets has, 0 where something else is there. Of many names, Redis is not held
    up by all at once. Raises StoreUnavailable.
    """
    found: list[int] = []
    asked: Any = redis
    async with answering():
        for page in pages(names, COUNTED_AT_ONCE):
            found += await asked.eval(CARDS, len(page), *page)
    return found


#: Below this, compressing costs more than it saves.
WORTH_COMPRESSING: Final = 1024


def pack(value: Any) -> bytes:
    """JSON; compressed when that saves at least a fifth. The first byte says which."""
    text = orjson.dumps(value)
    if len(text) >= WORTH_COMPRESSING:
        # A compressor is not safe to share between threads and costs 2 us to make.
        small = zstandard.ZstdCompressor(level=1).compress(text)
        if len(small) * 5 <= len(text) * 4:
            return b"z" + small
    return b"j" + text


def unpack(value: bytes) -> Any:
    """What `pack` packed. Raises ValueError for anything else."""
    kind, body = value[:1], value[1:]
    if kind == b"z":
        return orjson.loads(zstandard.ZstdDecompressor().decompress(body))
    if kind == b"j":
        return orjson.loads(body)
    raise ValueError("not a packed value")
