"""Budgets: what a scope may cost in a window. Admission compares; nothing else depends on there being one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering, pages
from celeriac.costs.audit import changes
from celeriac.costs.books import HERE, WINDOWS, Window, as_argument, spelt, unspelt
from celeriac.errors import Invalid, NotFound
from celeriac.settings import NAME

#: Sums of one window and scope stay below what Lua's numbers hold exactly.
MOST_NANOS: Final = 9 * 10**15
MOST_ALERTS: Final = 10
#: Scopes that one script looks at: about 2 ms with three windows each.
PAGE: Final = 100
#: What a scope is, and what its name looks like.
KINDS: Final[Mapping[str, str]] = {
    "tenant": NAME,
    "agent": NAME,
    "provider": NAME,
    "model": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[!-~]{1,256}$",
    "label": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
}


@dataclass(frozen=True, slots=True)
class Cap:
    """nanos: what calls admitted in the window may cost, in nano-dollars; 0 stops all that cost
    anything. alert_at: percents of it at
    which somebody is told, once a window.
    """

    window: Window
    nanos: int
    alert_at: tuple[int, ...] = (80, 100)


@dataclass(frozen=True, slots=True)
class Use:
    """Of a cap, in nano-dollars: settled, in doubt (it may have been billed), reserved (calls that are being made).

    starts, ends: of the window that is open now, None for ever.
    """

    cap: Cap
    settled: int
    in_doubt: int
    reserved: int
    starts: datetime | None
    ends: datetime | None

    @property
    def left(self) -> int:
        """What may still be admitted; 0 also where more is used than a lowered cap allows."""
        return max(0, self.cap.nanos - self.settled - self.in_doubt - self.reserved)


@dataclass(frozen=True, slots=True)
class Sums:
    """Of a scope in a window, in nano-dollars, whether it has a budget or not."""

    settled: int
    in_doubt: int
    reserved: int

    @property
    def firm(self) -> int:
        return self.settled + self.in_doubt


@dataclass(frozen=True, slots=True)
class Change:
    """Of a budget. by: who said so. was, became: None for none."""

    at: datetime
    scope: str
    by: str
    was: tuple[Cap, ...] | None
    became: tuple[Cap, ...] | None


def check_scope(scope: str, labels: Mapping[str, tuple[str, ...]]) -> str:
    """The same scope, if calls can be in it. labels: those that are declared. Raises Invalid."""
    kind, _, name = scope.partition(":")
    if scope == "all":
        return scope
    if kind not in KINDS or not re.fullmatch(KINDS[kind], name):
        raise Invalid(
            f"{scope!r} is no scope",
            field="scope",
            remedy="write all, tenant:NAME, agent:NAME, provider:NAME, model:PROVIDER/MODEL or label:NAME=VALUE",
        )
    label, _, value = name.partition("=")
    if kind == "label" and value not in (*labels.get(label, ()), *(["other"] if label in labels else [])):
        raise Invalid(
            f"the label {name} is not declared: no call is in its scope",
            field="scope",
            remedy="declare it in CELERIAC_COSTS__LABELS",
        )
    return scope


def check_caps(caps: Sequence[Cap]) -> tuple[Cap, ...]:
    """The same caps in order. Raises Invalid."""
    windows = [cap.window for cap in caps]
    if not caps or len(set(windows)) < len(windows):
        raise Invalid("a budget has one cap for each of its windows", field="caps", remedy="name each window once")
    for cap in caps:
        if not 0 <= cap.nanos <= MOST_NANOS:
            raise Invalid("a cap is between $0 and $9,000,000", field="cap_usd", remedy="name a smaller amount")
        if len(cap.alert_at) > MOST_ALERTS or not all(1 <= percent <= 1000 for percent in cap.alert_at):
            raise Invalid(
                "alert_at holds at most 10 percents from 1 to 1000",
                field="alert_at",
                remedy="write them as [50, 80, 100]",
            )
    return tuple(sorted(caps, key=lambda cap: WINDOWS.index(cap.window)))


def _text(caps: Sequence[Cap]) -> str:
    return "".join(f"{c.window} {c.nanos} {','.join(map(str, sorted(set(c.alert_at))))};" for c in caps)


def _caps(text: str) -> tuple[Cap, ...]:
    found = re.findall(r"(hour|day|week|month|ever) (\d+) ([\d,]*);", text)
    return tuple(Cap(window, int(nanos), tuple(int(p) for p in soft.split(",") if p)) for window, nanos, soft in found)


class Budgets:
    """All budgets of the deployment. zone: of their windows."""

    def __init__(self, redis: Redis, scripts: Scripts, zone: str) -> None:
        self._redis: Any = redis
        self._zone = ZoneInfo(zone)
        self._use = scripts.load(HERE / "use.lua", ALWAYS)
        self._put = scripts.load(HERE / "put_budget.lua", ALWAYS)

    async def put(self, scope: str, caps: Sequence[Cap], by: str) -> None:
        """Set a scope's caps, all of them. Calls that are being made go on; thresholds that are reached are told.

        Raises StoreUnavailable.
        """
        await self._change(scope, _text(caps), by)

    async def delete(self, scope: str, by: str) -> None:
        """What was used stays known. Raises NotFound, StoreUnavailable."""
        if not await self._change(scope, "", by):
            raise NotFound(f"there is no budget of {scope}", field="scope", remedy="GET /v1/budgets lists them")

    async def _change(self, scope: str, became: str, by: str) -> bool:
        put = partial(self._put, scope=spelt(scope), caps=became, by=by, request=secrets.token_hex(16))
        [answer] = await self._of_now(put)
        return bool(answer)

    async def _of_now(self, ask: Callable[..., Awaitable[list[Any]]]) -> list[Any]:
        """The script's answer, once it was told of the windows where it does not know those of now."""
        windows = None
        while True:
            said, *rest = await ask(zone=self._zone.key, windows=windows)
            if said != b"windows":
                return rest
            windows = as_argument(self._zone, datetime.fromtimestamp(rest[0] / 1000, UTC))

    async def all(self) -> dict[str, tuple[Use, ...]]:
        """Of each scope that has a budget, by name, its caps and what is used of them. Raises StoreUnavailable."""
        return await self.of(await self._scopes())

    async def some(self, most: int) -> tuple[dict[str, tuple[Use, ...]], int]:
        """The same of at most so many scopes, the first by name; and how many more have a budget. Raises
        StoreUnavailable.
        """
        scopes = await self._scopes()
        return await self.of(scopes[:most]), len(scopes[most:])

    async def _scopes(self) -> list[str]:
        async with answering():
            return sorted(unspelt(scope.decode()) for scope in await self._redis.hkeys(keys.spell("budgets")))

    async def of(self, scopes: Sequence[str]) -> dict[str, tuple[Use, ...]]:
        """The same of those of these scopes that have a budget. Redis is not held up by all of them at once. Raises
        StoreUnavailable.
        """
        found: dict[str, tuple[Use, ...]] = {}
        for page in pages(scopes, PAGE):
            found |= await self._look(page)
        return found

    async def get(self, scope: str) -> tuple[Use, ...]:
        """Raises NotFound, StoreUnavailable."""
        found = await self.of([scope])
        if scope not in found:
            raise NotFound(f"there is no budget of {scope}", field="scope", remedy="GET /v1/budgets lists them")
        return found[scope]

    async def _look(self, scopes: Sequence[str]) -> dict[str, tuple[Use, ...]]:
        rest = await self._of_now(partial(self._use, scopes=[spelt(scope) for scope in scopes]))
        found = {}
        for scope, text, uses in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            caps = _caps(text.decode())
            found[unspelt(scope.decode())] = tuple(_use(cap, *use) for cap, use in zip(caps, uses, strict=True))
        return found

    async def sums(self, asked: Sequence[tuple[str, Window, datetime]]) -> list[Sums]:
        """What calls cost that were admitted in windows: of each scope, a window, and when that began.

        Known until 35 days after the window. Raises StoreUnavailable.
        """
        async with answering():
            pipe = self._redis.pipeline(transaction=False)
            for scope, window, start in asked:
                name = keys.spell("use", scope=spelt(scope), window=f"{window}.{int(start.timestamp())}")
                pipe.hmget(name, "cost", "in_doubt", "reserved")
            found = await pipe.execute()
        return [Sums(*(int(sum or 0) for sum in sums)) for sums in found]

    async def changes(self, most: int = 100) -> list[Change]:
        """Of budgets, the newest first. Raises StoreUnavailable."""
        return [_change(at, entry) async for at, entry in changes(self._redis, "budget", most)]


def _change(at: datetime, entry: Mapping[str, str]) -> Change:
    was, became = (_caps(entry[name]) or None for name in ("was", "became"))
    return Change(at, unspelt(entry["scope"]), entry["by"], was, became)


def _use(cap: Cap, starts: int, ends: int, settled: bytes, in_doubt: bytes, reserved: bytes) -> Use:
    since, until = (datetime.fromtimestamp(at, UTC) if at else None for at in (starts, ends))
    return Use(cap, int(settled), int(in_doubt), int(reserved), since, until)
