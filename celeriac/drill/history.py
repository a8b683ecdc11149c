"""What a drill saw, and whether it may be so. Data only: nothing here asks anybody.

A drill writes down every submission and what came of it, every end that it saw while it ran, and at the end each job,
each conversation, the provider's bill and the store's keys. `violations` says which promises were broken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from celeriac.drill.leftovers import StoredKey, orphans
from celeriac.jobs.model import ENDS, State

#: accepted: 202. maybe: 503 that names the job. unknown: no answer at all. refused: anything else.
Outcome = Literal["accepted", "maybe", "unknown", "refused"]

#: Kinds of violations, with what each means.
KINDS: Final[Mapping[str, str]] = {
    "lost": "answered with 202 and not ended",
    "twice": "ended, and later another end",
    "doubled": "one idempotency key, more than one job",
    "wrong answer": "the answer belongs to another job",
    "context": "a turn that is missing, double or out of order",
    "not billed": "settled, but the provider billed no such call, or other tokens",
    "not booked": "billed by the provider, and neither settled nor in doubt",
    "bought twice": "two answered calls for one step",
    "orphan": "a lease, slot, place or key that nothing explains",
    "unnoticed": "history was lost and no worker noticed",
    "unexpected": "what this scenario promises besides did not happen",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """kind: one of KINDS. subject: the job, context, request or key."""

    kind: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.what}"


@dataclass(frozen=True, slots=True)
class Post:
    """One submission. label: in the job's input, its metadata and as its idempotency key. at: seconds since 1970."""

    label: str
    at: float
    outcome: Outcome
    job_id: str = ""
    status: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One line of a job's receipt."""

    request_id: str
    error: str | None
    in_doubt: bool
    step: int = 1
    late: bool = False

    @property
    def paid(self) -> bool:
        return self.error is None and not self.in_doubt

    @property
    def answered(self) -> bool:
        """In time: an answer that came after its run had lost the job is paid, and was never of use."""
        return self.paid and not self.late


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as it was read at one moment. tokens: input, cache_read, output; None where nothing was settled.

    appended: whether its turn became part of the conversation, None where it was not to.
    """

    id: str
    at: float
    label: str
    state: State
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    context: str | None = None
    answer: str | None = None
    error: str | None = None
    calls: tuple[Call, ...] = ()
    tokens: tuple[int, int, int] | None = None
    appended: bool | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS

    @property
    def end(self) -> tuple[object, ...]:
        """What must never change."""
        return self.state, self.ended, self.answer, self.error

    @property
    def doubts(self) -> int:
        return sum(call.in_doubt for call in self.calls)


@dataclass(frozen=True, slots=True)
class Billed:
    """One call on the provider's bill."""

    request_id: str
    label: str
    at: float
    written: bool
    tokens: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """affected: job -> when its run began (seconds since 1970), None for a job that waited."""

    kind: str
    at: float
    affected: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rewind:
    """The store lost what it had answered after `kept_until`, at `at`: outside the promise, but it must be noticed.

    longest_call: seconds; calls that began so long before belong to the lost time, too.
    """

    kept_until: float
    at: float
    longest_call: float = 0.0

    def lost(self, moment: float, slack: float = 0.0) -> bool:
        return self.kept_until - slack <= moment <= self.at


@dataclass(slots=True)
class History:
    """final: the jobs at the end, by id; a job that is not there was not found. turns: context -> (role, text), ...
    said: job -> when each of the runs that say that they ended it said so (seconds since 1970).

    billed, keys: None where the drill cannot see them. noticed: a worker reported that history was lost.
    echoes: answers repeat the question, as the drill's own provider does.
    """

    posts: list[Post] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    final: dict[str, Seen] = field(default_factory=dict)
    turns: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    said: dict[str, list[float]] = field(default_factory=dict)
    billed: list[Billed] | None = None
    keys: list[StoredKey] | None = None
    faults: list[Fault] = field(default_factory=list)
    rewinds: list[Rewind] = field(default_factory=list)
    noticed: bool = False
    echoes: bool = True
    unexpected: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> dict[str, Post]:
        """The first acceptance of each job."""
        jobs: dict[str, Post] = {}
        for post in self.posts:
            if post.outcome == "accepted":
                jobs.setdefault(post.job_id, post)
        return jobs

    @property
    def known(self) -> set[str]:
        """Every job that somebody named to us."""
        return {post.job_id for post in self.posts if post.job_id} | self.final.keys()

    def outcomes(self) -> dict[str, int]:
        """How submissions were answered: how often which status, 0 for none."""
        return dict(Counter(f"{post.outcome} {post.status}" for post in self.posts))

    def forgotten(self) -> list[str]:
        """Jobs that were answered with 202 and went with the history that the store lost."""
        return [
            id
            for id, post in self.accepted.items()
            if id not in self.final and any(rewind.lost(post.at) for rewind in self.rewinds)
        ]

    def void(self, moment: float, slack: float = 0.0) -> bool:
        return any(rewind.lost(moment, slack or rewind.longest_call) for rewind in self.rewinds)


