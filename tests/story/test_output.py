"""Answers that have to be of a shape, whoever the model is."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import Worker, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.clerk]
description = "Says how old people are."
instructions = "Answer with JSON alone."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]

[agents.clerk.output_schema]
type = "object"
required = ["age"]
additionalProperties = false
properties.age = { type = "integer" }

[agents.typed]
description = "The same, as a pydantic model."
lanes = ["openai/gpt-5-mini"]
output_type = "shop_shapes:Age"

[agents.blocks]
description = "The same, as a pydantic model that takes for ever."
lanes = ["openai/gpt-5-mini"]
output_type = "shop_shapes:Blocks"
"""
SHAPES = """
import threading

from pydantic import BaseModel, field_validator


class Age(BaseModel):
    age: int


class Blocks(Age):
    @field_validator("age")
    @classmethod
    def _block(cls, age: int) -> int:
        threading.Event().wait()
        return age
"""
GOOD, BAD = {"text": '```json\n{"age": 7}\n```'}, {"text": "Quackenbush is seven."}


class Shop:
    """A worker that can import the shop's models."""

    def __init__(self, house: House, folder: Path) -> None:
        (folder / "agents.toml").write_text(AGENTS)
        (folder / "shop_shapes.py").write_text(SHAPES)
        self.house, self.folder = house, folder
        self._env = {"CELERIAC_AGENTS_FILE": str(folder / "agents.toml"), "PYTHONPATH": str(folder)}
        self.shim = house.shim(CELERIAC_AGENTS_FILE=self._env["CELERIAC_AGENTS_FILE"])

    def worker(self) -> Worker:
        return self.house.worker(**self._env)

    def ask(self, *lines: dict[str, Any], **facts: Any) -> str:
        self.house.scripted(*lines)
        id: str = self.shim.submit(**{"agent": "clerk", "input": "How old is she?"} | facts)["id"]
        return id

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(request["body"]) for request in self.house.asked()]


@pytest.fixture
def shop(house: House, tmp_path: Path) -> Shop:
    return Shop(house, tmp_path)


def test_an_answer_has_the_shape_that_was_asked_for(shop: Shop) -> None:
    """At once, at the second try, or the job fails; each answer is bought once."""
    shop.worker()
    job = shop.shim.job(shop.ask(GOOD), wait=30)
    assert (job["state"], job["answer"], job["output"]) == ("succeeded", '{"age": 7}', {"age": 7})
    [body] = shop.asked()
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["age"]

    job = shop.shim.job(shop.ask(BAD, GOOD), wait=30)
    assert (job["state"], job["output"], len(job["calls"])) == ("succeeded", {"age": 7}, 2)
    assert [message["role"] for message in shop.asked()[-1]["messages"]] == ["system", "user", "assistant", "user"]

    job = shop.shim.job(shop.ask(BAD, BAD), wait=30)
    assert (job["state"], job["error"]["code"]) == ("failed", "output_invalid")
    assert (job["answer"], job["output"], len(job["calls"])) == (BAD["text"], None, 2)
    assert "Quackenbush" not in job["error"]["message"]
    assert shop.house.bill()["calls"] == 5


def test_a_job_has_a_shape_of_its_own_and_an_agent_a_pydantic_model(shop: Shop) -> None:
    """Whichever it is, the answer is checked."""
    shop.worker()
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    job = shop.shim.job(shop.ask(GOOD, {"text": '{"name": "Ada"}'}, output_schema=schema), wait=30)
    assert job["output"] == {"name": "Ada"}
    job = shop.shim.job(shop.ask({"text": '{"age": "old"}'}, GOOD, agent="typed"), wait=30)
    assert (job["output"], len(job["calls"])) == ({"age": 7}, 2)


def test_the_next_provider_answers_again_where_the_first_one_failed(shop: Shop) -> None:
    """It is shown the other one's answer, and what was wrong with it, in its own words."""
    shop.worker()
    job = shop.shim.job(shop.ask(BAD, {"status": 503}, {"status": 503}, GOOD), wait=30)
    assert (job["state"], job["model"], job["output"]) == ("succeeded", "claude-haiku-5-5", {"age": 7})
    body = shop.asked()[-1]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["output_config"]["format"]["schema"]["required"] == ["age"]


def test_a_worker_that_dies_between_two_answers_buys_neither_again(shop: Shop) -> None:
    """The next one asks for the second, and the provider is asked twice in all."""
    worker = shop.worker()
    id = shop.ask(BAD, {"reset": "before", "times": 0}, agent="typed")
    wait_until(lambda: asyncio.run(shop.house.provider.state())["seen"] > 1, "the second answer to be asked for")
    worker.kill()
    assert shop.shim.job(id)["steps"] == 1
    asyncio.run(shop.house.provider.reset())
    shop.house.scripted(GOOD)
    shop.worker()
    job = shop.shim.job(id, wait=60)
    assert (job["state"], job["output"]) == ("succeeded", {"age": 7})
    first, second = shop.asked()
    *known, repair = second["messages"]
    assert known == [*first["messages"], {"role": "assistant", "content": BAD["text"]}]
    assert repair["content"].startswith("Your answer cannot be used: it is not JSON alone.")


def test_a_worker_ends_at_once_whoever_judges(shop: Shop) -> None:
    """A judge that was stopped, or a shop's own model that blocks. The next worker judges what was paid for."""
    worker = shop.worker()
    assert shop.shim.job(shop.ask(GOOD), wait=30)["state"] == "succeeded"
    for child in psutil.Process(worker.process.pid).children(recursive=True):
        if "celeriac.agents.judge" in child.cmdline():
            child.suspend()
    for agent in ("blocks", "clerk"):
        id = shop.ask(GOOD, agent=agent)
        wait_until(lambda id=id: shop.shim.job(id)["steps"], "the answer to be kept")
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 10
    shop.worker()
    job = shop.shim.job(id, wait=30)
    assert (job["state"], job["output"], len(job["calls"])) == ("succeeded", {"age": 7}, 1)
