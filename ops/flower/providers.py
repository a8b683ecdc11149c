"""The page of providers: of each lane whether it may be asked, its rates, how its calls went, and who waits for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from celeriac.agents.registry import lane as lane_of
from celeriac.costs.books import OTHER
from celeriac.costs.money import usd
from celeriac.gate.lanes import Change, Ends, Known
from celeriac.jobs.model import rfc_3339
from celeriac.llm.model import Lane
from ops.flower.handlers import Data, Page

#: Clock hours in which calls are counted.
HOURS: Final = 24
#: The agents' own first, then those with most calls today and jobs that wait.
MOST_LANES: Final = 200
#: Lines of jobs that are told apart.
MOST_LINES: Final = 2000
#: No lane: under this name calls count of which the usage has too many kinds, of a provider or of any.
FOLD: Final = Lane(OTHER, OTHER)
MOST_CHANGES: Final = 20


class ProvidersPage(Page):
    template = "providers.html"

    def facts(self, *_: str) -> dict[str, Any]:
        return {"hours": HOURS}


class ProvidersData(Data):
    async def answer(self, *_: str) -> Any:
        stores, registry = self.sources.stores, self.sources.registry
        start, end = stores.usage.day(datetime.now(UTC))
        changes, lines, overran, today = await asyncio.gather(
            stores.lanes.changes(MOST_CHANGES),
            stores.lanes.lines(MOST_LINES),
            stores.lanes.overran(),
            stores.usage.report(start, end, ("agent", "model")),
        )
        first = {agent.name: str(agent.lanes[0]) for agent in registry}
        used: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"calls": 0, "cost": 0, "fallbacks": 0})
        for row in today:
            is_fold = lane_of(row.group["model"]).model == OTHER
            sums = used[str(FOLD) if is_fold else row.group["model"]]
            sums["calls"] += row.sums["calls"]
            sums["cost"] += row.sums["cost"]
            if not is_fold and first.get(row.group["agent"], row.group["model"]) != row.group["model"]:
                sums["fallbacks"] += row.sums["calls"]
        own = {lane for agent in registry for lane in agent.lanes} | registry.caps.keys()
        named = (
            own | overran | lines.lanes.keys() | {change.lane for change in changes} | {lane_of(name) for name in used}
        )
        busy = {lane: used[str(lane)]["calls"] + lines.lanes.get(lane, 0) for lane in named - {FOLD}}
        # First those that wait for an operator.
        ranked = sorted(busy, key=lambda lane: (lane not in overran, lane not in own, -busy[lane], str(lane)))
        lanes = sorted(ranked[:MOST_LANES], key=lambda lane: (lane not in overran, str(lane)))
        known, ends = await asyncio.gather(stores.lanes.look(lanes), stores.lanes.ends(lanes, HOURS))
        return {
            "lanes": [_shown(k, e, used[str(k.lane)]) for k, e in zip(known, ends, strict=True)],
            "more": len(ranked) - len(lanes),
            "others": _today(used[str(FOLD)]) if used[str(FOLD)]["calls"] else None,
            "changes": [_change(change) for change in changes],
        }


def _shown(known: Known, ends: Ends, used: Mapping[str, int]) -> dict[str, Any]:
    state = known.breaker.replace("_", "-")
    cools = state == "closed" and bool(known.wait)
    return {
        "lane": str(known.lane),
        "breaker": state,
        "cools": cools,
        # In tenths, for people; a lane that waits for an operator waits for no time.
        "wait_seconds": round(known.wait.total_seconds(), 1) if cools or state == "open" else 0,
        "why": known.why,
        "waiting": known.waiting,
        "bounds_times": known.over,
        "rates": [
            {"name": name, "left": rate.left, "most": rate.most, "seconds": rate.period.total_seconds()}
            for name, rate in sorted(known.rates.items())
        ],
        "answered": ends.answered,
        "errors": dict(sorted(ends.errors.items(), key=lambda error: (-error[1], error[0]))),
        "median_seconds": ends.within(0.5),
        "slow_seconds": ends.within(0.95),
    } | _today(used)


def _today(used: Mapping[str, int]) -> dict[str, Any]:
    return {
        "calls_today": used["calls"],
        "fallbacks_today": used["fallbacks"],
        "cost_today_usd": usd(used["cost"]),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "at": rfc_3339(change.at),
        "lane": str(change.lane),
        "state": change.state,
        "why": change.why,
        "seconds": change.wait.total_seconds(),
    }
