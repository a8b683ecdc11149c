"""What a run has done so far: its finished steps, and its calls, each booked before it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import unquote

import orjson

from celeriac.connections import ALWAYS, NEW_WORK, Scripts, pack
from celeriac.errors import CostLimit, Fenced, Invalid, Stopped
from celeriac.jobs.model import Claim
from celeriac.jobs.scripts import HERE
from celeriac.logs import get_logger

log = get_logger(__name__)

#: How a call is booked once it has an outcome.
Stands = Literal["settled", "doubt", "released"]

#: Amounts of a call above this are refused: sums must stay exact in Lua's comparisons.
MOST_NANOS: Final = 9 * 10**15


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of a call.

    bound: as it was admitted. nanos: what it cost, if `stands` is "settled". facts: for the receipt. heard: what it
    says of its lane, as `celeriac.gate.lanes.heard` has it; None for nothing. books: what it was booked under, as its
    admission answered. counts: what it adds to the usage, as `celeriac.costs.books.counts` has it.
    """

    call: str
    stands: Stands
    bound: int
    nanos: int
    facts: Mapping[str, Any]
    heard: Mapping[str, Any] | None = None
    books: str = ""
    counts: Sequence[int] | None = None

    def as_argument(self) -> dict[str, Any]:
        return {
            "call": self.call,
            "stands": self.stands,
            "bound": str(self.bound),
            "nanos": str(self.nanos),
            "facts": orjson.dumps(self.facts).decode(),
            "heard": self.heard,
            "books": self.books,
            "counts": self.counts,
        }


OnBooked = Callable[[Claim, Settlement], object]
#: How a script says that what it was told of a call was news, whether it knew the call or not.
BOOKED: Final = (b"booked", b"unknown")


def nobody(claim: Claim, settlement: Settlement) -> None:
    """Who is told of what was booked, unless somebody asks."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A lane that may not be asked now. wait: for so long, then it may be asked, or asked about. why: a code."""

    wait: timedelta
    why: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """took: input and output tokens that the call is expected to use, taken out of its lane's rates.

    bound: as it is booked, in nano-dollars: raised where calls of its lane cost more than theirs. books: under what.
    """

    took: tuple[int, int]
    bound: int = 0
    books: str = ""


@dataclass(frozen=True, slots=True)
class Full:
    """A cap that has no room for a call. why: "held" until others settle, "spent", or "never": it is above the cap.

    scope: as it is spelt in keys. ends: when the window does, None for never. cap, bound: in nano-dollars.
    """

    why: Literal["held", "spent", "never"]
    scope: str
    window: str
    ends: datetime | None
    cap: int
    bound: int


#: What a call is booked under, as `celeriac.costs.books.Account.books` has it, with the windows of a time or without.
Books = Callable[[datetime | None], Mapping[str, Any]]


#: A call that is made whatever is known of its lane.
ANYHOW: Final[Mapping[str, Any]] = {"lane": None, "lease": 0, "input": 0, "output": 0, "caps": (0, 0)}


