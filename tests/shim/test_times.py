"""When a job may start and when it is over: what the shim takes, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tests.conftest import Valkey
from tests.processes import Shim


def ahead(**how_far: float) -> datetime:
    """In whole milliseconds, as a time is stored."""
    now = datetime.now(UTC) + timedelta(**how_far)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_job_may_be_scheduled(shim: Shim) -> None:
    """It is parked until its time, and says so at once."""
    at = ahead(hours=1)
    job = shim.submit(run_at=at.isoformat())
    assert (job["state"], job["reason"], moment(job["resume_at"])) == ("parked", "scheduled", at)
    assert shim.job(job["id"]) == job | {"quote": None}


def test_a_start_that_is_over_means_at_once(shim: Shim) -> None:
    """A caller's clock may run late."""
    job = shim.submit(run_at=ahead(seconds=-5).isoformat())
    assert (job["state"], job["resume_at"]) == ("queued", None)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-8))])
def test_a_deadline_is_a_moment_whatever_its_zone(shim: Shim, zone: timezone) -> None:
    """It is shown in UTC, to the millisecond."""
    deadline = ahead(minutes=10)
    job = shim.submit(deadline=deadline.astimezone(zone).isoformat())
    assert moment(job["deadline"]) == deadline
    assert job["deadline"].endswith("Z")
    assert shim.job(job["id"]) == job | {"quote": None}


@pytest.mark.parametrize("fraction", ["", ".000", ".5", ".120", ".007"])
def test_times_in_answers_have_one_spelling(shim: Shim, fraction: str) -> None:
    """Three digits behind the point, also of a whole second: who compares them as text is not misled."""
    at = f"{ahead(hours=1):%Y-%m-%dT%H:%M:%S}"
    spelt = at + (fraction or ".").ljust(4, "0") + "Z"
    job = shim.submit(deadline=f"{at}{fraction}Z")
    assert job["deadline"] == spelt
    assert shim.job(job["id"])["deadline"] == spelt


def test_of_deadline_and_expires_in_the_earlier_one_counts(shim: Shim) -> None:
    """Either way round."""
    soon, late = ahead(minutes=1), ahead(hours=1)
    assert moment(shim.submit(deadline=soon.isoformat(), expires_in=600)["deadline"]) == soon
    job = shim.submit(deadline=late.isoformat(), expires_in=1.001)
    assert moment(job["deadline"]) - moment(job["created_at"]) == timedelta(seconds=1.001)
    assert shim.job(job["id"]) == job | {"quote": None}


NAIVE = "2031-01-31T12:00:00"


@pytest.mark.parametrize(
    ("facts", "field", "said"),
    [
        ({"deadline": NAIVE}, "deadline", "zone"),
        ({"run_at": NAIVE}, "run_at", "zone"),
        ({"run_at": "2031-01-31"}, "run_at", "zone"),
        ({"run_at": "tomorrow"}, "run_at", "zone"),
        ({"run_at": 1_900_000_000}, "run_at", "zone"),
        ({"run_at": "2031-02-31T12:00:00Z"}, "run_at", "no such time"),
        ({"run_at": "0001-01-01T00:00:00+14:00"}, "run_at", "no such time"),
        ({"deadline": ahead(seconds=-1).isoformat()}, "deadline", "over already"),
        ({"deadline": "9999-12-31T23:59:59Z"}, "deadline", "a year"),
        ({"run_at": ahead(days=367).isoformat()}, "run_at", "a year"),
        ({"run_at": ahead(hours=2).isoformat(), "deadline": ahead(hours=1).isoformat()}, "run_at", "before it starts"),
        ({"run_at": ahead(hours=2).isoformat(), "expires_in": 3600}, "run_at", "before it starts"),
        ({"expires_in": 0}, "expires_in", "0.001"),
        ({"expires_in": -1}, "expires_in", "0.001"),
        ({"expires_in": 367 * 86_400}, "expires_in", "31622400"),
        ({"expires_in": "60"}, "expires_in", "number"),
        ({"expires_in": True}, "expires_in", "number"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused(
    shim: Shim, valkey: Valkey, facts: dict[str, Any], field: str, said: str
) -> None:
    """422 names the field and what to do; nothing is stored."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"} | facts)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert said in f"{error['message']} {error['remedy']}"
    assert error["remedy"]
    assert valkey.client().dbsize() == 0


def test_an_agent_with_a_limit_has_a_line_of_its_own(valkey: Valkey, tmp_path: Any) -> None:
    """Its waiting jobs hold up nobody else's."""
    from tests.processes import running

    file = tmp_path / "agents.toml"
    file.write_text('[agents.few]\ndescription = "One at a time."\nlanes = ["openai/x"]\nmax_running = 1\n')
    with running(Shim(valkey.url, CELERIAC_AGENTS_FILE=str(file))) as shim:
        job = shim.submit(agent="few")
    assert valkey.client().zrange("celeriac:ready:celeriac/few:1:default", 0, -1) == [job["id"]]
