"""An agent: a named recipe that jobs follow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from celeriac.llm.model import Lane


@dataclass(frozen=True, slots=True)
class Agent:
    """lanes: in order of preference. timeout: the longest one model call may take. queue: whose workers run it.
    tries_per_lane: how often a lane is asked for one answer before the next one is, where asking again may help.
    patience: how long a job rather waits for a lane that may not be asked than asks a dearer one. too_long: what to do
    with a conversation that is too long for all lanes: "trim" leaves out older turns.

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
    tries_per_lane: int = 2
    patience: timedelta = timedelta(0)
    too_long: Literal["fail", "trim"] = "fail"
    follow_ups: tuple[str, ...] = ()
    max_running: int | None = None
    max_retries: int = 3
    retry_backoff: timedelta = timedelta(seconds=1)
    retry_backoff_max: timedelta = timedelta(seconds=60)
