"""When a provider asks for time, or fails: the whole fleet knows, and jobs wait outside every slot."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.processes import Shim, free_port, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.single]
description = "One lane."
lanes = ["openai/gpt-5-mini"]
max_retries = 1
retry_backoff_seconds = 0.1

[agents.once]
description = "One lane, no second try."
lanes = ["openai/gpt-5-mini"]
tries_per_lane = 1
max_retries = 0

[agents.capped]
description = "A lane of which the operator allows half a call a second."
lanes = ["openai/gpt-5-nano"]
max_retries = 0

[lanes."openai/gpt-5-nano"]
requests_per_minute = 30

[agents.double]
description = "Two lanes."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
max_retries = 0
"""


@pytest.fixture
def ports(request: pytest.FixtureRequest) -> list[int]:
    """Where the workers answer probes."""
    return [free_port() for _ in range(getattr(request, "param", 2))]


@pytest.fixture
def fleet(house: House, tmp_path: Path, ports: list[int]) -> Shim:
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    env = {"CELERIAC_AGENTS_FILE": str(agents)}
    probes = [{"CELERIAC_WORKER__HEALTH_PORT": str(port)} for port in ports]
    house.workers(*[("-n", f"w{port}@%h") for port in ports], envs=probes, **env)
    return house.shim(**env)


def submit(shim: Shim, agent: str, number: int, **facts: Any) -> list[str]:
    return [shim.submit(agent=agent, **facts)["id"] for _ in range(number)]


def succeeded(shim: Shim, ids: list[str]) -> list[dict[str, Any]]:
    """The jobs at their end, by when they made the one call that each of them made."""
    jobs = [shim.job(id, wait=60) for id in ids]
    assert {(job["state"], len(job["calls"])) for job in jobs} == {("succeeded", 1)}
    return sorted(jobs, key=called)


def called(job: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(job["calls"][0]["started_at"])


def states(shim: Shim, ids: list[str]) -> set[tuple[str, str | None]]:
    return {(job["state"], job.get("reason")) for job in map(shim.job, ids)}


def breaker_changes(ports: list[int]) -> Counter[str]:
    """State -> how often the lane of these stories went there, by all workers' metrics."""
    line = re.compile(r'celeriac_breaker_changes_total\{lane="openai/gpt-5-mini",state="(\w+)"\} (\d+)')
    changes: Counter[str] = Counter()
    for port in ports:
        for state, count in line.findall(httpx2.get(f"http://127.0.0.1:{port}/metrics").text):
            changes[state] += int(count)
    return changes


@pytest.mark.parametrize("ports", [4], indirect=True)
def test_a_provider_that_fails_is_tried_out_by_one_call(house: House, fleet: Shim, ports: list[int]) -> None:
    """After ten failures nobody asks it. When the breaker is half open one call does, and then all the others. Workers
    count that."""
    house.scripted({"status": 500, "times": 10})
    house.always(delay=2.0)
    for id in submit(fleet, "once", 10):
        assert fleet.job(id, wait=30)["error"]["code"] == "provider_failed"
    waiting = submit(fleet, "once", 20)
    wait_until(lambda: states(fleet, waiting) == {("parked", "lane_closed")}, "them to wait for their lane")
    assert len(house.asked()) == 10
    for id in waiting:
        assert fleet.job(id, wait=60)["state"] == "succeeded"
    tried, following, *_ = sorted(line["at"] for line in house.bill()["lines"])
    # A call takes two seconds; the two clocks of the provider may differ a little.
    assert following - tried > 1.99
    assert len(house.asked()) == 30
    assert breaker_changes(ports) == {"open": 1, "half_open": 1, "closed": 1}


def test_a_lane_is_asked_no_more_than_its_rate_allows(house: House, fleet: Shim) -> None:
    """As its operator says, or its provider in the headers of its answers. Jobs above that wait outside every slot, and
    go on as it allows."""
    headers = {"x-ratelimit-limit-requests": "20", "x-ratelimit-remaining-requests": "1"}
    house.scripted({"model": "gpt-5-mini", "headers": headers, "times": 0})
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    of_operator, of_provider = (submit(fleet, *many, run_at=later) for many in (("capped", 33), ("single", 3)))
    [told] = succeeded(fleet, submit(fleet, "single", 1))
    house.due(*of_operator, *of_provider)
    first, *others = succeeded(fleet, of_operator)
    assert called(others[-1]) - called(first) > timedelta(seconds=5), "30 at once, and one in two seconds"
    assert [job for job in others if job["attempts"] > 1], "without a slot meanwhile"
    others = succeeded(fleet, of_provider)
    assert called(others[-1]) - called(told) > timedelta(seconds=5), "one, and one in three seconds"
    assert [job for job in others if job["attempts"] > 1]
    assert len(house.asked()) == 33 + 1 + 3


def test_a_provider_that_asks_for_time_for_ever_is_not_waited_for_so_long(house: House, fleet: Shim) -> None:
    """Each time that a job is told so itself is one of its tries. Waiting in line is none."""
    house.always(status=429, headers={"retry-after": "1"})
    [id] = submit(fleet, "single", 1)
    job = fleet.job(id, wait=60)
    assert (job["state"], job["error"]["code"], job["attempts"]) == ("failed", "rate_limited", 2)
    assert [call["error"] for call in job["calls"]] == ["rate_limited"] * 4


def test_a_caller_cannot_ask_a_provider_that_there_is_not(fleet: Shim) -> None:
    """It is told which there are."""
    answer = fleet.http.post("/v1/jobs", json={"agent": "single", "input": "hi", "model": "groq/llama"})
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["field"], error["message"]) == (422, "model", "there is no such provider")
    assert error["remedy"].endswith("openai, anthropic")


def test_a_call_over_its_bound_closes_its_lane_where_that_is_wanted(
    house: House, tmp_path: Path, ports: list[int]
) -> None:
    """The truth is booked and counted. The jobs of the lane wait until an operator has opened it, and then they end."""
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    env = {"CELERIAC_AGENTS_FILE": str(agents), "CELERIAC_COSTS__STRICT": "true"}
    house.workers(("-n", f"w{ports[0]}@%h"), envs=[{"CELERIAC_WORKER__HEALTH_PORT": str(ports[0])}], **env)
    shim = house.shim(**env)
    # More than was allowed, and not so much that it is not believed.
    house.always(usage={"output": 5_000})
    [first] = submit(shim, "once", 1)
    [call] = shim.job(first, wait=30)["calls"]
    assert (call["stands"], call["overrun"]) == ("settled", True)
    assert (
        Decimal(call["cost_usd"])
        == 5_000 * Decimal("2.00") / 1_000_000 + call["usage"]["input_tokens"] * Decimal("0.25") / 1_000_000
    )
    metrics = httpx2.get(f"http://127.0.0.1:{ports[0]}/metrics").text
    assert 'celeriac_overruns_total{lane="openai/gpt-5-mini"} 1.0' in metrics
    house.always()
    jobs = submit(shim, "single", 3)
    wait_until(lambda: states(shim, jobs) == {("parked", "lane_closed")}, "them to wait for an operator")
    assert len(house.asked()) == 1
    said = house.celeriac("lanes", **env)
    assert "when an operator opens it: a call cost more than its bound" in said
    assert "is asked again" in house.celeriac("lanes", "--open", "openai/gpt-5-mini", **env)
    for id in jobs:
        assert shim.job(id, wait=60)["state"] == "succeeded"
