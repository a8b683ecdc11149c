"""While a deploy rolls: two releases, and two files of agents, on one store."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celeriac.jobs.model import PROTOCOL
from celeriac.settings import SHIPPED_AGENTS
from tests.processes import Worker, wait_until
from tests.story.conftest import Home, House

NOVEL = """
[agents.novel]
description = "Came with the new release."
instructions = "Answer."
lanes = ["openai/gpt-5-mini"]
"""


def test_a_field_of_a_newer_release_stands_in_nobodys_way(home: Home) -> None:
    """Its job is shown, listed, run and started again, and the field is still there."""
    shim, redis = home.the_shim, home.valkey.client()
    home.scripted({"status": 400}, {"text": "Paris"})
    at = datetime.now(UTC) + timedelta(hours=1)
    id = shim.submit(run_at=at.isoformat(), agent="impatient")["id"]
    redis.hset(f"celeriac:job:{id}", "colour", "green")
    assert shim.job(id)["state"] == "parked"
    home.due(id)
    assert shim.job(id, wait=30)["error"]["code"] == "bad_request"
    assert shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
    job = shim.job(id, wait=30)
    assert (job["state"], job["answer"], job["attempts"]) == ("succeeded", "Paris", 2)
    assert id in [listed["id"] for listed in shim.http.get("/v1/jobs").json()["jobs"]]
    assert redis.hget(f"celeriac:job:{id}", "colour") == "green"
    assert all(word not in home.the_worker.output() for word in ("Traceback", "record_set_aside"))


def test_a_job_in_a_place_of_a_newer_release_is_shown(home: Home) -> None:
    """As one that waits; lists go on."""
    shim, redis = home.the_shim, home.valkey.client()
    id = shim.submit(run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())["id"]
    redis.hset(f"celeriac:job:{id}", "place", "on_the_moon")
    assert shim.job(id)["state"] == "parked"
    assert id in [listed["id"] for listed in shim.http.get("/v1/jobs").json()["jobs"]]


def test_a_worker_that_the_fleet_has_left_behind_refuses_to_start(house: House) -> None:
    """An older protocol would be a danger to the others' jobs: a line says what to do, and nothing was registered."""
    house.valkey.client().set("celeriac:protocol", PROTOCOL + 1)
    worker = Worker(house.valkey.url, **house.env)
    try:
        assert worker.wait(60) != 0
        said = f"the workers of this store speak a newer protocol than {PROTOCOL}: deploy a newer release"
        assert said in worker.output()
        assert "Traceback" not in worker.output()
        assert not house.valkey.client().exists("celeriac:workers")
    finally:
        worker.stop()


def test_a_job_whose_agent_a_worker_does_not_know_is_left_to_one_that_knows_it(house: House, tmp_path: Path) -> None:
    """The old worker asks nobody and ends nothing: the job is parked until the new one has it."""
    new = tmp_path / "agents.toml"
    new.write_text(SHIPPED_AGENTS.read_text() + NOVEL)
    env = {"CELERIAC_AGENTS_FILE": str(new)}
    shim, old = house.shim(**env), house.worker("-n", "old@%h")
    ids = [shim.submit(agent="novel")["id"] for _ in range(3)]
    for id in ids:
        wait_until(lambda id=id: shim.job(id)["state"] == "parked", "the old worker to leave it to others")
        assert shim.job(id)["reason"] == "agent_unknown"
    assert house.bill()["calls"] == 0
    house.worker("-n", "new@%h", **env)
    for id in ids:
        job = shim.job(id, wait=60)
        assert (job["state"], job["crashes"], len(job["calls"])) == ("succeeded", 0, 1)
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded", "what both know, both run"
    assert house.bill()["calls"] == 4
    assert old.running()


def test_a_job_whose_agent_no_worker_knows_fails_in_the_end(house: House, tmp_path: Path) -> None:
    """It does not wait for ever: its error says why, the log is an alert, and a retry may succeed."""
    new = tmp_path / "agents.toml"
    new.write_text(SHIPPED_AGENTS.read_text() + NOVEL)
    env = {"CELERIAC_AGENTS_FILE": str(new)}
    shim, old = house.shim(**env), house.worker("-n", "old@%h", CELERIAC_JOBS__UNKNOWN_AGENT_TTL="10")
    id = shim.submit(agent="novel")["id"]
    job = shim.job(id, wait=60)
    assert (job["state"], job["error"]["code"], job["dead"]) == ("failed", "agent_unknown", False)
    wait_until(lambda: re.search(r"error.*agent_unknown", old.output()), "the alert")
    old.stop()
    house.worker("-n", "new@%h", **env)
    assert shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
    assert shim.job(id, wait=60)["state"] == "succeeded"
