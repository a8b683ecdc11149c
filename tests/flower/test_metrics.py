"""Flower's `/metrics`: the fleet's money, jobs, lanes and budgets, as the store has them at each scrape."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.flower.conftest import Flower
from tests.processes import ROOT, running, wait_until
from tests.story.conftest import House
from tests.story.conftest import house as house
from tests.story.test_receipts import billed

AGENTS: Final = """
[agents.first]
description = "Two lanes."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
max_retries = 0
tries_per_lane = 1

[agents.clerk]
description = "May be looked up."
lanes = ["openai/gpt-5-mini"]
stored = true
max_retries = 0

[agents.far]
description = "Of a queue that nobody serves."
lanes = ["openai/gpt-5-mini"]
queue = "far"
"""
#: What of a scrape only grows, and is the same after a restart.
COUNTERS: Final = ("celeriac_llm", "celeriac_jobs_ended")

Labels = frozenset[tuple[str, str]]


class Scrape:
    """One answer of `/metrics`, parsed as Prometheus does it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def values(self, name: str, **labels: str) -> dict[Labels, Decimal]:
        """Of the samples that are called so and have these labels, by all of theirs."""
        return {
            frozenset(sample.labels.items()): Decimal(repr(sample.value))
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def sum(self, name: str, **labels: str) -> Decimal:
        found = self.values(name, **labels)
        assert found, f"there is no {name} with {labels}"
        return sum(found.values(), Decimal())

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for labels in self.values(name)}

    def counters(self) -> dict[tuple[str, Labels], Decimal]:
        return {
            (sample.name, frozenset(sample.labels.items())): Decimal(repr(sample.value))
            for name, family in self.families.items()
            for sample in family.samples
            if name.startswith(COUNTERS) and family.type == "counter"
        }


def scrape(flower: Flower) -> Scrape:
    return Scrape(flower.page("/metrics"))


@contextmanager
def flowering(house: House, folder: Path, **env: str) -> Iterator[Flower]:
    with running(Flower(house.valkey.url, folder, **env)) as flower:
        yield flower


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "agents.toml").write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(tmp_path / "agents.toml"), "CELERIAC_JOBS__LEASE": "2"}


