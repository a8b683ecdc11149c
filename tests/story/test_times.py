"""Jobs that are not to start yet, and jobs whose time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from tests.conftest import Valkey
from tests.processes import Worker, wait_until
from tests.story.conftest import Home, House


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def soon(redis: Redis) -> tuple[datetime, int]:
    """In a second or two, by the clock of the store; also as it writes it down (ms)."""
    at = redis.time()[0] + 2
    return datetime.fromtimestamp(at, UTC), at * 1000


def test_a_scheduled_job_runs_at_its_time_and_not_before(home: Home) -> None:
    """It is parked until then, and nothing is asked for it."""
    redis, later = home.valkey.client(), datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    job = home.the_shim.submit(run_at=later.isoformat())
    assert (job["state"], job["reason"], moment(job["resume_at"])) == ("parked", "scheduled", later)
    assert redis.zscore("celeriac:parked", job["id"]) == later.timestamp() * 1000
    home.ask()
    assert home.the_shim.job(job["id"])["state"] == "parked"
    assert home.bill()["calls"] == 1
    at, ms = soon(redis)
    redis.zadd("celeriac:parked", {job["id"]: ms}, xx=True)
    ended = home.the_shim.job(job["id"], wait=60)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)
    assert timedelta(0) <= moment(ended["started_at"]) - at < timedelta(seconds=5)


def test_a_waiting_job_expires_at_its_deadline(house: House) -> None:
    """No slot fell free in time: it ends without a run, and without a call."""
    shim = house.shim()
    house.worker("-c", "1")
    house.always(hang=True)
    busy = shim.submit()["id"]
    wait_until(lambda: house.in_flight() == 1, "the only slot to be taken")
    job = shim.job(shim.submit(expires_in=1)["id"], wait=30)
    assert (job["state"], job["error"]["code"], job["attempts"]) == ("expired", "expired", 0)
    assert job["ended_at"] >= job["deadline"]
    assert house.bill()["calls"] == 1
    assert shim.job(busy)["state"] == "running"


def test_a_running_job_is_stopped_at_its_deadline(home: Home) -> None:
    """The provider's request is aborted; what it may have cost is in doubt."""
    home.scripted({"hang": True})
    redis = home.valkey.client()
    id = home.the_shim.submit(expires_in=3600)["id"]
    wait_until(lambda: home.in_flight() == 1, "the call to be under way")
    at, ms = soon(redis)
    redis.hset(f"celeriac:job:{id}", "deadline", ms)
    redis.zadd("celeriac:deadlines", {id: ms}, xx=True)
    job = home.the_shim.job(id, wait=30)
    assert (job["state"], job["error"]["code"], job["attempts"]) == ("expired", "expired", 1)
    assert moment(job["ended_at"]) >= moment(job["deadline"]) == at
    assert [call["stands"] for call in job["calls"]] == ["doubt"]
    assert float(job["in_doubt_usd"]) > 0
    wait_until(lambda: home.in_flight() == 0, "the request to be aborted")


def test_an_expired_job_can_be_started_again(home: Home) -> None:
    """Its old deadline no longer counts."""
    home.always(hang=True)
    id = home.the_shim.submit(expires_in=1)["id"]
    assert home.the_shim.job(id, wait=30)["state"] == "expired"
    home.always(text="Paris")
    assert home.the_shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
    job = home.the_shim.job(id, wait=30)
    assert (job["state"], job["answer"], job["deadline"]) == ("succeeded", "Paris", None)


@pytest.mark.parametrize("option", ["--time-limit", "--soft-time-limit"])
def test_a_worker_with_a_time_limit_of_celerys_is_refused_at_its_start(valkey: Valkey, option: str) -> None:
    """It would end a paid call, and the next run would buy it again: one clear line."""
    worker = Worker(valkey.url, option, "600")
    try:
        assert worker.wait(60) != 0
        assert f"{option} may not be set for a worker of jobs" in worker.output()
        assert "Traceback" not in worker.output()
    finally:
        worker.stop()
