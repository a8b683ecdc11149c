"""What calls used and cost, added up by the hour and the day as they settle: a report reads sums, and no entries."""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from celeriac import keys
from celeriac.connections import Redis, answering
from celeriac.costs.books import COLUMNS, HOUR, spelt, windows_at
from celeriac.errors import Invalid

#: What a report may be grouped by, besides `label:NAME`.
GROUPS: Final = ("day", "hour", "tenant", "agent", "provider", "model")
LABEL: Final = "label:"
#: A report looks at no more spans than these: a day, or an hour where it is grouped by that.
MOST_DAYS: Final = 400
MOST_HOURS: Final = 31 * 24
#: What the sums of all time are kept by.
EVER: Final = ("tenant", "agent", "provider", "model")
#: Wherever days and hours begin, it is at one of these: seconds.
QUARTER: Final = 900
Span = Literal["hour", "day"]
#: Under this name those series are counted that a span had no room for.
BEYOND: Final = "other"


@dataclass(frozen=True, slots=True)
class Row:
    """group: by name, in the order that was asked for; day and hour are the UTC time at which they begin. sums: by
    `COLUMNS`, costs in nano-dollars.
    """

    group: Mapping[str, str]
    sums: Mapping[str, int]


def check_groups(group_by: Sequence[str], labels: Mapping[str, object]) -> tuple[str, ...]:
    """The same groups. Raises Invalid."""
    for group in group_by:
        if group not in GROUPS and group.removeprefix(LABEL) not in (labels if group.startswith(LABEL) else ()):
            declared = "".join(f", {LABEL}{name}" for name in labels)
            raise Invalid(
                f"nothing is grouped by {group!r}", field="group_by", remedy=f"use {', '.join(GROUPS)}{declared}"
            )
    if len(set(group_by)) < len(group_by) or {"day", "hour"} <= set(group_by):
        raise Invalid("each group counts once, and an hour is in its day", field="group_by", remedy="name each once")
    return tuple(group_by)


