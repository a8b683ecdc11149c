"""Real processes: what a supervisor starts, keeps, stops and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local import house
from tests.local.programs import PATIENCE, alive, descendants
from tests.processes import wait_until


class House:
    """A supervisor in a process of its own, with what its children wrote down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"

    def start(self, *groups: dict[str, list[str]]) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, house.__file__, str(self.directory), json.dumps(groups)], stdout=log, stderr=log
            )

    def start_up(self, *groups: dict[str, list[str]]) -> None:
        self.start(*groups)
        wait_until(lambda: (self.directory / "up").exists(), "everything to be ready", PATIENCE)

    def journal(self) -> list[str]:
        path = self.directory / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[2]) for line in self.journal() if line.startswith(f"start {name} ")]

    def everybody(self) -> set[int]:
        """The supervisor, all that its children told of, and all that descends from it now: the guard too."""
        told = {int(line.split()[2]) for line in self.journal() if line.startswith("start ")}
        return {self.process.pid, *told, *(child.pid for child in descendants(self.process.pid))}

    def guard(self) -> int:
        return next(
            child.pid for child in descendants(self.process.pid) if any("guard.py" in a for a in child.cmdline())
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    a_house = House(tmp_path)
    yield a_house
    everybody = a_house.everybody()
    a_house.process.kill()
    a_house.process.wait()
    for pid in filter(alive, everybody):
        os.kill(pid, signal.SIGKILL)


def order(journal: list[str], kind: str) -> list[str]:
    return [line.split()[1] for line in journal if line.startswith(kind)]


def test_each_group_is_ready_before_the_next_is_started(home: House) -> None:
    """Even when the first takes its time."""
    home.start_up({"store": ["--ready-after", "0.5"]}, {"shim": [], "worker": []})
    journal = [" ".join(line.split()[:2]) for line in home.journal()]
    assert journal.index("ready store") < min(journal.index("start shim"), journal.index("start worker"))


def test_groups_stop_in_the_opposite_order(home: House) -> None:
    """The doors first, the store last."""
    home.start_up({"store": []}, {"model": []}, {"worker": []})
    home.signal(signal.SIGTERM)
    assert home.end() == 0
    assert order(home.journal(), "stop") == ["worker", "model", "store"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_cleanly(home: House, number: signal.Signals) -> None:
    """Each child is asked, and none is left, the guard included."""
    home.start_up({"store": []}, {"shim": [], "worker": []})
    everybody = home.everybody()
    home.signal(number)
    assert home.end() == 0
    assert sorted(order(home.journal(), "stop")) == ["shim", "store", "worker"]
    assert not list(filter(alive, everybody))


def test_a_child_that_ignores_the_signal_is_killed_within_ten_seconds(home: House) -> None:
    """Its deadline is its own: what stops after it still stops cleanly."""
    home.start_up({"store": []}, {"shim": ["--deaf"], "worker": []})
    everybody = home.everybody()
    began = time.monotonic()
    home.signal(signal.SIGTERM)
    home.end()
    assert time.monotonic() - began < 10
    assert not list(filter(alive, everybody))
    assert order(home.journal(), "stop") == ["worker", "store"]
    assert "shim did not stop within 3 s: killed" in home.said()


def test_a_second_signal_kills_at_once(home: House) -> None:
    """Nobody waits for the deadline of a deaf child, and nothing is left."""
    home.start_up({"store": ["--deaf"]}, {"shim": ["--deaf"], "worker": ["--deaf"]})
    everybody = home.everybody()
    home.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in home.said(), "the stop to begin", PATIENCE)
    began = time.monotonic()
    home.signal(signal.SIGINT)
    home.end()
    assert time.monotonic() - began < 3
    assert not list(filter(alive, everybody))


def test_a_killed_child_is_reported_and_started_again(home: House) -> None:
    """By name and by signal; the others do not notice."""
    home.start_up({"store": []}, {"shim": [], "worker": []})
    [first] = home.pids("worker")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(home.pids("worker")) == 2, "another worker", PATIENCE)
    assert "worker was killed by SIGKILL; starting it again" in home.said()
    assert (len(home.pids("shim")), len(home.pids("store"))) == (1, 1)


