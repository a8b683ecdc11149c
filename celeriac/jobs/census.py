"""How many jobs there are, by state and by queue: read when somebody asks, from where the jobs stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from celeriac.connections import READ, Scripts
from celeriac.jobs.model import State
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
    """At one moment. states: of jobs that have not ended. ended: how many ever ended so; one that is started anew and
    ends again counts twice.
    """

    states: Mapping[State, int]
    ended: Mapping[str, int]
    queues: Mapping[str, OfQueue]


class Census:
    def __init__(self, scripts: Scripts) -> None:
        self._count = scripts.load(HERE / "census.lua", READ)

    async def count(self, queues: Iterable[str] = (), *, most: int = MOST) -> Counted:
        """queues: to be told of though no worker ever served them. Raises StoreUnavailable."""
        parked, behind, ends, *rows = await self._count(queues=sorted(queues), most=most)
        found = {name.decode() or OTHER: OfQueue(*numbers) for name, *numbers in rows}
        return Counted(
            states={
                State.QUEUED: behind + sum(queue.ready + queue.rung for queue in found.values()),
                State.RUNNING: sum(queue.running for queue in found.values()),
                State.PARKED: parked,
            },
            ended={state.decode(): int(number) for state, number in zip(ends[::2], ends[1::2], strict=True)},
            queues=found,
        )
