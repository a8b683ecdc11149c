"""The benchmark runs, in small. What its numbers are is nobody's business here."""

from __future__ import annotations

import math
from pathlib import Path

from bench.__main__ import BEGIN, END, line, write
from bench.house import allow_many_files
from bench.rows import QUICK, Row, middle, rows
from bench.scripts import costs
from bench.workers import Idle, Waited


def test_every_row_is_measured():
    allow_many_files()
    made = list(rows(QUICK))
    assert len({row.name for row in made}) >= 18
    for row in made:
        if row.note:
            continue
        assert row.ours is not None
        for value in (row.ours, row.plain):
            assert value is None or (math.isfinite(value) and 0 < value < 1_000_000), row
    assert sum(row.met is not None for row in made) == 6


def test_scripts_cost_the_same_with_many_ready_jobs_as_with_few():
    """Dispatch, claim and finish do not look at what they leave alone."""
    measured = {cost.script: cost for cost in costs((10, 10), (20_000, 200), rounds=20)}
    assert {
        "submit",
        "claim",
        "admit",
        "step",
        "finish and dispatch",
        "heartbeat",
        "a round of upkeep",
    } <= measured.keys()
    for cost in measured.values():
        # A script that went through the jobs would cost a hundred times as much; the machine is a noisy place.
        assert cost.many < 10 * cost.few, cost


def test_a_rate_is_better_when_it_is_more_and_a_cost_when_it_is_less():
    assert Row("jobs a second", "", 6.0, 3.0, rate=True).better == 2.0
    assert Row("CPU a job", "ms", 6.0, 3.0).better == 0.5
    assert Row("not measured there", "", 6.0).better is None


def test_of_waits_the_middle_round_counts():
    """Not the luckiest; with its own p95, whatever the others have."""
    rounds = [Idle(Waited(p50, p95), {}) for p50, p95 in ((9.0, 30.0), (7.0, 50.0), (8.0, 40.0))]
    assert middle(rounds).waited == Waited(8.0, 40.0)


def test_the_page_is_written_between_its_markers(tmp_path: Path):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(page, line(Row("Jobs", "ms", 2.0, 3.0, "at most 5", True)))
    assert page.read_text() == (
        f"before\n{BEGIN}\n| Jobs | 2.00 ms | 3.00 ms | 1.50 x | at most 5 | yes |\n{END}\nafter\n"
    )
