"""The calls of one run. Each is booked at its highest possible price before it is sent, and settled by what came of it.

The default is doubt: a call whose outcome nobody books is in doubt at its full bound as soon as the run lets go of the
job, or is taken away from it. A call is released only with proof that it was not billed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from celeriac.agents.deltas import Deltas
from celeriac.connections import patiently
from celeriac.costs.prices import Price, Prices, most_input
from celeriac.errors import BadCredentials, ContentRefused, Fenced, LaneClosed, ModelError, QuotaExhausted
from celeriac.gate.lanes import Caps, Tokens, asking, heard, unheard
from celeriac.jobs.journal import Admitted, Closed, Journal, Settlement, Stands, count_overrun
from celeriac.jobs.model import Claim
from celeriac.jobs.store import new_id
from celeriac.llm.limits import Limit
from celeriac.llm.model import Answer, Lane, ModelClient, ModelRequest, Usage
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds between two looks at a lease that could not be renewed, or at a lane.
LOOK: Final = 0.05
#: Seconds that a call waits, in its slot, for a lane that is left alone.
IN_PLACE: Final = 1.5
#: Seconds for which a stream is read on that was cut off.
DRAIN: Final = 2.0
#: Seconds after its deadline by which the last word of a call has come: it is written then, and a stream was read on.
LATE: Final = 5.0
#: Why a lane may be closed that waiting does not open: who is not asked hears what the one heard who was.
REFUSED: Final[Mapping[str, type[ModelError]]] = {kind.code: kind for kind in (QuotaExhausted, BadCredentials)}
ANY: Final = Caps()


class Lease:
    """When this process last heard that its lease runs, by its own monotonic clock."""

    def __init__(self) -> None:
        self.length = timedelta.max
        self.heard = time.monotonic()

    def renewed(self, at: float | None = None) -> None:
        self.heard = time.monotonic() if at is None else at

    async def running(self) -> None:
        """Return once the lease surely runs: who could not renew it for its whole length starts nothing."""
        while time.monotonic() - self.heard > self.length.total_seconds():  # noqa: ASYNC110  # a rare case: no event for each renewal
            await asyncio.sleep(LOOK)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was admitted. waited: seconds until it was, in its slot. asked, bound: what was asked for it and what
    is booked, in nano-dollars. most, took: tokens that it may use, and is expected to.
    """

    name: str
    lane: Lane
    waited: float
    asked: int
    bound: int
    most: Tokens
    took: Tokens


