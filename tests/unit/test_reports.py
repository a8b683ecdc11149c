"""Providers' reports are read as they are documented, exactly, and are set against the ledger by day and model."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest

from celeriac.costs.exports import Kind, Line, read_export
from celeriac.costs.ledger import Entry
from celeriac.costs.reconcile import ROUNDING, Books, Row
from celeriac.errors import Invalid

REPORTS: dict[str, dict[str, str]] = tomllib.loads(
    (Path(__file__).parent / "golden" / "reports.toml").read_text(encoding="utf-8")
)
DAY = date(2026, 11, 20)
NEXT = DAY + timedelta(days=1)
MINI = "gpt-5.4-mini-2026-03-01"


def text(name: str) -> str:
    return REPORTS[name]["text"]


def dollars(amount: str) -> Fraction:
    return Fraction(amount)


def test_openais_costs_are_dollars_to_the_last_digit() -> None:
    """A number is read as it is written, not as a float that is near; a line for tokens is its model's."""
    export = read_export(text("openai_costs").encode())
    assert (export.provider, export.kind, export.more) == ("openai", "costs", False)
    assert export.covered == {DAY: timedelta(days=1), NEXT: timedelta(days=1)}
    assert export.lines == (
        Line(DAY, MINI, f"{MINI}, input", dollars("0.13080438")),
        Line(DAY, MINI, f"{MINI}, cached input", dollars("0.0000012")),
        Line(DAY, "gpt-image-1", "gpt-image-1 image, output", dollars("0.06")),
        Line(DAY, "", "web search tool calls", dollars("1")),
        Line(NEXT, "gpt-5.4", "gpt-5.4, output", dollars("0.10000000000000001")),
    )


def test_openais_input_holds_what_was_cached() -> None:
    """Each token is in one class, as in the ledger."""
    export = read_export(text("openai_usage").encode())
    assert (export.provider, export.kind) == ("openai", "usage")
    [line] = export.lines
    assert (line.day, line.model, line.requests) == (DAY, MINI, 5)
    assert line.tokens == {"input": 200, "cache_read": 700, "cache_write": 100, "output": 500}


def test_anthropics_costs_are_cents() -> None:
    """As text, with as many digits as it takes."""
    export = read_export(text("anthropic_costs").encode())
    assert (export.provider, export.kind, export.more) == ("anthropic", "costs", False)
    assert [(line.model, line.item, line.dollars) for line in export.lines] == [
        ("claude-haiku-4-5-20251001", "Claude Haiku 4.5 Usage - Input Tokens", dollars("1.2378912")),
        ("claude-haiku-4-5-20251001", "Claude Haiku 4.5 Usage - Output Tokens", dollars("0.0000001")),
        ("", "Web Search Usage", dollars("0.12")),
    ]


def test_anthropics_usage_tells_the_classes_apart() -> None:
    """What was written for an hour too; and it counts no requests. That there is a next page is known."""
    export = read_export(text("anthropic_usage").encode())
    assert (export.provider, export.kind, export.more) == ("anthropic", "usage", True)
    [line] = export.lines
    assert line.requests is None
    assert line.tokens == {"input": 1500, "cache_read": 200, "cache_write": 500, "cache_write_1h": 1000, "output": 500}


def test_pages_come_one_a_line_one_after_another_or_as_a_list() -> None:
    """Whatever saved them; a byte order mark does no harm."""
    lines = text("openai_costs").strip()
    expected = read_export(lines.encode())
    pages = [json.loads(line, parse_float=str) for line in lines.splitlines()]
    for written in (lines.replace("\n", " "), "\ufeff" + lines, json.dumps(pages), json.dumps(pages, indent=2)):
        assert read_export(written.encode()) == expected


def bucket(*results: Any, **facts: Any) -> str:
    times = {"start_time": 1795132800, "end_time": 1795132800 + 86400}
    return json.dumps({"data": [times | facts | {"results": results}]})


def cost(value: Any, currency: Any = "usd", item: Any = "gpt-5.4, input") -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": currency},
        "line_item": item,
    }


