"""What jobs cost, told in each of its ways: the job, its receipt, the ledger, the usage, the budget, the provider."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.local.test_readme import commands
from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.first]
description = "Two lanes."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
max_retries = 0
tries_per_lane = 1

[agents.second]
description = "One lane."
lanes = ["anthropic/claude-haiku-5-5"]
"""
LABELS = '{"team": ["red", "blue"]}'


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "agents.toml").write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(tmp_path / "agents.toml"), "CELERIAC_COSTS__LABELS": LABELS}


def budget(shim: Shim, scope: str, **caps: str) -> None:
    body = {"caps": [{"window": window, "cap_usd": cap} for window, cap in caps.items()]}
    assert shim.http.put(f"/v1/budgets/{scope}", json=body).status_code == 200


def run(shim: Shim, agent: str, **facts: Any) -> dict[str, Any]:
    return shim.job(shim.submit(agent=agent, **facts)["id"], wait=60)


def report(shim: Shim, **query: str) -> dict[str, Any]:
    answer = shim.http.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def by(shim: Shim, group: str) -> dict[str, Decimal]:
    return {row["group"][group]: Decimal(row["cost_usd"]) for row in report(shim, group_by=group)["rows"]}


def test_every_account_of_the_money_says_the_same(house: House, env: dict[str, str]) -> None:
    """To the nano-dollar, after failed calls and fallbacks, and after all processes were started anew."""
    worker, shim = house.worker(**env), house.shim(**env)
    budget(shim, "all", ever="10")
    house.always(cached=40)
    jobs = [run(shim, "first", input="word " * 30, metadata={"team": "red"})]
    house.scripted({"model": "gpt-5-mini", "status": 500})
    jobs.append(run(shim, "first", input="word " * 30, metadata={"team": "green"}))
    jobs.append(run(shim, "second", input="word " * 30))
    assert {job["state"] for job in jobs} == {"succeeded"}
    for _ in range(2):
        costs = {job["id"]: Decimal(job["cost_usd"]) for job in jobs}
        total = sum(costs.values())
        receipts = [shim.http.get(f"/v1/jobs/{id}/receipt").json() for id in costs]
        assert {receipt["job_id"]: Decimal(receipt["own"]["cost_usd"]) for receipt in receipts} == costs
        usage = report(shim)
        assert Decimal(usage["total"]["cost_usd"]) == total
        assert (usage["total"]["calls"], usage["total"]["errors"]) == (4, 1)
        assert usage["total"]["cache_read_tokens"] == 120
        assert Decimal(usage["total"]["saved_usd"]) > 0
        [cap] = shim.http.get("/v1/budgets/all").json()["caps"]
        assert (Decimal(cap["settled_usd"]), Decimal(cap["reserved_usd"])) == (total, 0)
        entries = [json.loads(line) for line in shim.http.get("/v1/usage/entries").text.splitlines()]
        assert Counter(entry["job"] for entry in entries) == Counter(dict.fromkeys(costs, 1))
        assert {entry["job"]: Decimal(entry["cost_usd"]) for entry in entries} == costs
        table = csv.DictReader(io.StringIO(shim.http.get("/v1/usage/entries", params={"format": "csv"}).text))
        assert [row["cost_usd"] for row in table] == [entry["cost_usd"] for entry in entries]
        first, second, third = costs.values()
        assert by(shim, "agent") == {"first": first + second, "second": third}
        assert by(shim, "provider") == {"openai": first, "anthropic": second + third}
        assert by(shim, "model") == {"openai/gpt-5-mini": first, "anthropic/claude-haiku-5-5": second + third}
        assert by(shim, "label:team") == {"red": first, "other": second + third}
        assert list(by(shim, "day").values()) == [total]
        assert sum(by(shim, "hour").values()) == total
        billed = {line["id"]: (line["input"], line["output"]) for line in house.bill()["lines"]}
        assert {e["request_id"]: (e["input_tokens"], e["output_tokens"]) for e in entries} == billed
        worker.stop()
        shim.stop()
        worker, shim = house.worker(**env), house.shim(**env)


