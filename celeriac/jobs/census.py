"""How many jobs there are, by state and by queue: read when somebody asks, from where the jobs stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from celeriac import keys
from celeriac.connections import READ, Redis, Scripts, answering, cards
from celeriac.jobs.model import PRIORITIES, State
from celeriac.jobs.scripts import HERE

#: Jobs that are looked at one by one, where nothing else says of which queue they are. More tell more of them apart,
#: fewer hold Redis up for less: about a millisecond a thousand.
MOST: Final = 2000
#: Under this name those are counted that were not looked at.
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class OfQueue:
    """ready: they wait for a slot. rung: a worker has been told of them. due: parked until a time that has come."""

    ready: int
    rung: int
    running: int
    due: int


@dataclass(frozen=True, slots=True)
class Counted:
    """At about one moment: Redis is not held up until all is counted. states: of jobs that have not ended. ended: how
    many ever ended so; one that is started anew and ends again counts twice.
    """

    states: Mapping[State, int]
    ended: Mapping[str, int]
    queues: Mapping[str, OfQueue]


class Census:
    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis = redis
        self._count = scripts.load(HERE / "census.lua", READ)

    async def count(self, queues: Iterable[str] = (), *, most: int = MOST) -> Counted:
        """queues: to be told of though no worker ever served them. Raises StoreUnavailable."""
        parked, ends, lines, *rows = await self._count(queues=sorted(queues), most=most)
        numbers = {name.decode() or OTHER: of for name, *of in rows}
        named = await self._lines([line.decode() for line in lines])
        jobs = dict(zip(named, await cards(self._redis, list(named)), strict=True))
        for name, queue in named.items():
            if queue is not None and jobs[name]:
                numbers.setdefault(queue, [0, 0, 0, 0])[0] += jobs[name]
        found = {name: OfQueue(*of) for name, of in numbers.items()}
        behind = sum(jobs[name] for name, queue in named.items() if queue is None)
        return Counted(
            states={
                State.QUEUED: behind + sum(queue.ready + queue.rung for queue in found.values()),
                State.RUNNING: sum(queue.running for queue in found.values()),
                State.PARKED: parked,
            },
            ended={state.decode(): int(number) for state, number in zip(ends[::2], ends[1::2], strict=True)},
            queues=found,
        )

    async def _lines(self, lines: Sequence[str]) -> dict[str, str | None]:
        """The keys in which jobs stand in line: those of tenants with their queue, those of contexts with none."""
        turns = [(line, priority) for line in lines for priority in map(str, PRIORITIES.values())]
        rotations = [keys.spell("rotation", line=line, priority=priority) for line, priority in turns]
        behind, full, *tenants_of = await self._members(
            ("ZRANGE", keys.spell("behind"), 0, -1),
            ("SMEMBERS", keys.spell("full")),
            *(("ZRANGE", rotation, 0, -1) for rotation in rotations),
        )
        found: dict[str, str | None] = {}

        def add(line: str, priority: str, tenant: str) -> None:
            found[keys.spell("ready", line=line, priority=priority, tenant=tenant)] = line.partition("/")[0]

        for (line, priority), tenants in zip(turns, tenants_of, strict=True):
            for tenant in tenants:
                add(line, priority, tenant)
        # Tenants at their limit have no turn; for a moment they are in both places.
        left = await self._members(*(("SMEMBERS", keys.spell("left", tenant=tenant)) for tenant in full))
        for tenant, entries in zip(full, left, strict=True):
            for entry in entries:
                line, _, priority = entry.rpartition("|")
                add(line, priority, tenant)
        contexts = (entry.partition(":") for entry in behind)
        return found | {keys.spell("line", tenant=tenant, context=context): None for tenant, _, context in contexts}

    async def _members(self, *commands: tuple[Any, ...]) -> list[list[str]]:
        """What each answers; nothing where a key of another type is in its place."""
        async with answering():
            pipe: Any = self._redis.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            said = await pipe.execute(raise_on_error=False)
            for error in said:
                if isinstance(error, Exception) and not str(error).startswith("WRONGTYPE"):
                    raise error
        return [[] if isinstance(members, Exception) else [member.decode() for member in members] for members in said]
