"""A worker's place in the fleet: one lease for all its jobs, renewed by one heartbeat a second; and upkeep."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering
from celeriac.errors import CeleriacError, Fenced, Misconfigured, StoreUnavailable
from celeriac.jobs.dispatch import Ringer
from celeriac.jobs.model import PROTOCOL, Claim
from celeriac.jobs.scripts import HERE
from celeriac.jobs.store import Keep
from celeriac.logs import get_logger

log = get_logger(__name__)

HEARTBEAT: Final = timedelta(seconds=1)
#: Records that one script of upkeep looks at; it is asked again while there are more.
PAGE: Final = 200
#: So many pages a round: the rest waits for the next one, a second later.
PAGES: Final = 20
#: So many lanes does one round look at.
LANES: Final = 100


class HistoryLost(CeleriacError):
    """The store has gone back in time: an older file was loaded, or a replica took over that had not heard all.

    gone: it does not know the worker either. writes: those of this worker that it still knows.
    """

    code = "history_lost"

    def __init__(self, message: str = "", *, gone: bool = False, writes: int = 0) -> None:
        super().__init__(message)
        self.gone = gone
        self.writes = writes


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat was told. stop: job -> why ("cancelled", "expired"). held: the jobs that the store says it runs,
    None where that was not asked. quarantined: it is to run suspects only. upkeep: it is to do a round of that now.
    """

    stop: Mapping[str, str]
    held: frozenset[str] | None
    quarantined: bool
    upkeep: bool


