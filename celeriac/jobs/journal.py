"""What a run has done so far: its finished steps, and its calls, each booked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from celeriac.connections import ALWAYS, NEW_WORK, Scripts, pack
from celeriac.errors import Fenced, Stopped
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

    bound: as it was admitted. nanos: what it cost, if `stands` is "settled". facts: for the receipt.
    """

    call: str
    stands: Stands
    bound: int
    nanos: int
    facts: Mapping[str, Any]

    def as_argument(self) -> dict[str, str]:
        return {
            "call": self.call,
            "stands": self.stands,
            "bound": str(self.bound),
            "nanos": str(self.nanos),
            "facts": orjson.dumps(self.facts).decode(),
        }


class Journal:
    """The journals of all jobs."""

    def __init__(self, scripts: Scripts) -> None:
        self._admit = scripts.load(HERE / "admit.lua", NEW_WORK)
        self._settle = scripts.load(HERE / "settle.lua", ALWAYS, durable=True)

    async def admit(self, claim: Claim, call: str, bound: int, facts: Mapping[str, Any]) -> None:
        """Book a call at its highest possible price, before it is sent. The same call again changes nothing.

        bound: nano-dollars. Raises Fenced where this run no longer holds the job, Stopped where the job was asked to
        stop, StoreFull, StoreUnavailable.
        """
        said, *rest = await self._admit(
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            call=call,
            bound=str(min(bound, MOST_NANOS)),
            facts=orjson.dumps(facts).decode(),
        )
        if said == b"stop":
            raise Stopped(f"the job was asked to stop: {rest[0].decode()}")
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")

    async def commit(self, claim: Claim, step: int, made: Any, settlement: Settlement | None) -> None:
        """Store a finished step under its number, and the price of the call that made it, in one step.

        Raises Fenced where this run no longer holds the job; the money is booked all the same.
        """
        said, money = await self._settle(
            pack(made),
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            settlement=settlement and settlement.as_argument(),
            step=step,
        )
        _notice(claim, money)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")

    async def settle(self, claim: Claim, settlement: Settlement) -> None:
        """Book what became of a call. It needs no lease, and counts once, however often it is said."""
        _, money = await self._settle(
            id=claim.id, worker=claim.worker, nonce=claim.nonce, settlement=settlement.as_argument(), step=None
        )
        _notice(claim, money)


def _notice(claim: Claim, money: bytes) -> None:
    """The store lost history: what it did not know of a call, or could not book, has to be said somewhere."""
    if money in (b"unknown", b"lost"):
        log.error("call_not_known", job_id=claim.id, booked=money == b"unknown")
