"""The benchmark runs, in small. What its numbers are is nobody's business here."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bench.__main__ import BEGIN, END, line, write
from bench.environment import LOCK, ROOT, is_made, litellm_python
from bench.house import allow_many_files
from bench.question import AGENTS, INSTRUCTIONS, TALK
from bench.rows import QUICK, Row, middle, rows
from bench.scripts import costs
from bench.talk import Talk, measure
from bench.workers import Idle, Waited
from celeriac.agents.registry import read_agents


def test_every_row_is_measured():
    allow_many_files()
    made = list(rows(QUICK))
    assert len({row.name for row in made}) >= 22
    for row in made:
        if row.note:
            continue
        assert row.ours is not None
        for value in (row.ours, row.plain):
            assert value is None or (math.isfinite(value) and 0 < value < 1_000_000), row
    assert sum(row.met is not None for row in made) == 9


async def test_every_call_of_a_conversation_is_counted_and_shows_what_was_said_before():
    """Else the bare call and LiteLLM would be asked less than a worker is, or be billed for more."""
    asked: list[list[str]] = []

    async def ask(messages: list[dict[str, str]]) -> str:
        asked.append([message["content"] for message in messages])
        return f"answer {len(asked)}"

    talk = Talk("be brief", ("one?", "two?"))
    await measure(ask, talk, in_flight=1, conversations=1)
    warm, first, second = asked
    assert warm == first == ["be brief", "one?"]
    assert second == ["be brief", "one?", "answer 2", "two?"]


def test_the_agents_of_the_benchmark_are_told_what_the_shipped_one_is():
    """The conversations of all are the same, whoever holds them."""
    assert {agent.instructions for agent in read_agents(AGENTS)} == {INSTRUCTIONS}
    assert len(TALK.questions) == 5


@pytest.mark.parametrize("package", ["openai", "aiohttp", "uvloop"])
def test_litellm_is_measured_on_the_versions_that_a_worker_runs_on(package: str):
    """Else the difference might be theirs."""
    ours, theirs = (
        re.findall(rf"^{package}==\S+", lock.read_text(), re.MULTILINE) for lock in (ROOT / "requirements.lock", LOCK)
    )
    assert ours == theirs
    assert len(ours) == 1


def test_where_litellm_cannot_be_installed_nothing_is_measured_and_the_flag_is_named(tmp_path: Path):
    """A table without it is one that somebody asked for. What broke off half way is made anew."""
    lock = tmp_path / "some.lock"
    lock.write_text(f"{tmp_path}/nowhere-1-py3-none-any.whl --hash=sha256:{'0' * 64}\n")
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"(?s)--without-litellm.*nowhere"):
            litellm_python(tmp_path / "venv", lock)
        assert not is_made(tmp_path / "venv", lock)


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
