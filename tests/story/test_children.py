"""Agents that ask one another, over HTTP and real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.chief]
description = "Answers, after asking."
lanes = ["openai/gpt-5-mini"]
asks = ["cook", "botanist"]

[agents.cook]
description = "Knows how things are cooked."
lanes = ["openai/gpt-5.4-mini"]

[agents.botanist]
description = "Knows plants."
lanes = ["anthropic/claude-haiku-5-5"]
"""
ASK = {
    "calls": [
        {"name": "ask_cook", "arguments": {"question": "How is a leek cooked?"}},
        {"name": "ask_botanist", "arguments": {"question": "What is a leek?"}},
    ]
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(agents)}


@pytest.fixture
def shim(house: House, env: dict[str, str]) -> Shim:
    return house.shim(**env)


def test_an_agent_asks_others_whose_jobs_are_its_own(house: House, shim: Shim, env: dict[str, str]) -> None:
    """Each shows what it cost; the one that asked shows that beside its own. One slot is enough for all of them."""
    house.worker("-c", "1", **env)
    house.scripted(ASK, {"text": "In butter."}, {"text": "A plant."}, {"text": "A plant, in butter."})
    id = shim.submit(agent="chief", input="Tell me about leeks.")["id"]
    job = shim.job(id, wait=30)
    assert (job["state"], job["answer"], len(job["calls"])) == ("succeeded", "A plant, in butter.", 2)
    children = [shim.job(child) for child in job["children"]]
    assert {child["agent"]: child["parent_id"] for child in children} == {"cook": id, "botanist": id}
    nanos = [int(child["cost_usd"].replace(".", "")) for child in children]
    assert int(job["children_cost_usd"].replace(".", "")) == sum(nanos) > 0
    assert house.bill()["calls"] == 4


def test_those_that_were_asked_are_asked_once_though_workers_die(house: House, shim: Shim, env: dict[str, str]) -> None:
    """The one that waits and the one that works: each goes on where it stood, and no answer is bought twice."""
    worker = house.worker(**env)
    house.scripted(ASK, {"hang": True}, {"hang": True})
    id = shim.submit(agent="chief", input="Tell me about leeks.")["id"]
    wait_until(lambda: len(house.asked()) == 3, "both to be asked")
    worker.kill()
    house.scripted({"text": "In butter."}, {"text": "A plant."}, {"text": "A plant, in butter."})
    house.worker(**env)
    job = shim.job(id, wait=60)
    assert (job["state"], job["answer"], len(job["children"])) == ("succeeded", "A plant, in butter.", 2)
    assert [call["stands"] for call in job["calls"]] == ["settled"] * 2
    for child in job["children"]:
        assert [call["stands"] for call in shim.job(child)["calls"]] == ["doubt", "settled"]


def test_a_job_that_is_cancelled_takes_with_it_what_it_asked_for(house: House, shim: Shim, env: dict[str, str]) -> None:
    """Those that run, too."""
    house.worker(**env)
    house.scripted(ASK, {"hang": True}, {"hang": True})
    id = shim.submit(agent="chief", input="Tell me about leeks.")["id"]
    wait_until(lambda: len(house.asked()) == 3, "both to be asked")
    job = shim.http.post(f"/v1/jobs/{id}/cancel").json()
    assert (job["state"], len(job["children"])) == ("cancelled", 2)
    assert {shim.job(child, wait=20)["state"] for child in job["children"]} == {"cancelled"}