def test_the_first_of_all_is_started_again_too(home: House) -> None:
    """The store and the model are children like any other."""
    home.start_up({"store": []}, {"worker": []})
    os.kill(home.pids("store")[0], signal.SIGKILL)
    wait_until(lambda: len(home.pids("store")) == 2, "another store", PATIENCE)


def test_a_child_that_keeps_dying_is_started_with_growing_delay(home: House) -> None:
    """Half a second, a second, and so on."""
    home.start_up({"worker": []})
    for starts in (1, 2):
        wait_until(lambda starts=starts: len(home.pids("worker")) == starts, "the next worker", PATIENCE)
        os.kill(home.pids("worker")[-1], signal.SIGKILL)
    wait_until(lambda: "in 1 s" in home.said(), "the second report", PATIENCE)
    assert home.said().index("in 0.5 s") < home.said().index("in 1 s")


def test_what_a_killed_child_had_started_dies_with_it(home: House) -> None:
    """`kill -9` of a child leaves no orphan, even a deaf one."""
    home.start_up({"worker": ["--grandchild"]})
    [grandchild] = home.pids("worker-grandchild")
    os.kill(home.pids("worker")[0], signal.SIGKILL)
    wait_until(lambda: not alive(grandchild), "the orphan to go", PATIENCE)
    wait_until(lambda: len(home.pids("worker")) == 2, "another worker", PATIENCE)


def test_a_stop_takes_grandchildren_along(home: House) -> None:
    """The worker stops cleanly; the deaf process that it had started is killed."""
    home.start_up({"worker": ["--grandchild"]})
    everybody = home.everybody()
    assert home.pids("worker-grandchild")[0] in everybody
    home.signal(signal.SIGTERM)
    home.end()
    assert not list(filter(alive, everybody))


def test_a_killed_supervisor_leaves_nothing_behind(home: House) -> None:
    """No child, no grandchild, no guard: also after `kill -9`."""
    home.start_up({"store": []}, {"shim": ["--deaf"], "worker": ["--grandchild"]})
    everybody = home.everybody()
    assert len(everybody) == 6
    home.signal(signal.SIGKILL)
    home.end()
    wait_until(lambda: not list(filter(alive, everybody)), "everybody to go", PATIENCE)


def test_a_killed_guard_is_replaced_and_still_knows_everybody(home: House) -> None:
    """Its successor guards those that were started before it."""
    home.start_up({"store": []}, {"worker": ["--grandchild"]})
    first = home.guard()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first) and len(home.everybody()) == 5, "another guard", PATIENCE)
    everybody = home.everybody()
    home.signal(signal.SIGKILL)
    home.end()
    wait_until(lambda: not list(filter(alive, everybody)), "everybody to go", PATIENCE)


def test_a_child_that_dies_before_it_is_ready_stops_everything_with_its_last_words(home: House) -> None:
    """The error names the child, its exit status and what it said."""
    home.start({"store": []}, {"shim": ["--fail"]})
    assert home.end() == 1
    assert "not started: shim ended with exit status 3 before it was ready: ('no such luck',)" in home.said()
    assert order(home.journal(), "stop") == ["store"]


def test_a_signal_during_the_start_stops_what_runs_already(home: House) -> None:
    """Nobody waits for a child that is not ready yet."""
    home.start({"store": []}, {"shim": ["--ready-after", "1000"]})
    wait_until(lambda: home.pids("shim"), "shim to be starting", PATIENCE)
    everybody = home.everybody()
    home.signal(signal.SIGTERM)
    assert home.end() == 0
    assert not list(filter(alive, everybody))


def test_what_children_say_is_passed_on_behind_their_name(home: House) -> None:
    """Names are padded to the longest, so that lines stand below each other."""
    home.start_up({"store": []}, {"worker": []})
    wait_until(lambda: "worker says hello" in home.said() and "store says hello" in home.said(), "both lines", PATIENCE)
    assert {"store    | store says hello", "worker   | worker says hello"} <= set(home.said().splitlines())
