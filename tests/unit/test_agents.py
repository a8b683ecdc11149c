"""The agents of a deployment come from a file; a wrong one is refused with the line and the reason."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from celeriac.agents.registry import Registry, read_agents
from celeriac.errors import Misconfigured, NotFound
from celeriac.llm.model import Lane
from celeriac.settings import SHIPPED_AGENTS

GOOD = '[agents.writer]\ndescription = "Writes."\nlanes = ["openai/gpt-5.4", "anthropic/claude-haiku-5-5"]\n'


def registry(tmp_path: Path, text: str) -> Registry:
    file = tmp_path / "agents.toml"
    file.write_text(text)
    return read_agents(file)


def test_the_shipped_agents_are_useful_as_they_are() -> None:
    """Each says what it does and falls back to another provider."""
    agents = {agent.name: agent for agent in read_agents(SHIPPED_AGENTS)}
    assert {"assistant", "summariser", "extractor"} <= agents.keys()
    for agent in agents.values():
        assert agent.description
        assert agent.instructions
        assert len({lane.provider for lane in agent.lanes}) == 2


def test_a_file_becomes_agents(tmp_path: Path) -> None:
    """With defaults where it says nothing."""
    agent = registry(tmp_path, GOOD + 'timeout_seconds = 2.5\nqueue = "slow"\napi = "responses"\n')["writer"]
    assert agent.lanes == (Lane("openai", "gpt-5.4"), Lane("anthropic", "claude-haiku-5-5"))
    assert (agent.timeout, agent.queue, agent.api, agent.max_output_tokens) == (
        timedelta(seconds=2.5), "slow", "responses", 1024,
    )  # fmt: skip


def test_an_unknown_agent_names_those_that_there_are(tmp_path: Path) -> None:
    """The remedy is in the error."""
    with pytest.raises(NotFound) as raised:
        registry(tmp_path, GOOD)["nobody"]
    assert raised.value.remedy == "use one of: writer"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "names no agent"),
        ("[agents]\n", 1, "names no agent"),
        ("[agents.a\n", 1, "Expected"),
        ("\n[agent.a]\n" + GOOD, 2, r"no table \[agent\]"),
        ("\n\n[agents.a]\nlanes = ['openai/x']\n", 3, r"agents\.a\.description: Field required"),
        (GOOD + "\nmax_tokens = 5\n", 5, "no such key; known are description, instructions"),
        (GOOD.replace("openai/gpt-5.4", "gpt-5.4"), 3, r"agents\.writer\.lanes\.0: not a lane"),
        (GOOD.replace('["openai/gpt-5.4", "anthropic/claude-haiku-5-5"]', "[]"), 3, "at least 1 item"),
        (GOOD + "max_output_tokens = 0\n", 4, "greater than 0"),
        (GOOD + 'max_output_tokens = "5"\n', 4, "valid integer"),
        (GOOD + "temperature = 3\n", 4, "less than or equal to 2"),
        (GOOD + '[agents."a b"]\n', 4, "no name for an agent"),
        (
            GOOD + 'instructions = """\nlanes = no\ntemperature = 3\n"""\ntemperature = 3\n',
            8,
            "less than or equal to 2",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_line_and_the_reason(tmp_path: Path, text: str, line: int, said: str) -> None:
    """`file:line: reason`, so that an editor can jump to it."""
    with pytest.raises(Misconfigured, match=rf"agents\.toml:{line}: .*{said}"):
        registry(tmp_path, text)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """Not one start a mistake."""
    with pytest.raises(Misconfigured) as raised:
        registry(tmp_path, GOOD + "max_tokens = 5\ntemperature = 3\n[agents.b]\nlanes = []\n")
    assert len(str(raised.value).splitlines()) == 4


def test_a_file_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    """The operator learns what to change."""
    with pytest.raises(Misconfigured, match="CELERIAC_AGENTS_FILE"):
        read_agents(tmp_path / "none.toml")
