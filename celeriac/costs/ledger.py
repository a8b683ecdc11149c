"""The ledger: one entry for each outcome of a call, written with it. A correction is an entry of its own.

The sum of `nanos` over all entries is what was settled, and that of `in_doubt` what may have been billed besides: an
entry that makes a doubt certain takes it back.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import orjson

from celeriac import keys
from celeriac.connections import Redis, answering
from celeriac.costs.money import usd
from celeriac.llm.model import Usage
from celeriac.logs import get_logger

log = get_logger(__name__)

DAY: Final = timedelta(days=1)
PAGE: Final = 1000
#: What spreadsheets run as a formula.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Entry:
    """at: when it was written. admitted: when its call was. attempt: which run of the job made it. nanos: settled by
    it; in_doubt: by how much that sum changes; both in nano-dollars. facts: of the call, as its job shows them.
    """

    id: str
    at: datetime
    admitted: datetime
    job: str
    call: str
    tenant: str
    agent: str
    attempt: int
    stands: Literal["settled", "doubt", "released"]
    nanos: int
    in_doubt: int
    facts: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """Flat, as it is exported; amounts as dollars in text. Each billed token is in one class: see docs/money.md."""
        facts = self.facts
        usage = Usage.from_dict(facts.get("usage") or {})
        provider, _, model = str(facts.get("lane", "")).partition("/")
        return {
            "id": self.id,
            "at": _rfc_3339(self.at),
            "admitted_at": _rfc_3339(self.admitted),
            "job": self.job,
            "call": self.call,
            "tenant": self.tenant,
            "agent": self.agent,
            "attempt": self.attempt,
            "step": facts.get("step", 1),
            "provider": provider,
            "model": model,
            "billed_model": facts.get("model", ""),
            "request_id": facts.get("request_id", ""),
            "tier": facts.get("tier", ""),
            "outcome": self.stands,
            "estimated": bool(facts.get("estimated")),
            "overrun": bool(facts.get("overrun")),
            "late": bool(facts.get("late")),
            "resolved": bool(facts.get("resolved")),
            "error": facts.get("error") or "",
            "seconds": facts.get("seconds"),
            **{f"{name}_tokens": count for name, count in usage.classes().items()},
            "region": facts.get("region", ""),
            "price_source": facts.get("price_source", ""),
            "price_row": facts.get("price_row", ""),
            "price_date": facts.get("price_date", ""),
            "cost_usd": usd(self.nanos),
            "in_doubt_usd": usd(self.in_doubt),
        }


def _rfc_3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Ledger:
    """Reads it. kept: for how long entries are."""

    def __init__(self, redis: Redis, kept: timedelta) -> None:
        self._redis: Any = redis
        self._kept = kept

    async def entries(self, start: datetime, end: datetime, *, tenant: str | None = None) -> AsyncIterator[Entry]:
        """Those written from `start` on and before `end`, in order; read page by page.

        One that makes no sense hides no other: at the end it is logged how many were passed over. Raises
        StoreUnavailable.
        """
        strange, first_strange = 0, ""
        try:
            async for id, raw in self._written(start, end):
                entry = _readable(id, raw)
                if entry is None:
                    strange, first_strange = strange + 1, first_strange or id.decode()
                elif tenant is None or entry.tenant == tenant:
                    yield entry
        finally:
            if strange:
                log.error("ledger_entries_not_readable", count=strange, first=first_strange)

    async def _written(self, start: datetime, end: datetime) -> AsyncIterator[tuple[bytes, Mapping[bytes, bytes]]]:
        now = datetime.now(UTC)
        start, end = max(start, now - self._kept - 2 * DAY), min(end, now + DAY)
        first, last = int(start.timestamp() * 1000), int(end.timestamp() * 1000) - 1
        for day in range(first // 86_400_000, last // 86_400_000 + 1):
            name, after = keys.spell("ledger", day=str(day)), str(first)
            while True:
                async with answering():
                    page = await self._redis.xrange(name, after, str(last), count=PAGE)
                for entry in page:
                    yield entry
                if len(page) < PAGE:
                    break
                after = f"({page[-1][0].decode()}"


def _readable(id: bytes, raw: Mapping[bytes, bytes]) -> Entry | None:
    """None where it makes no sense, or its row would make none."""
    try:
        entry = _entry(id, raw)
        Usage.from_dict(entry.facts.get("usage") or {})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return entry


def _entry(id: bytes, raw: Mapping[bytes, bytes]) -> Entry:
    text = {name.decode(): value.decode() for name, value in raw.items()}
    stands: Literal["settled", "doubt", "released"] = text["stands"]  # type: ignore[assignment]  # no other is written
    return Entry(
        id=id.decode(),
        at=datetime.fromtimestamp(int(id.partition(b"-")[0]) / 1000, UTC),
        admitted=datetime.fromtimestamp(int(text["at"]) / 1000, UTC),
        job=text["job"],
        call=text["call"],
        tenant=text["tenant"],
        agent=text["agent"],
        attempt=int(text["attempt"] or 0),
        stands=stands,
        nanos=int(text["nanos"]),
        in_doubt=int(text["in_doubt"]),
        facts=orjson.loads(text["facts"]),
    )


def as_json(entry: Entry) -> str:
    """A line of JSON Lines."""
    return orjson.dumps(entry.row()).decode() + "\n"


def as_csv(entry: Entry | None) -> str:
    """A line of CSV; None for the line of names. What a spreadsheet would run is made text by a leading quote."""
    out = io.StringIO()
    writer = csv.writer(out)
    if entry is None:
        writer.writerow(COLUMNS)
    else:
        writer.writerow([_cell(name, value) for name, value in entry.row().items()])
    return out.getvalue()


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(FORMULA) and not name.endswith("_usd"):
        return f"'{value}"
    return value


_NEVER: Final = datetime.fromtimestamp(0, UTC)
COLUMNS: Final = tuple(Entry("", _NEVER, _NEVER, "", "", "", "", 0, "settled", 0, 0, {}).row())
