"""A job, in words: where it may be, what a caller sees, what a run may do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from celeriac.jobs.canvas import Canvas
from celeriac.llm.model import Said

if TYPE_CHECKING:
    from celeriac.jobs.journal import Settlement

#: Number of the rules that workers and store agree on. The store refuses a worker with an older one.
PROTOCOL: Final = 1


def rfc_3339(moment: datetime) -> str:
    """In UTC, always with three digits behind the point: times in one spelling sort as text does."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


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
    Place.BEHIND: frozenset({Place.READY, Place.PARKED, Place.ENDED}),
    Place.READY: frozenset({Place.RUNG, Place.ENDED}),
    Place.RUNG: frozenset({Place.RUNNING, Place.READY, Place.PARKED, Place.ENDED}),
    Place.RUNNING: frozenset({Place.READY, Place.PARKED, Place.ENDED}),
    Place.PARKED: frozenset({Place.READY, Place.ENDED}),
    Place.ENDED: frozenset(),
}

#: A replay is no move: it is a submission of the same job, and enters as one.
REPLAYABLE: Final = frozenset({"failed", "cancelled", "expired"})


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
    """The same tables for the scripts."""
    moves = ", ".join(f"{p} = {{{', '.join(f'{t} = true' for t in sorted(to))}}}" for p, to in MOVES.items())
    seen = ", ".join(f"{place} = '{state}'" for place, state in SEEN_AS.items())
    again = ", ".join(f"{state} = true" for state in sorted(REPLAYABLE))
    unknown = f"local AGENT_UNKNOWN = '{json.dumps([AGENT_UNKNOWN.code, AGENT_UNKNOWN.message])}'\n"
    return f"local MOVES = {{{moves}}}\nlocal SEEN_AS = {{{seen}}}\nlocal REPLAYABLE = {{{again}}}\n{unknown}"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job has no answer. code: stable, see `celeriac.errors`. message: for people, and nothing anybody said."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that asks for a job: it alone may, while it holds its own. most: how many a job may ask for in one life.
    others: that it is about to ask for too: it is refused where there is no room for all.

    ancestors: for whom the new job works, nearest first: id, and nano-dollars that the job of it may cost with all that
    work for it, None for any amount.
    """

    id: str
    worker: str
    nonce: str
    most: int
    ancestors: tuple[tuple[str, int | None], ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """How a job ended that another one asked for."""

    state: State
    answer: str | None = field(default=None, repr=False)
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as a caller asks for it.

    input: messages, the last one the user's. limited: its agent has a limit, so its jobs wait in lines
    of their own. limits: as `celeriac.jobs.request.LIMITS` names them. on_budget: what it does when a budget is spent.
    output_schema: what the answer has to be,
    whatever the agent says of that. stream: whether somebody may read along. run_at: it is parked until then. deadline,
    expires_in: it expires unless it has ended by then; the earlier one counts. idempotency_key: the same key of a
    tenant is the same job, for as long as that can be asked for; fingerprint: of the request, to tell a repetition from
    a mistake. canvas: of a job that came through Celery. ignore_result: whether nobody asks Celery for the result;
    None: as the deployment has it for jobs over HTTP. parent: of a job that another one asks for. scopes: whose budgets
    its first call is in, where its outlook is asked for; told: those of them of which the outlook says what they leave,
    None for all.
    """

    id: str
    tenant: str
    agent: str
    queue: str
    input: tuple[Said, ...] = field(repr=False)
    priority: Priority = "normal"
    context_id: str | None = None
    if_busy: Literal["wait", "reject"] = "wait"
    model: str | None = None
    max_output_tokens: int | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    on_budget: Literal["wait", "fail"] = "wait"
    output_schema: Mapping[str, Any] | None = field(default=None, repr=False)
    stream: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    limited: bool = False
    run_at: datetime | None = None
    deadline: datetime | None = None
    expires_in: timedelta | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    canvas: Canvas | None = None
    ignore_result: bool | None = None
    parent: Parent | None = None
    scopes: tuple[str, ...] | None = None
    told: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of a job that waits, or would. position: about how many go before it. mean_cost, budget_left: in nano-dollars;
    what jobs of its agent cost lately, and what the tightest budget that may be told leaves. Each None where nobody can
    say.
    """

    position: int | None = None
    starts_at: datetime | None = None
    mean_cost: int | None = None
    budget_left: int | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """waits_for: the job that holds the context and goes first, or None. resume_at: when a scheduled job goes on.

    known: the idempotency key was used before, for the same request: this is the job of that time, and nothing is said
    of its outlook.
    """

    id: str
    created_at: datetime
    waits_for: str | None = None
    resume_at: datetime | None = None
    known: bool = False
    outlook: Outlook = Outlook()


#: The end of a job that waited for too long for a worker that knows its agent.
AGENT_UNKNOWN: Final = JobError("agent_unknown", "no worker knows its agent, for as long as a job is kept for one")


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a model, as it was booked.

    stands: "open" (admitted, no outcome yet), "settled", "doubt" (it may have been billed) or "released" (it was not).
    nanos: nano-dollars, the highest possible price until it is settled. facts: lane, seconds, error, request_id, ...
    bound: the highest possible price, as it was admitted.
    """

    id: str
    stands: str
    nanos: int
    at: datetime
    facts: Mapping[str, Any]
    bound: int = 0


