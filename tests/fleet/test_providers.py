"""Providers that refuse and fail, before a fleet of four worker processes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.single]
description = "One lane."
lanes = ["openai/gpt-5-mini"]

[agents.double]
description = "Two lanes."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
max_retries = 20
retry_backoff_seconds = 0.2
retry_backoff_max_seconds = 2
"""
#: What three calls in ten meet.
FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"status": 500},
    {"status": 503},
    {"status": 529},
    {"fault": "html"},
    {"fault": "truncated"},
    {"fault": "no-usage"},
    {"fault": "reset-before"},
    {"fault": "reset-after"},
    {"fault": "gateway"},
) * 3 + ({"status": 429, "headers": {"retry-after-ms": "200"}},)

#: What the fleet knows of the lane of all, in the store.
LANE: Final = "celeriac:lane:openai/gpt-5-mini"


@pytest.fixture
def fleet(house: House, tmp_path: Path) -> Shim:
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    house.workers(*[("-n", f"w{number}@%h") for number in range(4)], CELERIAC_AGENTS_FILE=str(agents))
    return house.shim(CELERIAC_AGENTS_FILE=str(agents))


def asked(house: House, model: str) -> list[float]:
    """When, in seconds."""
    return sorted(line["at"] for line in house.bill()["lines"] if line["model"] == model)


def has_ended(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["ended_at"] else None


def reopened(house: House) -> float:
    """The time until which the lane was to be left alone is now, and from now on its rates fill. Answers it."""
    redis = house.valkey.client()
    seconds, micros = redis.time()
    now = seconds * 1000 + micros // 1000
    rates = {name: rate.split() for name, rate in redis.hgetall(LANE).items() if rate.count(" ") == 4}
    redis.hset(LANE, mapping={name: " ".join([*rate[:3], f"{now} {now}"]) for name, rate in rates.items()})
    redis.hset(LANE, "shut", now)
    return float(now / 1000)


def test_a_refusal_that_names_a_time_is_heard_by_the_whole_fleet(house: House, fleet: Shim) -> None:
    """Under load: nobody asks again within it, and the slots are free for the other lane."""
    house.scripted({"status": 429, "headers": {"retry-after": "600"}, "billed": True})
    fleet.submit(agent="single")
    shut = float(wait_until(lambda: house.valkey.client().hget(LANE, "shut"), "the refusal to be heard")) / 1000
    waiting = [fleet.submit(agent="single")["id"] for _ in range(50)]
    others = [fleet.submit(agent="double")["id"] for _ in range(20)]
    waiting += [fleet.submit(agent="single")["id"] for _ in range(150)]
    assert {fleet.job(id, wait=60)["model"] for id in others} == {"claude-haiku-5-5"}
    for id in waiting:
        wait_until(lambda id=id: fleet.job(id)["state"] == "parked", "it to wait outside every slot")
        assert fleet.job(id)["reason"] == "lane_closed"
    [refused] = asked(house, "gpt-5-mini")
    assert shut - refused > 600
    reopens = reopened(house)
    assert Counter(fleet.job(id, wait=60)["state"] for id in waiting) == {"succeeded": 200}
    assert asked(house, "gpt-5-mini")[1] > reopens


def test_every_job_succeeds_while_one_lane_lives(house: House, fleet: Shim) -> None:
    """Of 2,000, though three calls in ten fail in every way. What is booked is what the provider bills, or more."""
    chosen = random.Random(7)  # noqa: S311  # the same faults each time
    house.scripted(*(chosen.choice(FAULTS) if chosen.random() < 0.3 else {} for _ in range(2000)))
    jobs = [fleet.submit(agent="double")["id"] for _ in range(2000)]
    # A few are unlucky again and again, and wait for their lanes each time.
    ended = [wait_until(lambda id=id: has_ended(fleet.job(id, wait=60)), f"{id} to end", 240) for id in jobs]
    assert Counter(job["state"] for job in ended) == {"succeeded": 2000}
    stands = Counter(call["stands"] for job in ended for call in job["calls"])
    assert stands["settled"] == 2000
    assert house.bill()["calls"] <= stands["settled"] + stands["doubt"]
