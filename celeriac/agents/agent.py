"""An agent: a named recipe that jobs follow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from celeriac.llm.model import Lane


@dataclass(frozen=True, slots=True)
class Agent:
    """lanes: in order of preference. timeout: the longest one model call may take. queue: whose workers run it."""

    name: str
    description: str
    instructions: str
    lanes: tuple[Lane, ...]
    max_output_tokens: int = 1024
    temperature: float | None = None
    timeout: timedelta = timedelta(seconds=120)
    queue: str = "celeriac"
    api: Literal["chat", "responses"] = "chat"
