"""The agents that we ship, as they are: what each of them is for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import httpx2
import pytest

from celeriac.local import model as local
from tests.processes import Shim
from tests.story.conftest import Home, House

INVOICE: Final = "Invoice 17 of 3 May 2031: Ada Lovelace pays 12.50 euros."
ULM: Final = "Ulm lies on the Danube. Its minster, begun in 1377, has the tallest church tower of the world."


def last(home: Home, calls: int) -> list[dict[str, Any]]:
    """The bodies of the last calls to a provider."""
    return [json.loads(request["body"]) for request in home.asked()[-calls:]]


def instructions(body: dict[str, Any]) -> str:
    """As OpenAI is told them."""
    [said] = [message["content"] for message in body["messages"] if message["role"] == "system"]
    return str(said)


def test_an_assistant_keeps_a_conversation(home: Home) -> None:
    """What was said before is before its model with the next question."""
    home.scripted({"text": "Paris."}, {"text": "About two million."})
    for question in ("What is the capital of France?", "How many live there?"):
        job = home.ask(question, agent="assistant", context_id="france")
        assert job["state"] == "succeeded"
    [body] = last(home, 1)
    assert "Say so when you do not know." in instructions(body)
    assert [message["content"] for message in body["messages"][1:]] == [
        "What is the capital of France?",
        "Paris.",
        "How many live there?",
    ]
    assert job["answer"] == "About two million."


def test_a_summariser_is_asked_once_for_a_text_that_it_can_read(home: Home) -> None:
    """Its model has the whole text, and room for a few sentences."""
    home.scripted({"text": "Ulm has a tall tower."})
    job = home.ask(ULM, agent="summariser")
    assert (job["state"], job["answer"], job["children"]) == ("succeeded", "Ulm has a tall tower.", None)
    [body] = last(home, 1)
    assert "at most five sentences" in instructions(body)
    assert (body["messages"][-1]["content"], body["max_tokens"]) == (ULM, 512)


def test_a_part_summariser_reads_a_long_text_for_the_summariser(home: Home) -> None:
    """Part by part, as long as the model can read; the summariser makes one of what it says."""
    text = "".join(f"{number}. {ULM * 10}\n\n" for number in range(60))
    home.always(text="Ulm has a tall tower.")
    job = home.ask(text, agent="summariser")
    assert (job["state"], job["answer"]) == ("succeeded", "Ulm has a tall tower.")
    children = [home.the_shim.job(child) for child in job["children"]]
    assert [child["agent"] for child in children] == ["part-summariser"] * 3
    *parts, whole = last(home, 4)
    read = [body["messages"][-1]["content"] for body in parts]
    assert "".join(sorted(read, key=text.index)) == text
    assert max(len(part) for part in read) <= 24_000
    assert all("one part of a longer text" in instructions(body) for body in parts)
    assert "make them one of the whole" in instructions(whole)
    assert whole["messages"][-1]["content"] == "\n\n".join(["Ulm has a tall tower."] * 3)


def test_an_extractor_answers_with_facts_and_where_they_stand(home: Home) -> None:
    """Its model is told the shape, and asked once more where it answers otherwise."""
    facts = {"facts": [{"name": "amount", "value": "12.50 EUR", "quote": "pays 12.50 euros"}]}
    home.scripted({"text": '{"amount": 12.5}'}, {"text": json.dumps(facts)})
    job = home.ask(INVOICE, agent="extractor")
    assert (job["state"], job["output"], len(job["calls"])) == ("succeeded", facts, 2)
    told = last(home, 1)[0]["response_format"]["json_schema"]["schema"]
    assert told["properties"]["facts"]["items"]["required"] == ["name", "value", "quote"]


def test_an_extractor_answers_in_the_jobs_own_shape(home: Home) -> None:
    """That one is told and checked, and its own is not."""
    schema = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}
    home.scripted({"text": '{"facts": []}'}, {"text": '{"amount": 12.5}'})
    job = home.ask(INVOICE, agent="extractor", output_schema=schema)
    assert (job["state"], job["output"], len(job["calls"])) == ("succeeded", {"amount": 12.5}, 2)
    assert last(home, 1)[0]["response_format"]["json_schema"]["schema"] == schema


def test_a_reviewer_asks_a_thorough_model_for_findings(home: Home) -> None:
    """Of Anthropic's; where that does not answer, of OpenAI's, in the same words."""
    code = "def add(a, b):\n    return a - b"
    home.scripted({"status": 529}, {"status": 529}, {"text": "Line 2: it subtracts. Write a + b."})
    job = home.ask(code, agent="reviewer")
    assert (job["state"], job["answer"]) == ("succeeded", "Line 2: it subtracts. Write a + b.")
    first, second = last(home, 3)[1:]
    assert (first["model"], second["model"]) == ("claude-sonnet-5-5", "gpt-5.4")
    assert "at most seven findings" in json.dumps(first["system"])
    assert "at most seven findings" in instructions(second)
    assert first["messages"][-1]["content"] == second["messages"][-1]["content"] == code


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


@pytest.fixture(scope="module")
def with_local_model() -> Iterator[Shim]:
    """A worker whose providers are the local model, both of them."""
    if why := local.missing():
        pytest.skip(why)
    with (
        closing(House()) as house,
        subprocess.Popen([sys.executable, "-m", "celeriac.local.model"], stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            house.worker(CELERIAC_OPENAI_BASE_URL=f"{url}/v1", CELERIAC_ANTHROPIC_BASE_URL=url)
            yield house.shim()
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        ("assistant", "What is the capital of France?"),
        ("summariser", ULM),
        ("part-summariser", ULM),
        ("reviewer", "def add(a, b):\n    return a - b"),
    ],
)
def test_a_real_model_does_what_they_say(with_local_model: Shim, agent: str, text: str) -> None:
    """It answers within its limit, and is done with one question.

    The model has 135 million parameters, and two of our agents are beyond it. The researcher's tools it never calls: it
    makes up a number. The extractor's facts it often repeats until its tokens are used up, and then no JSON is left.
    """
    job = with_local_model.job(with_local_model.submit(agent=agent, input=text, max_output_tokens=48)["id"], wait=60)
    assert (job["state"], job["model"], job["error"]) == ("succeeded", local.MODEL, None)
    assert job["answer"].strip()
    [call] = job["calls"]
    assert 1 <= call["usage"]["output_tokens"] <= 48
