"""`llm-usage`: what live consumers of Celery's events are told of each call."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from celery import Celery

from celeriac.jobs.dispatch import celery_app
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Claim
from celeriac.settings import load_settings
from tests.flower.conftest import Flower
from tests.processes import ROOT, Process, running, wait_until
from tests.story.conftest import House
from worker.live_usage import LiveUsage

QUESTION: Final = "Where did the unmistakable question go? " * 5
AGENTS: Final = """
[agents.first]
description = "Two lanes."
instructions = "unmistakable"
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
max_retries = 0
tries_per_lane = 1

[agents.twice]
description = "Two steps."
instructions = "unmistakable"
lanes = ["openai/gpt-5-mini"]
follow_ups = ["Are you sure?"]
"""

Event = dict[str, Any]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "agents.toml").write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(tmp_path / "agents.toml")}


@contextmanager
def listening(house: House) -> Iterator[list[Event]]:
    """Celery's own receiver of events, once it hears the worker. What it hears of usage is in the list."""
    app, heard, hears = Celery(broker=house.valkey.url, set_as_current=False), list[Event](), threading.Event()
    handlers = {"llm-usage": heard.append, "worker-heartbeat": lambda _: hears.set()}
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers=handlers)
        thread = threading.Thread(target=receiver.capture)
        thread.start()
        try:
            assert hears.wait(30)
            yield heard
        finally:
            receiver.should_stop = True
            thread.join(10)
    app.close()


def test_each_booked_call_is_an_event(house: House, env: dict[str, str], tmp_path: Path) -> None:
    """To Celery's receiver, to `celery events` and to Flower: whose it was, what it used, cost, and has in doubt, as
    the ledger has it; and nothing that anybody said.
    """
    house.worker(**env)
    shim = house.shim(**env)
    command = (sys.executable, "-m", "celery", "-A", "worker.app", "events", "--dump")
    dump = Process(*command, env={"CELERIAC_REDIS_URL": house.valkey.url})
    with (
        ExitStack() as at_the_end,
        listening(house) as heard,
        running(Flower(house.valkey.url, tmp_path)) as flower,
    ):
        at_the_end.callback(dump.stop)
        wait_until(lambda: flower.http.get("/api/workers").json(), "Flower to see the worker")
        wait_until(lambda: "] heartbeat" in dump.output(), "the dump to hear the worker")

        def run(agent: str = "first") -> str:
            job = shim.job(shim.submit(agent=agent, input=QUESTION)["id"], wait=60)
            assert job["state"] == "succeeded"
            return str(job["id"])

        house.always(cached=7, reasoning=3, text="The unmistakable answer.")
        jobs = [run()]
        house.scripted({"model": "gpt-5-mini", "status": 503})
        jobs.append(run())
        house.scripted({"model": "gpt-5-mini", "fault": "reset-after"})
        jobs.append(run())
        jobs.append(run("twice"))
        wait_until(lambda: len(heard) >= 7, "an event of each call")
        [row] = wait_until(
            lambda: [row for row in flower.http.get("/workers?json=1").json()["data"] if row.get("llm-usage") == 7],
            "Flower to count them",
        )
        assert row["status"] is True
        assert flower.http.get("/tasks").status_code == flower.http.get("/workers").status_code == 200
        assert len(flower.rows()) == 4
        assert "Traceback" not in flower.output()
        wait_until(lambda: dump.output().count("llm usage") == 7, "the dump to show them")
        assert "unmistakable" not in dump.output() + flower.output()
    entries = [json.loads(line) for line in shim.http.get("/v1/usage/entries").text.splitlines()]
    outcomes = [(event["uuid"], event["outcome"], event["step"]) for event in heard]
    assert outcomes == [
        (jobs[0], "settled", 1),
        (jobs[1], "released", 1),
        (jobs[1], "settled", 1),
        (jobs[2], "doubt", 1),
        (jobs[2], "settled", 1),
        (jobs[3], "settled", 1),
        (jobs[3], "settled", 2),
    ]
    released = heard.pop(1)
    assert (released["error.type"], released["cost_usd"], released["in_doubt_usd"]) == ("overloaded", ZERO, ZERO)
    for event, entry in zip(heard, entries, strict=True):
        assert {name: event[theirs] for name, theirs in SAME.items()} == {name: entry[name] for name in SAME}
        assert event.get("error.type", "") == entry["error"]
        assert abs(event["timestamp"] - time.time()) < 120
    assert sum(Decimal(event["in_doubt_usd"]) for event in heard) > 0
    first, entry = heard[0], entries[0]
    read = entry["input_tokens"] + entry["cache_read_tokens"]
    used = {name: count for name, count in first.items() if name.startswith("gen_ai.usage.")}
    assert used == {
        "gen_ai.usage.input_tokens": read,
        "gen_ai.usage.cache_read.input_tokens": 7,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.output_tokens": entry["output_tokens"] + 3,
        "gen_ai.usage.reasoning.output_tokens": 3,
    }
    assert first["gen_ai.response.model"] == entry["billed_model"]
    assert "gen_ai.usage.input_tokens" not in released
    assert "unmistakable" not in json.dumps([*heard, released])
    section = (ROOT / "docs" / "money.md").read_text().partition("### Live events")[2].partition("\n## ")[0]
    table = {name for line in section.splitlines() for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}
    known = {name for event in (*heard, released) for name in event} - {"type", "local_received"}
    assert known <= table | CELERYS, "each field is in the docs"
    assert {name for name in table if name.startswith(("gen_ai", "error"))} <= known


