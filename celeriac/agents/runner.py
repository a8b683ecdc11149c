"""One run of a job: claim it, follow its agent, write the end in one step."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar

import orjson

from celeriac.agents import loop
from celeriac.agents.agent import Agent
from celeriac.agents.calls import Calls, Lease
from celeriac.agents.check import Checker
from celeriac.agents.output import JsonSchema, Output
from celeriac.agents.registry import Registry, lane
from celeriac.agents.toolbox import Toolbox
from celeriac.connections import patiently, unpack
from celeriac.contexts.store import decode_turns, encode_turn
from celeriac.costs.books import Account, labels_of
from celeriac.costs.money import usd
from celeriac.costs.prices import Prices
from celeriac.errors import (
    BadAnswer,
    BudgetFull,
    CeleriacError,
    Fenced,
    LaneBudgetFull,
    LaneClosed,
    LimitReached,
    LocalFault,
    ModelError,
    ModelTimeout,
    NotFound,
    Overloaded,
    ProviderFailed,
    RateLimited,
    Stopped,
    Unreachable,
)
from celeriac.gate.lanes import UNNAMED_WAIT, spelt
from celeriac.jobs.dispatch import RUN_JOB
from celeriac.jobs.model import AGENT_UNKNOWN, Claim, Ended, Ending, Job, JobError, Parked, State, Untold, rfc_3339
from celeriac.jobs.store import new_nonce
from celeriac.llm.fallback import is_lasting
from celeriac.llm.model import Lane, Message, ModelClient
from celeriac.llm.patient import backoff, was_asked
from celeriac.logs import bound, get_logger
from celeriac.settings import CostSettings
from celeriac.stores import Stores

log = get_logger(__name__)
T = TypeVar("T")

#: Seconds that a run which was cut off may take to say so: the process may be stopping.
LAST_WORDS: Final = 4.0
NO_TOOLS: Final = Toolbox({})
#: After which a job looks itself at how those stand that it asked for: the store may have lost one.
LOOK: Final = timedelta(minutes=5)
#: The shortest wait for a window to end: clocks differ.
SOON: Final = timedelta(seconds=1)
LetsGo = loop.Interrupted | loop.NeedsApproval | loop.NeedsChildren
CANCELLED: Final = JobError("cancelled", "the job was cancelled")

#: What time may cure: the job is tried again.
CURABLE: Final = (RateLimited, Overloaded, ProviderFailed, ModelTimeout, Unreachable, BadAnswer, LocalFault)


@dataclass(frozen=True, slots=True)
class Summary:
    """What Celery and Flower are told of a run: never a prompt, never an answer.

    state: of the job after the run. resume_at: when a parked job goes on. tell: which of the job's lives Celery is to
    be told the end of, as `Runner.told` takes it; None: nobody asks Celery. again: a run before this one may have told
    it. chords: the groups of the chords that wait.
    """

    job_id: str
    state: State
    agent: str
    model: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: str | None
    waited_seconds: float
    seconds: float
    error: JobError | None = None
    resume_at: datetime | None = None
    tell: int | None = None
    again: bool = False
    chords: tuple[str, ...] = ()

    def as_result(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "state": str(self.state),
            "agent": self.agent,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "waited_seconds": self.waited_seconds,
            "seconds": self.seconds,
        }


@dataclass(slots=True)
class Run:
    """A job that this worker runs. why: why it was cancelled from within, None while it was not.

    adopted: how often the store had to be reminded of it. ends: its last words are being said; it is not disturbed.
    """

    claim: Claim
    task: asyncio.Task[Any]
    why: Literal["stop", "lost"] | None = None
    adopted: int = 0
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """How a run goes that is worth another try later."""

    error: ModelError
    delay: timedelta


@dataclass(frozen=True, slots=True)
class Waits:
    """How a run goes whose lane may not be asked for now: it waits for that. a_try: it was this run that found out.
    most: input and output tokens that the next call may use. only: whether the job has no other lane.
    """

    error: ModelError
    a_try: bool
    most: tuple[int, int]
    only: bool

    @property
    def lane(self) -> str:
        """In whose line it waits: the lane's, or the scope's that has no room."""
        if isinstance(self.error, BudgetFull):
            return f"${self.error.scope}"
        return spelt(Lane(self.error.provider, self.error.model))

    @property
    def delay(self) -> timedelta | None:
        if isinstance(self.error, BudgetFull):
            return max(SOON, self.error.ends - datetime.now(UTC)) if self.error.ends else None
        wait = self.error.retry_after
        return timedelta(seconds=UNNAMED_WAIT if wait is None else wait)


class Runner:
    """Runs the jobs of one worker. worker: the name it is registered under; set it before the first run. stopping: jobs
    with steps left are given back when the one that is being made is stored.

    lease: of this worker; no call starts without it. recheck: asked before a run that was fenced out gives up, since
    the store may have lost history. toolboxes, outputs: by agent. checker: of answers to jobs with a schema
    of their own. chord_ttl: no job that a Celery chord waits for is parked for longer. costs: how calls are booked.
    """

    def __init__(
        self,
        stores: Stores,
        registry: Registry,
        models: ModelClient,
        prices: Prices,
        *,
        toolboxes: Mapping[str, Toolbox] | None = None,
        outputs: Mapping[str, Output] | None = None,
        checker: Checker | None = None,
        chord_ttl: timedelta = timedelta(days=7),
        costs: CostSettings | None = None,
    ) -> None:
        self._stores = stores
        self._registry = registry
        self._models = models
        self._prices = prices
        self._toolboxes = dict(toolboxes or {})
        self._outputs = outputs or {}
        self._checker = checker or Checker()
        self._chord_ttl = chord_ttl
        self._costs = costs or CostSettings()
        self._runs: dict[str, Run] = {}
        self._claiming: set[str] = set()
        self.worker = ""
        self.stopping = False
        #: Claims and releases that the store has answered, and of the last releases when (monotonic) and which job.
        self.writes = 0
        self.released: deque[tuple[float, str]] = deque()
        self.lease = Lease()
        self.recheck: Callable[[], Awaitable[None]] | None = None

    @property
    def running(self) -> int:
        return len(self._runs)

    @property
    def maybe_lost(self) -> list[str]:
        """The jobs that were released a moment ago: the store may lose their ends."""
        return [job_id for _, job_id in self.released]

    @property
    def claiming(self) -> int:
        return len(self._claiming)

    def known(self) -> set[str]:
        """The jobs that this worker runs, or is about to."""
        return self._claiming | self._runs.keys()

    def runs(self) -> list[Run]:
        return list(self._runs.values())

    async def run(self, job_id: str) -> Summary | None:
        """Run the job until it ends or is parked. None: there was nothing to claim, or the run may say nothing.

        Of a job that has ended and of whose end Celery has not been told, the summary. Cancelled from outside, the job
        is given back and ready for another worker at once: the process stops.
        """
        nonce = new_nonce()
        self._claiming.add(job_id)
        try:
            claim = await patiently(lambda: self._stores.jobs.claim(job_id, self.worker, nonce))
            if claim is None:
                log.debug("bell_for_nothing", job_id=job_id)
                return None
            if isinstance(claim, Untold):
                log.info("end_told_later", job_id=job_id, state=claim.job.state)
                return _summary_of(claim.job)
            self.writes += 1
            task = asyncio.current_task()
            assert task is not None  # noqa: S101  # a coroutine that runs has one
            if older := self._runs.get(job_id):
                self._cancel(older, "lost")
            run = self._runs[job_id] = Run(claim, task)
        except Fenced:
            # The store gave this worker up; it is about to hear of that. The job is somebody else's.
            log.warning("claim_fenced", job_id=job_id, worker=self.worker)
            return None
        finally:
            self._claiming.discard(job_id)
        try:
            with bound(
                job_id=job_id,
                agent=claim.agent,
                context_id=claim.context_id,
                tenant=claim.tenant,
                request_id=claim.request_id,
                task=RUN_JOB,
                worker=claim.worker,
            ):
                return await self._run(run)
        except Fenced:
            log.warning("run_fenced", job_id=job_id, worker=claim.worker)
            return None
        except asyncio.CancelledError:
            if run.why != "lost":
                raise
            while task.uncancel():
                pass
            log.warning("run_fenced", job_id=job_id, worker=claim.worker)
            return None
        finally:
            if self._runs.get(job_id) is run:
                del self._runs[job_id]

    async def told(self, job_id: str, tell: int, *, later: timedelta = timedelta()) -> None:
        """Celery has been told of the end, or has to be after so long. tell: as the summary had it."""
        await patiently(lambda: self._stores.jobs.told(job_id, tell, later=later))

    def stop(self, job_id: str) -> None:
        """The job was asked to stop: abort what it does. A run that is at its end already is left in peace."""
        if (run := self._runs.get(job_id)) is not None and not run.ends:
            self._cancel(run, "stop")

    def lost(self, job_id: str) -> None:
        """Somebody else has the job: the run answers None, since it may say nothing."""
        if (run := self._runs.get(job_id)) is not None:
            self._cancel(run, "lost")

    def _cancel(self, run: Run, why: Literal["stop", "lost"]) -> None:
        # Asked again, it is cancelled again: before Python 3.12 a cancellation that meets the end of a write is lost.
        # Whoever was to stop, and has lost the job meanwhile, may not even say that.
        run.why = why if why == "lost" else run.why or why
        run.task.cancel()

    async def _run(self, run: Run) -> Summary | None:
        claim = run.claim
        calls = Calls(
            claim,
            self._models,
            self._stores.journal,
            self._prices,
            self.lease,
            caps=self._registry.caps,
            account=Account(claim.tenant, claim.agent, self._labels(claim), self._costs.time_zone),
            strict=self._costs.strict,
            insist=partial(self._insist, run),
        )
        try:
            return await self._make(run, calls)
        except Fenced:
            raise
        except Exception:
            # Our own fault, and not the job's end. It is tried again, not for ever, and nobody is told anything.
            log.exception("run_broken_off", job_id=claim.id)
            try:
                await calls.close()
            except Exception:
                log.exception("call_not_booked", job_id=claim.id)
            fate = await self._insist(run, lambda: self._stores.jobs.break_off(claim))
            self.writes += 1
            (log.error if fate == "dead" else log.warning)("job_taken_away", job_id=claim.id, fate=fate)
            return None

    def _labels(self, claim: Claim) -> tuple[tuple[str, str], ...]:
        if not self._costs.labels:
            return ()
        return labels_of(self._costs.labels, orjson.loads(claim.record.get("metadata", b"") or b"{}"))

    async def _make(self, run: Run, calls: Calls) -> Summary | None:
        claim, began = run.claim, time.monotonic()
        log.debug("job_started", attempt=claim.attempt, waited_seconds=claim.waited, steps_done=len(claim.journal))
        try:
            made = await self._follow(claim, calls)
        except asyncio.CancelledError:
            if run.why == "lost":
                await self._leave_to_others(calls)
                raise
            run.ends = True
            # Shielded: what cancelled the run must not cancel the words about it.
            ended = await asyncio.shield(self._cut_off(run, calls))
            if run.why is None:
                raise
            run.task.uncancel()
            if ended is None:  # it is somebody else's
                return None
            return self._summarise(claim, ended.state, time.monotonic() - began, ended=ended, error=CANCELLED)
        run.ends = True
        try:
            return await self._conclude(run, made, began)
        except asyncio.CancelledError:
            if run.why == "lost":
                await self._leave_to_others(calls)
            raise

    @staticmethod
    async def _leave_to_others(calls: Calls) -> None:
        """The job is somebody else's; what was spent for it is booked all the same."""
        with contextlib.suppress(TimeoutError):
            await asyncio.shield(asyncio.wait_for(calls.doubt(), LAST_WORDS))

    async def _conclude(self, run: Run, made: Ending | Retry | Waits | LetsGo | None, began: float) -> Summary | None:
        claim, jobs = run.claim, self._stores.jobs
        if isinstance(made, loop.Interrupted):
            await self._write(run, lambda: jobs.give_back(claim))
            log.info("job_given_back")
            return None
        if isinstance(made, Ending):
            ended = await self._write(run, lambda: jobs.finish(claim, made))
            return self._summarise(claim, ended.state, time.monotonic() - began, made, ended=ended)
        if made is None:
            log.warning("agent_unknown", reason="no such agent here: left to other workers")
            parked = await self._write(run, lambda: jobs.leave_to_others(claim))
            error = None
        elif isinstance(made, loop.NeedsChildren):
            parked = await self._write(run, lambda: jobs.wait_for_children(claim, LOOK))
            error = None
        elif isinstance(made, loop.NeedsApproval):
            needs = made
            wait = min(needs.wait, self._chord_ttl) if claim.chords and needs.wait is not None else needs.wait
            parked = await self._write(run, lambda: jobs.wait_for_approval(claim, needs.asked, wait))
            error = None
            log.info("approval_needed", tools=[asked.tool for asked in needs.asked])
        elif isinstance(made, Waits):
            waits = made
            parked = await self._write(
                run,
                lambda: jobs.wait_for_lane(
                    claim, waits.lane, waits.delay, most=waits.most, only=waits.only, retry=waits.a_try
                ),
            )
            error = JobError(made.error.code, str(made.error))
        else:
            parked = await self._write(run, lambda: jobs.park(claim, "retry", made.delay, retry=True))
            error = JobError(made.error.code, str(made.error))
        if isinstance(parked, Parked):
            return self._summarise(
                claim, State.PARKED, time.monotonic() - began, error=error, resume_at=parked.resume_at
            )
        if parked == State.FAILED:
            log.error("agent_unknown", reason=AGENT_UNKNOWN.message)
        error = AGENT_UNKNOWN if parked == State.FAILED else CANCELLED
        return self._summarise(claim, parked, time.monotonic() - began, error=error)

    async def _insist(self, run: Run, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat until the store answers, or fences for good. A store that lost history is reminded first."""
        adopted = run.adopted
        try:
            return await patiently(write)
        except Fenced:
            if self.recheck is None:
                raise
            await self.recheck()
            if run.adopted == adopted:
                raise
            return await patiently(write)

    async def _write(self, run: Run, write: Callable[[], Awaitable[T]]) -> T:
        """How the run lets go of its job."""
        done = await self._insist(run, write)
        self.writes += 1
        self.released.append((time.monotonic(), run.claim.id))
        return done

    async def _cut_off(self, run: Run, calls: Calls) -> Ended | None:
        claim, jobs = run.claim, self._stores.jobs
        ending = Ending(State.CANCELLED, error=CANCELLED)
        try:
            # Only a process that stops is in a hurry.
            async with asyncio.timeout(None if run.why == "stop" else LAST_WORDS):
                await calls.close()
                if run.why == "stop":
                    return await self._write(run, lambda: jobs.finish(claim, ending))
                await self._write(run, lambda: jobs.give_back(claim))
                log.info("job_given_back")
        except Fenced:
            log.warning("run_fenced", worker=claim.worker)
        except TimeoutError:  # the lease will end without us
            log.warning("run_left_behind", worker=claim.worker)
        return None

    async def _follow(self, claim: Claim, calls: Calls) -> Ending | Retry | Waits | LetsGo | None:
        """From the claim to how it ends; what fails in between is an end too. None: another worker has to do it."""
        try:
            agent = self._registry[claim.agent]
        except NotFound:
            return None
        try:
            spec = unpack(claim.spec)
            agent = agent.within(spec.get("limits", {}))
            asked = [Message.read(said) for said in spec["input"]]
            output = self._outputs.get(agent.name)
            if schema := spec.get("output_schema"):
                output = JsonSchema(schema, self._checker)
            course = loop.Run(
                agent,
                self._toolboxes.get(agent.name, NO_TOOLS),
                [*decode_turns(claim.turns), *asked],
                calls,
                self._stores.journal,
                self._stores.jobs,
                claim,
                lanes=(lane(spec["model"]),) if spec["model"] else agent.lanes,
                max_output_tokens=spec["max_output_tokens"] or agent.max_output_tokens,
                stopping=lambda: self.stopping,
                output=output,
                longest_wait=self._chord_ttl if claim.chords else None,
                split_to=self._registry[agent.split_to] if agent.split_to else None,
            )
            outcome = await course.to_its_end()
        except Fenced:
            raise
        except (loop.Interrupted, loop.NeedsApproval, loop.NeedsChildren) as lets_go:
            return lets_go
        except Stopped:
            return Ending(State.CANCELLED, error=CANCELLED)
        except ModelError as error:
            later = self._later(
                agent,
                claim,
                error,
                calls.most,
                only=spec["model"] or len(agent.lanes) == 1,
            )
            waits = timedelta(0) if later is None else (later.delay or LOOK) + timedelta(seconds=claim.waited_for_lanes)
            if later is not None and (waits <= self._chord_ttl or not claim.chords):
                return later
            return Ending(State.FAILED, error=JobError(error.code, str(error)))
        except LimitReached as error:
            return Ending(
                State.FAILED,
                answer=error.partial or None,
                error=JobError(error.code, str(error)),
                settlement=calls.unbooked,
            )
        except CeleriacError as error:
            return Ending(State.FAILED, error=JobError(error.code, str(error)))
        except Exception as error:  # our own fault must end the job too, or it would run for ever
            log.exception("run_failed", error=type(error).__name__)
            return Ending(
                State.FAILED, error=JobError("internal", "something went wrong here; the log has the details")
            )
        return Ending(
            State.SUCCEEDED,
            answer=outcome.text,
            model=outcome.model,
            usage=outcome.usage.as_dict(),
            settlement=outcome.settlement,
            is_checked=outcome.is_checked,
            turn=encode_turn([*asked[:-1], outcome.question, Message("assistant", outcome.text)])
            if claim.context_id
            else b"",
        )

    @staticmethod
    def _later(
        agent: Agent, claim: Claim, error: ModelError, most: tuple[int, int], *, only: bool
    ) -> Retry | Waits | None:
        """How the job goes on after an error that time may cure; None where it does not."""
        a_try = was_asked(error)
        if a_try and claim.retries >= agent.max_retries:
            return None
        if isinstance(error, BudgetFull):
            # Other lanes may have room before, or answer.
            others = isinstance(error, LaneBudgetFull) or any(tried.code != error.code for tried in error.attempts)
            return Waits(error, a_try, (error.bound, 0), only or not others) if not is_lasting(error) else None
        if not isinstance(error, (*CURABLE, LaneClosed)):
            return None
        if isinstance(error, (RateLimited, LaneClosed)) or error.retry_after is not None:
            return Waits(error, a_try, most, bool(only))
        return Retry(error, backoff(claim.retries, agent.retry_backoff, agent.retry_backoff_max))

    def _summarise(
        self,
        claim: Claim,
        state: State,
        seconds: float,
        ending: Ending | None = None,
        *,
        ended: Ended | None = None,
        error: JobError | None = None,
        resume_at: datetime | None = None,
    ) -> Summary:
        usage = (ending and ending.usage) or {}
        summary = Summary(
            job_id=claim.id,
            state=state,
            agent=claim.agent,
            model=ending.model if ending else None,
            input_tokens=_input_tokens(usage),
            output_tokens=usage.get("output_tokens", 0),
            cost_usd=usd(ended.cost_nanos) if ended is not None else None,
            waited_seconds=claim.waited,
            seconds=round(seconds, 3),
            error=(ending and ending.error) or error,
            resume_at=resume_at,
            tell=claim.tell,
            chords=tuple(claim.chords),
        )
        facts = {k: v for k, v in summary.as_result().items() if k not in {"job_id", "agent"}}
        if state == State.PARKED:
            log.info("job_parked", resume_at=resume_at and rfc_3339(resume_at), error=error and error.code)
        else:
            log.info("job_ended", **facts, attempt=claim.attempt, error=summary.error and summary.error.code)
        return summary


def _input_tokens(usage: Mapping[str, int]) -> int:
    return sum(usage.get(name, 0) for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))


def _summary_of(job: Job) -> Summary:
    """Of a job that has ended, whoever ended it."""
    usage, ended = job.usage or {}, job.ended_at or job.created_at
    started = job.started_at or ended
    return Summary(
        job_id=job.id,
        state=job.state,
        agent=job.agent,
        model=job.model,
        input_tokens=_input_tokens(usage),
        output_tokens=usage.get("output_tokens", 0),
        cost_usd=usd(job.cost_nanos or 0),
        waited_seconds=(started - job.created_at).total_seconds(),
        seconds=(ended - started).total_seconds(),
        error=job.error,
        tell=job.replays,
        again=True,
    )
