"""A job of six steps whose worker is killed at every point that there is: it ends as it would have, and is paid
once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import pytest

from celeriac.drill.proxy import Proxy
from tests.processes import wait_until
from tests.story.conftest import House

AGENTS = """
[agents.clerk]
description = "Looks things up, and orders."
lanes = ["openai/gpt-5-mini"]
tools = ["shop_tools:find_order", "shop_tools:cancel_order"]
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
'''
#: Asked, found, asked, cancelled, asked, answered.
TURNS: Final = [
    {"calls": [{"name": "find_order", "arguments": {"number": 7}}]},
    {"calls": [{"name": "cancel_order", "arguments": {"number": 7}}]},
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


class Fleet:
    def __init__(self, house: House, folder: Path, delay: float = 0.0) -> None:
        (folder / "agents.toml").write_text(AGENTS)
        (folder / "shop_tools.py").write_text(TOOLS)
        self.house = house
        self.log = folder / "shop.log"
        self.log.touch()
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