@pytest.mark.parametrize(("written", "why"), [
    ("", "it is the report of no day"),
    ("hello", "Expecting value"),
    ("[1]", "not as documented"),
    ('{"data": []}', "it is the report of no day"),
    ("date,amount\n2026-11-20,1", "Extra data|Expecting value|not as documented"),
    (bucket({"object": "organization.usage.embeddings.result"}), "is another report"),
    (bucket(cost(1, "eur")), "its currency is 'eur', and not USD"),
    (bucket(cost(True)), "True is no amount"),
    (bucket(cost("one")), "'one' is no amount"),
    (bucket(cost("1e999999999")), "is no amount"),
    (bucket(cost("1e-999999999")), "is no amount"),
    (bucket(cost(1)).replace('"value": 1', '"value": NaN'), "NaN is no number"),
    (bucket(cost(1, item=None)), "fetch it by group"),
    (bucket(cost(1), end_time=1795132800 + 86401), "is not within one UTC day"),
    (bucket(cost(1), end_time=1795132800), "is not within one UTC day"),
    (bucket(cost(1)) * 2, "from 2026-11-20 00:00Z on is in it twice"),
    (text("openai_costs") + text("openai_usage"), "it is several reports in one"),
    (text("openai_costs") + text("anthropic_costs"), "it is several reports in one"),
    (text("openai_usage").replace('_cached_tokens": 700', '_cached_tokens": 901'), "more tokens were cached than read"),
    (text("openai_usage").replace('"output_tokens": 500', '"output_tokens": -5'), "-5 is no count"),
    (text("anthropic_costs").replace("00:00Z", "00:00"), "says no time zone"),
    ("[" * 100_000, "no report"),
])  # fmt: skip
def test_what_is_no_report_is_refused(written: str, why: str) -> None:
    """It says why, and what would be accepted; nothing is compared that was half understood."""
    with pytest.raises(Invalid, match=why) as refused:
        read_export(written.encode())
    assert "/v1/organization/costs (group_by=line_item)" in refused.value.remedy
    assert "/v1/organizations/usage_report/messages" in refused.value.remedy


def entry(
    stands: Literal["settled", "doubt", "released"] = "settled",
    nanos: int = 0,
    in_doubt: int = 0,
    lane: str = "openai/gpt-5.4-mini",
    **facts: Any,
) -> Entry:
    at = datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC)
    return Entry("1-0", at, at, "j", "c", "acme", "a", 1, stands, nanos, in_doubt, {"lane": lane} | facts)


def rows(lines: list[Line], *entries: Entry, kind: Kind = "costs") -> tuple[list[Row], list[Line]]:
    books = Books(kind, {DAY}, {"openai"}, ROUNDING)
    for each in entries:
        books.enter(each)
    return books.against(lines)


def billed(amount: str, model: str = MINI) -> Line:
    return Line(DAY, model, f"{model}, input", dollars(amount))


DOUBT = entry("doubt", 0, 2_000_000)


@pytest.mark.parametrize(("amount", "entries", "verdict"), [
    ("0.001", [entry(nanos=1_000_000)], "ok"),
    # One line may be rounded by 100 nano-dollars, and one call was rounded up to one.
    ("0.001000101", [entry(nanos=1_000_000)], "ok"),
    ("0.0010001010000001", [entry(nanos=1_000_000)], "unexplained"),
    ("0.000999899", [entry(nanos=1_000_000)], "ok"),
    ("0.0009998989", [entry(nanos=1_000_000)], "unexplained"),
    ("0.0009", [entry(nanos=1_000_000), DOUBT], "unexplained"),
    ("0.002", [entry(nanos=1_000_000), DOUBT], "covered"),
    ("0.003000101", [entry(nanos=1_000_000), DOUBT], "covered"),
    ("0.0030001011", [entry(nanos=1_000_000), DOUBT], "unexplained"),
    # What was in doubt became certain, at a snapshot's price: nothing is in doubt any more.
    ("0.002", [DOUBT, entry(nanos=1_000_000, in_doubt=-2_000_000, model=MINI)], "unexplained"),
    ("0.001", [DOUBT, entry("released", in_doubt=-2_000_000), entry(nanos=1_000_000)], "ok"),
    ("0", [entry(nanos=1_000_000)], "unexplained"),
    ("0.5", [], "unexplained"),
])  # fmt: skip
def test_a_bill_is_explained_by_what_is_settled_and_in_doubt(amount: str, entries: list[Entry], verdict: str) -> None:
    """Settled <= billed <= settled + in doubt, but for the rounding; what goes beyond it is not explained."""
    [row], apart = rows([billed(amount)], *entries)
    assert (row.model, row.verdict, apart) == ("gpt-5.4-mini", verdict, [])


