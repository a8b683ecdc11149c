"""A model call by itself: the same conversations by a worker, the bare SDK and LiteLLM's Router, at one provider."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.house import PATIENCE, Cost, House, until
from bench.question import AGENTS, TALK, TALKER
from bench.talk import WARM, command
from bench.workers import celeriac
from tests.processes import Process

CALLS = len(TALK.questions)


@dataclass(frozen=True, slots=True)
class Called:
    """cpu_ms: of the process that calls, a call. store_ms: of its Redis; 0 without one. in_flight: the most calls that
    the provider was seen with. version: of what was installed for it.
    """

    cpu_ms: float
    in_flight: int
    store_ms: float = 0.0
    version: str = ""


def one_round(in_flight: int, delay: float, router: Path | None) -> tuple[Called, Called, Called | None]:
    """`in_flight` conversations at once by each of the three, one after the other, at one provider.

    delay: seconds that it takes for an answer. router: the Python of LiteLLM's environment; None leaves it out.
    """
    with House(delay) as house:
        ours = _worker(house, in_flight)
        bare = _process(house, sys.executable, "bench.bare", in_flight)
        return ours, bare, _process(house, str(router), "bench.router", in_flight) if router else None


def _worker(house: House, in_flight: int) -> Called:
    """As it is shipped: all that it spends from the first job's submission to the last one's end."""
    assert house.valkey.process is not None
    with house.celeriac_worker(in_flight, CELERIAC_AGENTS_FILE=str(AGENTS)) as process, celeriac(house) as caller:
        submit, ended = caller
        submit(in_flight)
        until(lambda: ended() >= in_flight, "the jobs that warm up")
        time.sleep(0.5)
        asked = _asked(house)
        costs = Cost(process.pid), Cost(house.valkey.process.pid)
        submit(in_flight, TALKER)
        most = _watched(house, lambda: ended() >= 2 * in_flight, f"{in_flight} jobs of {CALLS} calls")
        asked = _asked(house) - asked
        assert asked == in_flight * CALLS, f"{in_flight} jobs made {asked} calls"
        spent, stored = (cost.cpu() / in_flight / CALLS * 1000 for cost in costs)
        return Called(spent, most, stored)


def _process(house: House, python: str, module: str, in_flight: int) -> Called:
    before = _asked(house)
    process = Process(python, *command(module, house.provider.openai_url, in_flight, in_flight, TALK), env={})
    try:
        until(lambda: WARM in process.output().splitlines() or not process.running(), f"{module} to be warm", PATIENCE)
        most = _watched(house, lambda: not process.running(), module)
        made = {}
        with contextlib.suppress(ValueError, IndexError):
            made = json.loads(process.output().splitlines()[-1])
        if not made:
            raise RuntimeError(f"{module} did not come to its end:\n{process.output()[-3000:]}")
        asked = _asked(house) - before - in_flight  # less those that warm up
        assert asked == in_flight * CALLS, f"{module} made {asked} calls"
        assert made.get("priced", True), f"{module} did not price its calls"
        return Called(made["cpu_ms"], most, version=made.get("version", ""))
    finally:
        process.stop()


def _asked(house: House) -> int:
    """Calls that the provider has seen."""
    seen: int = asyncio.run(house.provider.state())["seen"]
    return seen


def _watched(house: House, done: Callable[[], bool], what: str) -> int:
    """Wait, and answer how many calls the provider was seen with at once."""
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, asyncio.run(house.provider.state())["in_flight"])
        return done()

    until(look, what, PATIENCE, every=0.2)
    return most
