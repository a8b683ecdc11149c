"""What an agent's recipe and the caller's wishes do to the call that is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.warm]
description = "Chats."
lanes = ["openai/gpt-5-mini"]
temperature = 0.7
max_output_tokens = 77

[agents.modern]
description = "Uses the other API."
lanes = ["openai/gpt-5-mini"]
api = "responses"

[agents.hasty]
description = "Does not wait for long."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
timeout_seconds = 4
tries_per_lane = 1
max_retries = 0

[agents.forgetful]
description = "Leaves out what was said long ago."
lanes = ["openai/gpt-5-mini"]
too_long = "trim"

[agents.insistent]
description = "Asks somebody else where it is refused."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
refused = "next"

[agents.unknown]
description = "Asks a model whose price nobody knows."
lanes = ["openai/a-model-of-tomorrow"]
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Shim]]:
    file: Path = tmp_path_factory.mktemp("agents") / "agents.toml"
    file.write_text(AGENTS)
    house = House()
    env = {"CELERIAC_AGENTS_FILE": str(file)}
    house.worker(**env)
    yield house, house.shim(**env)
    house.close()


def ask(agents: tuple[House, Shim], agent: str, **facts: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The job at its end, and the body and path of the last call."""
    house, shim = agents
    job = shim.job(shim.submit(agent=agent, **facts)["id"], wait=60)
    request = house.asked()[-1]
    return job, json.loads(request["body"]), request["path"]


def test_temperature_and_output_limit_of_the_recipe_reach_the_model(agents: tuple[House, Shim]) -> None:
    """As they stand in the file."""
    _, body, path = ask(agents, "warm")
    assert (body["temperature"], body["max_tokens"], path) == (0.7, 77, "/v1/chat/completions")


def test_the_callers_output_limit_wins(agents: tuple[House, Shim]) -> None:
    """It is for this job alone."""
    assert ask(agents, "warm", max_output_tokens=5)[1]["max_tokens"] == 5


def test_an_agent_may_use_openais_other_api(agents: tuple[House, Shim]) -> None:
    """With its own names for the same things."""
    job, body, path = ask(agents, "modern")
    assert (job["state"], path, body["max_output_tokens"]) == ("succeeded", "/v1/responses", 1024)


def test_a_call_that_outlives_its_deadline_is_in_doubt_and_the_next_lane_is_asked(agents: tuple[House, Shim]) -> None:
    """It may have been billed: the receipt says so, at its highest possible price."""
    house, _ = agents
    house.scripted({"hang": True}, {"text": "Paris"})
    job, _, path = ask(agents, "hasty")
    wait_until(lambda: house.in_flight() == 0, "the hanging call to be aborted")
    first, second = job["calls"]
    assert (first["error"], first["in_doubt"], second["error"], job["answer"]) == ("timeout", True, None, "Paris")
    assert path == "/v1/messages"
    assert job["in_doubt_usd"] == first["bound_usd"] > "0"


def test_a_conversation_that_is_too_long_for_the_model_goes_on_without_its_oldest_turns(
    agents: tuple[House, Shim],
) -> None:
    """Where its agent says so. The refused call costs nothing, and nothing is taken out of the conversation itself."""
    house, shim = agents
    for number in range(3):
        ask(agents, "forgetful", input=f"question {number}", context_id="long")
    house.scripted({"fault": "context"})
    job, body, _ = ask(agents, "forgetful", input="question 3", context_id="long")
    assert [call["error"] for call in job["calls"]] == ["context_too_long", None]
    assert [call["stands"] for call in job["calls"]] == ["released", "settled"]
    asked = [message["content"] for message in body["messages"] if message["role"] == "user"]
    assert asked == ["question 2", "question 3"]
    assert len(shim.http.get("/v1/contexts/long").json()["messages"]) == 8


def test_a_model_without_a_known_price_is_not_free(agents: tuple[House, Shim]) -> None:
    """It costs what its provider's dearest model costs, and is marked as an estimate."""
    job, _, _ = ask(agents, "unknown")
    assert (job["cost_estimated"], job["cost_usd"] > "0") == (True, True)


def test_a_refusal_that_was_billed_is_paid(agents: tuple[House, Shim]) -> None:
    """The model declined, and its provider charges for that."""
    house, _ = agents
    house.scripted({"fault": "refusal"})
    job, _, _ = ask(agents, "hasty")
    line = house.bill()["lines"][-1]
    assert (job["state"], job["error"]["code"]) == ("failed", "content_refused")
    assert (job["usage"]["input_tokens"], job["usage"]["output_tokens"]) == (line["input"], line["output"])
    assert job["cost_usd"] > "0"


@pytest.mark.parametrize("fault", ["refusal", "filter"])
def test_an_agent_may_ask_the_next_lane_where_a_model_refuses(agents: tuple[House, Shim], fault: str) -> None:
    """The refusal is paid for as it was billed, and so is the answer."""
    house, _ = agents
    house.scripted({"fault": fault, "model": "gpt-5-mini"}, {"text": "Paris"})
    before = len(house.bill()["lines"])
    job, _, path = ask(agents, "insistent")
    assert (job["state"], job["answer"], path) == ("succeeded", "Paris", "/v1/messages")
    first, second = job["calls"]
    assert (first["error"], first["stands"]) == ("content_refused", "settled")
    assert (second["error"], second["stands"]) == (None, "settled")
    billed = [(line["input"], line["output"]) for line in house.bill()["lines"][before:]]
    assert [(call["usage"]["input_tokens"], call["usage"]["output_tokens"]) for call in job["calls"]] == billed
    assert Decimal(job["cost_usd"]) == Decimal(first["cost_usd"]) + Decimal(second["cost_usd"])
    assert Decimal(first["cost_usd"]) > 0


def test_where_all_lanes_refuse_the_job_fails_as_the_first_says(agents: tuple[House, Shim]) -> None:
    """Each of them was asked once, and is paid."""
    house, _ = agents
    house.scripted({"fault": "refusal"}, {"fault": "refusal"})
    job, _, _ = ask(agents, "insistent")
    assert (job["state"], job["error"]["code"]) == ("failed", "content_refused")
    assert [call["stands"] for call in job["calls"]] == ["settled", "settled"]
