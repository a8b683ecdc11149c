"""Alerts about budgets: a threshold was reached, or a cap soon will be. Kept until each sink was told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering
from celeriac.costs.books import HERE, Window, unspelt

PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Alert:
    """Of one cap, once in its window.

    kind: "threshold" where what is settled and in doubt has reached `percent` of the cap; "rate" where it will reach
    the cap at `reached_at`, before the window ends, if things go on as in the last hour, which used `rate`. use, cap,
    rate: in nano-dollars.
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
    """Alerts that nobody else tells this sink meanwhile. tries: how often that failed so far."""

    tries: int
    alerts: tuple[Alert, ...]


class Alerts:
    """Those of the deployment, in the order in which they came. A sink is what is told of each: a log, a webhook."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._take = scripts.load(HERE / "take_alerts.lua", ALWAYS)
        self._told = scripts.load(HERE / "told_alerts.lua", ALWAYS)
        self._forecast = scripts.load(HERE / "forecast.lua", ALWAYS)
        self._cursor = "0"

    async def list(self, after: str = "-", most: int = PAGE) -> list[Alert]:
        """The newest thousand or so, oldest first. after: the id of a known one. Raises StoreUnavailable."""
        async with answering():
            start = after if after == "-" else f"({after}"
            entries = await self._redis.xrange(keys.spell("alerts"), start, count=most)
        return [_alert(id, raw) for id, raw in entries]

    async def take(self, sink: str, lease: timedelta, *, since: datetime | None = None) -> Taken:
        """What a sink was not told of yet. Whoever takes it says `told` or `failed`; after `lease` it is anybody's.

        since: a sink that is new hears of nothing before. Raises StoreUnavailable.
        """
        since_ms = 0 if since is None else int(since.timestamp() * 1000)
        tries, entries = await self._take(sink=sink, page=PAGE, lease=_ms(lease), since=since_ms)
        alerts = tuple(_alert(id, dict(zip(raw[::2], raw[1::2], strict=True))) for id, raw in entries)
        return Taken(tries, alerts)

    async def told(self, sink: str, alert: Alert) -> None:
        """Of this one and all before it. Raises StoreUnavailable."""
        await self._told(sink=sink, id=alert.id, wait=0)

    async def failed(self, sink: str, wait: timedelta, after: Alert | None = None) -> None:
        """It is tried again after `wait`. after: the last one that the sink was told of. Raises StoreUnavailable."""
        await self._told(sink=sink, id=after.id if after else "", wait=max(1, _ms(wait)))

    async def forecast(self) -> None:
        """Look at some budgets, each time at the next, for caps that soon will be reached. Raises StoreUnavailable."""
        self._cursor = (await self._forecast(cursor=self._cursor, page=PAGE)).decode()


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
