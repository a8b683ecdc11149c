"""Calls in doubt: they may have been billed, and nobody heard. Somebody who found out resolves them.

They are listed for as long as the ledger's entries are kept, whether or not the record of their job still is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering
from celeriac.costs.audit import changes
from celeriac.costs.books import HERE, counts
from celeriac.costs.budgets import MOST_NANOS
from celeriac.costs.money import usd
from celeriac.errors import Conflict, Invalid, NotFound
from celeriac.logs import get_logger

log = get_logger(__name__)

MOST_NOTE: Final = 500
PAGE: Final = 200

#: What somebody found out: what the call cost, in nano-dollars, or that it was certainly not billed.
Outcome = int | Literal["released"]


@dataclass(frozen=True, slots=True)
class InDoubt:
    """A call that may have been billed.

    bound: for at most so much, in nano-dollars. at: when it was admitted, a moment before it was sent. tenant, agent:
    whose job it was of. attempt, step: which run of the job made it, for what. error: why nobody knows, "" where its
    worker died. request_id: the provider's own, response: its name of an answer that it keeps; "" where it said none.
    """

    job: str
    call: str
    tenant: str
    agent: str
    lane: str
    bound: int
    at: datetime
    attempt: int
    step: int
    error: str
    request_id: str
    response: str

    @property
    def cursor(self) -> str:
        """Where the list goes on after it."""
        return f"{round(self.at.timestamp() * 1000)} {self.job} {self.call}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Of a call that was in doubt at `bound` nano-dollars. again: it was said before, and nothing changed."""

    job: str
    call: str
    outcome: Outcome
    bound: int
    again: bool = False

    @property
    def overrun(self) -> bool:
        """It cost more than it was believed to be able to."""
        return self.outcome != "released" and self.outcome > self.bound


@dataclass(frozen=True, slots=True)
class Resolved:
    """As it is written down. by: who said so. bound: what was in doubt, in nano-dollars. note: in their words."""

    at: datetime
    job: str
    call: str
    by: str
    bound: int
    outcome: Outcome
    note: str