def violations(history: History) -> list[Violation]:
    """Every promise that this history breaks."""
    return [
        *_lost(history),
        *_twice(history),
        *_doubled(history),
        *_wrong_answers(history),
        *_contexts(history),
        *_money(history),
        *(Violation("orphan", key, what) for key, what in orphans(history.keys or (), settled=_all_ended(history))),
        *_unnoticed(history),
        *(Violation("unexpected", "scenario", what) for what in history.unexpected),
    ]


def _all_ended(history: History) -> bool:
    return all(job.has_ended for job in history.final.values())


def _lost(history: History) -> Iterator[Violation]:
    forgotten = set(history.forgotten())
    for id, post in history.accepted.items():
        job = history.final.get(id)
        if id in forgotten or (job is not None and job.has_ended):
            continue
        yield Violation("lost", id, f"is {job.state}" if job else f"is gone ({post.label})")
    for post in history.posts:
        job = history.final.get(post.job_id)
        if post.outcome == "maybe" and job is not None and not job.has_ended:
            yield Violation("lost", post.job_id, f"was stored, though its 202 was not delivered, and is {job.state}")


def _twice(history: History) -> Iterator[Violation]:
    first: dict[str, Seen] = {}
    told: set[str] = set()
    for seen in [*history.seen, *history.final.values()]:
        if history.void(seen.at):
            continue
        before = first.get(seen.id)
        if before is None:
            if seen.has_ended:
                first[seen.id] = seen
        # The same end with another time was stored again: it was seen before a Redis that was killed had it on disk.
        elif replace(before, ended=None).end != replace(seen, ended=None).end and seen.id not in told:
            told.add(seen.id)
            yield Violation(
                "twice", seen.id, f"was {before.state} at {before.ended}, then {seen.state} at {seen.ended}"
            )

    for id, times in history.said.items():
        if sum(not history.void(at) for at in times) > 1:
            yield Violation("twice", id, f"{len(times)} runs say that they ended it")


def _doubled(history: History) -> Iterator[Violation]:
    jobs: dict[str, set[str]] = defaultdict(set)
    for job in history.final.values():
        if job.label:
            jobs[job.label].add(job.id)
    for label, ids in jobs.items():
        if len(ids) > 1:
            yield Violation("doubled", label, f"is {len(ids)} jobs: {', '.join(sorted(ids))}")


def _wrong_answers(history: History) -> Iterator[Violation]:
    for job in history.final.values() if history.echoes else ():
        if job.state == State.SUCCEEDED and job.label and job.label not in (job.answer or "").split():
            yield Violation("wrong answer", job.id, f"was asked {job.label} and answers {(job.answer or '')[:60]!r}")


def _contexts(history: History) -> Iterator[Violation]:
    """The turns of a conversation are those of its succeeded jobs, in the order of submission, each once.

    But an answer that was made from turns that went with lost history is not appended, and says so.
    """
    order = {post.job_id: number for number, post in reversed([*enumerate(history.posts)]) if post.job_id}
    expected: dict[str, list[Seen]] = defaultdict(list)
    for job in history.final.values():
        unfounded = job.appended is False and history.rewinds
        if job.context and job.state == State.SUCCEEDED and not unfounded:
            expected[job.context].append(job)
    for context in expected.keys() | history.turns.keys():
        jobs = sorted(expected[context], key=lambda job: (job.created, order.get(job.id, 0)))
        roles = ("user", "assistant") if history.echoes else ("user",)
        should = [(role, job.label) for job in jobs for role in roles]
        does = [(role, _label(text)) for role, text in history.turns.get(context, []) if role in roles]
        if should == does:
            continue
        missing, double = Counter(should) - Counter(does), Counter(does) - Counter(should)
        problems = [f"{label} ({role}) is missing" for role, label in missing]
        problems += [f"{label} ({role}) is there too often" for role, label in double]
        yield Violation("context", context, "; ".join(problems) or "the turns are out of order")


