"""A worker's life: what it opens before its first job, says every second, and closes after its last."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from logging import ERROR, WARNING
from typing import Any, Final, Literal

from celery import bootsteps
from celery.platforms import EX_FAILURE

from celeriac.agents.runner import Run
from celeriac.assembly import WorkerParts, new_name, open_worker
from celeriac.connections import patiently
from celeriac.errors import CeleriacError, Fenced, Misconfigured, StoreUnavailable
from celeriac.jobs.dispatch import SUBMIT, celery_app, is_suspects, suspects, templates
from celeriac.jobs.lease import HEARTBEAT, HistoryLost, limits
from celeriac.logs import always, get_logger
from celeriac.settings import Settings
from celeriac.stores import open_watchdog
from worker.live_usage import LiveUsage
from worker.pool import TaskPool

log = get_logger(__name__)

#: A hub that has not ticked for so many seconds takes no messages: the worker offers no slots. A worker that has not
#: heard from the store for so long takes none either: it could do nothing with them.
DEAF_AFTER: Final = 3.0
#: Seconds that the store's file may be behind what it has answered, heartbeats too: with `appendfsync everysec` two.
MAY_BE_LOST: Final = 5.0

#: What a worker takes from the broker.
Takes = Literal["all", "suspects", "none"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What the process can take right now. slots: jobs at once, busy ones included. taking: it takes bells at all.
    waiting: messages that it took and has not begun with.
    """

    slots: int
    taking: bool
    waiting: int


