"""What is left in the store when all jobs have ended, and what of it has no reason. The rules are those of `keys`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from redis.exceptions import RedisError

from celeriac import keys
from celeriac.connections import Redis
from celeriac.jobs.model import ENDS

#: What Celery and kombu keep in the same database, besides the lists of the queues.
CELERYS: Final = re.compile(
    r"_kombu\.binding.*|celery-task-meta-.+|unacked|unacked_index|unacked_mutex|.*\.pidbox|celeryev.*"
)

#: These begin the lifetime of a key that is there only while something is going on.
BUSY: Final = ("while it holds", "while it runs")
#: And these count, or list, what goes on.
GOING_ON: Final = frozenset({"busy", "untold", "dying", "full", "kept", "left", "quarantined"})
#: Seconds after the end of its lease by which a worker is forgotten.
LATE: Final = 5.0
#: A lifetime that names a time.
TIMED: Final = re.compile(r"\b(ttl|lease|seconds?|minutes?|hours?|days?)\b")
#: Their lifetime begins with an event: what the record says decides.
AGES_LATER: Final = frozenset({"job", "context", "turns"})


@dataclass(frozen=True, slots=True)
class StoredKey:
    """seconds: until it ends, None for ever. size: elements of a list, set or hash.

    fields: of a hash, those that a rule looks at; of the workers, the seconds until each lease ends.
    """

    key: str
    seconds: float | None = None
    size: int = 1
    fields: dict[str, str] = field(default_factory=dict)


@cache
def _rules() -> list[tuple[str, re.Pattern[str], str]]:
    """(name, pattern, lifetime) of every key that we spell, the longest spelling first."""
    rules = []
    for name, (template, _, lifetime) in sorted(keys.KEYS.items(), key=lambda item: -len(item[1][0])):
        pattern = re.escape(keys.PREFIX + template)
        rules.append((name, re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^:]+)", pattern)), lifetime))
    return rules


def rule_of(key: str) -> tuple[str, dict[str, str], str] | None:
    """The name under which `keys` spells this key, what was filled in, and its lifetime."""
    for name, pattern, lifetime in _rules():
        if found := pattern.fullmatch(key):
            return name, found.groupdict(), lifetime
    return None


def orphans(stored: Iterable[StoredKey], *, settled: bool) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it). settled: all jobs have ended; else what is busy has a reason."""
    stored = list(stored)
    workers = {key.key: key for key in stored if (rule := rule_of(key.key)) and rule[0] == "worker"}
    leases = next((key.fields for key in stored if key.key == keys.spell("workers")), {})
    queues = {queue for worker in workers.values() for queue in worker.fields.get("queues", "").split(",")}
    for key in stored:
        rule = rule_of(key.key)
        if rule is None:
            if not CELERYS.fullmatch(key.key) and key.key not in queues:
                yield key.key, "no rule spells it"
            continue
        name, parts, lifetime = rule
        timed = key.seconds is not None
        unfinished = name == "jobs_in" and parts["state"] not in ENDS
        if settled and (lifetime.startswith(BUSY) or name in GOING_ON or unfinished):
            yield key.key, f"is still there, with {key.size}"
        elif name in AGES_LATER:
            if settled and not timed and (name == "job" or not _holder(stored, parts)):
                yield key.key, "does not age"
        elif TIMED.search(lifetime) and "entries" not in lifetime and not timed:
            yield key.key, f"lives for ever, and should for {lifetime}"
        elif name == "worker":
            if parts["worker"] not in leases:
                yield key.key, "is no worker that the store knows"
            if settled and key.fields.get("running", "0") != "0":
                yield key.key, f"counts {key.fields['running']} running jobs"
    for worker, left in leases.items():
        if settled and float(left) < -LATE:
            yield keys.spell("workers"), f"holds {worker}, whose lease ended {-float(left):.0f} s ago"


def _holder(stored: Iterable[StoredKey], parts: dict[str, str]) -> str:
    spelled = keys.spell("context", tenant=parts["tenant"], context=parts["context"])
    return next((key.fields.get("holder", "") for key in stored if key.key == spelled), "")


async def read_keys(redis: Redis) -> list[StoredKey]:
    """Every key of the database, those that end meanwhile left out."""
    # The client's types are those of every protocol and decoding at once.
    return [key async for key in _read(redis)]


async def read_settled(redis: Redis, patience: float) -> list[StoredKey]:
    """The first reading that holds nothing without a reason, or the last one after so many seconds.

    A worker that comes or goes meanwhile is in one part of a reading and not in the other: only what stays is a fault.
    """
    deadline = time.monotonic() + patience
    while True:
        last = time.monotonic() >= deadline
        try:
            stored = await read_keys(redis)
            if last or not list(orphans(stored, settled=True)):
                return stored
        except RedisError:  # it may just be starting
            if last:
                raise
        await asyncio.sleep(0.5)


async def _read(redis: Any) -> AsyncIterator[StoredKey]:
    async for raw in redis.scan_iter(count=1000):
        name = raw.decode()
        async with redis.pipeline(transaction=True) as pipe:
            pipe.pttl(raw)
            pipe.type(raw)
            ms, kind = await pipe.execute()
        if ms == -2:
            continue
        size, fields = await _content(redis, raw, kind.decode())
        yield StoredKey(name, None if ms == -1 else ms / 1000, size, fields)


async def _content(redis: Any, key: bytes, kind: str) -> tuple[int, dict[str, str]]:
    """How much is in it, and the fields that a rule looks at."""
    if kind == "hash":
        rule = rule_of(key.decode())
        wanted = {"worker": ["queues", "running"], "context": ["holder"]}.get(rule[0] if rule else "", [])
        values = await redis.hmget(key, wanted) if wanted else []
        fields = {name: value.decode() for name, value in zip(wanted, values, strict=True) if value is not None}
        return int(await redis.hlen(key)), fields
    if kind == "zset":
        fields = {}
        if key.decode() == keys.spell("workers"):
            seconds, micros = await redis.time()
            now = seconds + micros / 1e6
            leases = await redis.zrange(key, 0, -1, withscores=True)
            fields = {name.decode(): f"{end / 1000 - now:.3f}" for name, end in leases}
        return int(await redis.zcard(key)), fields
    if kind == "list":
        return int(await redis.llen(key)), {}
    if kind == "set":
        return int(await redis.scard(key)), {}
    return 1, {}
