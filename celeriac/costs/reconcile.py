"""A provider's report against the ledger: by UTC day and model, with what is in doubt beside what is settled.

Models are compared by their names without the day of a snapshot, in small letters, on both sides: a bill for
`gpt-5.4-mini-2026-03-01` is one for `gpt-5.4-mini`. By nothing shorter: `gpt-5.4` would take in the bill of
`gpt-5.4-mini`. What is settled counts for the model that was billed, what is in doubt for the one that was asked; and a
call counts for the day on which it was admitted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Any, Final, Literal

from celeriac.costs.exports import REPORTED, Export, Kind, Line
from celeriac.costs.ledger import DAY, Entry, Ledger
from celeriac.costs.money import usd
from celeriac.costs.prices import undated
from celeriac.llm.model import Usage

#: ok: the same, but for rounding. covered: more was billed than is settled, and not more than is in doubt besides.
Verdict = Literal["ok", "covered", "unexplained"]

#: Dollars by which a line of a bill may be rounded: the last place of an amount in Anthropic's reference, "123.78912"
#: cents. OpenAI's names none.
ROUNDING: Final = Fraction(1, 10**7)
NANOS: Final = 10**9


@dataclass(slots=True)
class Row:
    """One model on one day. dollars, lines, requests, billed: of the bill. nanos, in_doubt, calls, tokens: of the
    ledger. untold: calls of which the ledger knows no tokens, as those in doubt. slack: what rounding may make of it.
    """

    day: date
    model: str
    kind: Kind
    dollars: Fraction = Fraction()
    lines: int = 0
    requests: int | None = None
    billed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REPORTED, 0))
    nanos: int = 0
    in_doubt: int = 0
    calls: int = 0
    untold: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REPORTED, 0))
    rounding: Fraction = ROUNDING

    @property
    def difference(self) -> Fraction:
        """Dollars that were billed beyond what is settled."""
        return self.dollars - Fraction(self.nanos, NANOS)

    @property
    def differences(self) -> dict[str, int]:
        """Tokens that were billed beyond those that are settled, by class."""
        return {name: self.billed[name] - self.tokens[name] for name in REPORTED}

    @property
    def slack(self) -> Fraction:
        """Each line of the bill may be rounded, and each call was rounded up to a nano-dollar."""
        return self.lines * self.rounding + Fraction(self.calls, NANOS)

    @property
    def verdict(self) -> Verdict:
        if self.kind == "costs":
            if abs(self.difference) <= self.slack:
                return "ok"
            most = Fraction(self.in_doubt, NANOS) + self.slack
            return "covered" if 0 <= self.difference <= most else "unexplained"
        if not any(self.differences.values()):
            return "ok"
        more = min(self.differences.values()) >= 0 and self.untold > 0
        # How many tokens a call in doubt had nobody knows; but how many calls there are.
        few = self.requests is None or self.requests - self.calls <= self.untold
        return "covered" if more and few else "unexplained"

    @property
    def is_empty(self) -> bool:
        counts = (self.dollars, self.nanos, self.in_doubt, self.calls, self.untold, self.requests)
        return not any(counts) and not any(self.billed.values())

    def as_dict(self) -> dict[str, Any]:
        """Amounts as dollars in text, to the nano-dollar."""
        row: dict[str, Any] = {"day": self.day.isoformat(), "model": self.model}
        if self.kind == "costs":
            row |= {
                "billed_usd": shown(self.dollars),
                "settled_usd": usd(self.nanos),
                "in_doubt_usd": usd(self.in_doubt),
                "difference_usd": shown(self.difference),
                "rounding_usd": shown(self.slack),
            }
        else:
            row |= {
                "billed_tokens": self.billed,
                "settled_tokens": self.tokens,
                "difference_tokens": self.differences,
                "in_doubt_usd": usd(self.in_doubt),
                "billed_calls": self.requests,
                "settled_calls": self.calls,
                "calls_without_tokens": self.untold,
            }
        return row | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Comparison:
    """apart: lines of no model, as of a tool or of storage: nothing of the ledger stands against them. skipped: days of
    the file that are not compared, with the reason.
    """

    provider: str
    kind: Kind
    rows: Sequence[Row]
    apart: Sequence[Line]
    skipped: Mapping[date, str]
    more: bool

    @property
    def unexplained(self) -> int:
        return sum(row.verdict == "unexplained" for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "report": self.kind,
            "unexplained": self.unexplained,
            "rows": [row.as_dict() for row in self.rows],
            "apart": [
                {"day": line.day.isoformat(), "item": line.item, "billed_usd": shown(line.dollars)}
                for line in self.apart
            ],
            "skipped": {day.isoformat(): why for day, why in self.skipped.items()},
            "more_pages": self.more,
        }


def shown(dollars: Fraction) -> str:
    return usd(round(dollars * NANOS))


async def reconcile(
    export: Export,
    ledger: Ledger,
    kept: timedelta,
    now: datetime,
    *,
    providers: Collection[str] = (),
    rounding: Fraction = ROUNDING,
) -> Comparison:
    """kept: for how long the ledger keeps entries. providers: whose calls the report is of, as the deployment names
    them. rounding: of a line of the bill, in dollars. Raises StoreUnavailable.
    """
    skipped = {day: why for day in sorted(export.covered) if (why := _why_not(day, export, kept, now))}
    days = set(export.covered) - set(skipped)
    books = Books(export.kind, days, providers or {export.provider}, rounding)
    if days:
        async for entry in ledger.entries(_midnight(min(days)), now + timedelta(seconds=1)):
            books.enter(entry)
    return Comparison(export.provider, export.kind, *books.against(export.lines), skipped, export.more)


def _why_not(day: date, export: Export, kept: timedelta, now: datetime) -> str:
    if _midnight(day) + DAY > now:
        return "it is not over yet"
    if _midnight(day) < now - kept:
        return f"the ledger keeps {kept.days} days (CELERIAC_COSTS__ENTRIES_TTL)"
    if export.covered[day] < DAY:
        return f"the file tells only of {export.covered[day].total_seconds() / 3600:.4g} hours of it"
    return ""


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


class Books:
    """The sums of both sides, for these days."""

    def __init__(self, kind: Kind, days: Collection[date], providers: Collection[str], rounding: Fraction) -> None:
        self._kind, self._days, self._providers, self._rounding = kind, days, providers, rounding
        self._rows: dict[tuple[date, str], Row] = {}

    def enter(self, entry: Entry) -> None:
        """Of a call of another provider or day it takes no notice."""
        provider, _, asked = str(entry.facts.get("lane", "")).partition("/")
        day = entry.admitted.astimezone(UTC).date()
        if provider not in self._providers or day not in self._days:
            return
        # Its bound counts for the model that was asked, when it comes and when it goes: nobody was told another.
        row = self._row(day, asked)
        row.in_doubt += entry.in_doubt
        row.untold += (entry.stands == "doubt") - (entry.in_doubt < 0)
        if entry.stands != "settled":
            return
        row = self._row(day, str(entry.facts.get("model") or asked))
        row.nanos += entry.nanos
        row.calls += 1
        if usage := entry.facts.get("usage"):
            used = Usage.from_dict(usage)
            for name, count in (used.classes() | {"output": used.made}).items():
                if name in row.tokens:
                    row.tokens[name] += count
        else:
            row.untold += 1

    def against(self, lines: Sequence[Line]) -> tuple[list[Row], list[Line]]:
        """The rows by day and model, and the lines that are of no model."""
        apart = []
        for line in lines:
            if line.day not in self._days:
                continue
            model = line.model
            if not model and any(_name(line.item) == name for _, name in self._rows):
                model = line.item
            if not model:
                apart.append(line)
                continue
            row = self._row(line.day, model)
            row.dollars += line.dollars
            row.lines += 1
            for name, count in line.tokens.items():
                row.billed[name] += count
            if line.requests is not None:
                row.requests = (row.requests or 0) + line.requests
        rows = [self._rows[key] for key in sorted(self._rows)]
        return [row for row in rows if not row.is_empty], apart

    def _row(self, day: date, model: str) -> Row:
        key = day, _name(model)
        if key not in self._rows:
            self._rows[key] = Row(day, key[1], self._kind, rounding=self._rounding)
        return self._rows[key]


def _name(model: str) -> str:
    return undated(model.lower())