class Journal:
    """The journals of all jobs. lanes: the helpers that know of lanes, for the scripts."""

    def __init__(self, scripts: Scripts, lanes: str) -> None:
        #: Told of each call whose outcome was booked by this process, once. It must not raise: the money is booked.
        self.on_booked: OnBooked = nobody
        self._admit = scripts.load(HERE / "admit.lua", NEW_WORK, before=lanes)
        self._settle = scripts.load(HERE / "settle.lua", ALWAYS, before=lanes, durable=True)
        self._say = scripts.load(HERE / "say.lua", NEW_WORK)
        self._note = scripts.load(HERE / "note.lua", ALWAYS)

    async def admit(
        self,
        claim: Claim,
        call: str,
        bound: int,
        facts: Mapping[str, Any],
        asking: Mapping[str, Any] = ANYHOW,
        *,
        cap: int | None = None,
        books: Books | None = None,
    ) -> Admitted | Closed | Full:
        """Book a call at its highest possible price, before it is sent. The same call again changes nothing.

        bound: nano-dollars. asking: what its lane has to know, as `celeriac.gate.lanes.asking` has it. cap: that the
        whole job may cost, in doubt and reserved included. books: None for a call that is in no scope's sums. Answers
        Closed, and has booked nothing, where the lane may not be asked now; Full, where a cap leaves no room.

        Raises Invalid for more than MOST_NANOS, CostLimit, Fenced where this run no longer holds the job, Stopped where
        the job was asked to stop, StoreFull, StoreUnavailable.
        """
        if bound > MOST_NANOS:
            raise Invalid("the call could cost more than $9 million", remedy="ask for fewer output tokens")
        at: datetime | None = None
        while True:
            said, *rest = await self._admit(
                id=claim.id,
                worker=claim.worker,
                nonce=claim.nonce,
                call=call,
                bound=str(bound),
                cap="" if cap is None else str(cap),
                facts=orjson.dumps(facts).decode(),
                books=books and books(at),
                **asking,
            )
            if said != b"windows":
                break
            at = datetime.fromtimestamp(rest[0] / 1000, UTC)
        if said == b"full":
            return _full(*rest)
        if said == b"closed":
            return Closed(timedelta(milliseconds=rest[0]), rest[1].decode())
        if said == b"spent":
            raise CostLimit("what the job may cost (max_cost_usd) leaves too little for another call")
        if said == b"stop":
            raise Stopped(f"the job was asked to stop: {rest[0].decode()}")
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        if rest[4]:
            lane = unquote(asking["lane"])
            _count_change(lane, "half_open")
            log.info("breaker_half_open", lane=lane)
        return Admitted((rest[0], rest[1]), int(rest[2]), rest[3].decode())

    async def commit(
        self,
        claim: Claim,
        step: int,
        made: Any,
        settlement: Settlement | None,
        *,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a finished step under its number, and the price of the call that made it, in one step.

        told: of the step, for those who read along; None for nothing. Raises Fenced where this run no longer holds the
        job; the money is booked all the same.
        """
        packed = pack(made)
        while True:
            said, money, stored, changed = await self._commit(claim, step, packed, settlement, told)
            tell_of_lane(settlement, changed)
            if settlement is not None and money in BOOKED:
                self.on_booked(claim, settlement)
            if said != b"gap":
                break
            # The store lost history, and this run knows what is missing.
            log.error("steps_not_known", job_id=claim.id, stored=stored, step=step)
            if stored >= len(claim.journal):
                raise Fenced("the store lost steps of this job that this run did not make")
            await self._commit(claim, stored, claim.journal[stored], None, None)
        tell_of_money(claim, settlement, money)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        if step == len(claim.journal):
            claim.journal += (packed,)

    async def _commit(
        self, claim: Claim, step: int, packed: bytes, settlement: Settlement | None, told: Mapping[str, Any] | None
    ) -> Any:
        return await self._settle(
            packed,
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            settlement=settlement and settlement.as_argument(),
            step=step,
            told=None if told is None else _text(told),
        )

    async def say(self, claim: Claim, call: str, step: int, begins: int, text: str) -> None:
        """Tell those who read along of text that a call has brought, "" for its begin. begins: characters before it.

        Raises Fenced where this run no longer holds the job, StoreFull, StoreUnavailable.
        """
        said = await self._say(
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            call=call,
            to=begins + len(text),
            begun=_text({"step": step, "attempt": claim.attempt, "call": call}),
            text=_text({"step": step, "from": begins, "text": text}) if text else None,
            begins=begins,
        )
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")

    async def note(self, claim: Claim, call: str, response: str) -> None:
        """The provider keeps the answer to a call under this name. It needs no lease: whoever goes on looks there.

        Raises StoreUnavailable.
        """
        await self._note(id=claim.id, call=call, response=orjson.dumps(response).decode())

    async def settle(self, claim: Claim, settlement: Settlement) -> bool:
        """Book what became of a call. It needs no lease, and counts once, however often it is said.

        Answers whether the store knows the job, or the call: else nothing was booked. Raises StoreUnavailable.
        """
        _, money, _, changed = await self._settle(
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            settlement=settlement.as_argument(),
            step=None,
            told=None,
        )
        tell_of_lane(settlement, changed)
        tell_of_money(claim, settlement, money)
        if money in BOOKED:
            self.on_booked(claim, settlement)
        return bool(money != b"lost")


def _full(why: bytes, scope: bytes, window: bytes, ends: int, cap: bytes, bound: bytes) -> Full:
    until = datetime.fromtimestamp(ends, UTC) if ends else None
    is_why: Literal["held", "spent", "never"] = why.decode()  # type: ignore[assignment]  # one of these
    return Full(is_why, scope.decode(), window.decode(), until, int(cap), int(bound))


def _text(facts: Mapping[str, Any]) -> str:
    return orjson.dumps(facts).decode()


#: Lane, and "open", "half_open" or "closed" -> how often a call of this process made its breaker so; for the metrics.
breaker_changes: Counter[tuple[str, str]] = Counter()
#: Lane -> calls of this process that cost more than their bound.
overruns: Counter[str] = Counter()
#: So many of them have a name of their own there: callers may name any model.
NAMED: Final = 200


def count_overrun(lane: str) -> None:
    overruns[lane if lane in overruns or len(overruns) < NAMED else "other"] += 1


def _count_change(lane: str, state: str) -> None:
    named = {known for known, _ in breaker_changes}
    breaker_changes[lane if lane in named or len(named) < NAMED else "other", state] += 1


def tell_of_lane(settlement: Settlement | None, changed: bytes) -> None:
    """The breaker of a lane has changed by this call: said once in the fleet."""
    if settlement is None or settlement.heard is None or not changed:
        return
    how, *facts = changed.decode().split(" ")
    lane = unquote(settlement.heard["lane"])
    state = "closed" if how == "closed" else "open"
    _count_change(lane, state)
    if how == "closed":
        log.warning("breaker_closed", lane=lane)
    elif facts[1] == "overrun":
        log.error("lane_closed_for_overrun", lane=lane, remedy="celeriac lanes --open LANE, once its price is right")
    else:
        log.error("breaker_opened", lane=lane, seconds=int(facts[0]) / 1000, why=facts[1])


def tell_of_money(claim: Claim, settlement: Settlement | None, money: bytes) -> None:
    """What could not be booked as it came has to be said somewhere: the store lost history, or somebody had resolved
    the call by hand, which stays.
    """
    if money in (b"unknown", b"lost"):
        log.error("call_not_known", job_id=claim.id, booked=money == b"unknown")
    if settlement is not None and settlement.stands != "doubt" and money.startswith(b"resolved "):
        _, stands, nanos, _ = money.decode().split(" ")
        came = (settlement.stands, settlement.nanos if settlement.stands == "settled" else 0)
        say = log.info if came == (stands, int(nanos)) else log.error
        say(
            "outcome_after_resolution",
            job_id=claim.id,
            call=settlement.call,
            resolved=stands,
            resolved_nanos=int(nanos),
            came=came[0],
            came_nanos=came[1],
        )
