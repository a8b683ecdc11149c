"""A job of six steps whose worker is killed at every point that there is: it ends as it would have, and is paid
once."""

from __future__ import annotations

import asyncio
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from celeriac.costs.prices import Prices
from celeriac.drill.proxy import Proxy
from celeriac.llm.model import Lane, Usage
from tests.processes import wait_until
from tests.story.conftest import House

AGENTS = """
[agents.clerk]
description = "Looks things up, and orders."
lanes = ["openai/gpt-5-mini"]
tools = ["shop_tools:find_order", "shop_tools:cancel_order"]

[agents.chief]
description = "Asks the cook, and then sells."
lanes = ["openai/gpt-5-mini"]
tools = ["shop_tools:sell"]
asks = ["cook"]

[agents.cook]
description = "Knows how things are cooked."
lanes = ["openai/gpt-5-nano"]
"""
TOOLS = '''
import asyncio, os, pathlib

from celeriac.agents.tools import tool


def note(line):
    with open(os.environ["SHOP_LOG"], "a") as log:
        log.write(line + "\\n")


@tool(idempotent=True)
async def find_order(number: int) -> str:
    """An order, by its number."""
    note(f"find {number}")
    await asyncio.sleep(float(os.environ["SHOP_DELAY"]))
    return "a lamp"


@tool
async def cancel_order(number: int) -> str:
    """Cancel an order."""
    note(f"cancel {number}")
    await asyncio.sleep(float(os.environ["SHOP_DELAY"]))
    return "cancelled"


@tool(approval=True)
async def sell(what: str) -> str:
    """Sell something."""
    note(f"sell {what}")
    return "sold"
'''
#: Asked, found, asked, cancelled, asked, answered.
TURNS: Final = [
    {"calls": [{"name": "find_order", "arguments": {"number": 7}}]},
    {"calls": [{"name": "cancel_order", "arguments": {"number": 7}}]},
    {"text": "It is done."},
]
#: Of the one that asks another and needs somebody's word.
CHIEF: Final = [
    {"calls": [{"name": "ask_cook", "arguments": {"question": "How are leeks cooked?"}}]},
    {"calls": [{"name": "sell", "arguments": {"what": "leeks"}}]},
    {"text": "It is done."},
]
#: The worker is killed when this script has done its work for the time that is named, and before it hears of it. Then:
#: how many calls are in doubt, and how often the tool that cannot be undone was called.
POINTS: Final = [
    ("claim", 0, 0, 1),
    *[("admit", number, 1, 1) for number in range(3)],
    # The first answer, its result, the second answer.
    *[("settle", number, 0, 1) for number in range(3)],
    ("settle", 3, 0, 0),  # the note that a tool was started: nobody knows whether it was
    ("settle", 4, 0, 1),  # its result
    ("finish", 0, 0, 1),
]


def dollars_of(lines: list[dict[str, Any]]) -> Decimal:
    """What the provider asks for them."""
    prices, nanos = Prices(), 0
    for line in lines:
        usage = Usage(input=line["input"], output=line["output"])
        nanos += prices.price(Lane("openai", line["model"]), line["model"], usage).nanos
    assert nanos
    return Decimal(nanos).scaleb(-9)


class Fleet:
    def __init__(self, house: House, folder: Path, delay: float = 0.0) -> None:
        (folder / "agents.toml").write_text(AGENTS)
        (folder / "shop_tools.py").write_text(TOOLS)
        self.house = house
        self.log = folder / "shop.log"
        self.log.touch()
        # Known, and over only after the test: nobody is asked which windows are open before a call is admitted.
        now = int(time.time())
        house.valkey.client().set("celeriac:windows", "UTC" + f" {now - 60} {now + 3000}" * 4)
        self.env = {
            "CELERIAC_AGENTS_FILE": str(folder / "agents.toml"),
            "CELERIAC_JOBS__LEASE": "2",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
            "SHOP_LOG": str(self.log),
            "SHOP_DELAY": str(delay),
        }
        self.shim = house.shim(CELERIAC_AGENTS_FILE=self.env["CELERIAC_AGENTS_FILE"])

    def ends_well(self, id: str, *, doubts: int, finds: int = 1, cancels: int = 1) -> None:
        """doubts: calls in doubt. finds, cancels: how often the tools were called in all."""
        self.env["SHOP_DELAY"] = "0"
        self.house.worker(**self.env)
        job = self.shim.job(id, wait=60)
        assert (job["state"], job["answer"]) == ("succeeded", "It is done.")
        settled = [call for call in job["calls"] if call["stands"] == "settled"]
        doubtful = [call for call in job["calls"] if call["stands"] == "doubt"]
        lines = self.house.bill()["lines"]
        billed = {line["id"]: (line["input"], line["output"]) for line in lines}
        paid = {call["request_id"]: (call["usage"]["input_tokens"], call["usage"]["output_tokens"]) for call in settled}
        assert paid.items() <= billed.items(), "what is settled is what was billed for it"
        assert len(settled) == 3, "each answer that was stored is settled once"
        assert len(doubtful) == doubts
        assert len(lines) <= len(settled) + len(doubtful)
        assert dollars_of(lines) <= Decimal(job["cost_usd"]) + Decimal(job["in_doubt_usd"])
        done = self.log.read_text().splitlines()
        assert (done.count("find 7"), done.count("cancel 7")) == (finds, cancels), "no stored step is made again"


