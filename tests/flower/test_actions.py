"""What Flower's log says of those who act on jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.flower.conftest import Flower
from tests.processes import running, wait_until
from tests.story.conftest import House
from tests.story.conftest import house as house


def acted(flower: Flower) -> str:
    """The line that says so, once it is there."""
    found: re.Match[str] = wait_until(
        lambda: re.search(r".*jobs_acted_on.*", flower.output()), "the action to be logged"
    )
    return found[0]


@pytest.mark.parametrize("breaks", [False, True])
def test_who_did_what_to_which_jobs_is_logged(house: House, tmp_path: Path, breaks: bool) -> None:
    """Also where it was broken off half way: then it names the one of which nobody knows."""
    shim = house.shim()
    queued, later = shim.submit()["id"], shim.submit(run_at="2027-06-01T00:00:00Z")["id"]
    if breaks:
        # To cancel the second one the store fails.
        redis = house.valkey.client()
        redis.delete("celeriac:jobs:default:parked")
        redis.set("celeriac:jobs:default:parked", "nonsense")
    flower = Flower(
        house.valkey.url,
        tmp_path,
        "--basic_auth=ann:se:cret",
        FLOWER_UNAUTHENTICATED_API="",
    )
    flower.http.auth = ("ann", "se:cret")
    with running(flower):
        body = {"action": "cancel", "ids": ["nobody", queued, later]}
        answer = flower.http.post("/jobs/act", json=body)
        assert answer.status_code == (500 if breaks else 200)
        line = acted(flower)
    assert {"action=cancel", "by=ann", "refused=1"} < set(line.split())
    assert f"job_ids={[queued] if breaks else [queued, later]}" in line
    assert (f"unsure={later}" in line) == breaks
    assert shim.job(queued)["state"] == "cancelled"