def test_a_snapshot_is_its_models_and_a_longer_name_another_models() -> None:
    """On both sides; what is in doubt stands beside the bill of the snapshot that nobody was told of."""
    lines = [billed("0.003", "gpt-5.4"), billed("0.002", "GPT-5.4-mini"), billed("0.001", MINI)]
    found, _ = rows(
        lines,
        entry(nanos=3_000_000, model="gpt-5.4-2026-01-01", lane="openai/gpt-5.4-latest"),
        entry(nanos=1_000_000, model=MINI),
        DOUBT,
    )
    assert [(r.model, r.dollars, r.nanos, r.in_doubt, r.verdict) for r in found] == [
        ("gpt-5.4", dollars("0.003"), 3_000_000, 0, "ok"),
        ("gpt-5.4-mini", dollars("0.003"), 1_000_000, 2_000_000, "covered"),
    ]


def test_other_providers_days_and_free_calls_are_no_part_of_it() -> None:
    """And a line that is of no model stands apart, unless the ledger knows a model of that name."""
    other = replace(entry(nanos=5), admitted=datetime(2026, 11, 21, tzinfo=UTC))
    tool, bare = Line(DAY, "", "web search tool calls", Fraction(1)), Line(DAY, "", "gpt-5.4-mini", Fraction(0))
    found, apart = rows(
        [tool, bare, Line(NEXT, "", "storage", Fraction(1))],
        other, entry(nanos=5, lane="anthropic/claude-haiku-4-5"), entry(nanos=7), entry(lane="openai/free"),
    )  # fmt: skip
    assert [(r.model, r.nanos, r.lines) for r in found] == [("free", 0, 0), ("gpt-5.4-mini", 7, 1)]
    assert apart == [tool]


USED = {"input_tokens": 200, "cache_read_tokens": 700, "cache_write_tokens": 100, "output_tokens": 500}


@pytest.mark.parametrize(("more", "requests", "entries", "verdict"), [
    ({}, 1, [], "ok"),
    ({"input": 1}, 1, [], "unexplained"),
    ({"input": 1}, 2, [DOUBT], "covered"),
    ({"input": 1}, None, [DOUBT], "covered"),
    ({"input": 1}, 3, [DOUBT], "unexplained"),
    ({"input": 1, "output": -1}, 2, [DOUBT], "unexplained"),
    ({"input": 1}, 2, [DOUBT, entry("released", in_doubt=-2_000_000)], "unexplained"),
    # Somebody settled it by hand, at a price: of its tokens nobody was told.
    ({"input": 1}, 2, [DOUBT, entry(nanos=5, in_doubt=-2_000_000)], "covered"),
])  # fmt: skip
def test_usage_is_compared_class_by_class(
    more: dict[str, int], requests: int | None, entries: list[Entry], verdict: str
) -> None:
    """More tokens are covered where there are calls in doubt, and no more requests than these."""
    tokens = {"input": 200, "cache_read": 700, "cache_write": 100, "output": 500}
    line = Line(DAY, MINI, MINI, tokens={n: tokens[n] + more.get(n, 0) for n in tokens}, requests=requests)
    [row], _ = rows([line], entry(nanos=9, usage=USED | {"reasoning_tokens": 400}, model=MINI), *entries, kind="usage")
    assert {name: count for name, count in row.differences.items() if count} == more
    assert row.verdict == verdict