@dataclass(frozen=True, slots=True)
class Doubt:
    """A call in doubt whose provider may have kept its answer.

    lane: as it is written. bound: in nano-dollars. digest: of its request. at: when it was admitted, a moment before it
    was sent. response: the provider's own name of the answer, request_id: of the request, "" where nobody knows. took:
    input and output tokens that it was expected to use; None where nobody knows that any more. books: what it is booked
    under, "" for nothing. waited, seconds: until it was admitted, and until it failed; 0 where nobody knows.
    """

    call: str
    lane: str
    bound: int
    digest: str
    at: datetime
    response: str = ""
    request_id: str = ""
    took: tuple[int, int] | None = None
    books: str = ""
    waited: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of a tool that somebody has to allow. call: its name in the job. arguments: JSON that a model wrote."""

    call: str
    tool: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody said of such a call. reason: the model is told of it."""

    approved: bool
    reason: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands in the store.

    cost_nanos, in_doubt_nanos: nano-dollars, settled and in doubt. usage: tokens of all paid calls (in lists, of those
    that its last run knew). answer, is_checked, calls, approvals, children: only in `get`, never in lists. is_checked:
    the answer is JSON, and what it had to be. approvals: calls that it waits to be allowed. parent_id: the job that
    asked for it. children: those that it asked for, and what all that work for it cost. context_appended: False where
    the context was deleted while the job ran. crashes: how often its worker died with it since it last made a step;
    dead: it died too often and is kept for replay. stream: somebody may read along. reason, resume_at: why it is
    parked, and until when. attempts: runs so far. replays: how often it was started anew. reserved_nanos: of calls
    under way, children_reserved_nanos: of those of all that work for it. revision: how often any of these sums, its own
    or its children's, was changed; it only grows. max_cost_nanos: what it may cost, with all that work for it; None
    where it was taken by a release that had no such cap.
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
    deadline: datetime | None = None
    reason: str | None = None
    resume_at: datetime | None = None
    answer: str | None = None
    is_checked: bool = False
    error: JobError | None = None
    model: str | None = None
    usage: Mapping[str, int] | None = None
    cost_nanos: int | None = None
    in_doubt_nanos: int = 0
    calls: tuple[Call, ...] = ()
    approvals: tuple[Asked, ...] = ()
    parent_id: str | None = None
    children: tuple[str, ...] = ()
    children_cost_nanos: int = 0
    children_in_doubt_nanos: int = 0
    context_appended: bool | None = None
    steps: int = 0
    crashes: int = 0
    dead: bool = False
    replays: int = 0
    stopping: bool = False
    stream: bool = False
    reserved_nanos: int = 0
    children_reserved_nanos: int = 0
    revision: int = 0
    max_cost_nanos: int | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """A job that another one asked for. job: None where its record has aged out. at_work: it, or one that works for it
    at any depth, has not ended.
    """

    id: str
    job: Job | None
    at_work: bool


