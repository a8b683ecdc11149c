"""Agents that use the tools of an MCP server, which a worker starts and ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, Worker, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.clerk]
description = "Adds up."
lanes = ["openai/gpt-5-mini"]
mcp = ["shop"]

[mcp.shop]
command = {command}
environment = ["SHOP_REGION"]
"""


def wants(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"calls": [{"name": tool, "arguments": arguments}]}


class Shop:
    """A worker and a shim that know the server; starts: its process ids."""

    def __init__(self, house: House, folder: Path, options: tuple[str, ...]) -> None:
        self.starts = folder / "starts"
        command = [sys.executable, str(ROOT / "tests/mcp_server.py"), "--starts", str(self.starts), *options]
        agents = folder / "agents.toml"
        agents.write_text(AGENTS.format(command=json.dumps(command)))
        self.house = house
        self.worker: Worker = house.worker(CELERIAC_AGENTS_FILE=str(agents), SHOP_REGION="north")
        self.shim = house.shim(CELERIAC_AGENTS_FILE=str(agents))

    def ask(self) -> dict[str, Any]:
        """The job at its end."""
        return self.shim.job(self.shim.submit(agent="clerk", input="Do it.")["id"], wait=60)

    def told(self) -> list[str]:
        """What the model was told of its calls, in the last job."""
        messages = json.loads(self.house.asked()[-1]["body"])["messages"]
        return [message["content"] for message in messages if message["role"] == "tool"]

    def children(self) -> list[int]:
        return [int(pid) for pid in self.starts.read_text().split()]


@pytest.fixture
def options() -> tuple[str, ...]:
    """Of the server."""
    return ()


@pytest.fixture
def shop(house: House, tmp_path: Path, options: tuple[str, ...]) -> Shop:
    return Shop(house, tmp_path, options)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_model_has_tools_of_a_server_called(shop: Shop) -> None:
    """It is told what came of it. The server is started once, knows none of the worker's secrets, and ends with it."""
    shop.house.scripted(wants("shop_add", a=40, b=2), wants("shop_environment"), {"text": "It is 42."})
    job = shop.ask()
    assert (job["state"], job["answer"], len(job["calls"])) == ("succeeded", "It is 42.", 3)
    result, environment = shop.told()
    assert result == "42"
    assert json.loads(environment)["SHOP_REGION"] == "north"
    for secret in ("CELERIAC", "OPENAI", "ANTHROPIC", "secret-"):
        assert secret not in environment
    [child] = shop.children()
    assert not gone(child)
    shop.worker.signal(signal.SIGTERM)
    assert shop.worker.wait() == 0
    assert gone(child)


def test_a_server_that_dies_costs_one_call(shop: Shop) -> None:
    """The model hears that nobody knows what became of it; its next call finds the server again."""
    shop.house.scripted(wants("shop_die"), wants("shop_who"), {"text": "It is well."})
    job = shop.ask()
    assert (job["state"], job["answer"]) == ("succeeded", "It is well.")
    died, who = shop.told()
    assert "the MCP server shop broke off in the middle of this call" in died
    _, second = shop.children()
    assert who == str(second)


@pytest.mark.parametrize("options", [("--stubborn",)])
def test_a_server_that_will_not_end_does_not_outlive_its_worker(shop: Shop) -> None:
    """It is killed, in the time that a worker has for its end."""
    [child] = shop.children()
    shop.worker.signal(signal.SIGTERM)
    assert shop.worker.wait() == 0
    wait_until(lambda: gone(child), "the server to end", 2)
