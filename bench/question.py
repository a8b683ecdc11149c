"""What every job and every call of the benchmark asks: the shipped assistant's instructions and one short question."""

from __future__ import annotations

from celeriac.agents.registry import read_agents
from celeriac.settings import SHIPPED_AGENTS

AGENT = "assistant"
INSTRUCTIONS = read_agents(SHIPPED_AGENTS)[AGENT].instructions
QUESTION = "What is the capital of France, and since when? " * 4
ANSWER = "word " * 50
