"""The jobs that cost most of those that ended on a day: listed as they end, a hundred a day, for 35 days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from celeriac import keys
from celeriac.connections import Redis, answering

#: How many days are looked at, at most; a day is UTC's.
MOST_DAYS: Final = 35
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Dear:
    """nanos: what its own calls cost until it ended, or until the last that settled after that; in nano-dollars."""

    job: str
    tenant: str
    agent: str
    nanos: int


class Dearest:
    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def between(self, start: datetime, end: datetime, most: int) -> list[Dear]:
        """Of those that ended on one of these days, the first and the last counted whole; the dearest first.

        Raises StoreUnavailable.
        """
        last = int(end.timestamp()) // _DAY
        first = max(int(start.timestamp()) // _DAY, last - MOST_DAYS + 1)
        async with answering():
            pipe = self._redis.pipeline(transaction=False)
            for day in range(first, last + 1):
                pipe.zrange(keys.spell("dearest", day=str(day)), 0, most - 1, desc=True, withscores=True)
            days = await pipe.execute()
        found: dict[str, Dear] = {}
        for entry, nanos in (ranked for day in days for ranked in day):
            tenant, agent, job = entry.decode().split("|", 2)
            # One that was started anew may have ended on several; what it cost only grows.
            if job not in found or found[job].nanos < nanos:
                found[job] = Dear(job, tenant, agent, int(nanos))
        return sorted(found.values(), key=lambda dear: (-dear.nanos, dear.job))[:most]
