"""The calls of one run. Each is booked at its highest possible price before it is sent, and settled by what came of it.

The default is doubt: a call whose outcome nobody books is in doubt at its full bound as soon as the run lets go of the
job, or is taken away from it. A call is released only with proof that it was not billed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from celeriac.connections import patiently
from celeriac.costs.prices import Price, Prices
from celeriac.errors import ContentRefused, ModelError
from celeriac.jobs.journal import Journal, Settlement
from celeriac.jobs.model import Claim
from celeriac.jobs.store import new_id
from celeriac.llm.model import Answer, Lane, ModelClient, ModelRequest, Usage
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds between two looks at a lease that could not be renewed.
LOOK: Final = 0.05


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


class Calls:
    """A model client for one run: asks `models`, and books. client: whom the lanes are asked of.

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
        insist: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        self.insist = insist
        self._claim = claim
        self._client = client
        self._journal = journal
        self._prices = prices
        self._lease = lease
        #: Which step is being made, the first is 1: for the receipt.
        self.step = 1
        self._bounds: dict[str, int] = {}
        self._open: dict[str, Lane] = {}
        self._answered: dict[str, Settlement] = {}

    async def answer(self, request: ModelRequest) -> Answer:
        """As any model client. The answer names its call: it is settled with the step that it makes.

        Raises Fenced, Stopped.
        """
        call, lane, began = new_id(), request.lane, time.monotonic()
        bound = self._prices.bound(request)
        await self.insist(lambda: self._journal.admit(self._claim, call, bound, {"lane": str(lane), "step": self.step}))
        self._bounds[call], self._open[call] = bound, lane
        await self._lease.running()
        try:
            answer = await self._client.answer(request)
        except ModelError as error:
            settlement = self._failed(call, lane, error, time.monotonic() - began)
            await patiently(lambda: self._journal.settle(self._claim, settlement))
            del self._open[call]
            raise
        del self._open[call]
        self._answered[call] = self._settled(call, answer)
        return replace(answer, call=call)

    def settlement(self, answer: Answer) -> Settlement | None:
        """Of the call that brought the answer; whoever books it says so by `booked`."""
        return self._answered.get(answer.call)

    def booked(self, settlement: Settlement | None) -> None:
        if settlement is not None:
            self._answered.pop(settlement.call, None)

    async def close(self) -> None:
        """Book what was answered and is not known to be booked: the run is cut off between an answer and its step."""
        while self._answered:
            _, settlement = self._answered.popitem()
            await patiently(partial(self._journal.settle, self._claim, settlement))

    async def doubt(self) -> None:
        """The run lost its job in the middle of a call. The store has booked that already, unless it lost history."""
        await self.close()
        while self._open:
            call, lane = self._open.popitem()
            facts = self._facts(lane, 0.0, "aborted", "")
            await patiently(
                partial(self._journal.settle, self._claim, Settlement(call, "doubt", self._bounds[call], 0, facts))
            )

    def _settled(self, call: str, answer: Answer) -> Settlement:
        price = self._prices.price(answer.lane, answer.model, answer.usage)
        if price.estimated:
            log.warning("price_estimated", lane=str(answer.lane), model=answer.model, source=price.source)
        facts = self._facts(answer.lane, answer.seconds, None, answer.request_id)
        return self._at_price(call, price, facts | _billed(answer.model, answer.usage, price, answer.tier))

    def _failed(self, call: str, lane: Lane, error: ModelError, seconds: float) -> Settlement:
        facts = self._facts(lane, seconds, error.code, error.request_id)
        if isinstance(error, ContentRefused) and error.usage is not None:
            price = self._prices.price(lane, error.billed_model or lane.model, error.usage)
            billed = _billed(error.billed_model or lane.model, error.usage, price, error.tier)
            return self._at_price(call, price, facts | billed)
        return Settlement(call, "doubt" if error.in_doubt else "released", self._bounds[call], 0, facts)

    def _facts(self, lane: Lane, seconds: float, error: str | None, request_id: str) -> dict[str, Any]:
        facts = {"lane": str(lane), "step": self.step, "seconds": round(seconds, 3)}
        return facts | {"error": error, "request_id": request_id}

    def _at_price(self, call: str, price: Price, facts: dict[str, Any]) -> Settlement:
        bound = self._bounds[call]
        if price.nanos > bound:
            # The truth is booked, never clamped.
            log.error("call_over_its_bound", lane=facts["lane"], bound_nanos=bound, nanos=price.nanos)
        return Settlement(call, "settled", bound, price.nanos, facts)


def _billed(model: str, usage: Usage, price: Price, tier: str) -> dict[str, Any]:
    return {
        "model": model,
        "tier": tier,
        "usage": usage.as_dict(),
        "estimated": price.estimated,
        "price_source": price.source,
    }