class Doubts:
    """All calls in doubt of the deployment."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._resolve = scripts.load(HERE / "resolve.lua", ALWAYS, durable=True)

    async def list(
        self, *, tenant: str | None = None, before: datetime | None = None, after: str = "", most: int = 100
    ) -> tuple[InDoubt, ...]:
        """At most so many, the oldest first. before: admitted until then. after: the cursor of the last known one.

        Raises Invalid for a cursor that is none, StoreUnavailable.
        """
        found: tuple[InDoubt, ...] = ()
        async for one in self._all(before, *_cursor(after)):
            if tenant is None or one.tenant == tenant:
                found += (one,)
                if len(found) == most:
                    break
        return found

    async def _all(self, before: datetime | None, since: int, known: str) -> AsyncIterator[InDoubt]:
        """Those behind an entry. Some leave meanwhile: going by ranks would pass others over."""
        until = "+inf" if before is None else int(before.timestamp() * 1000)
        skip = 0
        while True:
            async with answering():
                page = await self._redis.zrangebyscore(
                    keys.spell("doubts"), since, until, start=skip, num=PAGE, withscores=True
                )
                entries = [
                    (int(at), entry.decode()) for entry, at in page if (int(at), entry.decode()) > (since, known)
                ]
                names = [entry for _, entry in entries]
                texts = await self._redis.hmget(keys.spell("doubt_calls"), names) if names else []
            for name, text in zip(names, texts, strict=True):
                # One that was resolved in between has no text.
                if text is not None and (one := _readable(name, text.decode())) is not None:
                    yield one
            if len(page) < PAGE:
                return
            if entries:
                (since, known), skip = entries[-1], 0
            else:
                skip += PAGE

    async def resolve(self, job: str, call: str, outcome: Outcome, by: str, note: str = "") -> Resolution:
        """Book what somebody found out. It lands once; the same again changes nothing, and is answered so.

        An amount above what was in doubt is booked too: it is the truth, and marked as an overrun. Raises Invalid for
        an amount that is none, NotFound, Conflict where the call is not in doubt, StoreUnavailable.
        """
        _check(outcome, note)
        stands, nanos = ("released", 0) if outcome == "released" else ("settled", outcome)
        # The call itself was counted when it came to be in doubt.
        counted = [0, *counts(None, nanos)[1:]] if nanos else None
        said, *rest = await self._resolve(
            job_id=job, id=job, call=call, stands=stands, nanos=str(nanos), counts=counted, by=by, note=note
        )
        if said == b"unknown":
            raise NotFound(
                f"no call {call} of job {job} is in doubt", field="call", remedy="`celeriac doubt list` names them"
            )
        if said == b"known":
            raise Conflict(f"the call is not in doubt: {_known(*rest)}", field="call")
        if said == b"other":
            raise Conflict(f"the call was resolved already: {spelt(_outcome(*rest))}; that stays", field="outcome")
        resolved = Resolution(job, call, outcome, int(rest[0]), again=said == b"again")
        if resolved.overrun and not resolved.again:
            log.error("call_over_its_bound", job_id=job, call=call, bound_nanos=resolved.bound, nanos=nanos)
        return resolved

    async def changes(self, most: int = 100) -> tuple[Resolved, ...]:
        """What was resolved, the newest first. Raises StoreUnavailable."""
        return tuple([_resolved(at, entry) async for at, entry in changes(self._redis, "doubt", most)])


def spelt(outcome: Outcome) -> str:
    return "not billed" if outcome == "released" else f"billed at ${usd(outcome)}"


def _check(outcome: Outcome, note: str) -> None:
    if outcome != "released" and (type(outcome) is not int or not 0 <= outcome <= MOST_NANOS):
        raise Invalid(
            "an amount is whole nano-dollars, from $0 to $9,000,000",
            field="outcome",
            remedy="name what was billed, or that nothing was",
        )
    if len(note) > MOST_NOTE or not note.isprintable():
        raise Invalid(
            f"a note is a line of at most {MOST_NOTE} characters", field="note", remedy="say it in fewer words"
        )


def _cursor(after: str) -> tuple[int, str]:
    at, _, entry = after.partition(" ")
    if after and not (at.isdecimal() and entry):
        raise Invalid(f"{after!r} is no cursor", field="after", remedy="use the one of a call that was listed")
    return (int(at), entry) if after else (0, "")


def _known(stands: bytes, nanos: bytes) -> str:
    if stands == b"open":
        return "it is being made"
    return f"its answer came, and it cost ${usd(int(nanos))}" if stands == b"settled" else "it was certainly not billed"


def _outcome(stands: bytes, nanos: bytes) -> Outcome:
    return "released" if stands == b"released" else int(nanos)


def _readable(entry: str, text: str) -> InDoubt | None:
    """None where it makes no sense: it hides no other."""
    try:
        return _in_doubt(entry, text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("doubt_not_readable", entry=entry, error=type(error).__name__)
        return None


def _in_doubt(entry: str, text: str) -> InDoubt:
    job, call = entry.rsplit(" ", 1)
    _, bound, _, at, told = text.split(" ", 4)
    facts = orjson.loads(told)
    tenant, agent, attempt, *_ = facts["of"]
    return InDoubt(
        job=job,
        call=call,
        tenant=tenant,
        agent=agent,
        lane=facts.get("lane", ""),
        bound=int(bound),
        at=datetime.fromtimestamp(int(at) / 1000, UTC),
        attempt=int(facts.get("attempt") or attempt or 0),
        step=int(facts.get("step", 1)),
        error=facts.get("error") or "",
        request_id=facts.get("request_id") or "",
        response=facts.get("response") or "",
    )


def _resolved(at: datetime, entry: Mapping[str, str]) -> Resolved:
    job, call = entry["scope"].rsplit(" ", 1)
    bound = int(entry["was"].partition(" ")[2])
    outcome = _outcome(*entry["became"].encode().split(b" "))
    return Resolved(at, job, call, entry["by"], bound, outcome, entry["note"])
