"""Under whom a call is booked: the scopes whose sums it is in, the windows that are open, and its series in the usage.

Scopes are written `all`, `tenant:acme`, `agent:reviewer`, `provider:openai`, `model:openai/gpt-5.4` and
`label:team=red`; a job with a cap of its own is a scope for the jobs that work for it. Windows are those of the
deployment's time zone: the hour, the day from midnight, the week from Monday, the month, and ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from celeriac.llm.model import CLASSES, Lane, Usage
from celeriac.settings import CostSettings

HERE: Final = Path(__file__).parent
Window = Literal["hour", "day", "week", "month", "ever"]
WINDOWS: Final[tuple[Window, ...]] = get_args(Window)
HOUR: Final = timedelta(hours=1)
#: What is said of a label that a job has no value of, and of a value that nobody declared.
OTHER: Final = "other"
#: The columns of a series, in order: tokens by class, the rest counts and nano-dollars. errors: calls without an
#: answer when they ended. saved: what tokens that were read from a cache would have cost more.
COLUMNS: Final = (
    "calls",
    "errors",
    *CLASSES,
    "cost",
    "saved",
)


def lua(costs: CostSettings) -> str:
    """The helpers of the scripts that move money."""
    kept = (costs.entries_ttl, costs.totals_ttl)
    seconds = ", ".join(f"{ttl.total_seconds():.0f}" for ttl in kept)
    text = (HERE / "books.lua").read_text()
    # In a function: a script may have 200 local names.
    return f"local books = (function(ENTRIES, TOTALS)\n{text}end)({seconds})\n"


def spelt(scope: str) -> str:
    """As a part of a key, which holds no colon."""
    return quote(scope, safe="")


def unspelt(text: str) -> str:
    return unquote(text)


def windows_at(zone: ZoneInfo, at: datetime) -> dict[Window, tuple[datetime, datetime]]:
    """Start and end of the windows that are open at a time; `ever` is none of them.

    A day is as long as the zone makes it, 23 to 25 hours; an hour is 60 minutes long, also where clocks go back.
    """
    local = at.astimezone(zone)
    offset = local.utcoffset() or timedelta(0)
    into = timedelta(seconds=(at.timestamp() + offset.total_seconds()) % 3600)
    hour = at.astimezone(UTC) - into
    day, after = local.date(), local.date() + timedelta(days=1)
    monday = day - timedelta(days=local.weekday())
    first = day.replace(day=1)

    def midnight(date: Any) -> datetime:
        return datetime(date.year, date.month, date.day, tzinfo=zone).astimezone(UTC)

    return {
        "hour": (hour, hour + HOUR),
        "day": (midnight(day), midnight(after)),
        "week": (midnight(monday), midnight(monday + timedelta(days=7))),
        "month": (midnight(first), midnight((first + timedelta(days=32)).replace(day=1))),
    }


def as_argument(zone: ZoneInfo, at: datetime) -> list[Any]:
    """The windows that are open at a time, as the scripts take them."""
    windows: list[Any] = [zone.key]
    for start, end in windows_at(zone, at).values():
        windows += [int(start.timestamp()), int(end.timestamp())]
    return windows


@dataclass(frozen=True, slots=True)
class Account:
    """Whose calls a job's are. labels: declared ones, with a value of theirs each. zone: of the windows."""

    tenant: str
    agent: str
    labels: tuple[tuple[str, str], ...] = ()
    zone: str = "UTC"

    def scopes(self, lane: Lane) -> list[str]:
        named = ["all", f"tenant:{self.tenant}", f"agent:{self.agent}", f"provider:{lane.provider}", f"model:{lane}"]
        return [*named, *(f"label:{name}={value}" for name, value in self.labels)]

    def spelt_scopes(self, lane: Lane) -> tuple[str, ...]:
        """As the scripts take them."""
        return _named(self, lane)[0]

    def books(self, lane: Lane, at: datetime | None = None) -> dict[str, Any]:
        """As the scripts take it. at: where the store asked for the windows of this time."""
        windows = None if at is None else as_argument(ZoneInfo(self.zone), at)
        scopes, series = _named(self, lane)
        return {"scopes": scopes, "series": series, "zone": self.zone, "windows": windows}

    def series(self, lane: Lane) -> str:
        """Under what name its calls to a lane are counted."""
        parts = [self.tenant, self.agent, lane.provider, lane.model, *(f"{n}={v}" for n, v in self.labels)]
        return ",".join(quote(part, safe="=") for part in parts)


@lru_cache(1024)
def _named(account: Account, lane: Lane) -> tuple[tuple[str, ...], str]:
    """The same for thousands of calls, and 25 us to spell."""
    return tuple(spelt(scope) for scope in account.scopes(lane)), account.series(lane)


def labels_of(declared: Mapping[str, tuple[str, ...]], metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Of a job's metadata what is declared. A value that nobody declared counts as `other`, so that nobody escapes a
    cap, or grows the store, by inventing one.
    """
    found = []
    for name, values in sorted(declared.items()):
        value = metadata.get(name, OTHER)
        found.append((name, value if value in values else OTHER))
    return tuple(found)


def counts(usage: Usage | None, nanos: int = 0, saved: int = 0, *, error: bool = False) -> list[int]:
    """What a call adds to its series, by `COLUMNS`."""
    tokens = (usage or Usage()).classes()
    return [1, int(error), *(tokens[name] for name in CLASSES), nanos, saved]
