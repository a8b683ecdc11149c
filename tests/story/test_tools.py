"""Agents that call functions of yours, whoever the model is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.processes import Worker, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.clerk]
description = "Answers questions about orders."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5"]
tools = ["shop_tools:find_order", "shop_tools:cancel_order", "shop_tools:refund"]
"""
TOOLS = '''
import asyncio, os, pathlib

from celeriac.agents.tools import tool

LOG = pathlib.Path(os.environ["SHOP_LOG"])


def note(line):
    with LOG.open("a") as log:
        log.write(line + "\\n")


@tool(idempotent=True)
async def find_order(number: int) -> dict:
    """An order of the shop, by its number."""
    note(f"find {number}")
    return {"number": number, "what": "lamp"}


@tool(approval=True)
async def refund(number: int) -> str:
    """Give the money of an order back."""
    note(f"refund {number}")
    return "refunded"


@tool
async def cancel_order(number: int) -> str:
    """Cancel an order. It cannot be undone."""
    note(f"cancel {number}")
    if number == 13:
        await asyncio.sleep(600)
    return "cancelled"
'''
FIND = {"calls": [{"name": "find_order", "arguments": {"number": 7}}]}
REFUND = {"calls": [{"name": "refund", "arguments": {"number": 7}}]}
CANCEL = {"calls": [{"name": "cancel_order", "arguments": {"number": 13}}]}


class Shop:
    """A worker that can import the shop's functions. log: what they did."""

    def __init__(self, house: House, folder: Path) -> None:
        (folder / "agents.toml").write_text(AGENTS)
        (folder / "shop_tools.py").write_text(TOOLS)
        self.house = house
        self.log = folder / "shop.log"
        self.log.touch()
        agents = str(folder / "agents.toml")
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self._env = {"CELERIAC_AGENTS_FILE": agents, "PYTHONPATH": path, "SHOP_LOG": str(self.log)}
        self.shim = house.shim(CELERIAC_AGENTS_FILE=agents)

    def worker(self) -> Worker:
        return self.house.worker(**self._env)

    def ask(self, text: str) -> str:
        id: str = self.shim.submit(agent="clerk", input=text)["id"]
        return id


@pytest.fixture
def shop(house: House, tmp_path: Path) -> Shop:
    return Shop(house, tmp_path)


def test_a_model_has_functions_of_yours_called(shop: Shop) -> None:
    """And answers with what came of it. The job shows each call and how many steps are stored."""
    shop.worker()
    shop.house.scripted(FIND, {"text": "It is a lamp."})
    job = shop.shim.job(shop.ask("What is order 7?"), wait=30)
    assert (job["state"], job["answer"], len(job["calls"])) == ("succeeded", "It is a lamp.", 2)
    assert shop.log.read_text() == "find 7\n"
    [told] = [
        message for message in json.loads(shop.house.asked()[-1]["body"])["messages"] if message["role"] == "tool"
    ]
    assert json.loads(told["content"]) == {"number": 7, "what": "lamp"}


def test_the_next_provider_goes_on_where_the_first_one_failed(shop: Shop) -> None:
    """With the calls that the first one wanted, and their results, in its own words. Nothing is called twice."""
    shop.worker()
    shop.house.scripted(FIND, {"status": 503}, {"status": 503}, {"text": "It is a lamp."})
    job = shop.shim.job(shop.ask("What is order 7?"), wait=30)
    assert (job["state"], job["model"]) == ("succeeded", "claude-haiku-5-5")
    assert shop.log.read_text() == "find 7\n"
    _, wanted, told = json.loads(shop.house.asked()[-1]["body"])["messages"]
    assert wanted["content"][-1]["name"] == "find_order"
    assert told["content"][0]["tool_use_id"] == wanted["content"][-1]["id"]
    assert json.loads(told["content"][0]["content"]) == {"number": 7, "what": "lamp"}


def test_what_cannot_be_undone_is_not_done_twice(shop: Shop) -> None:
    """The worker dies in the middle of it: the next one tells the model that nobody knows, and buys no answer again."""
    worker = shop.worker()
    shop.house.scripted(FIND, CANCEL, {"text": "I cannot say whether it is cancelled."})
    id = shop.ask("Cancel order 13.")
    wait_until(lambda: "cancel 13" in shop.log.read_text(), "the tool to be called")
    worker.kill()
    shop.worker()
    job = shop.shim.job(id, wait=60)
    assert (job["state"], job["answer"]) == ("succeeded", "I cannot say whether it is cancelled.")
    assert shop.log.read_text() == "find 7\ncancel 13\n"
    assert [call["stands"] for call in job["calls"]] == ["settled"] * 3
    assert "nobody knows what became of this call" in shop.house.asked()[-1]["body"]


def test_a_call_that_somebody_has_to_allow_waits_for_that(shop: Shop) -> None:
    """In no slot, and across the end of its worker; allowed, it is made, and nothing is bought twice."""
    worker = shop.worker()
    shop.house.scripted(REFUND, {"text": "You have your money back."})
    id = shop.ask("I want my money back for order 7.")
    job = wait_until(lambda: (job := shop.shim.job(id))["state"] == "parked" and job, "the job to ask")
    assert (job["reason"], job["approvals"][0]["tool"]) == ("waiting_approval", "refund")
    assert json.loads(job["approvals"][0]["arguments"]) == {"number": 7}
    worker.kill()
    shop.worker()
    assert shop.log.read_text() == ""
    assert (
        shop.shim.http.post(
            f"/v1/jobs/{id}/resume", json={"approve": True, "calls": [job["approvals"][0]["call"]]}
        ).status_code
        == 202
    )
    job = shop.shim.job(id, wait=30)
    assert (job["state"], job["answer"]) == ("succeeded", "You have your money back.")
    assert shop.log.read_text() == "refund 7\n"
    assert [call["stands"] for call in job["calls"]] == ["settled"] * 2
