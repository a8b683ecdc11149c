"""One run of a job: claim it, follow its agent, write the end in one step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from celeriac.agents import loop
from celeriac.agents.registry import Registry, lane
from celeriac.connections import unpack
from celeriac.contexts.store import decode_turns, encode_turn
from celeriac.costs.money import usd
from celeriac.costs.prices import Prices
from celeriac.errors import CeleriacError, Fenced, ModelError, StoreUnavailable
from celeriac.jobs.dispatch import RUN_JOB
from celeriac.jobs.model import Claim, Ending, JobError, State
from celeriac.jobs.store import new_nonce
from celeriac.llm.model import Attempt, Message, ModelClient, Usage
from celeriac.logs import bound, get_logger
from celeriac.stores import Stores

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds between tries to write an end while the store is away: 0.1, doubling up to this.
SLOWEST_RETRY: Final = 2.0

#: Seconds that a run which was cut off may take to say so: the process may be stopping.
LAST_WORDS: Final = 4.0

CANCELLED: Final = JobError("cancelled", "the job was cancelled while it ran")


@dataclass(frozen=True, slots=True)
class Summary:
    """What Celery and Flower are told of a run: never a prompt, never an answer."""

    state: State
    agent: str
    model: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: str | None
    waited_seconds: float
    seconds: float
    error: JobError | None = None

    def as_result(self) -> dict[str, Any]:
        return {
            "state": str(self.state),
            "agent": self.agent,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "waited_seconds": self.waited_seconds,
            "seconds": self.seconds,
        }


class Runner:
    """Runs the jobs of one worker. worker: the name it is registered under; set it before the first run."""

    def __init__(self, stores: Stores, registry: Registry, models: ModelClient, prices: Prices) -> None:
        self._stores = stores
        self._registry = registry
        self._models = models
        self._prices = prices
        self._runs: dict[str, asyncio.Task[Any]] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self.worker = ""

    @property
    def running(self) -> int:
        return len(self._runs)

    async def run(self, job_id: str, *, revoked: Callable[[], bool] = lambda: False) -> Summary | None:
        """Run the job to its end. None: there was nothing to claim, or the run lost its lease and may say nothing.

        Cancelled from outside, the job is given back and ready for another worker at once: the process stops. revoked:
        asked then; if so, the job itself was meant, and ends as cancelled.
        """
        nonce = new_nonce()
        claim = await self._patiently(lambda: self._stores.jobs.claim(job_id, self.worker, nonce))
        if claim is None:
            log.debug("bell_for_nothing", job_id=job_id)
            return None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine that runs has one
        self._runs[job_id] = task
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
                return await self._run(claim, revoked)
        except Fenced:
            log.warning("run_fenced", job_id=job_id, worker=claim.worker)
            return None
        except asyncio.CancelledError:
            if task not in self._lost:
                raise
            task.uncancel()
            return None
        finally:
            self._lost.discard(task)
            if self._runs.get(job_id) is task:
                del self._runs[job_id]

    def cancel_all(self) -> None:
        """The store gave this worker up: stop every run. Each answers None, since it may say nothing."""
        for task in self._runs.values():
            self._lost.add(task)
            task.cancel()

    async def _run(self, claim: Claim, revoked: Callable[[], bool]) -> Summary:
        began = time.monotonic()
        log.info("job_started", attempt=claim.attempt, waited_seconds=claim.waited)
        try:
            ending = await self._follow(claim)
        except asyncio.CancelledError:
            # Shielded: what cancelled the run must not cancel the words about it.
            await asyncio.shield(self._cut_off(claim, revoked()))
            raise
        await self._patiently(lambda: self._stores.jobs.finish(claim, ending))
        return self._summarise(claim, ending, time.monotonic() - began)

    async def _cut_off(self, claim: Claim, revoked: bool) -> None:
        ending = Ending(State.CANCELLED, error=CANCELLED)
        try:
            async with asyncio.timeout(LAST_WORDS):
                if revoked:
                    await self._patiently(lambda: self._stores.jobs.finish(claim, ending))
                    log.info("job_ended", state=ending.state)
                else:
                    await self._patiently(lambda: self._stores.jobs.give_back(claim))
                    log.info("job_given_back")
        except Fenced:
            log.warning("run_fenced", worker=claim.worker)
        except TimeoutError:  # the lease will end without us
            log.warning("run_left_behind", worker=claim.worker)

    async def _follow(self, claim: Claim) -> Ending:
        """From the claim to how it ends; what fails in between is an end too."""
        try:
            agent = self._registry[claim.agent]
            spec = unpack(claim.spec)
            asked = [Message(role, text) for role, text in spec["input"]]
            outcome = await loop.run(
                agent,
                [*decode_turns(claim.turns), *asked],
                self._models,
                self._prices,
                lanes=(lane(spec["model"]),) if spec["model"] else agent.lanes,
                max_output_tokens=spec["max_output_tokens"] or agent.max_output_tokens,
            )
        except ModelError as error:
            calls = [_call(attempt) for attempt in error.attempts]
            return Ending(State.FAILED, error=JobError(error.code, str(error)), receipt={"calls": calls})
        except CeleriacError as error:
            return Ending(State.FAILED, error=JobError(error.code, str(error)))
        except Exception as error:  # our own fault must end the job too, or it would run for ever
            log.exception("run_failed", error=type(error).__name__)
            return Ending(
                State.FAILED, error=JobError("internal", "something went wrong here; the log has the details")
            )
        answer, price = outcome.answer, outcome.price
        if price.estimated:
            log.warning("price_estimated", lane=str(answer.lane), model=answer.model, source=price.source)
        return Ending(
            State.SUCCEEDED,
            answer=answer.text,
            model=answer.model,
            usage=_usage(answer.usage),
            cost_nanos=price.nanos,
            receipt=_receipt(outcome),
            turn=encode_turn([*asked, Message("assistant", answer.text)]) if claim.context_id else b"",
        )

    def _summarise(self, claim: Claim, ending: Ending, seconds: float) -> Summary:
        usage = ending.usage or {}
        summary = Summary(
            state=ending.state,
            agent=claim.agent,
            model=ending.model,
            input_tokens=sum(
                usage.get(name, 0) for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens")
            ),
            output_tokens=usage.get("output_tokens", 0),
            cost_usd=None if ending.cost_nanos is None else usd(ending.cost_nanos),
            waited_seconds=claim.waited,
            seconds=round(seconds, 3),
            error=ending.error,
        )
        facts = {k: v for k, v in summary.as_result().items() if k not in {"agent", "waited_seconds"}}
        log.info("job_ended", **facts, error=ending.error and ending.error.code)
        return summary

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Repeat until the store answers: an answer that was paid for is held until it is stored, or fenced."""
        wait = 0.1
        while True:
            try:
                return await ask()
            except StoreUnavailable as error:
                log.warning("store_away", reason=str(error), again_in_seconds=wait)
                await asyncio.sleep(wait)
                wait = min(SLOWEST_RETRY, wait * 2)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input,
        "cache_read_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
    }


def _call(attempt: Attempt) -> dict[str, Any]:
    return {
        "lane": str(attempt.lane),
        "seconds": round(attempt.seconds, 3),
        "error": attempt.code,
        "request_id": attempt.request_id,
        "in_doubt": attempt.in_doubt,
    }


def _receipt(outcome: loop.Outcome) -> dict[str, Any]:
    """What was done for the job, call by call, as `GET /v1/jobs/{id}` shows it."""
    answer = outcome.answer
    answered = {
        "lane": str(answer.lane),
        "seconds": round(answer.seconds, 3),
        "error": None,
        "request_id": answer.request_id,
        "in_doubt": False,
    }
    return {
        "calls": [*map(_call, answer.attempts), answered],
        "estimated": outcome.price.estimated,
        "price_source": outcome.price.source,
    }
