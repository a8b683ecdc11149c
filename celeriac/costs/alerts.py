"""Alerts about budgets: a threshold was reached, or a cap soon will be. Kept until each sink was told of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering
from celeriac.costs.books import HERE, Window, unspelt
from celeriac.logs import get_logger

log = get_logger(__name__)

PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Alert:
    """Of one cap, once in its window.

    kind: "threshold" where what is settled and in doubt has reached `percent` of the cap; "rate" where it will reach
    the cap at `reached_at`, before the window ends, if things go on as in the last hour, which used `rate`. use, cap,
    rate: in nano-dollars; a use beyond nine million dollars is rounded to a few of them.
    """

    id: str
    kind: Literal["threshold", "rate"]
    at: datetime
    scope: str
    window: Window
    use: int
    cap: int
    percent: int | None = None
    rate: int | None = None
    reached_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Alerts that nobody else tells this sink meanwhile, within `lease` of each that it was told. taker: who took them.

    tries: how often that failed so far. last: the id up to which these are all that there are to tell. told_all: there
    are none, and nobody tells any either.
    """

    sink: str
    taker: str
    lease: timedelta
    tries: int
    alerts: tuple[Alert, ...]
    last: str
    told_all: bool


class Alerts:
    """Those of the deployment, in the order in which they came. A sink is what is told of each: a log, a webhook."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._take = scripts.load(HERE / "take_alerts.lua", ALWAYS)
        self._told = scripts.load(HERE / "told_alerts.lua", ALWAYS)
        self._unreadable: set[bytes] = set()

    async def list(self, after: str = "-", most: int = PAGE) -> list[Alert]:
        """The newest thousand or so, oldest first. after: the id of a known one. Raises StoreUnavailable."""
        async with answering():
            start = after if after == "-" else f"({after}"
            entries = await self._redis.xrange(keys.spell("alerts"), start, count=most)
        return [*self._readable(entries)]

    async def take(self, sink: str, lease: timedelta, *, since: datetime | None = None) -> Taken:
        """What a sink was not told of yet. Whoever takes it says `told` of each, or `failed`; `lease` after the last of
        that it is anybody's. since: a sink that is new hears of nothing before. Raises StoreUnavailable.
        """
        since_ms = 0 if since is None else int(since.timestamp() * 1000)
        taker = secrets.token_hex(16)
        tries, entries, told_all = await self._take(sink=sink, taker=taker, page=PAGE, lease=_ms(lease), since=since_ms)
        alerts = self._readable((id, dict(zip(raw[::2], raw[1::2], strict=True))) for id, raw in entries)
        last = entries[-1][0].decode() if entries else ""
        taken = Taken(sink, taker, lease, tries, alerts, last, bool(told_all))
        if last and not alerts:
            await self._say(taken, last, "done", lease)
        return taken

    async def told(self, taken: Taken, alert: Alert) -> bool:
        """Of this one and all before it. False where its lease was over and somebody else tells what follows.

        Raises StoreUnavailable.
        """
        if alert == taken.alerts[-1]:
            return await self._say(taken, taken.last, "done", taken.lease)
        return await self._say(taken, alert.id, "on", taken.lease)

    async def failed(self, taken: Taken, wait: timedelta) -> None:
        """The next one could not be told. It is tried again after `wait`. Raises StoreUnavailable."""
        await self._say(taken, "", "wait", wait)

    async def _say(self, taken: Taken, id: str, then: str, time: timedelta) -> bool:
        return bool(await self._told(sink=taken.sink, taker=taken.taker, id=id, then=then, ms=max(1, _ms(time))))

    def _readable(self, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> tuple[Alert, ...]:
        """One that makes no sense keeps nobody from hearing of the others. It is said once."""
        found = []
        for id, raw in entries:
            try:
                found.append(_alert(id, raw))
            except (ValueError, KeyError, OverflowError) as error:
                if id not in self._unreadable:
                    self._unreadable.add(id)
                    log.error("alert_not_readable", id=id.decode(), error=type(error).__name__)
        return tuple(found)


def _ms(time: timedelta) -> int:
    return round(time / timedelta(milliseconds=1))


def _alert(id: bytes, raw: Mapping[bytes, bytes]) -> Alert:
    entry = {name.decode(): value.decode() for name, value in raw.items()}
    kind: Literal["threshold", "rate"] = entry["kind"]  # type: ignore[assignment]  # the script writes no other
    window: Window = entry["window"]  # type: ignore[assignment]
    return Alert(
        id=id.decode(),
        kind=kind,
        at=datetime.fromtimestamp(int(float(entry["at"])) / 1000, UTC),
        scope=unspelt(entry["scope"]),
        window=window,
        use=int(entry["use"]),
        cap=int(entry["cap"]),
        percent=int(entry["percent"]) if kind == "threshold" else None,
        rate=int(entry["rate"]) if kind == "rate" else None,
        reached_at=datetime.fromtimestamp(int(entry["reached_at"]), UTC) if kind == "rate" else None,
    )