class Totals:
    """Reads the sums. zone: whose days they are."""

    def __init__(self, redis: Redis, zone: str) -> None:
        self._redis: Any = redis
        self._zone = ZoneInfo(zone)

    def day(self, at: datetime) -> tuple[datetime, datetime]:
        """When the day begins and ends in which a time lies."""
        return windows_at(self._zone, at)["day"]

    async def report(
        self, start: datetime, end: datetime, group_by: Sequence[str] = (), *, tenant: str | None = None
    ) -> list[Row]:
        """Sums of all calls that were admitted in a time, by group, in order. A day or an hour counts whole, if it
        begins at or after `start` and before `end`. tenant: only this one's. Raises Invalid, StoreUnavailable.
        """
        kind: Span = "hour" if "hour" in group_by else "day"
        found = await self._found(kind, self.spans(kind, start, end))
        where = group_by.index(kind) if kind in group_by else None
        rows: dict[tuple[str, ...], list[int]] = {}
        names: dict[bytes, tuple[str, ...] | None] = {}
        for span, series in found:
            # Thousands of series of hundreds of days take long to add up: others have their turn.
            await asyncio.sleep(0)
            at = moment(span)
            for name, text in series.items():
                if name not in names:
                    names[name] = _group(name.decode(), group_by, tenant)
                if (group := names[name]) is None:
                    continue
                # A tenant may be called `day`.
                timed = group if where is None else (*group[:where], at, *group[where + 1 :])
                sums = rows.setdefault(timed, [0] * len(COLUMNS))
                for column, count in enumerate(text.split()):
                    sums[column] += int(count)
        return [
            Row(dict(zip(group_by, group, strict=True)), dict(zip(COLUMNS, sums, strict=True)))
            for group, sums in sorted(rows.items())
        ]

    async def _found(self, kind: Span, spans: Sequence[datetime]) -> list[tuple[datetime, Mapping[bytes, bytes]]]:
        """The series of these spans, which follow each other, each with the span in which it begins.

        That is not its own where the time zone was another one then: a day of that zone is in one day of this one.
        """
        if not spans:
            return []
        begins = [int(span.timestamp()) for span in spans]
        period = 3600 if kind == "hour" else 86_400
        end = begins[-1] + 3600 if kind == "hour" else int(self.day(spans[-1])[1].timestamp())

        begin = keys.spell("usage", span=f"{kind}.").encode()

        def key(at: int) -> bytes:  # there are thousands of them
            return b"%b%d" % (begin, at)

        # Of all the times at which days of the world begin, those of one deployment are few. A day may have 23 hours.
        starts = range(begins[0], min(begins[0] + period, end), QUARTER)
        times = [range(at, end, period) for at in starts]
        async with answering():
            asked = self._redis.pipeline(transaction=False)
            for each in times:
                await asyncio.sleep(0)
                asked.exists(*map(key, each))
            there = await asked.execute()
            known = [at for each, number in zip(times, there, strict=True) if number for at in each]
            for at in known:
                asked.hgetall(key(at))
            found = await asked.execute()
        return [(spans[bisect(begins, at) - 1], series) for at, series in zip(known, found, strict=True)]

    async def ever(self) -> list[Row]:
        """Sums since the first call, by tenant, agent, provider and model.

        None of them ever goes down: what is in doubt is in none. A thousand at most; calls of further ones are in
        `other`. Raises StoreUnavailable.
        """
        async with answering():
            series = await self._redis.hgetall(keys.spell("usage_ever"))
        rows: dict[tuple[str, ...], list[int]] = {}
        for name, text in series.items():
            # Whoever is called `other` in all of it shares a row with those that there was no room for.
            sums = rows.setdefault(_group(name.decode(), EVER, None) or (), [0] * len(COLUMNS))
            for column, count in enumerate(text.split()):
                sums[column] += int(count)
        return [
            Row(dict(zip(EVER, group, strict=True)), dict(zip(COLUMNS, sums, strict=True)))
            for group, sums in sorted(rows.items())
        ]

    async def in_doubt(self, lanes: Sequence[str]) -> tuple[int, dict[str, int]]:
        """What may have been billed, in nano-dollars, at one moment: for all calls, and for those of each lane.

        Raises StoreUnavailable.
        """
        async with answering():
            asked = self._redis.pipeline(transaction=True)
            for scope in ("all", *(f"model:{lane}" for lane in lanes)):
                asked.hget(keys.spell("used", scope=spelt(scope)), "in_doubt")
            total, *each = [int(nanos or 0) for nanos in await asked.execute()]
        return total, dict(zip(lanes, each, strict=True))

    def spans(self, kind: Span, start: datetime, end: datetime) -> list[datetime]:
        """When the days or hours begin that begin in a time. Raises Invalid where a report covers fewer."""
        return list(self._spans(kind, start, end))

    def _spans(self, kind: Span, start: datetime, end: datetime) -> Iterator[datetime]:
        most = MOST_HOURS if kind == "hour" else MOST_DAYS
        at, found = windows_at(self._zone, start)[kind][0], 0
        while at < end:
            after = at + HOUR if kind == "hour" else self.day(at)[1]
            if at >= start:
                found += 1
                if found > most:
                    raise Invalid(
                        f"a report covers at most {most} {kind}s", field="to", remedy="ask for less at a time"
                    )
                yield at
            at = after


def _group(series: str, group_by: Sequence[str], tenant: str | None) -> tuple[str, ...] | None:
    """The series' place; None where it is another tenant's. Day and hour stay as they are: they are its span's."""
    if series == BEYOND:
        # Of whoever there was no room for: nobody's own, whatever a tenant is called.
        if tenant is not None:
            return None
        parts, labels = [BEYOND] * 4, {}
    else:
        quoted = series.split(",")
        parts = [unquote(part) for part in quoted[:4]]
        labels = dict(unquote(part).split("=", 1) for part in quoted[4:])
    if tenant is not None and parts[0] != tenant:
        return None
    facts = {"tenant": parts[0], "agent": parts[1], "provider": parts[2], "model": f"{parts[2]}/{parts[3]}"}
    return tuple(
        facts.get(group) or (labels.get(group.removeprefix(LABEL), BEYOND) if group.startswith(LABEL) else group)
        for group in group_by
    )


def moment(at: datetime) -> str:
    """As a day or an hour is called in a row's group."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def this_month(zone: str, now: datetime) -> tuple[datetime, datetime]:
    """From the begin of the month to the end of the day."""
    windows = windows_at(ZoneInfo(zone), now)
    return windows["month"][0], windows["day"][1]
