"""What every job and every call of the benchmark asks: the shipped assistant's instructions and one short question.

Where calls are counted and not jobs, `TALKER` is asked the same, and its follow-ups in the same conversation.
"""

from __future__ import annotations

from pathlib import Path

from bench.talk import Talk
from celeriac.agents.registry import read_agents
from celeriac.settings import SHIPPED_AGENTS

AGENT = "assistant"
INSTRUCTIONS = read_agents(SHIPPED_AGENTS)[AGENT].instructions
QUESTION = "What is the capital of France, and since when? " * 4
ANSWER = "word " * 50

AGENTS = Path(__file__).parent / "agents.toml"
TALKER = "talker"
_talker = read_agents(AGENTS)[TALKER]
TALK = Talk(_talker.instructions, (QUESTION, *_talker.follow_ups))
