"""A job, in words: where it may be, what a caller sees, what a run may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal

#: Number of the rules that workers and store agree on. The store refuses a worker with an older one.
PROTOCOL: Final = 1


class Place(StrEnum):
    """Where a job is: in exactly one of these."""

    NEW = "new"
    READY = "ready"
    RUNG = "rung"
    RUNNING = "running"
    PARKED = "parked"
    BEHIND = "behind"
    ENDED = "ended"


#: The legal moves; the scripts refuse every other. An end never changes.
MOVES: Final[Mapping[Place, frozenset[Place]]] = {
    Place.NEW: frozenset({Place.READY, Place.BEHIND, Place.PARKED}),
    Place.BEHIND: frozenset({Place.READY, Place.ENDED}),
    Place.READY: frozenset({Place.RUNG, Place.ENDED}),
    Place.RUNG: frozenset({Place.RUNNING, Place.READY, Place.ENDED}),
    Place.RUNNING: frozenset({Place.READY, Place.PARKED, Place.ENDED}),
    Place.PARKED: frozenset({Place.READY, Place.ENDED}),
    Place.ENDED: frozenset(),
}


class State(StrEnum):
    """What a caller sees."""

    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self in ENDS


ENDS: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

#: How the caller sees the places of a job that has not ended.
SEEN_AS: Final[Mapping[Place, State]] = {
    Place.READY: State.QUEUED,
    Place.RUNG: State.QUEUED,
    Place.BEHIND: State.QUEUED,
    Place.RUNNING: State.RUNNING,
    Place.PARKED: State.PARKED,
}

Priority = Literal["high", "normal", "low"]
PRIORITIES: Final[Mapping[Priority, int]] = {"high": 0, "normal": 1, "low": 2}


def lua() -> str:
    """The same two tables for the scripts."""
    moves = ", ".join(f"{p} = {{{', '.join(f'{t} = true' for t in sorted(to))}}}" for p, to in MOVES.items())
    seen = ", ".join(f"{place} = '{state}'" for place, state in SEEN_AS.items())
    return f"local MOVES = {{{moves}}}\nlocal SEEN_AS = {{{seen}}}\n"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as a caller asks for it. input: messages as (role, text), the last one the user's."""

    id: str
    tenant: str
    agent: str
    queue: str
    input: tuple[tuple[str, str], ...]
    priority: Priority = "normal"
    context_id: str | None = None
    if_busy: Literal["wait", "reject"] = "wait"
    model: str | None = None
    max_output_tokens: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """waits_for: the job that holds the context and goes first, or None."""

    id: str
    created_at: datetime
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed. code: stable, see `celeriac.errors`. message: for people, and nothing anybody said."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands in the store.

    cost_nanos: nano-dollars, None until something was spent. usage, receipt: as the runner wrote them. answer: only in
    `get`, never in lists. context_appended: False where the context was deleted while the job ran.
    """

    id: str
    tenant: str
    agent: str
    state: State
    queue: str
    priority: Priority
    created_at: datetime
    attempts: int = 0
    context_id: str | None = None
    waits_for: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    answer: str | None = None
    error: JobError | None = None
    model: str | None = None
    usage: Mapping[str, int] | None = None
    cost_nanos: int | None = None
    receipt: Any = None
    context_appended: bool | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. cursor: hand it back for what is older; None at the end."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker now holds. (worker, nonce) is the fence: every write of the run names both.

    spec, turns: still packed. What cannot be read is the run's to end, not the claim's: it is held already.
    """

    id: str
    worker: str
    nonce: str
    attempt: int
    tenant: str
    agent: str
    context_id: str | None
    request_id: str
    spec: bytes
    waited: float
    context_version: int = 0
    turns: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends, written in one step. turn: what is appended to the context, already encoded, b"" for nothing."""

    state: State
    answer: str | None = None
    error: JobError | None = None
    model: str | None = None
    usage: Mapping[str, int] | None = None
    cost_nanos: int | None = None
    receipt: Any = None
    turn: bytes = b""