class Lifecycle(bootsteps.StartStopStep):
    """Gives the pool what jobs need on its loop: the stores, the models, and the worker's place in the fleet."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> None:
        settings: Settings = worker.app.settings
        pool = worker.pool
        served = list(worker.app.amqp.queues.consume_from)
        queues = job_queues(worker.app)
        if not queues:
            if SUBMIT in served:
                log.critical("worker_cannot_start", reason=f"{SUBMIT} goes with a queue of jobs: add one to -Q")
                raise SystemExit(EX_FAILURE)
            return
        options = {"--time-limit": worker.time_limit, "--soft-time-limit": worker.soft_time_limit}
        if given := [option for option, seconds in options.items() if seconds]:
            # Either ends a run that may be in a paid call: the job would run again and buy it again, and again.
            reason = f"{' and '.join(given)} may not be set for a worker of jobs; give agents a timeout_seconds instead"
            log.critical("worker_cannot_start", reason=reason)
            raise SystemExit(EX_FAILURE)
        pool.grace = settings.worker.grace.total_seconds()
        pool.stall = settings.worker.stall.total_seconds()
        # The watchdog acts at half a lease at the latest.
        pool.look = min(pool.look, settings.jobs.lease.total_seconds() / 16)
        # Workers would ask each other for a second, at each start, what was revoked, and go on listening to each other.
        # What was revoked the store knows.
        worker.options |= {"without_mingle": True, "without_gossip": True}
        registered = time.monotonic()

        def silence() -> float:
            ticked: float = pool.hub_ticked
            return time.monotonic() - max(registered, ticked)

        def offer() -> Offer:
            # Without slots and not taking: it drains. With slots and not taking: something is wrong.
            taking = not pool.stopping and silence() < DEAF_AFTER
            return Offer(0 if pool.stopping else pool.limit, taking, pool.waiting)

        # What may kill the process has no submission beside it, which would come back only in an hour.
        queues_of: dict[Takes, frozenset[str] | None] = {
            "all": None, "suspects": frozenset(map(suspects, queues)), "none": frozenset()
        }  # fmt: skip

        lease = Lease(settings, offer, bells(worker.app), lambda takes: pool.consume(queues_of[takes]), pool.fail)
        worker.app.lease = lease
        live = worker.app.live_usage = LiveUsage()
        if settings.worker.health_port is not None:
            _open_probes(settings, pool, lease, silence)

        async def opened(pool: TaskPool) -> None:
            nonlocal registered
            parts = await lease.open()
            registered = time.monotonic()
            worker.app.runner, worker.app.intake = parts.runner, parts.intake
            parts.stores.on_booked(live.put)
            watchdog = open_watchdog(settings, parts.stores)
            pool.on_stall.append(lambda late: watchdog.watch(lease.worker, lease.heard, late, pool.stack))
            keep_what_is_there()

        async def closing(pool: TaskPool) -> None:
            await lease.close()

        async def draining(pool: TaskPool) -> None:
            self._drain = asyncio.create_task(lease.drain(pool.draining), name="drain")

        pool.on_loop_start += [opened, draining]
        pool.on_loop_stop.append(closing)


def _open_probes(settings: Settings, pool: TaskPool, lease: Lease, silence: Callable[[], float]) -> None:
    # Not at the top: a worker without this port does without its libraries.
    from worker.probes import Signs, serve

    def signs() -> Signs:
        return Signs(
            worker=lease.worker,
            registered=lease.registered,
            stopping=pool.stopping,
            hub_silent=silence(),
            blocked=pool.blocked,
            heartbeat_age=time.monotonic() - lease.heard,
            loop_lag=pool.loop_lag,
            stalls=pool.stalls,
            running=pool.running,
            slots=pool.limit,
            taking=lease.takes != "none",
        )

    try:
        serve(settings, signs)
    except OSError as error:
        # Started all the same, it would be probed by asking somebody else.
        where = f"{settings.worker.health_host}:{settings.worker.health_port}"
        log.critical("worker_cannot_start", reason=f"CELERIAC_WORKER__HEALTH_PORT: {where}: {error.strerror}")
        raise SystemExit(EX_FAILURE) from error


def keep_what_is_there() -> None:
    """What was made for all jobs stays: the garbage collector never looks at it again."""
    gc.collect()
    gc.freeze()


def job_queues(app: Any) -> list[str]:
    """The queues with jobs that this process consumes."""
    return [queue for queue in app.settings.worker.queues if queue in app.amqp.queues.consume_from]


def bells(app: Any) -> dict[str, str]:
    """Queue -> the message that a script may push for a job, "" where the broker is another server."""
    queues = [name for queue in job_queues(app) for name in (queue, suspects(queue))]
    # An application of its own: asked for a queue that it does not know, Celery would consume it from then on.
    return (
        dict(templates(celery_app(app.settings), queues)) if app.settings.broker_is_store else dict.fromkeys(queues, "")
    )


class Lease:
    """What the process opens, and its place in the fleet.

    offer: asked at every heartbeat. bells: queue -> Celery's own message, "" where the broker is another server.
    take: told, when that changes, what to take. fail: told why the process must end.
    """

    def __init__(
        self,
        settings: Settings,
        offer: Callable[[], Offer],
        bells: Mapping[str, str],
        take: Callable[[Takes], None],
        fail: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._offer = offer
        self._bells = bells
        self._take = take
        self._fail = fail
        self._open = AsyncExitStack()
        self._parts: WorkerParts | None = None
        self._heart: asyncio.Task[None] | None = None
        self._chooser: asyncio.Task[None] | None = None
        self._rechecks: set[asyncio.Task[None]] = set()
        self._saying = asyncio.Lock()
        self._listed = 0.0
        self._strange: frozenset[str] = frozenset()
        self._registered = False
        self._quarantined = False
        self._takes: Takes = "all"
        self._closing = False

    @property
    def worker(self) -> str:
        """The name under which it is, or was last, registered; "" before the first time."""
        return self._parts.runner.worker if self._parts is not None else ""

    @property
    def registered(self) -> bool:
        return self._registered

    @property
    def heard(self) -> float:
        """`time.monotonic()` of the last heartbeat that the store answered."""
        return self._parts.runner.lease.heard if self._parts is not None else time.monotonic()

    @property
    def parts(self) -> WorkerParts:
        if self._parts is None:
            raise RuntimeError("the worker is not open")
        return self._parts

    async def open(self) -> WorkerParts:
        """Open everything and register. Raises Misconfigured. A store that is away is waited for."""
        self._parts = await patiently(
            lambda: self._open.enter_async_context(open_worker(self._settings, self._offer().slots or 1))
        )
        self._parts.runner.lease.length = self._settings.jobs.lease
        self._parts.runner.recheck = self._recheck
        await self._register()
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        self._chooser = asyncio.create_task(self._keep_choosing(), name="chooser")
        return self._parts

    async def drain(self, draining: asyncio.Event) -> None:
        """Wait until the worker stops; from then on it offers nothing."""
        await draining.wait()
        self.parts.runner.stopping = True
        await self.say()

    async def close(self) -> None:
        """Leave the fleet and close. The jobs have ended or were given back."""
        # Before Python 3.12 a cancellation that meets the end of a write is lost.
        self._closing = True
        talking = [task for task in (self._heart, self._chooser, *self._rechecks) if task is not None]
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable, HistoryLost, Fenced):  # then the lease ends by itself
            if self._registered and not await self._leave():
                log.warning("left_with_jobs", worker=self.parts.runner.worker)
        self._registered = False
        await self._open.aclose()

    async def _leave(self) -> bool:
        fleet, runner = self.parts.fleet, self.parts.runner
        if await fleet.leave(runner.worker):
            return True
        # A claim that was cut off was stored all the same.
        beat = await fleet.heartbeat(runner.worker, 0, taking=False, unclaimed=0, list_held=True, writes=runner.writes)
        for job_id in (beat.held or frozenset()) - runner.known():
            await self._disown(job_id)
        return await fleet.leave(runner.worker)

    async def _register(self) -> None:
        parts, name = self.parts, new_name()
        queues = [queue for queue in self._bells if not is_suspects(queue)]
        limited = {agent.name: agent.max_running for agent in parts.registry if agent.max_running}
        jobs = self._settings.jobs
        await patiently(
            lambda: parts.fleet.register(
                name,
                queues,
                self._offer().slots,
                [agent.name for agent in parts.registry],
                self._bells,
                limits(jobs.max_running_per_tenant, jobs.tenant_limits, limited),
            )
        )
        parts.runner.worker, parts.runner.writes = name, 0
        always(worker=name)
        self._registered = True
        parts.runner.lease.renewed()
        log.info("worker_registered", worker=name, queues=sorted(queues), slots=self._offer().slots)

    async def _beat(self) -> None:
        while not self._closing:
            await asyncio.sleep(HEARTBEAT.total_seconds())
            try:
                await self.say()
            except Misconfigured as error:
                self._fail(str(error))
                return
            except Exception:
                # Tried again in a second; until one is answered nothing is renewed, and the lease may end.
                log.exception("heartbeat_failed")

    async def _keep_choosing(self) -> None:
        """In a task of its own: a heartbeat waits until the store answers."""
        while not self._closing:
            await asyncio.sleep(HEARTBEAT.total_seconds())
            self._choose()

    @property
    def takes(self) -> Takes:
        """What it takes from the broker at this moment."""
        return self._takes

    def _choose(self) -> None:
        deaf = time.monotonic() - self.heard > DEAF_AFTER
        takes: Takes = "none" if deaf else "suspects" if self._quarantined else "all"
        if takes != self._takes:
            self._takes = takes
            self._take(takes)

    async def say(self) -> None:
        """One heartbeat, and what it asks for."""
        try:
            async with self._saying:
                await self._once()
        except StoreUnavailable as error:
            silent = round(time.monotonic() - self.parts.runner.lease.heard, 1)
            log.warning("heartbeat_lost", reason=str(error), seconds=silent)

    async def _recheck(self) -> None:
        """A heartbeat that is answered: whether the store has lost history has to be known before a run gives up.

        In a task of its own: what it hears may cancel the run that asks, and has to be done to its end all the same.
        """
        task = asyncio.create_task(self._answered(), name="recheck")
        self._rechecks.add(task)
        task.add_done_callback(self._rechecks.discard)
        await asyncio.shield(task)

    async def _answered(self) -> None:
        async with self._saying:
            await patiently(self._once)

    async def _once(self) -> None:
        """Raises StoreUnavailable."""
        if self._registered:
            await self._say()
        else:
            # It was given up, and could not come back at once.
            await self._register()

    async def _say(self) -> None:
        """Raises StoreUnavailable."""
        parts, offer, began = self.parts, self._offer(), time.monotonic()
        list_held = began - self._listed >= self._settings.jobs.lease.total_seconds()
        try:
            beat = await parts.fleet.heartbeat(
                parts.runner.worker,
                offer.slots,
                taking=offer.taking,
                unclaimed=offer.waiting + parts.runner.claiming,
                list_held=list_held,
                writes=parts.runner.writes,
            )
        except HistoryLost as error:
            await self._remind(error)
            return
        except Fenced:
            # Somebody took our jobs away: what still runs here may write nothing.
            log.warning("lease_lost", worker=parts.runner.worker, running=parts.runner.running)
            self._registered = False
            for run in parts.runner.runs():
                parts.runner.lost(run.claim.id)
            await self._register()
            return
        # From when it was asked: the answer may have been long under way.
        parts.runner.lease.renewed(began)
        released = parts.runner.released
        while released and released[0][0] < began - MAY_BE_LOST:
            released.popleft()
        for job_id, why in beat.stop.items():
            log.info("job_stopping", job_id=job_id, why=why)
            parts.runner.stop(job_id)
        self._quarantined = beat.quarantined
        self._choose()
        if beat.held is not None:
            self._listed = began
            await self._compare(beat.held)
        # Last: it may take its time.
        if beat.upkeep:
            parts.alerting.look(await parts.fleet.upkeep())

    async def _compare(self, held: frozenset[str]) -> None:
        """Hand back what the store believes that we run. Twice in a row, since a claim may be under way."""
        unknown = held - self.parts.runner.known()
        for job_id in unknown & self._strange:
            await self._disown(job_id)
        self._strange = unknown

    async def _disown(self, job_id: str) -> None:
        try:
            if await self.parts.fleet.disown(self.parts.runner.worker, job_id):
                log.warning("job_disowned", job_id=job_id)
        except CeleriacError:
            raise
        except Exception:
            # One record that makes no sense does not keep the others.
            log.exception("job_not_disowned", job_id=job_id)

    async def _remind(self, error: HistoryLost) -> None:
        """The store has lost history: it hears from us what we run."""
        runner = self.parts.runner
        maybe_lost = runner.maybe_lost[-100:]
        log.error("store_lost_history", reason=str(error), running=runner.running, maybe_lost=maybe_lost)
        runner.writes = error.writes
        if error.gone:
            self._registered = False
            await self._register()
        for run in runner.runs():
            try:
                await self._adopt(run)
            except CeleriacError:
                raise
            except Exception:
                # One record that makes no sense does not keep the others.
                log.exception("job_not_adopted", job_id=run.claim.id)

    async def _adopt(self, run: Run) -> None:
        """The store knows again that we run this job, or the run hears that it is somebody else's."""
        runner = self.parts.runner
        how = await patiently(partial(self.parts.fleet.adopt, run.claim, runner.worker))
        if how is None:
            log.error("job_lost_to_another", job_id=run.claim.id)
            runner.lost(run.claim.id)
            return
        run.claim.worker = runner.worker
        run.adopted += 1
        if how != "kept":
            runner.writes += 1
        log.log(WARNING if how == "kept" else ERROR, "job_adopted", job_id=run.claim.id, how=how)
