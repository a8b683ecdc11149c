"""The page of costs: what was spent, how fast, what budgets leave, on what, and by which jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from celeriac.costs import forecast
from celeriac.costs.books import HOUR, Window, windows_at
from celeriac.costs.budgets import Sums, Use
from celeriac.costs.money import usd
from celeriac.costs.usage import Row, Span, moment
from celeriac.jobs.model import rfc_3339
from ops.flower.handlers import Data, Page

#: How far back the chart goes: its steps, and how many.
OVER: Final[Mapping[str, tuple[Span, int]]] = {
    "day": ("hour", 24),
    "week": ("day", 7),
    "month": ("day", 30),
    "quarter": ("day", 90),
}
BY: Final = ("model", "tenant", "agent")
#: Days that the dearest jobs are looked for in.
DAYS: Final = {"1": 1, "7": 7, "30": 30}
#: Series that are drawn apart; the others together.
MOST_SERIES: Final = 7
MOST_BUDGETS: Final = 100
MOST_DEAREST: Final = 20


class CostsPage(Page):
    template = "costs.html"


class CostsData(Data):
    async def answer(self, *_: str) -> Any:
        over, by = self.chosen("over", OVER, "week"), self.chosen("by", BY, "model")
        days = DAYS[self.chosen("days", DAYS, "7")]
        now = datetime.now(UTC)
        said = await asyncio.gather(
            self._spent(now), self._budgets(now), self._chart(now, over, by), self._dearest(now, days)
        )
        return dict(zip(("spent", "budgets", "chart", "dearest"), said, strict=True))

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.sources.settings.costs.time_zone)

    async def _rates(self, scopes: Sequence[str], now: datetime) -> dict[str, int]:
        """Nano-dollars an hour, settled and in doubt. It is said by the minute: else no answer were like the last."""
        hour, _ = windows_at(self._zone, now)["hour"]
        into = now.replace(second=0, microsecond=0) - hour
        asked: list[tuple[str, Window, datetime]] = [
            (scope, "hour", start) for scope in scopes for start in (hour, hour - HOUR)
        ]
        found = iter(await self.sources.stores.budgets.sums(asked))
        return {scope: forecast.rate(next(found).firm, next(found).firm, into) for scope in scopes}

    async def _spent(self, now: datetime) -> dict[str, Any]:
        windows = windows_at(self._zone, now)
        (_, tomorrow), (month, next_month) = windows["day"], windows["month"]
        stores = self.sources.stores
        today, this_month, [of_day, of_month], rates = await asyncio.gather(
            stores.usage.report(windows["day"][0], tomorrow),
            stores.usage.report(month, tomorrow),
            stores.budgets.sums([("all", "day", windows["day"][0]), ("all", "month", month)]),
            self._rates(["all"], now),
        )
        left = next_month - now.replace(second=0, microsecond=0)
        paid = sum(row.sums["cost"] for row in this_month)
        expected = paid + of_month.in_doubt + rates["all"] * int(left.total_seconds()) // 3600
        return {
            "today": _spent(today, of_day),
            "month": _spent(this_month, of_month),
            "usd_an_hour": usd(rates["all"]),
            "month_expected_usd": usd(expected),
        }

    async def _budgets(self, now: datetime) -> dict[str, Any]:
        found = await self.sources.stores.budgets.all()
        uses = [(scope, use) for scope, its in found.items() for use in its]
        # Those that are nearest to their cap first.
        uses.sort(key=lambda of: (-_share(of[1]), of[0]))
        shown, more = uses[:MOST_BUDGETS], len(uses[MOST_BUDGETS:])
        rates = await self._rates(list(dict.fromkeys(scope for scope, _ in shown)), now)
        return {"shown": [_budget(scope, use, rates[scope], now) for scope, use in shown], "more": more}

    async def _chart(self, now: datetime, over: str, by: str) -> dict[str, Any]:
        step, count = OVER[over]
        usage = self.sources.stores.usage
        if step == "hour":
            start, end = windows_at(self._zone, now)["hour"]
            start -= (count - 1) * HOUR
        else:
            end = usage.day(now)[1]
            # Days have 23 to 25 hours: from the middle of today it is this many times 24 to the middle of the first.
            start = usage.day(end - timedelta(hours=12) - (count - 1) * timedelta(days=1))[0]
        times = [moment(at) for at in usage.spans(step, start, end)]
        rows = await usage.report(start, end, (step, by))
        return {"over": over, "by": by, "step": step, "times": times, **_series(rows, times, step, by)}

    async def _dearest(self, now: datetime, days: int) -> list[dict[str, Any]]:
        found = await self.sources.stores.dearest.between(now - timedelta(days=days - 1), now, MOST_DEAREST)
        return [
            {"job_id": dear.job, "tenant": dear.tenant, "agent": dear.agent, "cost_usd": usd(dear.nanos)}
            for dear in found
        ]


def _spent(rows: Sequence[Row], sums: Sums) -> dict[str, Any]:
    """As `/v1/usage` has it, and what is beside that."""
    return {
        "cost_usd": usd(sum(row.sums["cost"] for row in rows)),
        "calls": sum(row.sums["calls"] for row in rows),
        "errors": sum(row.sums["errors"] for row in rows),
        "in_doubt_usd": usd(sums.in_doubt),
        "reserved_usd": usd(sums.reserved),
    }


def _share(use: Use) -> float:
    return (use.settled + use.in_doubt + use.reserved) / max(1, use.cap.nanos)


def _budget(scope: str, use: Use, an_hour: int, now: datetime) -> dict[str, Any]:
    reached = forecast.reached_at(use, an_hour, now)
    firm, cap = use.settled + use.in_doubt, use.cap.nanos
    return {
        "scope": scope,
        "window": use.cap.window,
        "cap_usd": usd(cap),
        "settled_usd": usd(use.settled),
        "in_doubt_usd": usd(use.in_doubt),
        "reserved_usd": usd(use.reserved),
        "left_usd": usd(use.left),
        "alert_at": list(use.cap.alert_at),
        "alerted": [percent for percent in use.cap.alert_at if firm * 100 >= cap * percent],
        "ends_at": use.ends and rfc_3339(use.ends),
        "usd_an_hour": usd(an_hour),
        "is_reached": firm >= cap,
        "reached_at": reached and rfc_3339(reached),
    }


def _series(rows: Sequence[Row], times: Sequence[str], step: str, by: str) -> dict[str, Any]:
    """What each group cost at each time; those that cost least as one."""
    place = {at: index for index, at in enumerate(times)}
    costs: dict[str, list[int]] = {}
    for row in rows:
        costs.setdefault(row.group[by], [0] * len(times))[place[row.group[step]]] = row.sums["cost"]
    ranked = sorted(costs, key=lambda name: (-sum(costs[name]), name))
    own, rest = ranked[:MOST_SERIES], ranked[MOST_SERIES:]
    series = [(name, costs[name]) for name in own]
    if rest:
        series.append((f"{len(rest)} more", [sum(at) for at in zip(*(costs[name] for name in rest), strict=True)]))
    return {
        "series": [
            {"name": name, "cost_usd": [usd(nanos) for nanos in sums], "total_usd": usd(sum(sums))}
            for name, sums in series
        ],
        "sums_usd": [usd(sum(its[index] for its in costs.values())) for index in range(len(times))],
        "total_usd": usd(sum(sum(sums) for sums in costs.values())),
    }