@pytest.mark.parametrize(
    ("script", "number", "doubts", "cancels"), POINTS, ids=[f"{script}-{number + 1}" for script, number, *_ in POINTS]
)
async def test_a_job_is_paid_once_wherever_its_worker_dies(
    house: House, tmp_path: Path, script: str, number: int, doubts: int, cancels: int
) -> None:
    """When a script has done its work, and before the worker hears of it."""
    fleet = await asyncio.to_thread(Fleet, house, tmp_path)
    await house.provider.default(turns=TURNS)
    async with Proxy(house.valkey.port) as proxy:
        worker = await asyncio.to_thread(house.worker, CELERIAC_REDIS_URL=proxy.url, **fleet.env)
        swallow = proxy.swallow(script=script, skip=number, cut=False)
        id = (await asyncio.to_thread(fleet.shim.submit, agent="clerk", input="Cancel order 7."))["id"]
        await asyncio.wait_for(swallow.done.wait(), 30)
        worker.kill()
    await asyncio.to_thread(fleet.ends_well, id, doubts=doubts, cancels=cancels)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_job_is_paid_once_though_its_worker_dies_while_a_model_answers(
    house: House, tmp_path: Path, number: int
) -> None:
    """That call is in doubt, and bought again; no other is."""
    fleet = Fleet(house, tmp_path)
    turns = [turn | ({"delay": 5.0} if place == number else {}) for place, turn in enumerate(TURNS, 1)]
    house.always(turns=turns)
    worker = house.worker(**fleet.env)
    id = fleet.shim.submit(agent="clerk", input="Cancel order 7.")["id"]
    wait_until(lambda: len(house.asked()) == number, "the call")
    worker.kill()
    house.always(turns=TURNS)
    fleet.ends_well(id, doubts=1)
    assert len(house.bill()["lines"]) == 4


@pytest.mark.parametrize("tool", ["find 7", "cancel 7"])
def test_a_job_is_paid_once_though_its_worker_dies_while_a_tool_works(house: House, tmp_path: Path, tool: str) -> None:
    """No model is asked again."""
    fleet = Fleet(house, tmp_path, delay=5.0 if tool == "find 7" else 1.0)
    house.always(turns=TURNS)
    worker = house.worker(**fleet.env)
    id = fleet.shim.submit(agent="clerk", input="Cancel order 7.")["id"]
    wait_until(lambda: tool in fleet.log.read_text(), "the tool to be called")
    worker.kill()
    fleet.ends_well(id, doubts=0, finds=2 if tool == "find 7" else 1)
    assert len(house.bill()["lines"]) == 3


@pytest.mark.parametrize(
    ("script", "number", "doubts"),
    # The worker may have begun with the other of the two jobs, and have asked its model, before it is killed.
    [("submit", 0, 1), ("park", 0, 1), ("finish", 0, 1), ("park", 1, 0)],
    ids=["another is asked", "it waits for that", "the other ends", "it waits to be allowed"],
)
async def test_a_job_that_waits_for_others_is_paid_once_wherever_a_worker_dies(
    house: House, tmp_path: Path, script: str, number: int, doubts: int
) -> None:
    """One other is asked, once; what somebody allows is done once."""
    fleet = await asyncio.to_thread(Fleet, house, tmp_path)
    await house.provider.default(turns=CHIEF)
    await house.provider.script({"model": "gpt-5-nano", "text": "In butter.", "times": 0})
    id = (await asyncio.to_thread(fleet.shim.submit, agent="chief", input="Sell leeks."))["id"]
    house.valkey.client().script_flush()  # the worker is to send each itself, so that the proxy knows it
    async with Proxy(house.valkey.port) as proxy:
        swallow = proxy.swallow(script=script, skip=number, cut=False)
        worker = await asyncio.to_thread(house.worker, CELERIAC_REDIS_URL=proxy.url, **fleet.env)
        await asyncio.wait_for(swallow.done.wait(), 30)
        worker.kill()
    await asyncio.to_thread(house.worker, **fleet.env)
    waits = lambda: fleet.shim.job(id)["reason"] == "waiting_approval"  # noqa: E731
    await asyncio.to_thread(wait_until, waits, "it to wait for somebody's word")
    (asked,) = fleet.shim.job(id)["approvals"]
    fleet.shim.http.post(f"/v1/jobs/{id}/resume", json={"approve": True, "calls": [asked["call"]]})
    job = await asyncio.to_thread(fleet.shim.job, id, 60)
    assert (job["state"], job["answer"]) == ("succeeded", "It is done.")
    (child,) = job["children"]
    calls = [*job["calls"], *fleet.shim.job(child)["calls"]]
    settled = {call["request_id"] for call in calls if call["stands"] == "settled"}
    assert len(settled) == 4
    assert [call["stands"] for call in calls if call["stands"] != "settled"] == ["doubt"] * (len(calls) - 4)
    assert len(calls) - 4 <= doubts
    lines = (await house.provider.bill(lines=True))["lines"]
    assert settled <= {line["id"] for line in lines}
    booked = ("cost_usd", "in_doubt_usd", "children_cost_usd", "children_in_doubt_usd")
    assert dollars_of(lines) <= sum(Decimal(job[name]) for name in booked)
    assert fleet.log.read_text() == "sell leeks\n"