#: What Celery adds to each event.
CELERYS: Final = {"timestamp", "hostname", "pid", "clock", "utcoffset"}
ZERO: Final = "0.000000000"
#: What an entry of the ledger and an event call the same fact.
SAME: Final = {
    "job": "uuid",
    "call": "call",
    "tenant": "tenant",
    "agent": "gen_ai.agent.name",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "outcome": "outcome",
    "attempt": "attempt",
    "step": "step",
    "seconds": "seconds",
    "cost_usd": "cost_usd",
    "in_doubt_usd": "in_doubt_usd",
}


def test_a_worker_that_drains_tells_of_its_last_calls(house: House, env: dict[str, str]) -> None:
    """It is told to stop while a call is made; the event comes before it is gone."""
    worker, shim = house.worker(**env), house.shim(**env)
    house.always(delay=2)
    with listening(house) as heard:
        job = shim.submit(agent="first")["id"]
        wait_until(house.in_flight, "the model to be asked")
        worker.signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        wait_until(lambda: heard, "the event", 10)
    assert [(event["uuid"], event["outcome"]) for event in heard] == [(job, "settled")]


def test_events_go_on_after_the_broker_was_away(house: House, env: dict[str, str]) -> None:
    """The worker has a new connection then, and sends on it."""
    worker, shim = house.worker(**env), house.shim(**env)
    house.valkey.client().client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: worker.output().count("Connected to redis") >= 2, "the worker to be back")
    with listening(house) as heard:
        job = shim.job(shim.submit(agent="first")["id"], wait=60)
        assert job["state"] == "succeeded"
        wait_until(lambda: heard, "the event")
    assert [event["uuid"] for event in heard] == [job["id"]]


def test_calls_are_told_of_only_while_somebody_asks_for_events() -> None:
    """A call leaves its facts, and publishes nothing itself; without task events it leaves none. Celery's own remote
    command turns them on.
    """
    app = celery_app(load_settings(broker_url="amqp://unused"))
    app.conf.broker_url = "memory://"
    live = LiveUsage()
    claim = Claim("a", "w", "n", 1, "acme", "first", None, "", b"", 0.0)
    settlement = Settlement("c1", "settled", 10, 7, {"lane": "openai/x"})
    live.put(claim, settlement)
    heard: list[Event] = []
    with app.connection_for_write() as connection, app.connection_for_read() as reading:
        receiver = app.events.Receiver(reading, handlers={"*": heard.append})
        receiver.queue(receiver.channel).declare()
        dispatcher = app.events.Dispatcher(connection, groups=["worker"], buffer_group=["llm"])
        handed_over = dispatcher._group_buffer["llm"]
        live.dispatcher = dispatcher
        live.put(claim, settlement)
        live.send()
        assert handed_over == [], "nobody asked for events"
        dispatcher.groups.add("task")
        live.put(claim, settlement)
        assert handed_over == [], "the call itself hands nothing over"
        live.send()
        assert len(handed_over) == 1
        dispatcher.flush()
        receiver.capture(limit=1, timeout=10, wakeup=False)
        live.dispatcher = None
        live.put(claim, settlement)
    assert [(event["type"], event["uuid"], event["cost_usd"]) for event in heard] == [("llm-usage", "a", "0.000000007")]