def test_an_entry_takes_as_much_memory_as_the_documents_say(house: House, env: dict[str, str]) -> None:
    """One that a worker wrote, a thousand times in one day, with ids as long as the providers' own."""
    house.worker(**env)
    run(house.shim(**env), "second", metadata={"team": "red"})
    redis = house.valkey.client()
    [day] = redis.keys("celeriac:ledger:*")
    [(_, entry)] = redis.xrange(day)
    for _ in range(1000):
        facts = json.loads(entry["facts"]) | {"request_id": f"req_{uuid4().hex}"}
        redis.xadd("test:ledger", entry | {"job": str(uuid4()), "facts": json.dumps(facts, separators=(",", ":"))})
    measured = redis.memory_usage("test:ledger", samples=0) / 1000
    redis.delete("test:ledger")
    assert 0.55 * 1024 < measured < 0.65 * 1024


def test_a_report_covers_the_days_that_were_asked_for(house: House, env: dict[str, str]) -> None:
    """Whole ones; and what cannot be reported is refused by name."""
    house.worker(**env)
    shim = house.shim(**env)
    run(shim, "second")
    today = datetime.now(UTC).date()
    yesterday, tomorrow = (str(today + timedelta(days=days)) for days in (-1, 1))
    assert report(shim, **{"from": yesterday, "to": tomorrow})["total"]["calls"] == 1
    assert report(shim, **{"from": yesterday, "to": str(today)})["total"]["calls"] == 0
    assert report(shim, tenant="default")["total"]["calls"] == 1
    assert report(shim, tenant="other")["rows"] == []
    for query, field in (
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "label:room"}, "group_by"),
        ({"group_by": "day,hour"}, "group_by"),
        ({"group_by": "day,day"}, "group_by"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-11-01T12:00:00"}, "from"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "to"),
        ({"from": "2020-01-01", "to": "2026-01-01"}, "to"),
        ({"from": "9999-12-31", "to": "9999-12-31T12:00:00Z"}, "from"),
    ):
        refused = shim.http.get("/v1/usage", params=query)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text


def test_a_job_waits_for_money_or_fails_as_it_was_asked_to(house: House, env: dict[str, str]) -> None:
    """A budget that is spent is waited for until it is higher; one that leaves no room for its call ends it at once."""
    worker, shim = house.worker(**env), house.shim(**env)
    budget(shim, "tenant:default", day="0.000001")
    never = run(shim, "second")
    assert (never["state"], never["error"]["code"]) == ("failed", "budget_exceeded")
    assert "tenant:default" in never["error"]["message"]
    budget(shim, "tenant:default", day="0.1")
    house.always(usage={"output": 5_000})
    while run(shim, "second", on_budget="fail")["state"] == "succeeded":
        pass
    [cap] = shim.http.get("/v1/budgets/tenant:default").json()["caps"]
    assert Decimal(cap["settled_usd"]) > 0
    wait_until(lambda: "budget_threshold_reached" in worker.output(), "the worker to say that the cap is near")
    assert worker.output().count("percent=80") == 1
    waiting = shim.submit(agent="second")["id"]
    wait_until(lambda: shim.job(waiting).get("reason") == "waiting_budget", "the job to wait for money")
    assert shim.job(waiting)["resume_at"] == cap["ends_at"]
    asked = house.bill()["calls"]
    budget(shim, "tenant:default", day="0.2")
    assert shim.job(waiting, wait=30)["state"] == "succeeded"
    assert house.bill()["calls"] == asked + 1
    [cap] = shim.http.get("/v1/budgets/tenant:default").json()["caps"]
    budget(shim, "tenant:default", ever=cap["settled_usd"])
    waiting = shim.submit(agent="second")["id"]
    wait_until(lambda: shim.job(waiting).get("reason") == "waiting_budget", "the job to wait for a higher cap")
    assert shim.job(waiting)["resume_at"] is None