@dataclass(frozen=True, slots=True)
class Account:
    """A job with its calls, and those that it asked for, as all of them stood in one moment."""

    job: Job
    children: tuple[Child, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. cursor: hand it back for what is older; None at the end."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Of jobs. dead: dead letters, which are among those that failed."""

    states: Mapping[State, int]
    dead: int


@dataclass(slots=True)
class Claim:
    """A run that this worker now holds. (worker, nonce) is the fence: every write of the run names both.

    worker: changes where the store lost history and knows the worker under a new name. record: as it is stored.
    journal: the steps so far, this run's included. spec, turns, journal: still packed. What cannot be read is the run's
    to end, not the claim's: it is held already. retries: how often it was parked to be tried again. doubts: calls for
    the step that is to be made now, the newest first.
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
    retries: int = 0
    context_version: int = 0
    turns: tuple[bytes, ...] = ()
    journal: tuple[bytes, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    record: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def life(self) -> int:
        """How often the job was started anew."""
        return int(self.record.get("replays", 0))

    @property
    def tell(self) -> int | None:
        """Which of the job's lives Celery is to be told the end of; None: nobody asks Celery."""
        return self.life if "tell" in self.record else None

    @property
    def stream(self) -> bool:
        """Whether somebody reads along."""
        return "stream" in self.record

    @property
    def waited_for_lanes(self) -> float:
        """Seconds since it first had to wait for a lane; 0 where it has made a call since."""
        since = int(self.record.get("lane_since", 0))
        return max(0.0, time.time() - since / 1000) if since else 0.0

    @property
    def deadline(self) -> float | None:
        """By when the job has to have ended, in seconds since 1970."""
        return int(self.record["deadline"]) / 1000 if self.record.get("deadline") else None

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What it waited to be allowed, and nobody has decided about."""
        return read_asked(self.record.get("asked"))

    @property
    def asked_over(self) -> bool:
        """Whether nobody has in the time that there was for it."""
        return "asked_over" in self.record

    @property
    def decided(self) -> dict[str, Decision]:
        """By call."""
        decided = json.loads(self.record.get("decided", b"{}"))
        return {call: Decision(*said) for call, said in decided.items()}

    @property
    def ancestors(self) -> tuple[tuple[str, int | None], ...]:
        """For whom the job works, as `Parent` has it."""
        stored = json.loads(self.record.get("ancestors", b"[]"))
        return tuple((id, int(cap) if cap else None) for id, cap in stored)

    @property
    def chords(self) -> list[str]:
        """The groups of the chords that wait for this job."""
        canvas = self.record.get("canvas")
        return Canvas.unpack(canvas).chords() if canvas else []


def read_asked(stored: bytes | None) -> tuple[Asked, ...]:
    try:
        return tuple(Asked(**asked) for asked in json.loads(stored or b"[]"))
    except (ValueError, TypeError):
        return ()


@dataclass(frozen=True, slots=True)
class Untold:
    """A job that has ended and of whose end Celery has not been told: whoever gets this tells, and says that it has."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends, written in one step. turn: what is appended to the context, already encoded, b"" for nothing.

    settlement: of the call that brought the answer; its money is booked in the same step. is_checked: the answer is
    JSON, and what it had to be.
    """

    state: State
    answer: str | None = None
    error: JobError | None = None
    model: str | None = None
    usage: Mapping[str, int] | None = None
    turn: bytes = b""
    settlement: Settlement | None = None
    is_checked: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """What the store says of an end. state: the one that counts: a job that was asked to stop ends as that says.

    cost_nanos, in_doubt_nanos: of all the job's calls. appended: whether the context took the turn, None for no turn.
    """

    state: State
    cost_nanos: int
    in_doubt_nanos: int
    appended: bool | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that let go of its slot. resume_at: when the job goes on."""

    resume_at: datetime


def as_retried(jobs: Sequence[Job]) -> Iterator[Job]:
    """Of ended jobs, the newest first: in which order they are started again."""
    # Those that were asked for come before whoever asked: it would ask others, where it finds them ended.
    yield from (job for job in jobs if job.parent_id is not None)
    # Of the rest the oldest first: conversations keep their order.
    yield from (job for job in reversed(jobs) if job.parent_id is None)
