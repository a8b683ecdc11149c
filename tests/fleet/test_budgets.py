"""A cap before a fleet of four worker processes: never crossed, whatever dies; and nothing stays reserved."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS = """
[agents.buyer]
description = "One call of a known price."
lanes = ["openai/gpt-5-priced"]
max_output_tokens = 10
max_retries = 5
retry_backoff_seconds = 0.1
retry_backoff_max_seconds = 1
"""
#: A cent for the ten tokens that a call may bring; its input is free. No region makes models of this age dearer, which
#: the bound would hold.
PRICES = '[openai.gpt-5-priced]\ninput = "0"\noutput = "1000"\n'
CENT: Final = Decimal("0.01")


class Fleet:
    """short_leased: so many of the workers, the first ones, are soon given up. No other is, on however busy a machine:
    what a worker was doing when it is given up is in doubt, and counts.
    """

    def __init__(self, house: House, folder: Path, short_leased: int = 0) -> None:
        (folder / "agents.toml").write_text(AGENTS)
        (folder / "prices.toml").write_text(PRICES)
        self.house = house
        self.redis = house.valkey.client()
        self.env = {
            "CELERIAC_AGENTS_FILE": str(folder / "agents.toml"),
            "CELERIAC_PRICES_FILE": str(folder / "prices.toml"),
        }
        self.shim: Shim = house.shim(**self.env)
        names = [("-n", f"w{number}@%h") for number in range(4)]
        leases = [{"CELERIAC_JOBS__LEASE": "2" if number < short_leased else "15"} for number in range(4)]
        self.workers = house.workers(*names, envs=leases, **self.env)

    def always(self, *, output: int, delay: float) -> None:
        """What every call brings, and so its price."""
        self.price = output * Decimal("0.001")
        self.house.always(usage={"output": output}, delay=delay)

    def cap(self, dollars: str) -> None:
        put = self.shim.http.put("/v1/budgets/all", json={"caps": [{"window": "ever", "cap_usd": dollars}]})
        assert put.status_code == 200, put.text

    def use(self) -> dict[str, Decimal]:
        [cap] = self.shim.http.get("/v1/budgets/all").json()["caps"]
        return {name: Decimal(cap[f"{name}_usd"]) for name in ("settled", "in_doubt", "reserved", "left")}

    def submit(self, number: int) -> list[str]:
        return [self.shim.submit(agent="buyer")["id"] for _ in range(number)]

    def states(self, ids: list[str]) -> Counter[tuple[str, str | None]]:
        return Counter((job["state"], job.get("reason")) for job in map(self.shim.job, ids))

    def settles(self, ids: list[str], within: float = 120) -> Counter[tuple[str, str | None]]:
        """How the jobs stand once no money is left for another call, and none of them is on its way."""
        wait_until(lambda: (use := self.use())["reserved"] == 0 and use["left"] < CENT, "the money to be used", within)
        wait_until(
            lambda: self.states(ids).keys() <= {("succeeded", None), ("parked", "waiting_budget")},
            "each job to end or to wait for money",
            within,
        )
        return self.states(ids)

    def all_succeed(self, ids: list[str]) -> None:
        wait_until(lambda: self.states(ids) == {("succeeded", None): len(ids)}, "all jobs to succeed", 120)

    @contextmanager
    def sampled(self, cap: Decimal) -> Iterator[list[Decimal]]:
        """The use of everything, every ten milliseconds; above the cap is a failure."""
        stopped, seen = threading.Event(), []

        def sample() -> None:
            client = self.house.valkey.client()
            while not stopped.is_set():
                sums = client.hmget("celeriac:used:all", "cost", "in_doubt", "reserved")
                seen.append(Decimal(sum(int(amount or 0) for amount in sums)).scaleb(-9))
                time.sleep(0.01)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield seen
        finally:
            stopped.set()
            thread.join()
        assert max(seen) <= cap, "the cap was crossed"
        assert len(seen) > 50

    def books_agree(self, ids: list[str]) -> None:
        """Jobs, ledger and budget say the same, and the provider's bill is covered."""
        jobs = [self.shim.job(id) for id in ids]
        use = self.use()
        assert use["reserved"] == 0
        assert sum(Decimal(job["cost_usd"] or 0) for job in jobs) == use["settled"]
        assert sum(Decimal(job["in_doubt_usd"]) for job in jobs) == use["in_doubt"]
        entries = [json.loads(line) for line in self.house.celeriac("ledger", "export", **self.env).splitlines()]
        assert sum(Decimal(entry["cost_usd"]) for entry in entries) == use["settled"]
        assert sum(Decimal(entry["in_doubt_usd"]) for entry in entries) == use["in_doubt"]
        billed = self.house.bill()["calls"] * self.price
        assert use["settled"] <= billed <= use["settled"] + use["in_doubt"]


@pytest.fixture
def fleet(house: House, tmp_path: Path) -> Fleet:
    return Fleet(house, tmp_path)


def test_as_many_jobs_finish_as_the_cap_pays_for(fleet: Fleet) -> None:
    """Where a call costs its bound: floor(cap / price) of 500 at once. A higher cap finishes the rest, and nobody
    submits them again.
    """
    fleet.always(output=10, delay=0.05)
    fleet.cap("1.005")
    with fleet.sampled(Decimal("1.005")):
        ids = fleet.submit(500)
        assert fleet.settles(ids) == {("succeeded", None): 100, ("parked", "waiting_budget"): 400}
    assert fleet.use() == {"settled": Decimal(1), "in_doubt": 0, "reserved": 0, "left": Decimal("0.005")}
    fleet.books_agree(ids)
    fleet.cap("5")
    with fleet.sampled(Decimal(5)):
        fleet.all_succeed(ids)
    fleet.books_agree(ids)


def test_what_is_only_held_is_waited_for(fleet: Fleet) -> None:
    """Where a call costs a tenth of its bound: 1 + floor((cap - bound) / price), however many ask at once."""
    fleet.always(output=1, delay=0.05)
    fleet.cap("0.1")
    with fleet.sampled(Decimal("0.1")):
        ids = fleet.submit(120)
        assert fleet.settles(ids) == {("succeeded", None): 91, ("parked", "waiting_budget"): 29}
    assert fleet.use()["settled"] == Decimal("0.091")
    fleet.books_agree(ids)


def test_workers_that_are_killed_leave_their_calls_in_doubt_and_the_cap_holds(house: House, tmp_path: Path) -> None:
    """Fewer finish, by what is in doubt; nothing stays reserved, and a higher cap finishes the rest."""
    fleet = Fleet(house, tmp_path, short_leased=2)
    fleet.always(output=10, delay=5)
    fleet.cap("1")
    with fleet.sampled(Decimal(1)), ThreadPoolExecutor(1) as beside:
        submitting = beside.submit(fleet.submit, 200)
        wait_until(lambda: house.in_flight() > 20, "calls to be made")
        for worker in fleet.workers[:2]:
            worker.kill()
        ids = submitting.result()
        states = fleet.settles(ids)
    use = fleet.use()
    assert use["in_doubt"] > 0
    assert states["succeeded", None] * CENT == use["settled"]
    assert use["settled"] + use["in_doubt"] == 1
    fleet.books_agree(ids)
    fleet.cap("10")
    fleet.all_succeed(ids)
    fleet.books_agree(ids)