class Calls:
    """A model client for one run: asks `models`, and books. client: whom the lanes are asked of. caps: of the lanes.
    strict: whether a lane is closed when a call costs more than its bound.

    insist: how the run writes what needs its fence: until it is stored, or it has surely lost the job.
    """

    def __init__(
        self,
        claim: Claim,
        client: ModelClient,
        journal: Journal,
        prices: Prices,
        lease: Lease,
        *,
        caps: Mapping[Lane, Caps],
        strict: bool = False,
        insist: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        self.insist = insist
        self._claim = claim
        self._client = client
        self._journal = journal
        self.prices = prices
        self._lease = lease
        self._caps = caps
        self._strict = strict
        #: Which step is being made, the first is 1: for the receipt.
        self.step = 1
        #: Input and output tokens that the newest call may use, or might have used.
        self.most: Tokens = (0, 0)
        #: What the job may cost, set by whoever knows its agent.
        self.cap: int | None = None
        #: Stores the answer that is being judged, if there is one: it is not bought again where the run is cut off.
        self.keep: Callable[[], Awaitable[None]] | None = None
        self._open: dict[str, Call] = {}
        self._draining: dict[str, asyncio.Task[Answer]] = {}
        self._answered: dict[str, Settlement] = {}

    async def answer(self, request: ModelRequest) -> Answer:
        """As any model client. The answer names its call: it is settled with the step that it makes.

        Raises Fenced, Stopped.
        """
        call = await self._admit(new_id(), request)
        self._open[call.name] = call
        await self._lease.running()
        began = time.monotonic()
        try:
            answer = await (self._streamed(call, request) if self._claim.stream else self._client.answer(request))
        except ModelError as error:
            settlement = self._failed(call, error, time.monotonic() - began)
            await patiently(lambda: self._journal.settle(self._claim, settlement))
            del self._open[call.name]
            raise
        del self._open[call.name]
        self._answered[call.name] = self._settled(call, answer)
        return replace(answer, call=call.name)

    async def _streamed(self, call: Call, request: ModelRequest) -> Answer:
        """Tell those who read along of its text. Cut off in the middle, it is read on: see `close`."""
        deltas = Deltas(partial(self._journal.say, self._claim, call.name, self.step))
        asking = asyncio.create_task(self._client.answer(replace(request, on_text=deltas.take)), name=call.name)
        try:
            # Its failure is the call's, and not this task's end.
            await asyncio.wait([asking])
            await deltas.close()
            return asking.result()
        except asyncio.CancelledError:
            deltas.drop()
            self._draining[call.name] = asking
            raise

    async def _drain(self) -> None:
        """A stream that was cut off says at its end what it cost. A short while is worth waiting for that."""
        try:
            if self._draining:
                await asyncio.wait(self._draining.values(), timeout=DRAIN)
        finally:
            for asking in self._draining.values():
                asking.cancel()
        while self._draining:
            name, asking = self._draining.popitem()
            await asyncio.wait([asking])
            if asking.cancelled() or name not in self._open:
                continue
            call, error = self._open[name], asking.exception()
            if error is None:
                self._answered[name] = self._settled(call, asking.result())
            elif isinstance(error, ModelError):
                settlement = self._failed(call, error, 0.0)
                await patiently(partial(self._journal.settle, self._claim, settlement))
            else:
                continue
            del self._open[name]

    async def _admit(self, name: str, request: ModelRequest) -> Call:
        """Wait here for a moment if the lane may not be asked. For longer, another is asked, or the job lets go."""
        lane, began, refusals = request.lane, time.monotonic(), 0
        bound, most = self.prices.bound(request), (most_input(request), request.max_output_tokens)
        self.most = most
        facts = {"lane": str(lane), "step": self.step}
        door = asking(lane, most, self._caps.get(lane, ANY), request.deadline + LATE)
        while True:
            said = await self.insist(lambda: self._journal.admit(self._claim, name, bound, facts, door, cap=self.cap))
            if isinstance(said, Admitted):
                return Call(name, lane, time.monotonic() - began, bound, said.bound, most, said.took)
            # Those who wait together are not to ask again together: each was told the wait of one.
            refusals += 1
            wait = max(LOOK * 2**refusals, said.wait.total_seconds()) * random.uniform(0.75, 1.5)  # noqa: S311
            if time.monotonic() + wait > began + IN_PLACE:
                raise _not_now(lane, said)
            await asyncio.sleep(wait)

    async def leased(self) -> None:
        """Return once the lease surely runs."""
        await self._lease.running()

    def settlement(self, answer: Answer) -> Settlement | None:
        """Of the call that brought the answer; whoever books it says so by `booked`."""
        return self._answered.get(answer.call)

    @property
    def unbooked(self) -> Settlement | None:
        """Of an answer that became no step: it is booked with the end."""
        return next(iter(self._answered.values()), None)

    def booked(self, settlement: Settlement | None) -> None:
        if settlement is not None:
            self._answered.pop(settlement.call, None)

    async def close(self) -> None:
        """Book what was answered and is not known to be booked: the run is cut off between an answer and its step."""
        await self._drain()
        if self.keep is not None:
            with suppress(Fenced):  # the money is booked all the same
                await self.keep()
        while self._answered:
            _, settlement = self._answered.popitem()
            await patiently(partial(self._journal.settle, self._claim, settlement))

    async def doubt(self) -> None:
        """The run lost its job in the middle of a call. The store has booked that already, unless it lost history."""
        await self.close()
        while self._open:
            name, call = self._open.popitem()
            facts = self._facts(call, 0.0, "aborted", "")
            doubt = Settlement(name, "doubt", call.bound, 0, facts, unheard(call.lane))
            await patiently(partial(self._journal.settle, self._claim, doubt))

    def _settled(self, call: Call, answer: Answer) -> Settlement:
        price = self.prices.price(answer.lane, answer.model, answer.usage)
        if price.estimated:
            log.warning("price_estimated", lane=str(answer.lane), model=answer.model, source=price.source)
        facts = self._facts(call, answer.seconds, None, answer.request_id)
        facts |= _billed(answer.model, answer.usage, price, answer.tier)
        return self._at_price(call, price, facts, _heard(call, None, answer.usage, answer.limits))

    def _failed(self, call: Call, error: ModelError, seconds: float) -> Settlement:
        facts = self._facts(call, seconds, error.code, error.request_id)
        if isinstance(error, ContentRefused) and error.usage is not None:
            model = error.billed_model or call.lane.model
            price = self.prices.price(call.lane, model, error.usage)
            facts |= _billed(model, error.usage, price, error.tier)
            return self._at_price(call, price, facts, _heard(call, error, error.usage, error.limits))
        stands: Stands = "doubt" if error.in_doubt else "released"
        return Settlement(call.name, stands, call.bound, 0, facts, _heard(call, error, None, error.limits))

    def _facts(self, call: Call, seconds: float, error: str | None, request_id: str) -> dict[str, Any]:
        return {
            "lane": str(call.lane),
            "step": self.step,
            "waited": round(call.waited, 3),
            "seconds": round(seconds, 3),
            "error": error,
            "request_id": request_id,
        }

    def _at_price(self, call: Call, price: Price, facts: dict[str, Any], heard: dict[str, Any]) -> Settlement:
        if price.nanos > call.bound:
            # The truth is booked, never clamped; and the calls that follow ask for more.
            count_overrun(str(call.lane))
            log.error("call_over_its_bound", lane=facts["lane"], bound_nanos=call.bound, nanos=price.nanos)
            facts["overrun"] = True
            heard |= {"over": -(-1000 * price.nanos // max(1, call.asked)), "strict": self._strict}
        return Settlement(call.name, "settled", call.bound, price.nanos, facts, heard)


def _heard(call: Call, error: ModelError | None, usage: Usage | None, limits: Sequence[Limit]) -> dict[str, Any]:
    return heard(call.lane, error, most=call.most, took=call.took, usage=usage, limits=limits)


def _not_now(lane: Lane, closed: Closed) -> ModelError:
    facts: dict[str, Any] = {
        "provider": lane.provider,
        "model": lane.model,
        "retry_after": closed.wait.total_seconds(),
        "asked": False,
    }
    if kind := REFUSED.get(closed.why):
        return kind(f"{lane} was not asked, the fleet leaves it alone: {closed.why}", **facts)
    return LaneClosed(f"{lane} was not asked, it may not be asked now: {closed.why}", **facts)


def _billed(model: str, usage: Usage, price: Price, tier: str) -> dict[str, Any]:
    return {
        "model": model,
        "tier": tier,
        "usage": usage.as_dict(),
        "estimated": price.estimated,
        "price_source": price.source,
    }