class Fleet:
    """What a worker process says of itself. redis, scripts: a connection of its own that does not resend. lanes:
    the helpers that know of lanes, for the scripts.

    upkeep: False for the drill alone, which shows what is lost without.
    """

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        ringer: Ringer,
        *,
        lease: timedelta,
        keep: Keep,
        lanes: str,
        upkeep: bool = True,
    ) -> None:
        self._does_upkeep = upkeep
        self._ringer = ringer
        self._lease = int(lease.total_seconds() * 1000)
        self._keep = keep.as_argument()
        self._beats = 0
        self._redis: Any = redis
        #: Of the set of lanes: where to read on, and what was read and not looked at yet.
        self._lanes_from: int = 0
        self._lanes: list[bytes] = []
        #: Of the budgets: where to look on for caps that soon will be reached.
        self._budgets_from = "0 0"
        self._register = scripts.load(HERE / "register.lua", ALWAYS)
        self._heartbeat = scripts.load(HERE / "heartbeat.lua", ALWAYS)
        self._leave = scripts.load(HERE / "leave.lua", ALWAYS)
        self._disown = scripts.load(HERE / "disown.lua", ALWAYS)
        self._adopt = scripts.load(HERE / "adopt.lua", ALWAYS)
        self._give_up = scripts.load(HERE / "give_up.lua", ALWAYS)
        self._due = scripts.load(HERE / "due.lua", ALWAYS)
        self._quarantine = scripts.load(HERE / "quarantine.lua", ALWAYS)
        self._wake = scripts.load(HERE / "wake.lua", ALWAYS, before=lanes)
        self._tell = scripts.load(HERE / "tell.lua", ALWAYS)
        self._upkeep = scripts.load(HERE / "upkeep.lua", ALWAYS)
        self._alarmed = scripts.load(HERE / "alarmed.lua", ALWAYS)

    async def register(
        self,
        worker: str,
        queues: Iterable[str],
        slots: int,
        agents: Iterable[str],
        templates: Mapping[str, str],
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """Enter under a name that was never used. agents: those it knows. templates: as `dispatch.templates`,
        or queue -> "" where the script cannot ring. limits: "t:TENANT", "t:*" and "a:AGENT" -> most jobs at once.

        Raises Misconfigured where the fleet already speaks a newer protocol.
        """
        said, *rest = await self._register(
            worker=worker,
            queues=",".join(sorted(queues)),
            slots=slots,
            protocol=PROTOCOL,
            agents=",".join(agents),
            lease=self._lease,
            limits=dict(limits or {}),
            bells=dict(templates),
        )
        if said == b"refused":
            raise Misconfigured(
                f"the workers of this store speak a newer protocol than {PROTOCOL}: deploy a newer release"
            )
        beats, bells = rest
        self._beats = beats
        await self._ringer.ring(bells)

    async def heartbeat(
        self,
        worker: str,
        slots: int,
        *,
        taking: bool,
        unclaimed: int = 0,
        list_held: bool = False,
        writes: int = 0,
    ) -> Beat:
        """Renew the lease.

        unclaimed: bells that it took and has not claimed a job by. writes: claims and releases of this worker that the
        store has answered.

        Raises Fenced where the store gave the worker up, HistoryLost where the store has lost history.
        """
        said, *rest = await self._heartbeat(
            worker=worker, slots=slots, taking=taking, unclaimed=unclaimed, lease=self._lease, list=list_held
        )
        beats = rest[0] if said == b"gone" else rest[1]
        seen, self._beats = self._beats, beats
        if beats <= seen:
            stored = 0 if said == b"gone" else rest[-1]
            went = f"the store went back by {seen - beats + 1} heartbeats"
            raise HistoryLost(went, gone=said == b"gone", writes=stored)
        if said == b"gone":
            raise Fenced(f"the store does not know the worker {worker}")
        upkeep, _, quarantined, stop, held, stored = rest
        if stored < writes:
            raise HistoryLost(f"the store forgot {writes - stored} of our writes", writes=stored)
        return Beat(
            stop={id.decode(): why.decode() for id, why in zip(stop[::2], stop[1::2], strict=True)},
            held=frozenset(id.decode() for id in held) if list_held else None,
            quarantined=bool(quarantined),
            upkeep=bool(upkeep) and self._does_upkeep,
        )

    async def upkeep(self) -> str | None:
        """One round of what nobody else does. Two at once do no harm, and a part that fails stops no other.

        Returns the id of the newest alert, "" where there is none; None where that was not to be had.
        """
        parts: tuple[Callable[[], Awaitable[str | None]], ...] = (
            self._give_up_the_dead,
            self._bring_what_is_due,
            self._wake_for_lanes,
            self._choose_quarantine,
            self._tell_celery,
            self._tidy,
        )
        newest_alert = None
        for part in parts:
            try:
                newest_alert = await part()  # told by the last
            except StoreUnavailable as error:
                log.warning("upkeep_broken_off", part=part.__name__.strip("_"), reason=str(error))
                break
            except Exception:
                log.exception("upkeep_failed", part=part.__name__.strip("_"))
        return newest_alert

    async def _give_up_the_dead(self) -> None:
        for _ in range(PAGES):
            more, bells, gone, fates = await self._give_up(lease=self._lease, page=PAGE, keep=self._keep)
            await self._ringer.ring(bells)
            for worker in gone:
                log.warning("worker_given_up", lost=worker.decode())
            for id, fate in zip(fates[::2], fates[1::2], strict=True):
                (log.error if fate == b"dead" else log.warning)(
                    "job_taken_away", job_id=id.decode(), fate=fate.decode()
                )
            if not more:
                break

    async def _bring_what_is_due(self) -> None:
        for _ in range(PAGES):
            more, bells = await self._due(page=PAGE, keep=self._keep)
            await self._ringer.ring(bells)
            if not more:
                break

    async def _wake_for_lanes(self) -> None:
        """Lane by lane. Where a round is not long enough for all, the next one goes on where it ended."""
        for _ in range(LANES):
            if not self._lanes:
                # Of lines there may be as many as jobs: no script looks through all of them.
                async with answering():
                    self._lanes_from, page = await self._redis.sscan(keys.spell("lanes"), self._lanes_from, count=LANES)
                self._lanes = sorted(page, reverse=True)
            if self._lanes:
                await self._wake(lane=self._lanes.pop().decode(), page=PAGE)
            if not (self._lanes or self._lanes_from):
                break

    async def _choose_quarantine(self) -> None:
        await self._ringer.ring(await self._quarantine())

    async def _tell_celery(self) -> None:
        bells, given_up = await self._tell(page=PAGE, keep=self._keep)
        await self._ringer.ring(bells)
        for id in given_up:
            log.error("celery_not_told", job_id=id.decode(), reason="each run that told it failed")

    async def _tidy(self) -> str:
        bells, broken, look_on, newest_alert = await self._upkeep(lease=self._lease, budgets=self._budgets_from)
        self._budgets_from = look_on.decode()
        await self._ringer.ring(bells)
        for entry in broken[::2]:
            log.error("record_set_aside", entry=entry.decode())
        if broken:
            # Only now: had the answer been lost, or this worker, nobody would have said it.
            await self._alarmed(newest=broken[-1].decode())
        return str(newest_alert.decode())

    async def disown(self, worker: str, job_id: str) -> bool:
        """Hand back a job that the store says we run and that we do not know."""
        said, *rest = await self._disown(id=job_id, worker=worker, keep=self._keep)
        if rest:
            await self._ringer.ring(rest[0])
        return bool(said == b"done")

    async def adopt(self, claim: Claim, worker: str) -> str | None:
        """The store lost history: make it know again that we run this job, under the worker's present name.

        Answers "kept", "taken" (it stood as waiting) or "restored" (it was gone); None where the run is not to go on.
        """
        flat = [part for name, value in claim.record.items() for part in (name.encode(), value)]
        steps = claim.journal
        said, *rest = await self._adopt(*steps, *flat, id=claim.id, worker=worker, nonce=claim.nonce, steps=len(steps))
        return rest[0].decode() if said == b"mine" else None

    async def leave(self, worker: str) -> bool:
        """Go in good order. False where the worker still holds jobs: then its lease ends by itself."""
        return bool(await self._leave(worker=worker))


def limits(per_tenant: int | None, of_tenants: Mapping[str, int], of_agents: Mapping[str, int]) -> dict[str, Any]:
    """As `register` takes them."""
    given = {f"t:{tenant}": most for tenant, most in of_tenants.items()}
    given |= {f"a:{agent}": most for agent, most in of_agents.items()}
    return given | ({"t:*": per_tenant} if per_tenant else {})
