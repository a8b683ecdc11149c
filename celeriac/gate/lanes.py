"""How a call went, as its lane is judged by it; and what the whole fleet then knows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from celeriac import keys
from celeriac.connections import ALWAYS, READ, Redis, Scripts, answering, cards, pages
from celeriac.errors import (
    BadCredentials,
    BadModelRequest,
    ContentRefused,
    LocalFault,
    ModelError,
    QuotaExhausted,
    RateLimited,
)
from celeriac.llm.limits import SHORTEST_WAIT, Limit
from celeriac.llm.model import Lane, Usage
from celeriac.logs import get_logger

log = get_logger(__name__)

HERE: Final = Path(__file__).parent
#: The helpers that the scripts of the job store share with ours.
LUA: Final = (HERE / "lanes.lua").read_text()

#: Seconds that a lane is left alone which asked us to slow down and named no time.
UNNAMED_WAIT: Final = 2.0

#: Lanes that one script looks at: at most about 2 ms; what it says of the last 24 hours of each is more.
LOOKED_AT, ENDS_AT = 100, 10
#: Before a scope's name: the line of those who wait for its money is one among those of lanes.
SCOPE: Final = "$"
#: The same before the scope of a single job: what those may cost that work for it.
OF_JOB: Final = f"{SCOPE}job%3A"

Breaker = Literal["closed", "open", "half_open", "shut"]
Says = Literal["answered", "alive", "failed", "busy", "refused", "nothing"]


def spelt(lane: Lane) -> str:
    """As a part of a key, which holds no colon; models may."""
    return quote(str(lane))


def _unspelt(text: str) -> Lane:
    provider, _, model = unquote(text).partition("/")
    return Lane(provider, model)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the operator allows a lane, a minute; 0 for anything."""

    requests: int = 0
    tokens: int = 0


#: Input and output tokens.
Tokens = tuple[int, int]


def asking(lane: Lane, most: Tokens, caps: Caps, seconds: float) -> dict[str, Any]:
    """A call to be admitted, as the scripts take it. most: tokens that it may use. seconds: that it may take."""
    return {
        "lane": spelt(lane),
        "lease": int(seconds * 1000),
        "input": most[0],
        "output": most[1],
        "caps": [caps.requests, caps.tokens],
    }


