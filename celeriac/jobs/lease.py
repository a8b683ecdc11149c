"""A worker's place in the fleet: one lease for all its jobs, renewed by one heartbeat a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from celeriac.connections import ALWAYS, Scripts
from celeriac.errors import Fenced, Misconfigured
from celeriac.jobs.dispatch import Ringer
from celeriac.jobs.model import PROTOCOL
from celeriac.jobs.store import HERE

HEARTBEAT: Final = timedelta(seconds=1)


class Fleet:
    """What a worker process says of itself. scripts: over a connection of its own that does not resend."""

    def __init__(self, scripts: Scripts, ringer: Ringer, *, lease: timedelta) -> None:
        self._ringer = ringer
        self._lease = int(lease.total_seconds() * 1000)
        self._register = scripts.load(HERE / "register.lua", ALWAYS)
        self._heartbeat = scripts.load(HERE / "heartbeat.lua", ALWAYS)
        self._leave = scripts.load(HERE / "leave.lua", ALWAYS)
        self._upkeep = scripts.load(HERE / "upkeep.lua", ALWAYS)

    async def register(
        self, worker: str, queues: Iterable[str], slots: int, agents: str, templates: Mapping[str, str]
    ) -> None:
        """Enter under a name that was never used. agents: a hash of those it knows. templates: as `dispatch.templates`,
        or queue -> "" where the script cannot ring.

        Raises Misconfigured where the fleet already speaks a newer protocol.
        """
        said, *rest = await self._register(
            worker=worker,
            queues=",".join(sorted(queues)),
            slots=slots,
            protocol=PROTOCOL,
            agents=agents,
            lease=self._lease,
            bells=dict(templates),
        )
        if said == b"refused":
            raise Misconfigured(
                f"the workers of this store speak a newer protocol than {PROTOCOL}: deploy a newer release"
            )
        await self._ringer.ring(rest[0])

    async def heartbeat(self, worker: str, slots: int, *, taking: bool) -> None:
        """Renew the lease; now and then this worker does the upkeep too. Raises Fenced where the store gave it up."""
        said, *rest = await self._heartbeat(worker=worker, slots=slots, taking=taking, lease=self._lease)
        if said == b"gone":
            raise Fenced(f"the store does not know the worker {worker}")
        if rest[0]:
            await self.upkeep()

    async def upkeep(self) -> None:
        await self._ringer.ring(await self._upkeep(lease=self._lease))

    async def leave(self, worker: str) -> bool:
        """Go in good order. False where the worker still holds jobs: then its lease ends by itself."""
        return bool(await self._leave(worker=worker))
