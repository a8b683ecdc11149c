"""Answers that were priced wrongly elsewhere, and what their providers bill: `golden/prices.toml` says who says so."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from celeriac.costs.prices import Prices
from celeriac.llm.model import Lane, Message, ModelRequest, Usage
from celeriac.llm.openai import read_chat, read_responses
from celeriac.llm.reading import anthropic_region, anthropic_tier, anthropic_usage
from celeriac.llm.streams import ChatGatherer, Gatherer, MessagesGatherer
from celeriac.llm.terms import region_of

FILE = Path(__file__).parent / "golden" / "prices.toml"
CASES: list[dict[str, Any]] = tomllib.loads(FILE.read_text())["case"]


def gathered(api: str, events: str) -> dict[str, Any]:
    gatherer: Gatherer = MessagesGatherer() if api == "messages" else ChatGatherer()
    for line in events.strip().splitlines():
        gatherer.take("", json.loads(line))
    return gatherer.whole()


def made_of(case: dict[str, Any]) -> dict[str, Any]:
    """The body of the answer."""
    if "events" in case:
        return gathered(case["api"], case["events"])
    made = {"model": case["model"], "usage": case["usage"]}
    if "tier" in case:
        made["service_tier"] = case["tier"]
    if case["api"] == "chat":
        return made | {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Yes."}]}]
    return made | {"status": "completed", "output": output}


def read(case: dict[str, Any]) -> tuple[Usage, str, str]:
    """What our adapters make of it: the tokens, the tier, the region."""
    made, lane = made_of(case), Lane("anthropic" if case["api"] == "messages" else "openai", case["model"])
    # As long as its counts say, so that they are believed.
    request = ModelRequest(lane, (Message("user", "x" * 100_000),), max_output_tokens=100_000)
    if case["api"] == "messages":
        return anthropic_usage(made, request), anthropic_tier(made["usage"]), anthropic_region(made["usage"])
    answer = (read_chat if case["api"] == "chat" else read_responses)(made, request)
    return answer.usage, answer.tier, region_of(case.get("address", "https://api.openai.com/v1"))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_what_the_provider_bills_is_what_it_costs(case: dict[str, Any]) -> None:
    """To the nano-dollar, from the words of the answer, by the prices of that day; and none of it is an estimate."""
    usage, tier, region = read(case)
    assert usage == Usage(**case["classes"])
    day: date = case["at"]
    at = datetime.combine(day, time(12), UTC)
    lane = Lane("anthropic" if case["api"] == "messages" else "openai", case["model"])
    price = Prices().price(lane, case["model"], usage, at, tier=tier, region=region)
    assert (price.nanos, price.estimated) == (case["nanos"], False)


def test_every_case_says_where_it_comes_from() -> None:
    """And what went wrong there, what is billed and why, and who says what a token costs."""
    for case in CASES:
        assert all(case[word] for word in ("source", "wrong", "bills", "figures")), case["name"]
    assert len({case["name"] for case in CASES}) == len(CASES) >= 25
