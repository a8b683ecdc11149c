"""Windows by the clocks of a time zone, labels, and lines that a spreadsheet may open."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.costs.books import Account, labels_of, windows_at
from celeriac.costs.ledger import COLUMNS, Entry, as_csv
from celeriac.llm.model import Lane

BERLIN = ZoneInfo("Europe/Berlin")
HOURS = timedelta(hours=1)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "window", "start", "hours"),
    [
        ("2026-11-26T23:30", "day", "2026-11-26T23:00", 24),
        ("2026-11-26T22:30", "day", "2026-11-25T23:00", 24),
        ("2026-03-29T12:00", "day", "2026-03-28T23:00", 23),  # clocks go forward
        ("2026-10-25T12:00", "day", "2026-10-24T22:00", 25),  # and back
        ("2026-10-25T00:30", "hour", "2026-10-25T00:00", 1),  # two o'clock, for the first time
        ("2026-10-25T01:30", "hour", "2026-10-25T01:00", 1),  # and for the second
        ("2026-10-25T12:00", "week", "2026-10-18T22:00", 7 * 24 + 1),
        ("2026-03-01T00:00", "month", "2026-02-28T23:00", 31 * 24 - 1),
        ("2028-02-29T12:00", "month", "2028-01-31T23:00", 29 * 24),
        ("2026-12-31T23:30", "month", "2026-12-31T23:00", 31 * 24),
    ],
)
def test_windows_begin_by_the_clocks_of_the_zone(at: str, window: str, start: str, hours: int) -> None:
    """Whatever those do: a day has 23 to 25 hours, and an hour that is there twice is two hours."""
    begins, ends = windows_at(BERLIN, moment(at))[window]  # type: ignore[index]  # one of them
    assert (begins, ends - begins) == (moment(start), hours * HOURS)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Australia/Lord_Howe", "America/Havana", "America/Sao_Paulo", "UTC"])
@given(at=st.integers(978_307_200, 2_366_841_600).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)))
def test_every_time_is_in_its_windows(zone: str, at: datetime) -> None:
    """Also where clocks move by half an hour, or at midnight; and the next window begins where one ends."""
    for window, (starts, ends) in windows_at(ZoneInfo(zone), at).items():
        assert starts <= at < ends
        if window != "hour":
            assert windows_at(ZoneInfo(zone), ends)[window][0] == ends
            assert windows_at(ZoneInfo(zone), ends - timedelta(seconds=1))[window][0] == starts


def test_a_label_is_one_that_was_declared() -> None:
    """Nobody escapes a cap by inventing a value; what is not declared at all is not looked at."""
    declared = {"team": ("red", "blue"), "project": ("x",)}
    assert labels_of(declared, {"team": "red", "room": "7"}) == (("project", "other"), ("team", "red"))
    assert labels_of(declared, {"team": "green"}) == (("project", "other"), ("team", "other"))
    scopes = Account("acme", "a", labels_of(declared, {"team": "red"})).scopes(Lane("openai", "gpt-5.4"))
    assert scopes == [
        "all", "tenant:acme", "agent:a", "provider:openai", "model:openai/gpt-5.4", "label:project=other",
        "label:team=red",
    ]  # fmt: skip


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    """Providers name models and requests: a spreadsheet would run what begins so. Amounts stay numbers."""
    at = moment("2026-11-01T00:00")
    facts = {"lane": "openai/x", "model": cell, "request_id": cell, "error": cell, "usage": {"input_tokens": 3}}
    entry = Entry("1-0", at, at, "job", "call", "acme", "a", 1, "settled", 7, -7, facts)
    [names, row] = csv.reader(io.StringIO(as_csv(None) + as_csv(entry)))
    assert tuple(names) == COLUMNS
    found = dict(zip(names, row, strict=True))
    assert {found[name] for name in ("billed_model", "request_id", "error")} == {f"'{cell}"}
    assert (found["cost_usd"], found["in_doubt_usd"], found["input_tokens"]) == ("0.000000007", "-0.000000007", "3")
