"""The agents that we ship, as they are."""

from __future__ import annotations

import json

import httpx2
import pytest

from tests.story.conftest import House


@pytest.fixture
def page(house: House) -> str:
    """A page near us: what the provider process says of itself."""
    return f"{house.provider.url}/bill"


def test_a_researcher_computes_and_reads(house: House, page: str) -> None:
    """What the tools give is what its model goes on with; hosts that the operator does not allow are not read."""
    house.worker(CELERIAC_FETCH__HOSTS="127.0.0.1", CELERIAC_FETCH__PRIVATE_ADDRESSES="true")
    house.scripted(
        {"calls": [{"name": "calculator", "arguments": {"expression": "12 * 12"}}]},
        {
            "calls": [
                {"name": "http_fetch", "arguments": {"url": page}},
                {"name": "http_fetch", "arguments": {"url": "http://example.com/"}},
            ]
        },
        {"text": "144, says the page."},
    )
    shim = house.shim()
    assert "researcher" in {agent["name"] for agent in shim.http.get("/v1/agents").json()["agents"]}
    job = shim.job(shim.submit(agent="researcher", input="What is 12 times 12?")["id"], wait=30)
    assert (job["state"], job["answer"]) == ("succeeded", "144, says the page.")
    asked = [json.loads(asked["body"])["messages"] for asked in house.asked()]
    assert asked[1][-1]["content"] == "144"
    read, refused = sorted((message["content"] for message in asked[2][-2:]), key=lambda said: "not allowed" in said)
    assert json.loads(read)["calls"] == json.loads(httpx2.get(page).text)["calls"] - 1 == 2
    assert "example.com is not allowed" in refused
