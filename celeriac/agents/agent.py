"""An agent: a named recipe that jobs follow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from celeriac.llm.model import Lane


@dataclass(frozen=True, slots=True)
class Agent:
    """lanes: in order of preference. timeout: the longest one model call may take. queue: whose workers run it.

    follow_ups: asked after the caller's question, one after the other; the last answer is the job's. max_running: jobs
    of this agent at once, in the whole fleet. max_retries: how often a job that met errors which time may cure is tried
    again, after `retry_backoff`, doubling up to `retry_backoff_max`, with full jitter; meanwhile it holds no slot.
    """

    name: str
    description: str
    instructions: str
    lanes: tuple[Lane, ...]
    max_output_tokens: int = 1024
    temperature: float | None = None
    timeout: timedelta = timedelta(seconds=120)
    queue: str = "celeriac"
    api: Literal["chat", "responses"] = "chat"
    follow_ups: tuple[str, ...] = ()
    max_running: int | None = None
    max_retries: int = 3
    retry_backoff: timedelta = timedelta(seconds=1)
    retry_backoff_max: timedelta = timedelta(seconds=60)
