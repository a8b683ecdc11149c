"""Questions that are too long for one model, over HTTP and real workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.drill.proxy import Proxy
from tests.processes import Shim
from tests.story.conftest import House

AGENTS = """
[agents.digest]
description = "Says what a text is about."
lanes = ["openai/gpt-5-mini"]
split_over = 1000
split_to = "reader"

[agents.reader]
description = "Says what a part of a text is about."
lanes = ["openai/gpt-5.4-mini"]
"""
PARTS = [f"{letter * 890}.\n\n" for letter in "abc"]
SAID = {"a": "On a.", "b": "On b.", "c": "On c."}
ALL = {"text": "On letters."}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    agents: Path = tmp_path_factory.mktemp("agents") / "agents.toml"
    agents.write_text(AGENTS)
    return {"CELERIAC_AGENTS_FILE": str(agents), "CELERIAC_JOBS__LEASE": "2"}


@pytest.fixture(scope="module")
def one_desk(env: dict[str, str]) -> Iterator[tuple[House, Shim]]:
    house = House()
    house.worker("-c", "1", **env)
    yield house, house.shim(**env)
    house.close()


@pytest.fixture
def desk(one_desk: tuple[House, Shim]) -> tuple[House, Shim]:
    asyncio.run(one_desk[0].provider.reset())
    return one_desk


def shown(house: House) -> list[str]:
    """What models were asked last, each time."""
    return [json.loads(request["body"])["messages"][-1]["content"] for request in house.asked()]


def test_a_long_text_is_read_in_parts(desk: tuple[House, Shim]) -> None:
    """Its model sees what was said of them. One slot is enough; what they cost is shown beside its own,
    and so are they."""
    house, shim = desk
    house.scripted(*({"text": text} for text in SAID.values()), ALL)
    id = shim.submit(agent="digest", input="".join(PARTS))["id"]
    job = shim.job(id, wait=30)
    assert (job["state"], job["answer"], len(job["calls"])) == ("succeeded", "On letters.", 1)
    *asked, last = shown(house)[-4:]
    assert sorted(asked) == PARTS
    said = dict(zip(asked, SAID.values(), strict=True))
    assert last == "\n\n".join(said[part] for part in PARTS)
    children = [shim.job(child) for child in job["children"]]
    assert {(child["agent"], child["parent_id"], child["state"]) for child in children} == {("reader", id, "succeeded")}
    nanos = [int(child["cost_usd"].replace(".", "")) for child in children]
    assert int(job["children_cost_usd"].replace(".", "")) == sum(nanos) > 0
    assert (len(children), house.bill()["calls"]) == (3, 4)


@pytest.mark.parametrize("alone", [False, True])  # in this order: the second one leaves a part that failed
def test_a_part_that_fails_is_named_and_a_retry_asks_for_it_alone(desk: tuple[House, Shim], alone: bool) -> None:
    """What was said of the others is kept, and counts. So it is where all that failed is retried, the part too."""
    house, shim = desk
    before = len(house.asked())
    house.scripted({"text": "On a."}, {"status": 400}, {"text": "On c."})
    id = shim.submit(agent="digest", input="".join(PARTS))["id"]
    job = shim.job(id, wait=30)
    assert (job["state"], job["error"]["code"]) == ("failed", "part_failed")
    asked = shown(house)[before:]
    failed = PARTS.index(asked[1])
    assert f"reader did not answer for part {failed + 1} of 3 of the input: bad_request: " in job["error"]["message"]
    assert set(job["answer"].split("\n\n")) == {"On a.", "On c."}
    house.scripted({"text": "On b."}, ALL)
    if alone:
        assert shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
    else:
        [child] = [child for child in job["children"] if shim.job(child)["state"] == "failed"]
        assert shim.http.post("/v1/jobs/retry", json={"state": "failed"}).json()["retried"] == [child, id]
    job = shim.job(id, wait=30)
    assert (job["state"], job["answer"], len(job["children"])) == ("succeeded", "On letters.", 4 if alone else 3)
    said = dict(zip(asked, ("On a.", "On b.", "On c."), strict=True))
    assert shown(house)[before:][3:] == [asked[1], "\n\n".join(said[part] for part in PARTS)]


def test_a_text_of_more_parts_than_there_may_be_is_refused(desk: tuple[House, Shim]) -> None:
    """At once, with how long it may be."""
    _, shim = desk
    answer = shim.http.post("/v1/jobs", json={"agent": "digest", "input": "x" * 150_001})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "input")
    assert "digest takes at most 150000" in answer.json()["detail"]


async def test_no_part_is_asked_for_twice_though_the_worker_dies(house: House, env: dict[str, str]) -> None:
    """When the second one was submitted, and before it hears of that: nothing is bought again."""
    await house.provider.default(text="On something.")
    async with Proxy(house.valkey.port) as proxy:
        # The shim loads the scripts, and so tells the proxy what they are. Its own submit is the first one.
        shim = await asyncio.to_thread(house.shim, CELERIAC_REDIS_URL=proxy.url, **env)
        worker = await asyncio.to_thread(house.worker, "-c", "1", CELERIAC_REDIS_URL=proxy.url, **env)
        swallow = proxy.swallow(script="submit", skip=2, cut=False)
        id = (await asyncio.to_thread(shim.submit, agent="digest", input="".join(PARTS)))["id"]
        await asyncio.wait_for(swallow.done.wait(), 30)
        worker.kill()
        await asyncio.to_thread(house.worker, "-c", "1", **env)
        job: dict[str, Any] = await asyncio.to_thread(shim.job, id, 60)
    assert (job["state"], job["attempts"] > 1, len(job["children"])) == ("succeeded", True, 3)
    asked = await asyncio.to_thread(shown, house)
    assert sorted(asked[:3]) == PARTS
    assert asked[3:] == ["\n\n".join(["On something."] * 3)]