def test_the_commands_of_the_docs_do_what_they_say(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """As they stand there, with this house's shim and store."""
    house.worker(**env)
    shim = house.shim(**env)
    run(shim, "second")
    [told] = [block for block in commands("docs/money.md") if "budgets set" in block]
    shell = os.environ | {
        "CELERIAC_REDIS_URL": house.valkey.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    said = subprocess.check_output(
        ["sh", "-ec", told.replace("http://127.0.0.1:8000", shim.url)], text=True, env=shell, cwd=tmp_path
    )
    assert '"cap_usd":"12.500000000"' in said
    assert "tenant:default  day     12.500000000" in said
    assert '"model":"anthropic/claude-haiku-5-5"' in said
    assert said.count(",settled,") == 1
    assert "by tenant:default: none -> day=12.500000000" in said


def test_a_job_costs_no_more_than_it_was_quoted(house: House, tmp_path: Path) -> None:
    """Whatever its agent may cost by then: a deploy with a dearer file of agents changes nothing for it. What it cost
    is expected of the next one.
    """
    agent = '[agents.buyer]\ndescription = "A cent a call."\nlanes = ["openai/gpt-5-priced"]\nmax_output_tokens = 10\n'
    follow_ups = 'follow_ups = ["And?"]\n'
    (tmp_path / "prices.toml").write_text('[openai.gpt-5-priced]\ninput = "0"\noutput = "1000"\n')
    (tmp_path / "cheap.toml").write_text(f'{agent}{follow_ups}max_cost_usd = "0.015"\n')
    (tmp_path / "dear.toml").write_text(f'{agent}{follow_ups}max_cost_usd = "5"\n')
    house.always(usage={"output": 10})
    prices = {"CELERIAC_PRICES_FILE": str(tmp_path / "prices.toml")}
    cheap = house.shim(CELERIAC_AGENTS_FILE=str(tmp_path / "cheap.toml"), **prices)
    dear = house.shim(CELERIAC_AGENTS_FILE=str(tmp_path / "dear.toml"), **prices)
    house.worker(CELERIAC_AGENTS_FILE=str(tmp_path / "dear.toml"), **prices)
    held, free = (shim.submit(agent="buyer") for shim in (cheap, dear))
    assert (held["quote"]["max_cost_usd"], free["quote"]["max_cost_usd"]) == ("0.015000000", "5.000000000")
    ended, paid = (dear.job(job["id"], wait=60) for job in (held, free))
    assert (ended["error"]["code"], ended["cost_usd"]) == ("cost_limit", "0.010000000")
    assert (paid["state"], paid["cost_usd"]) == ("succeeded", "0.020000000")
    quote = cheap.http.post("/v1/jobs", params={"dry_run": True}, json={"agent": "buyer", "input": "Hi"}).json()
    assert (quote["expected_from"], quote["expected_cost_usd"]) == ("history", "0.015000000")
    quote = dear.http.post("/v1/jobs", params={"dry_run": True}, json={"agent": "buyer", "input": "Hi"}).json()
    assert quote["expected_cost_usd"] == "0.020000000"


def test_the_next_lane_is_asked_where_the_budget_of_one_is_spent(house: House, env: dict[str, str]) -> None:
    """Of a provider, or of a model; with one lane left in money, no job waits for the other."""
    shim = house.shim(**env)
    house.worker(**env)
    budget(shim, "provider:openai", day="0.000000001")
    job = run(shim, "first")
    assert job["state"] == "succeeded"
    assert [call["lane"] for call in job["calls"]] == ["anthropic/claude-haiku-5-5"]
    budget(shim, "model:anthropic/claude-haiku-5-5", day="0.000000001")
    waits = shim.submit(agent="first", on_budget="fail")
    assert shim.job(waits["id"], wait=60)["error"]["code"] == "budget_exceeded"
