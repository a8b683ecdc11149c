"""A job that was answered with 202 reaches an end, whatever dies, and nothing that was answered is bought twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.processes import wait_until
from tests.story.conftest import House

#: Recovery in seconds: the default lease is 15 s.
SOON = {"CELERIAC_JOBS__LEASE": "2"}

CHAIN = """
[agents.assistant]
description = "Asks itself twice more."
instructions = "Answer."
lanes = ["openai/gpt-5-mini"]
follow_ups = ["Check it.", "Shorten it."]
retry_backoff_seconds = 0.2
"""


@pytest.fixture
def three_steps(tmp_path: Path) -> dict[str, str]:
    """An agent that takes three calls."""
    file = tmp_path / "agents.toml"
    file.write_text(CHAIN)
    return {"CELERIAC_AGENTS_FILE": str(file)}


def test_the_jobs_of_a_killed_worker_are_run_by_another(house: House) -> None:
    """Within seconds; the call that was under way is in doubt at its highest possible price."""
    shim, worker = house.shim(), house.worker(**SOON)
    house.scripted(*[{"hang": True}] * 20)
    jobs = [shim.submit()["id"] for _ in range(20)]
    wait_until(lambda: house.in_flight() == 20, "the calls to be under way")
    house.worker("-n", "other@%h", **SOON)
    worker.signal(signal.SIGKILL)
    for id in jobs:
        job = shim.job(id, wait=60)
        assert (job["state"], job["attempts"], job["crashes"]) == ("succeeded", 2, 1)
        assert [call["stands"] for call in job["calls"]] == ["doubt", "settled"]
        assert float(job["in_doubt_usd"]) >= float(job["cost_usd"])


def test_a_worker_that_was_paused_beyond_its_lease_writes_nothing(house: House) -> None:
    """It wakes, finds its jobs taken, stops them, and comes back under a new name."""
    shim, worker = house.shim(), house.worker(**SOON)
    house.scripted({"delay": 60, "text": "from the zombie"}, {"text": "Paris"})
    job = shim.submit(context_id="trip")
    wait_until(lambda: house.in_flight() == 1, "the call to be under way")
    house.worker("-n", "other@%h", **SOON)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        ended = shim.job(job["id"], wait=60)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: worker.output().count("worker_registered") == 2, "the zombie to come back")
    assert (ended["answer"], ended["attempts"]) == ("Paris", 2)
    assert shim.job(job["id"]) == ended
    context = shim.http.get("/v1/contexts/trip").json()
    assert [message["content"] for message in context["messages"]] == ["hi", "Paris"]


def test_a_job_goes_on_at_the_step_that_it_had_reached(house: House, three_steps: dict[str, str]) -> None:
    """Steps that were stored are not asked for again, and the answers of both workers make one conversation."""
    shim, worker = house.shim(**three_steps), house.worker(**SOON, **three_steps)
    house.scripted({"text": "one"}, {"text": "two"}, {"hang": True}, {"text": "three"})
    job = shim.submit()
    wait_until(lambda: house.in_flight() == 1 and shim.job(job["id"])["steps"] == 2, "the third step")
    house.worker("-n", "other@%h", **SOON, **three_steps)
    worker.signal(signal.SIGKILL)
    ended = shim.job(job["id"], wait=60)
    assert (ended["state"], ended["answer"], ended["crashes"]) == ("succeeded", "three", 0)
    assert house.bill()["calls"] == 4
    assert [call["stands"] for call in ended["calls"]] == ["settled", "settled", "doubt", "settled"]
    [last] = [request["body"] for request in house.asked()][-1:]
    for said in ("one", "Check it.", "two", "Shorten it."):
        assert said in last
    settled = sum(line["output"] for line in house.bill()["lines"]) - house.bill()["lines"][2]["output"]
    assert ended["usage"]["output_tokens"] == settled


def test_a_job_that_kills_its_process_ends_as_a_dead_letter(house: House) -> None:
    """It crashes in ever smaller company, at last alone; its neighbours succeed."""
    shim = house.shim()
    house.always(delay=0.5, text="ok")
    poison = shim.submit(model="openai/fault-hang")["id"]
    jobs = [shim.submit()["id"] for _ in range(20)]
    runs = 0

    def ended_or_runs_again() -> bool:
        job = shim.job(poison)
        return bool(job["dead"]) or (job["attempts"] > runs and job["state"] == "running")

    worker = house.worker(**SOON)
    while not shim.job(poison)["dead"]:
        wait_until(ended_or_runs_again, "the poison to run, or to be given up", 60)
        if (job := shim.job(poison))["state"] == "running":
            runs = job["attempts"]
            worker.signal(signal.SIGKILL)
            worker.wait()
            worker = house.worker(**SOON)
    assert (dead := shim.job(poison))["state"] == "failed"
    assert (dead["error"]["code"], dead["attempts"]) == ("dead_letter", 5)
    for id in jobs:
        assert shim.job(id, wait=60)["state"] == "succeeded"


def test_a_store_that_lost_history_hears_from_the_workers_what_they_run(house: House) -> None:
    """Emptied while calls are under way: the jobs are restored, and their answers kept."""
    shim, worker = house.shim(), house.worker()
    house.always(delay=4, text="Paris")
    jobs = [shim.submit(context_id=f"c{i}")["id"] for i in range(5)]
    wait_until(lambda: house.in_flight() == 5, "the calls to be under way")
    house.valkey.client().flushall()
    for id in jobs:
        wait_until(lambda id=id: shim.http.get(f"/v1/jobs/{id}").status_code == 200, "the job to be known again")
        assert shim.job(id, wait=60)["answer"] == "Paris"
    assert house.bill()["calls"] == 5
    assert "store_lost_history" in worker.output()
    assert shim.job(shim.submit()["id"], wait=60)["state"] == "succeeded"


def test_redis_may_be_away_while_jobs_run(house: House) -> None:
    """Answers are held until they are stored; the shim says 503 meanwhile; nothing is bought again."""
    shim = house.shim()
    house.always(delay=6, text="Paris")
    # Before there is a worker: then all calls begin at once.
    jobs = [shim.submit()["id"] for _ in range(100)]
    worker = house.worker(CELERIAC_JOBS__LEASE="5")
    wait_until(lambda: house.in_flight() == 100, "the calls to be under way")
    # What Redis answers while an fsync is slow is not in its file yet, and a kill would lose it.
    with house.valkey.client().pipeline(transaction=False) as redis:
        assert redis.set("celeriac:durable", 1).execute_command("WAITAOF", 1, 0, 5000).execute()[1][0] == 1
    house.valkey.stop(kill=True)
    refused = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"})
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    wait_until(lambda: house.in_flight() == 0, "the calls to be answered", 60)
    wait_until(lambda: worker.output().count("heartbeat_lost") >= 7, "more than a lease to pass", 60)
    assert worker.running()
    house.valkey.start()
    for id in jobs:
        job = shim.job(id, wait=60)
        assert (job["state"], job["attempts"], len(job["calls"])) == ("succeeded", 1, 1)
    assert house.bill()["calls"] == 100
