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
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from celeriac.agents.deltas import Deltas
from celeriac.costs.books import Account, counts, unspelt
from celeriac.costs.money import usd
from celeriac.costs.prices import Price, Prices, most_input
from celeriac.errors import (
    BadCredentials,
    BudgetFull,
    ContentRefused,
    CostLimit,
    Fenced,
    JobBudgetFull,
    LaneBudgetFull,
    LaneClosed,
    ModelError,
    QuotaExhausted,
    StoreUnavailable,
)
from celeriac.gate.lanes import Caps, Tokens, asking, heard, unheard
from celeriac.jobs.journal import Admitted, Closed, Full, Journal, Settlement, Stands, count_overrun
from celeriac.jobs.model import Claim, Doubt
from celeriac.jobs.store import new_id
from celeriac.llm.limits import Limit
from celeriac.llm.model import Answer, Lane, LooksUp, ModelClient, ModelRequest, Usage
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds between two looks at a lease that could not be renewed, or at a lane.
LOOK: Final = 0.05
#: Seconds that a call waits, in its slot, for a lane that is left alone.
IN_PLACE: Final = 1.5
#: Seconds for which a stream is read on that was cut off.
DRAIN: Final = 2.0
#: Calls in doubt that one run looks up for one step, where former runs left it some: the newest that may be found.
LOOKED_UP: Final = 3
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
    is booked, in nano-dollars. most, took: tokens that it may use, and is expected to. sent: as of when it is priced,
    before and after. books: what it is booked under. digest: of its request, where the answer may be kept; else "".
    """

    name: str
    lane: Lane
    waited: float
    asked: int
    bound: int
    most: Tokens
    took: Tokens
    sent: datetime
    books: str = ""
    digest: str = ""


class Calls:
    """A model client for one run: asks `models`, and books. client: whom the lanes are asked of. caps: of the lanes.
    account: whose calls they are, None where
    no scope's sums hold them. strict: whether a lane is closed when a call costs more than its bound.

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
        account: Account | None = None,
        strict: bool = False,
        insist: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        self.insist = insist
        self._claim = claim
        self._client = client
        self._keeper = client if isinstance(client, LooksUp) else None
        self._journal = journal
        self.prices = prices
        self._lease = lease
        self._caps = caps
        self._account = account
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
        self._doubts = list(claim.doubts)
        #: Of those that former runs left, so many more may be looked up.
        self._looks = LOOKED_UP
        #: Lane, and digest of a question -> its refusal, which was found and booked before it was that lane's turn.
        self._declined: dict[tuple[Lane, str], ContentRefused] = {}
        #: Call -> its provider's own name of the answer that it keeps.
        self._kept: dict[str, str] = {}

    async def answer(self, request: ModelRequest) -> Answer:
        """As any model client. The answer names its call: it is settled with the step that it makes.

        Of a call in doubt whose provider may have kept the answer, that is looked up before another call is made.
        Raises Fenced, Stopped.
        """
        if self._doubts and (found := await self._found(request)) is not None:
            return found
        if self._declined and (declined := self._declined.pop((request.lane, request.digest()), None)) is not None:
            raise declined
        call = await self._admit(new_id(), request)
        self._open[call.name] = call
        if call.digest:
            request = replace(request, call=call.name, on_stored=partial(self._keeps, call.name))
        await self._lease.running()
        began = time.monotonic()
        try:
            answer = await (self._streamed(call, request) if self._claim.stream else self._client.answer(request))
        except ModelError as error:
            seconds = time.monotonic() - began
            settlement = self._failed(call, error, seconds)
            await self._book(settlement)
            del self._open[call.name]
            if not (call.digest and error.in_doubt):
                raise
            self._doubts.append(self._doubt_of(call, error, seconds))
            if (found := await self._found(request)) is None:
                raise
            return found
        del self._open[call.name]
        self._answered[call.name] = self._settled(call, answer)
        return replace(answer, call=call.name)

    async def _keeps(self, name: str, response: str) -> None:
        """Its provider keeps the answer to this call. Where that cannot be stored, the call is made all the same."""
        self._kept[name] = response
        try:
            await self._journal.note(self._claim, name, response)
        except StoreUnavailable:
            log.warning("stored_answer_not_noted", call=name)

    def _doubt_of(self, call: Call, error: ModelError, seconds: float) -> Doubt:
        return Doubt(
            call=call.name,
            lane=str(call.lane),
            bound=call.bound,
            digest=call.digest,
            at=call.sent,
            response=self._kept.get(call.name, ""),
            request_id=error.request_id,
            took=call.took,
            books=call.books,
            waited=call.waited,
            seconds=seconds,
        )

    async def _found(self, request: ModelRequest) -> Answer | None:
        """The answer to this very question that a call in doubt was given after all. Each is looked up once.

        A step's question may be another one than in the run before: the agent's instructions, tools or schema changed
        with a deploy, or the conversation was trimmed. What answers that does not answer this, so questions are told
        apart by their digests. Whoever was asked does not matter: each of the lanes would have done.

        Raises ContentRefused, booked, where the model that is to be asked had declined. Where it was another one, that
        is kept until it would be asked: it is not to be paid for declining once more.
        """
        digest = request.digest()
        for doubt in [doubt for doubt in self._doubts if doubt.digest == digest]:
            self._doubts.remove(doubt)
            provider, _, model = doubt.lane.partition("/")
            lane = Lane(provider, model)
            looked = replace(request, lane=lane, call=doubt.call, on_text=None, on_stored=None)
            if self._keeper is None or not self._keeper.may_find(looked, doubt.response):
                log.info("stored_answer_not_found", call=doubt.call, lane=doubt.lane, why="it cannot be found there")
                continue
            if doubt in self._claim.doubts:
                if not self._looks:
                    continue
                self._looks -= 1
            call = Call(
                name=doubt.call,
                lane=lane,
                waited=doubt.waited,
                asked=self.prices.bound(looked, doubt.at),
                bound=doubt.bound,
                # Of the tokens that it might have used its lane learns nothing: that was another one's to say.
                most=(0, 0),
                took=doubt.took or (0, 0),
                sent=doubt.at,
                books=doubt.books,
            )
            try:
                answer = await self._keeper.look_up(looked, doubt.response)
            except ContentRefused as error:
                error.request_id = error.request_id or doubt.request_id
                settlement = self._looked_up(doubt, self._failed(call, error, doubt.seconds))
                await self._book(settlement)
                if lane == request.lane:
                    raise
                self._declined[lane, digest] = error
                continue
            if answer is None:
                continue
            log.info("stored_answer_found", call=doubt.call, lane=doubt.lane)
            request_id = answer.request_id or doubt.request_id
            answer = replace(answer, call=doubt.call, request_id=request_id, seconds=doubt.seconds)
            self._answered[doubt.call] = self._looked_up(doubt, self._settled(call, answer))
            return answer
        return None

    @staticmethod
    def _looked_up(doubt: Doubt, settlement: Settlement) -> Settlement:
        """How its lane did then was heard when the call came to be in doubt: what it used alone is news."""
        facts = dict(settlement.facts) | ({"response": doubt.response} if doubt.response else {})
        news = {"says": "nothing", "why": ""} | ({} if doubt.took else {"used": None})
        return replace(settlement, facts=facts, heard=dict(settlement.heard or {}) | news)

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
                await self._book(settlement)
            else:
                continue
            del self._open[name]

    async def _admit(self, name: str, request: ModelRequest) -> Call:
        """Wait here for a moment if the lane may not be asked. For longer, another is asked, or the job lets go."""
        lane, began, refusals = request.lane, time.monotonic(), 0
        self.prices.check(lane)
        bound, most = self.prices.bound(request), (most_input(request), request.max_output_tokens)
        self.most = most
        facts: dict[str, Any] = {"lane": str(lane), "step": self.step, "attempt": self._claim.attempt}
        is_kept = request.stored and self._keeper is not None and self._keeper.may_find(request, None)
        digest = request.digest() if is_kept else ""
        if digest:
            facts["digest"] = digest
        door = asking(lane, most, self._caps.get(lane, ANY), request.deadline + LATE)
        books = partial(self._account.books, lane) if self._account else None
        sent = datetime.now(UTC)
        while True:
            try:
                said = await self.insist(
                    lambda: self._journal.admit(self._claim, name, bound, facts, door, cap=self.cap, books=books)
                )
            except CostLimit as error:
                raise JobBudgetFull(
                    str(error), why="never", provider=lane.provider, model=lane.model, asked=False
                ) from error
            if isinstance(said, Admitted):
                return Call(
                    name, lane, time.monotonic() - began, bound, said.bound, most, said.took, sent, said.books, digest
                )
            if isinstance(said, Full):
                raise _no_budget(lane, said, waits="impatient" not in self._claim.record)
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
            await self._book(settlement)

    async def doubt(self) -> None:
        """The run lost its job in the middle of a call. The store has booked that already, unless it lost history."""
        await self.close()
        while self._open:
            name, call = self._open.popitem()
            facts = self._facts(call, 0.0, "aborted", "") | self._to_find(call)
            doubt = Settlement(
                name, "doubt", call.bound, 0, facts, unheard(call.lane), call.books, counts(None, error=True)
            )
            await self._book(doubt)

    async def _book(self, settlement: Settlement) -> None:
        """Whoever has the job now. A store that lost history is reminded of the job first; if that has ended and is
        forgotten, the log has said so.
        """

        async def book() -> None:
            if not await self._journal.settle(self._claim, settlement):
                raise Fenced("the store does not know this job")

        with suppress(Fenced):
            await self.insist(book)

    def _settled(self, call: Call, answer: Answer) -> Settlement:
        price = self._price(call, answer.lane, answer.model, answer.usage, tier=answer.tier, region=answer.region)
        facts = self._facts(call, answer.seconds, None, answer.request_id)
        facts |= _billed(answer.model, answer.usage, price, answer.tier)
        heard = _heard(call, None, answer.usage, answer.limits, answer.seconds)
        return self._at_price(call, price, answer.usage, facts, heard)

    def _failed(self, call: Call, error: ModelError, seconds: float) -> Settlement:
        facts = self._facts(call, seconds, error.code, error.request_id)
        if isinstance(error, ContentRefused) and error.usage is not None:
            model = error.billed_model or call.lane.model
            price = self._price(call, call.lane, model, error.usage, tier=error.tier, region=error.region)
            facts |= _billed(model, error.usage, price, error.tier)
            heard = _heard(call, error, error.usage, error.limits, seconds)
            return self._at_price(call, price, error.usage, facts, heard)
        stands: Stands = "doubt" if error.in_doubt else "released"
        if error.in_doubt:
            facts |= self._to_find(call)
        heard = _heard(call, error, None, error.limits, seconds)
        return Settlement(call.name, stands, call.bound, 0, facts, heard, call.books, counts(None, error=True))

    def _to_find(self, call: Call) -> dict[str, str]:
        """What whoever goes on looks the answer up by."""
        if not call.digest:
            return {}
        return {"digest": call.digest} | ({"response": kept} if (kept := self._kept.get(call.name)) else {})

    def _price(self, call: Call, lane: Lane, model: str, usage: Usage, *, tier: str, region: str) -> Price:
        price = self.prices.price(lane, model, usage, call.sent, tier=tier, region=region)
        if price.estimated:
            log.warning(
                "price_estimated",
                lane=str(lane),
                model=model,
                tier=tier,
                region=region,
                row=price.row,
                source=price.source,
            )
        return price

    def _facts(self, call: Call, seconds: float, error: str | None, request_id: str) -> dict[str, Any]:
        return {
            "lane": str(call.lane),
            "step": self.step,
            "attempt": self._claim.attempt,
            "waited": round(call.waited, 3),
            "seconds": round(seconds, 3),
            "error": error,
            "request_id": request_id,
        }

    def _at_price(
        self, call: Call, price: Price, usage: Usage, facts: dict[str, Any], heard: dict[str, Any]
    ) -> Settlement:
        if price.nanos > call.bound:
            # The truth is booked, never clamped; and the calls that follow ask for more.
            count_overrun(str(call.lane))
            log.error("call_over_its_bound", lane=facts["lane"], bound_nanos=call.bound, nanos=price.nanos)
            facts["overrun"] = True
            heard |= {"over": -(-1000 * price.nanos // max(1, call.asked)), "strict": self._strict}
        saved = self._saved(call, facts["model"], usage, price)
        counted = counts(usage, price.nanos, saved, error=facts["error"] is not None)
        return Settlement(call.name, "settled", call.bound, price.nanos, facts, heard, call.books, counted)

    def _saved(self, call: Call, model: str, usage: Usage, price: Price) -> int:
        """Nano-dollars that the tokens read from a cache would have cost more."""
        if not usage.cache_read:
            return 0
        uncached = replace(usage, input=usage.input + usage.cache_read, cache_read=0)
        dearer = self.prices.price(call.lane, model, uncached, call.sent, tier=price.tier, region=price.region)
        return max(0, dearer.nanos - price.nanos)


def _heard(
    call: Call, error: ModelError | None, usage: Usage | None, limits: Sequence[Limit], seconds: float
) -> dict[str, Any]:
    return heard(call.lane, error, most=call.most, took=call.took, usage=usage, limits=limits, seconds=seconds)


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


def _no_budget(lane: Lane, full: Full, *, waits: bool) -> BudgetFull:
    scope = unspelt(full.scope)
    whose = "the job that it works for" if scope.startswith("job:") else scope
    cap, window = f"${usd(full.cap)}", "ever" if full.window == "ever" else f"the {full.window}"
    what = {
        "held": "is held by calls that are being made",
        "spent": "leaves too little for a call that may cost",
        "never": "is less than a call may cost:",
    }[full.why]
    bound = "" if full.why == "held" else f" ${usd(full.bound)}"
    kind = LaneBudgetFull if scope.startswith(("model:", "provider:")) else BudgetFull
    return kind(
        f"the budget of {whose} for {window} ({cap}) {what}{bound}",
        why=full.why,
        scope=full.scope,
        ends=full.ends,
        bound=full.bound,
        waits=waits,
        provider=lane.provider,
        model=lane.model,
        asked=False,
    )


def _billed(model: str, usage: Usage, price: Price, tier: str) -> dict[str, Any]:
    return {
        "model": model,
        "tier": tier,
        "usage": usage.as_dict(),
        "estimated": price.estimated,
        "price_source": price.source,
        "price_row": price.row,
        "price_date": price.date,
        "price_tier": price.tier,
        "region": price.region,
    }