def test_metrics_agree_with_every_account_of_the_money(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """After a run with a fallback, failures, doubts and a kill: to the nano-dollar; and after a restart of Flower."""
    worker, shim = house.worker(**env), house.shim(**env)
    put = shim.http.put("/v1/budgets/all", json={"caps": [{"window": "ever", "cap_usd": "10"}]})
    assert put.status_code == 200

    def run(agent: str = "first", **facts: Any) -> str:
        return str(shim.job(shim.submit(agent=agent, input="word " * 30, **facts)["id"], wait=60)["state"])

    house.always(cached=40, reasoning=3)
    ends = Counter([run(), run()])
    house.scripted({"model": "gpt-5-mini", "status": 500})
    ends[run()] += 1
    house.scripted({"model": "gpt-5-mini", "fault": "reset-after"})
    ends[run()] += 1
    house.scripted({"status": 400})
    ends[run()] += 1
    assert ends == {"succeeded": 4, "failed": 1}
    house.scripted({"hang": True})
    killed = shim.submit(agent="first")["id"]
    wait_until(house.in_flight, "the call to be made")
    worker.kill()
    house.worker(**env)
    assert shim.job(killed, wait=60)["state"] == "succeeded"
    with flowering(house, tmp_path, **env) as flower:
        once = scrape(flower)
        usage = shim.http.get("/v1/usage", params={"group_by": "model"}).json()
        entries = [json.loads(line) for line in shim.http.get("/v1/usage/entries").text.splitlines()]
        answered = {entry["request_id"] for entry in entries if entry["outcome"] == "settled"}
        cost = once.sum("celeriac_llm_cost_usd_total")
        assert cost == Decimal(usage["total"]["cost_usd"]) > 0
        assert cost == sum(Decimal(entry["cost_usd"]) for entry in entries)
        bill = house.bill()["lines"]
        assert cost == Decimal(billed([line for line in bill if line["id"] in answered])).scaleb(-9)
        # The receipts of all jobs, each with its own calls alone, and the page of costs.
        ids = [job["id"] for job in shim.http.get("/v1/jobs").json()["jobs"]]
        own = [shim.http.get(f"/v1/jobs/{id}/receipt").json()["own"] for id in ids]
        month = json.loads(flower.page("/costs/data"))["spent"]["month"]
        for name in ("cost_usd", "in_doubt_usd"):
            told = sum(Decimal(sums[name]) for sums in own)
            assert told == Decimal(month[name]) == sum(Decimal(entry[name]) for entry in entries)
        assert once.sum("celeriac_llm_in_doubt_usd") == sum(Decimal(entry["in_doubt_usd"]) for entry in entries) > 0
        assert [entry["outcome"] for entry in entries].count("doubt") == 2
        for row in usage["rows"]:
            provider, _, model = row["group"]["model"].partition("/")
            of_lane = {"provider": provider, "model": model, "tenant": "default", "agent": "first"}
            assert once.sum("celeriac_llm_cost_usd_total", **of_lane) == Decimal(row["cost_usd"])
            assert once.sum("celeriac_llm_calls_total", **of_lane) == row["calls"]
            assert once.sum("celeriac_llm_errors_total", **of_lane) == row["errors"]
            assert once.sum("celeriac_llm_cache_saved_usd_total", **of_lane) == Decimal(row["saved_usd"])
            for name in ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning"):
                told = once.sum("celeriac_llm_tokens_total", **of_lane, **{"class": name})
                assert told == row[f"{name}_tokens"], name
        [cap] = shim.http.get("/v1/budgets/all").json()["caps"]
        budget = {name: once.sum(f"celeriac_budget_{name}_usd", scope="all", window="ever") for name in CAPS}
        assert budget == {
            "cap": 10,
            "used": Decimal(cap["settled_usd"]) + Decimal(cap["in_doubt_usd"]),
            "reserved": 0,
            "left": Decimal(cap["left_usd"]),
        }
        assert once.sum("celeriac_jobs_ended_total", state="succeeded") == 5
        assert once.sum("celeriac_jobs_ended_total", state="failed") == 1
        assert once.sum("celeriac_store_up") == 1
        assert "flower_events" in once.families
        for secret in (killed, "word", "secret"):
            assert secret not in once.text
    with flowering(house, tmp_path, **env) as flower:
        again = scrape(flower)
    for name in once.families:
        if name.startswith(("celeriac_llm", "celeriac_budget", "celeriac_jobs", "celeriac_queue")):
            assert again.families[name].samples == once.families[name].samples


CAPS: Final = ("cap", "used", "reserved", "left")


def test_counters_do_not_go_down_with_a_correction(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """A call in doubt is answered after all: what it cost is added, and the gauge of what is in doubt goes down."""
    shim = house.shim(**env)
    house.scripted({"text": "It is Paris.", "delay": 3.0})
    worker = house.worker(**env)
    job = shim.submit(agent="clerk")["id"]
    wait_until(house.in_flight, "the model to be asked")
    worker.kill()
    # It gives up the one that is gone, and may not run its jobs.
    house.worker(CELERIAC_WORKER__QUEUES="others", **env)
    wait_until(lambda: Decimal(shim.job(job)["in_doubt_usd"]), "the call to be in doubt")
    with flowering(house, tmp_path, **env) as flower:
        before = scrape(flower)
        house.worker(**env)
        assert shim.job(job, wait=60)["state"] == "succeeded"
        assert Decimal(shim.job(job)["in_doubt_usd"]) == 0
        after = scrape(flower)
    assert before.sum("celeriac_llm_in_doubt_usd", model="gpt-5-mini") > after.sum("celeriac_llm_in_doubt_usd") == 0
    assert before.counters().keys() <= after.counters().keys()
    assert all(after.counters()[which] >= value for which, value in before.counters().items())
    assert before.sum("celeriac_llm_cost_usd_total") == 0
    assert after.sum("celeriac_llm_cost_usd_total") == Decimal(shim.job(job)["cost_usd"]) > 0
    assert after.sum("celeriac_llm_calls_total") == before.sum("celeriac_llm_calls_total") == 1


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """A scrape in which no series is missing."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "agents.toml").write_text(AGENTS)
    env = {"CELERIAC_AGENTS_FILE": str(folder / "agents.toml")}
    with closing(House()) as house:
        shim, worker = house.shim(**env), house.worker(**env)
        for scope in ("all", "tenant:default"):
            shim.http.put(f"/v1/budgets/{scope}", json={"caps": [{"window": "day", "cap_usd": "1"}]})
        assert shim.job(shim.submit(agent="clerk")["id"], wait=60)["state"] == "succeeded"
        for _ in range(2):
            shim.submit(agent="far")
        house.scripted({"model": "gpt-5-mini", "fault": "quota"}, {"hang": True})
        shim.submit(agent="first")
        wait_until(house.in_flight, "the second lane to be asked")
        with flowering(house, folder, **env) as flower:
            yield scrape(flower)
        worker.kill()


def test_queues_and_lanes_are_told_of(one_of_each: Scrape) -> None:
    """What waits where, also in a queue that nobody serves; how each lane's breaker is, and what its rates leave."""
    found = one_of_each
    assert found.sum("celeriac_queue_jobs", queue="far", state="ready") == 2
    assert found.sum("celeriac_queue_jobs", queue="celeriac", state="running") == 1
    assert found.sum("celeriac_jobs", state="running") == 1
    assert found.sum("celeriac_jobs", state="queued") == 2
    state = {which: found.sum("celeriac_lane_state", lane="openai/gpt-5-mini", state=which) for which in STATES}
    assert state == {"closed": 0, "open": 1, "half_open": 0}
    assert 0 < found.sum("celeriac_lane_cool_off_seconds", lane="openai/gpt-5-mini") <= 60
    assert found.sum("celeriac_lane_state", lane="anthropic/claude-haiku-5-5", state="closed") == 1
    assert found.sum("celeriac_lane_overrun_ratio", lane="anthropic/claude-haiku-5-5") == 1
    rates = {"lane": "openai/gpt-5-mini", "rate": "requests"}
    assert found.sum("celeriac_lane_rate_left", **rates) <= found.sum("celeriac_lane_rate_limit", **rates) == LIMIT
    assert found.sum("celeriac_budget_reserved_usd", scope="tenant:default") > 0


#: Requests a minute, as the provider says it.
LIMIT: Final = 1_000_000
STATES: Final = ("closed", "open", "half_open")


def test_the_docs_list_the_series(one_of_each: Scrape) -> None:
    """All of them, each with its type and its labels, and no other."""
    rows = re.findall(r"^\| `(celeriac_\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "money.md").read_text(), re.M)
    told = {name: (type, frozenset(re.findall(r"`(\w+)`", labels))) for name, type, labels in rows}
    assert told == {
        sample.name: (family.type, frozenset(sample.labels))
        for name, family in one_of_each.families.items()
        for sample in family.samples
        if name.startswith("celeriac")
    }
    assert all(family.documentation for family in one_of_each.families.values())


def test_labels_are_bounded(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """However many models callers name, and scopes have a budget: the rest counts together, and no id is a label."""
    redis = house.valkey.client()
    shim, worker = house.shim(**env), house.worker(**env)
    redis.hset("celeriac:usage", mapping={f"acme,first,openai,m{n}": "1 0 1 0 0 0 0 0 1 0" for n in range(1000)})
    job = shim.job(shim.submit(agent="first")["id"], wait=60)
    assert job["state"] == "succeeded"
    # It would tidy up what is planted.
    worker.stop()
    redis.hset("celeriac:budgets", mapping={f"tenant%3At{n:04}": "day 1000000000 80;" for n in range(505)})
    of_jobs = [f"$job%3A{n}" for n in range(2100)]
    for line in (*(f"openai/n{n}" for n in range(300)), *of_jobs, "$tenant%3At0001", "$tenant%3At0504"):
        redis.sadd("celeriac:lanes", line)
        redis.zadd(f"celeriac:lane_line:{line}", {f"planted {line}": 1})
    redis.hset("celeriac:overruns", "zed/shut", "1500 closed")
    with flowering(house, tmp_path, **env) as flower:
        found = scrape(flower)
    assert found.sum("celeriac_llm_calls_total", model="other", provider="other", tenant="other", agent="other") == 1
    assert found.sum("celeriac_llm_cost_usd_total", model="other") == Decimal(job["cost_usd"])
    assert len(found.labels("celeriac_llm_cost_usd_total", "model")) == 1001
    assert len(found.labels("celeriac_lane_state", "lane")) == 100
    assert {"openai/gpt-5-mini", "anthropic/claude-haiku-5-5"} <= found.labels("celeriac_lane_state", "lane")
    # One that waits for an operator is among them, whatever its name.
    assert found.sum("celeriac_lane_overrun_ratio", lane="zed/shut") == Decimal("1.5")
    assert found.sum("celeriac_lane_state", lane="zed/shut", state="open") == 1
    assert found.sum("celeriac_lane_waiting_jobs") == 300
    assert found.sum("celeriac_lane_waiting_jobs", lane="other") > 200
    assert len(found.labels("celeriac_budget_cap_usd", "scope")) == 500
    assert found.values("celeriac_metrics_left_out", what="budgets") == {frozenset({("what", "budgets")}): 5}
    assert found.sum("celeriac_metrics_left_out", what="lanes") > 1000
    waiting = {
        scope: found.sum("celeriac_budget_waiting_jobs", scope=scope) for scope in ("job", "tenant:t0001", "other")
    }
    assert waiting == {"job": 2100, "tenant:t0001": 1, "other": 1}
    assert len(found.text) < 5_000_000


def test_without_its_store_flower_answers_its_own_series(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """Away, or silent: within seconds, and Flower goes on with everything else meanwhile. It comes back by itself."""
    shim = house.shim(**env)
    house.worker(**env)
    assert shim.job(shim.submit(agent="first")["id"], wait=60)["state"] == "succeeded"
    with flowering(house, tmp_path, **env) as flower:
        before = scrape(flower)
        assert before.sum("celeriac_store_up") == 1
        assert house.valkey.process is not None
        house.valkey.process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(1) as beside:
                asking = beside.submit(scrape, flower)
                others = 0
                while not asking.done():
                    others += flower.page("/healthcheck") == "OK"
                assert others > 5, "the scrape waits for the store, and nobody else does"
                silent = asking.result()
        finally:
            house.valkey.process.send_signal(signal.SIGCONT)
        house.valkey.stop()
        away = scrape(flower)
        for found in (silent, away):
            assert found.sum("celeriac_store_up") == 0
            assert [name for name in found.families if name.startswith("celeriac")] == ["celeriac_store_up"]
            assert "process_start_time_seconds" in found.families
        house.valkey.start()
        back = wait_until(lambda: (s := scrape(flower)).sum("celeriac_store_up") and s, "the store to be back")
        assert back.counters() == before.counters()
        house.valkey.client().set("celeriac:usage", "nonsense")
        assert scrape(flower).sum("celeriac_store_up") == 0


def test_flowers_own_rules_of_its_metrics_stay(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """They are under its prefix, and ask for no password where Flower's do not."""
    flower = Flower(house.valkey.url, tmp_path, FLOWER_URL_PREFIX="ops", FLOWER_BASIC_AUTH="me:secret", **env)
    flower.http.base_url = f"{flower.http.base_url}/ops"
    with running(flower):
        assert flower.http.get("/workers").status_code == 401
        answer = flower.http.get("/metrics")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain")
        assert Scrape(answer.text).sum("celeriac_store_up") == 1