def _label(text: str) -> str:
    """The label in a question or in the echo that answers it: the first word that looks like one."""
    return next((word for word in text.split() if word.startswith(LABEL)), text[:40])


#: How each label begins.
LABEL: Final = "drill-"


def _money(history: History) -> Iterator[Violation]:
    for job in history.final.values():
        answered = Counter(call.step for call in job.calls if call.answered)
        for step, times in answered.items():
            if times > 1:
                yield Violation("bought twice", job.id, f"step {step} has {times} answered calls")
    if history.billed is None:
        return
    bill = {line.request_id: line for line in history.billed}
    yield from _settled(history, bill)
    yield from _booked(history, bill.values())


def _settled(history: History, bill: Mapping[str, Billed]) -> Iterator[Violation]:
    """What we say that we paid is what the provider says."""
    for job in history.final.values():
        lines = []
        for call in job.calls:
            if not call.paid:
                continue
            line = bill.get(call.request_id)
            if line is None or line.label != job.label:
                other = f" (it is of {line.label})" if line else ""
                yield Violation("not billed", job.id, f"names {call.request_id or 'no request'}{other}")
            else:
                lines.append(line)
        billed = tuple(map(sum, zip(*(line.tokens for line in lines), strict=True))) or (0, 0, 0)
        if lines and job.tokens is not None and job.tokens != billed and job.state == State.SUCCEEDED:
            yield Violation("not billed", job.id, f"counts {job.tokens} tokens, the provider {billed}")


def _booked(history: History, bill: Iterable[Billed]) -> Iterator[Violation]:
    """Each billed call is named as settled or in doubt, or covered by a call in doubt that has no name of its own."""
    named: dict[str, Call] = {}
    cover: Counter[str] = Counter()
    for job in history.final.values():
        for call in job.calls:
            if call.request_id:
                named[call.request_id] = call
            elif call.in_doubt:
                cover[job.label] += 1
    for line in bill:
        if history.void(line.at):
            continue
        by_name = named.get(line.request_id)
        if by_name is None and cover[line.label] > 0:
            cover[line.label] -= 1
        elif by_name is None:
            yield Violation("not booked", line.request_id, f"was billed for {line.label or 'nobody we know'}")
        elif by_name.error is not None and not by_name.in_doubt:
            yield Violation(
                "not booked", line.request_id, f"was billed for {line.label}, and released ({by_name.error})"
            )


def _unnoticed(history: History) -> Iterator[Violation]:
    if (gone := history.forgotten()) and not history.noticed:
        yield Violation("unnoticed", "workers", f"the store lost {len(gone)} answered jobs, and no worker says so")


def recoveries(history: History) -> list[float]:
    """Seconds from each fault to the end of each job that it hit, or to its next run if another fault came first.

    Jobs that did not end are not in it: they are lost, which is worse than late.
    """
    hits: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for fault in sorted(history.faults, key=lambda fault: fault.at):
        for id, began in fault.affected.items():
            hits[id].append((fault.at, began))
    found = []
    for id, faults in hits.items():
        since, *_ = faults[0]
        for at, began in faults[1:]:
            if began is not None and began >= since:
                found.append(began - since)
                since = at
        job = history.final.get(id)
        if job is not None and job.ended is not None and job.ended >= since:
            found.append(job.ended - since)
    return sorted(found)


def seen_of(body: Mapping[str, Any], at: float) -> Seen:
    """A job as `GET /v1/jobs/{id}` answers it."""
    usage = body.get("usage")
    return Seen(
        id=body["id"],
        at=at,
        label=body["metadata"].get("drill", ""),
        state=State(body["state"]),
        created=_seconds(body["created_at"]) or 0.0,
        started=_seconds(body.get("started_at")),
        ended=_seconds(body.get("ended_at")),
        context=body.get("context_id"),
        answer=body.get("answer"),
        error=(body.get("error") or {}).get("code"),
        calls=tuple(
            Call(call["request_id"], call["error"], call["in_doubt"], call["step"], call["late"])
            for call in body.get("calls") or ()
        ),
        appended=body.get("context_appended"),
        tokens=usage and (usage["input_tokens"], usage["cache_read_tokens"], usage["output_tokens"]),
    )


def billed_of(line: Mapping[str, Any]) -> Billed:
    """A line of the bill as the drill's provider writes it."""
    tokens = (line["input"], line["cache_read"], line["output"])
    return Billed(line["id"], _label(line["about"]), line["at"], line["written"], tokens)


def _seconds(time: str | None) -> float | None:
    return datetime.fromisoformat(time).timestamp() if time else None