def heard(
    lane: Lane,
    error: ModelError | None = None,
    *,
    most: Tokens = (0, 0),
    took: Tokens = (0, 0),
    usage: Usage | None = None,
    limits: Sequence[Limit] = (),
    over: int = 0,
    strict: bool = False,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """What a call says of its lane, as the scripts take it. error: None where it was answered.

    took: tokens that it was expected to use. usage: what it used, None where nobody knows. over: thousandths of its
    bound that it cost, where that was more than it; 0 where it was not. strict: the lane is then closed.
    seconds: that it took.
    """
    wait = (error.retry_after if error else None) or 0.0
    if isinstance(error, RateLimited):
        wait = max(wait, SHORTEST_WAIT) if wait > 0 else UNNAMED_WAIT
    return {
        "lane": spelt(lane),
        "says": _says(error),
        "why": error.code if error else "",
        "wait": int(wait * 1000),
        "most": most,
        "took": took,
        "used": usage and _counted(lane, usage),
        "over": over,
        "strict": strict,
        "ms": int(seconds * 1000),
        "limits": [(limit.bucket, limit.most, limit.left, int(limit.period * 1000)) for limit in limits],
    }


def unheard(lane: Lane) -> dict[str, Any]:
    """Of a call that was broken off here: it says nothing."""
    return heard(lane) | {"says": "nothing"}


def _counted(lane: Lane, usage: Usage) -> Tokens:
    """Tokens that count for the provider's rates: Anthropic leaves out those read from its cache, OpenAI does not."""
    cached = 0 if lane.provider == "anthropic" else usage.cache_read
    return usage.input + usage.written + cached, usage.made


def _says(error: ModelError | None) -> Says:
    if error is None:
        return "answered"
    # A process without a key for a provider asks nobody, and others may have one.
    if error.ours or not error.asked or isinstance(error, LocalFault):
        return "nothing"
    match error:
        case QuotaExhausted() | BadCredentials():
            return "refused"
        case BadModelRequest() | ContentRefused():
            return "alive"
        case RateLimited():
            return "busy"
        case _:
            return "failed"


@dataclass(frozen=True, slots=True)
class Rate:
    """most: that may be asked for in `period`. left: of it, now; below 0 where more was used than expected."""

    most: int
    period: timedelta
    left: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the fleet knows of a lane.

    wait: for how long it may not be asked; zero where it may. why: a code. trial: its breaker is open, and after the
    wait one call tries it out. waiting: jobs in its line. over: of the bound that was asked for it, what a call cost at
    most; 1 where none cost more, and what the bounds of further calls are multiplied by. rates: by bucket.
    """

    lane: Lane
    wait: timedelta
    why: str
    trial: bool
    waiting: int
    over: float
    rates: Mapping[str, Rate]

    @property
    def breaker(self) -> Breaker:
        """A lane that asked for time, or is at its rate, has a closed one. half_open: one call tries the lane out.
        shut: until an operator opens it.
        """
        if self.why == "overrun":
            return "shut"
        if not self.trial:
            return "closed"
        return "open" if self.wait and self.why != "probed" else "half_open"


@dataclass(frozen=True, slots=True)
class Change:
    """Of a breaker. wait: for how long it opened, zero for until an operator opens the lane. why: a code, "" where it
    closed because the lane works again. "half_open": one call tries the lane out. "reset": it is as it was, and the
    bounds of the lane are no longer raised.
    """

    at: datetime
    lane: Lane
    state: Literal["open", "half_open", "closed", "reset"]
    why: str
    wait: timedelta


#: How much longer calls of one class of duration take than those of the one before: as the scripts have it.
STEP: Final = 1.25
TOOK: Final = "took."


@dataclass(frozen=True, slots=True)
class Ends:
    """How a lane's calls ended in the last hours. errors: by code. took: calls that were answered by the longest that
    they may have taken, in seconds, the shortest first: a call's own time is at most a fifth less.
    """

    answered: int
    errors: Mapping[str, int]
    took: Sequence[tuple[float, int]]

    def within(self, share: float) -> float | None:
        """Seconds within which this share of those that were answered was, at most; None where none was."""
        left = share * sum(count for _, count in self.took)
        for seconds, count in self.took:
            left -= count
            if left <= 1e-9:
                return seconds
        return None


@dataclass(frozen=True, slots=True)
class Lines:
    """Jobs that wait: by lane; by the scope whose money they wait for, spelt as in keys; for what another job may cost;
    and for the lanes and the scopes that are not told by name.
    """

    lanes: Mapping[Lane, int]
    scopes: Mapping[str, int]
    of_jobs: int
    other_lanes: int
    other_scopes: int


class Lanes:
    """For whoever looks at the gate."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis = redis
        self._look = scripts.load(HERE / "look.lua", ALWAYS, before=LUA)
        self._open = scripts.load(HERE / "open.lua", ALWAYS, before=LUA)
        self._ends = scripts.load(HERE / "calls_ended.lua", READ, before=LUA)

    async def look(self, lanes: Sequence[Lane]) -> list[Known]:
        """Raises StoreUnavailable."""
        found: list[Known] = []
        for page in pages(lanes, LOOKED_AT):
            said = await self._look(lanes=[spelt(lane) for lane in page])
            found += [_known(lane, *values) for lane, values in zip(page, said, strict=True)]
        return found

    async def ends(self, lanes: Sequence[Lane], hours: int) -> list[Ends]:
        """Of each, in this clock hour and those before it, at most 48 in all. Raises StoreUnavailable."""
        found: list[Ends] = []
        for page in pages(lanes, ENDS_AT):
            said = await self._ends(lanes=[spelt(lane) for lane in page], hours=hours)
            found += [_ends_of(flat) for flat in said]
        return found

    async def waited_for(self) -> set[Lane]:
        """Lanes that jobs wait for. Raises StoreUnavailable."""
        async with answering():
            names: Any = await self._redis.smembers(keys.spell("lanes"))
        # Among them are the lines of those who wait for money.
        return {_unspelt(name.decode()) for name in names if not name.startswith(SCOPE.encode())}

    async def lines(self, most: int) -> Lines:
        """How many jobs wait in lines, of which there may be as many as jobs: those told by name are no more than so
        many, lanes before scopes. Raises StoreUnavailable.
        """
        async with answering():
            found: Any = await self._redis.smembers(keys.spell("lanes"))
        names = sorted(name.decode() for name in found)
        jobs = dict(zip(names, await cards(self._redis, [keys.spell("lane_line", lane=n) for n in names]), strict=True))
        lanes = [name for name in names if not name.startswith(SCOPE)]
        scopes = [name for name in names if name.startswith(SCOPE) and not name.startswith(OF_JOB)]
        told, told_scopes = lanes[:most], scopes[: max(0, most - len(lanes))]
        return Lines(
            lanes={_unspelt(name): jobs[name] for name in told},
            scopes={name.removeprefix(SCOPE): jobs[name] for name in told_scopes},
            of_jobs=sum(jobs[name] for name in names if name.startswith(OF_JOB)),
            other_lanes=sum(jobs[name] for name in lanes[len(told) :]),
            other_scopes=sum(jobs[name] for name in scopes[len(told_scopes) :]),
        )

    async def overran(self) -> set[Lane]:
        """Lanes of which a call cost more than its bound, until an operator opens them. Raises StoreUnavailable."""
        async with answering():
            names: Any = await self._redis.hkeys(keys.spell("overruns"))
        return {_unspelt(name.decode()) for name in names}

    async def open(self, lane: Lane) -> Literal["closed", "raised", ""]:
        """Ask it again, at bounds that are not raised: its price was put right. Answers how it had been for a call that
        cost more than its bound; "" where there was none. Raises StoreUnavailable.
        """
        said = await self._open(lane=spelt(lane), nonce=secrets.token_hex(16))
        was: Literal["closed", "raised", ""] = said.decode()
        if was:
            log.warning("lane_opened", lane=str(lane), was=was)
        return was

    async def changes(self, most: int) -> list[Change]:
        """The newest of the last thousand, newest first. Raises StoreUnavailable."""
        async with answering():
            entries: Any = await self._redis.xrevrange(keys.spell("lane_changes"), count=most)
        return [_change(id, {name.decode(): value.decode() for name, value in facts.items()}) for id, facts in entries]


def _known(lane: Lane, wait: int, why: bytes, opened: int, waiting: int, over: int, flat: Sequence[Any]) -> Known:
    rates = {
        name.decode(): Rate(most, timedelta(milliseconds=period), left)
        for name, most, period, left in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    }
    return Known(lane, timedelta(milliseconds=wait), why.decode(), opened > 0, waiting, over / 1000, rates)


def _ends_of(flat: Sequence[Any]) -> Ends:
    sums = {how.decode(): int(count) for how, count in zip(flat[::2], flat[1::2], strict=True)}
    took = {int(how.removeprefix(TOOK)): sums.pop(how) for how in list(sums) if how.startswith(TOOK)}
    answered = sums.pop("answered", 0)
    return Ends(answered, sums, [(STEP**n / 1000, took[n]) for n in sorted(took)])


def _change(id: bytes, facts: Mapping[str, str]) -> Change:
    at = datetime.fromtimestamp(int(id.partition(b"-")[0]) / 1000, UTC)
    state: Any = facts["state"] if facts["state"] in ("open", "half_open", "reset") else "closed"
    return Change(at, _unspelt(facts["lane"]), state, facts["why"], timedelta(milliseconds=float(facts["ms"])))
