"""The job store, as callers and runs use it. One change of state is one script; every script may arrive twice."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from sys import intern
from typing import Any, Final

import orjson
from uuid_utils import uuid7

from celeriac import keys
from celeriac.connections import ALWAYS, NEW_WORK, READ, Redis, Scripts, answering, pack, pages, unpack
from celeriac.errors import Conflict, Fenced, Invalid, KeyReused, Stopped
from celeriac.jobs.dispatch import Ringer
from celeriac.jobs.journal import BOOKED, OnBooked, nobody, tell_of_lane, tell_of_money
from celeriac.jobs.model import (
    AGENT_UNKNOWN,
    PRIORITIES,
    SEEN_AS,
    Accepted,
    Account,
    Asked,
    Call,
    Child,
    Claim,
    Counts,
    Doubt,
    Ended,
    Ending,
    Finding,
    Job,
    JobError,
    NewJob,
    Outlook,
    Page,
    Parent,
    Parked,
    Priority,
    State,
    Untold,
    read_asked,
)
from celeriac.jobs.scripts import ENTER, HERE, OUTLOOK
from celeriac.logs import get_logger

log = get_logger(__name__)

PRIORITY_NAMES: Final[Mapping[int, Priority]] = {number: name for name, number in PRIORITIES.items()}

#: What a caller may see of a record; the answer and the calls only of one job at a time.
SHOWN: Final = (
    "place", "state", "tenant", "agent", "queue", "priority", "created", "attempts", "context", "metadata",
    "request_id", "started", "ended", "error", "model", "usage", "cost", "in_doubt", "appended", "deadline", "reason",
    "resume_at", "steps", "crashes", "dead", "replays", "stop", "stream", "parent", "below_cost",
    "below_in_doubt", "reserved", "below_reserved", "revision", "max_cost",
)  # fmt: skip
WHOLE: Final = (*SHOWN, "answer", "checked", "asked")

#: Jobs that one script looks at, and how many such scripts one page takes: a rare agent among a million jobs takes
#: several pages.
LOOKED_AT, LOOKS = 500, 10
#: Tenants whose jobs one script looks through or counts: at most about 3 ms.
TENANTS: Final = 100

#: A caller's idempotency key stands for its job at least this long.
KEY_TTL: Final = timedelta(hours=24)

#: What may be wrong with a job's times, as the submission's script judges it.
UNTIMELY: Final = {
    "over": ("the deadline is over already", "deadline", "give a time that is still to come"),
    "deadline far": ("the deadline is more than a year ahead", "deadline", "give an earlier one, or none"),
    "run_at far": ("run_at is more than a year ahead", "run_at", "give an earlier time, and submit later jobs later"),
    "late": ("the job would expire before it starts", "run_at", "give an earlier run_at or a later deadline"),
}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Keep:
    """How long things are kept. result: an ended job. dead: a dead letter. context: a conversation without jobs.
    unknown_agent: a job whose agent no worker knows, until it fails.
    """

    result: timedelta
    dead: timedelta
    context: timedelta
    unknown_agent: timedelta

    def as_argument(self) -> dict[str, int]:
        times = {
            "result": self.result,
            "dead": self.dead,
            "context": self.context,
            "unknown": self.unknown_agent,
            "idempotency": KEY_TTL,
        }
        return {name: _ms(time) for name, time in times.items()}


@dataclass(frozen=True, slots=True)
class Replayed:
    """fresh: it starts from the beginning: asked for, or because its context has changed since. waits_for: as ever."""

    fresh: bool
    waits_for: str | None


def new_id() -> str:
    """A UUIDv7: ids sort by the time they were made."""
    return str(uuid7())


def new_nonce() -> str:
    """Random, so that no failover can give the same one out twice."""
    return secrets.token_hex(16)


class JobStore:
    """ringer: rings what a script could not ring itself. max_messages, max_bytes: of a context. celery_results: whether
    jobs that did not come through Celery have a Celery result too. lanes: the helpers that know of lanes, for the
    scripts.
    """

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        ringer: Ringer,
        *,
        keep: Keep,
        max_messages: int,
        max_bytes: int,
        lanes: str,
        celery_results: bool = False,
    ) -> None:
        #: As the journal's.
        self.on_booked: OnBooked = nobody
        self._redis = redis
        self._celery_results = celery_results
        self._ringer = ringer
        self._keep = keep.as_argument()
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._submit = scripts.load(HERE / "submit.lua", NEW_WORK, before=ENTER + OUTLOOK, durable=True)
        self._dry_run = scripts.load(HERE / "submit.lua", READ, before=ENTER + OUTLOOK)
        self._outlook_of = scripts.load(HERE / "outlook_of.lua", READ, before=OUTLOOK)
        self._replay = scripts.load(HERE / "replay.lua", NEW_WORK, before=ENTER, durable=True)
        self._claim = scripts.load(HERE / "claim.lua", ALWAYS)
        self._finish = scripts.load(HERE / "finish.lua", ALWAYS, before=lanes, durable=True)
        self._park = scripts.load(HERE / "park.lua", ALWAYS)
        self._give_back = scripts.load(HERE / "give_back.lua", ALWAYS)
        self._break_off = scripts.load(HERE / "break_off.lua", ALWAYS)
        self._cancel = scripts.load(HERE / "cancel.lua", ALWAYS)
        self._resume = scripts.load(HERE / "resume.lua", ALWAYS)
        self._told = scripts.load(HERE / "told.lua", ALWAYS)
        self._get = scripts.load(HERE / "get.lua", READ)
        self._account = scripts.load(HERE / "account.lua", READ)
        self._list = scripts.load(HERE / "list.lua", READ)
        self._newest = scripts.load(HERE / "newest.lua", READ)
        self._count = scripts.load(HERE / "count.lua", READ)

    async def submit(self, job: NewJob, *, dry_run: bool = False) -> Accepted:
        """Take the job: once this returns, it is stored. The same id again is the same job, and so is the same key.
        dry_run: it is checked, and its outlook is told, and nothing is stored; job: with scopes.

        Raises Invalid for times that make no sense, Conflict where the context is busy and the job would not wait,
        KeyReused where the idempotency key stands for another request, StoreFull, StoreUnavailable.
        """
        ignore_result = not self._celery_results if job.ignore_result is None else job.ignore_result
        spec: dict[str, Any] = {
            "input": job.input,
            "model": job.model,
            "max_output_tokens": job.max_output_tokens,
        }
        if job.limits:
            spec["limits"] = dict(job.limits)
        if job.on_budget != "wait":
            spec["on_budget"] = job.on_budget
        if job.output_schema is not None:
            spec["output_schema"] = job.output_schema
        cap = job.limits.get("max_cost_usd")
        max_cost = None if cap is None else str(int(Decimal(cap).scaleb(9)))
        script = self._dry_run if dry_run else self._submit
        said, *rest = await script(
            pack(spec),
            job_id="" if dry_run else job.id,
            id=job.id,
            tenant=job.tenant,
            agent=job.agent,
            queue=job.queue,
            line=_line(job),
            priority=PRIORITIES[job.priority],
            context=job.context_id,
            if_busy=job.if_busy,
            request_id=job.request_id,
            metadata=orjson.dumps(dict(job.metadata)).decode(),
            ignore_result=ignore_result,
            canvas=job.canvas and job.canvas.pack(),
            stream=job.stream,
            tell=not ignore_result or (job.canvas is not None and job.canvas.waits),
            run_at=job.run_at and _ms(job.run_at - EPOCH),
            deadline=job.deadline and _ms(job.deadline - EPOCH),
            expires_in=None if job.expires_in is None else _ms(job.expires_in),
            # A caller's own words do not become part of a key.
            idempotency=job.idempotency_key and hashlib.sha256(job.idempotency_key.encode()).hexdigest()[:32],
            fingerprint=job.fingerprint,
            parent=job.parent and _parent(job.parent),
            scopes=job.scopes,
            told=job.told,
            max_cost=max_cost,
            impatient=job.on_budget == "fail",
            own_model=job.model is not None,
            dry_run=dry_run,
            keep=self._keep,
        )
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        if said == b"stop":
            raise Stopped(f"the job was asked to stop: {rest[0].decode()}")
        if said == b"many":
            raise Conflict(
                f"a job may ask for {job.parent and job.parent.most} others, and a thousand may work for one"
            )
        if said == b"busy":
            await self._ringer.ring(rest[1])
            raise Conflict(
                f"context {job.context_id} is held by job {rest[0].decode()}",
                field="context_id",
                remedy='wait for that job to end, or submit with "if_busy": "wait"',
            )
        if said == b"untimely":
            message, field, remedy = UNTIMELY[rest[0].decode()]
            raise Invalid(message, field=field, remedy=remedy)
        if said == b"reused":
            raise KeyReused(
                f"this key stands for another request, which became job {rest[0].decode()}",
                field="Idempotency-Key",
                remedy="use a new key for a new request",
            )
        if said == b"known":
            return Accepted(rest[0].decode(), _time(rest[1]), known=True)
        created, holder, resume_at, bells, outlook = rest
        await self._ringer.ring(bells)
        return Accepted(
            job.id,
            _time(created),
            holder.decode() or None,
            _time(resume_at) if resume_at else None,
            outlook=_outlook(*outlook),
        )

    async def outlook(self, job: NewJob) -> Outlook:
        """Of a job that is known, by its id, as it stands now. job: with scopes. Raises StoreUnavailable."""
        return _outlook(*await self._outlook_of(id=job.id, scopes=job.scopes, told=job.told))

    async def replay(
        self, job_id: str, tenant: str, *, fresh: bool = False, expires_in: timedelta | None = None
    ) -> Replayed | None:
        """Start an ended job anew, under its id; None where this tenant has no such job.

        It goes on at the step that it had reached, unless `fresh` or its context has changed. Raises Conflict for a job
        that has not ended or that succeeded, StoreFull, StoreUnavailable.
        """
        said, *rest = await self._replay(
            job_id=job_id,
            id=job_id,
            tenant=tenant,
            request=new_nonce(),
            fresh=fresh,
            expires_in=None if expires_in is None else _ms(expires_in),
            keep=self._keep,
        )
        if said == b"unknown":
            return None
        if said == b"broken":
            raise Conflict(
                f"the record of job {job_id} makes no sense",
                field="job_id",
                remedy="submit the job again; `celeriac jobs show` says what can be read of this one",
            )
        if said == b"not":
            raise Conflict(
                f"job {job_id} is {rest[0].decode()}",
                field="job_id",
                remedy="only a job that failed, was cancelled or expired can be started again",
            )
        afresh, holder, bells = rest
        await self._ringer.ring(bells)
        return Replayed(afresh == b"1", holder.decode() or None)

    async def cancel(self, job_id: str, tenant: str | None, *, remember: timedelta | None = None) -> State | None:
        """Stop the job. Answers the state that it is in now; None where there is no such job.

        A job that no worker runs is cancelled at once. A running one is asked to stop and answers within about a
        second; if it finishes first, it has finished. A job that had already ended stays as it is. tenant: None for
        any. remember: for so long a submission through Celery is cancelled as it comes, if there is no such job yet.
        """
        said, *rest = await self._cancel(
            id=job_id, tenant=tenant or "", remember=None if remember is None else _ms(remember), keep=self._keep
        )
        if said == b"unknown":
            return None
        await self._ringer.ring(rest[-1])
        return State.RUNNING if said == b"asked" else State(rest[0].decode())

    async def resume(
        self, job_id: str, tenant: str | None, *, approve: bool, calls: Sequence[str], reason: str = ""
    ) -> int | None:
        """Decide about calls of tools that the job waits to be allowed; once all are decided it goes on.

        Answers how many are left to be decided, None where there is no such job. Twice is as good as once. Raises
        Conflict for a job that waits for no approval, and for calls that were decided otherwise, Invalid for calls that
        it does not ask for.
        """
        said, *rest = await self._resume(
            id=job_id,
            tenant=tenant or "",
            approve=approve,
            reason=reason,
            calls=list(calls),
            keep=self._keep,
        )
        if said == b"unknown":
            return None
        if said == b"idle":
            raise Conflict(
                f"job {job_id} waits for no approval, it is {rest[0].decode()}",
                field="job_id",
                remedy="`approvals` of GET /v1/jobs/{id} says what it waits for",
            )
        if said == b"strange":
            raise Invalid(
                f"the job does not ask for {rest[0].decode()}",
                field="calls",
                remedy="`approvals` of GET /v1/jobs/{id} has them",
            )
        if said == b"decided":
            raise Conflict(
                f"{rest[0].decode()} was decided otherwise", field="calls", remedy="what is decided stays as it is"
            )
        left, bells = rest
        await self._ringer.ring(bells)
        return int(left)

    async def get(self, job_id: str, tenant: str | None) -> Job | None:
        """The job, answer included; None where this tenant has no such job. tenant: None for any."""
        waits_for, values, calls, children = await self._get(id=job_id, fields=WHOLE)
        job = _job(job_id, waits_for, values, _calls(calls), tuple(sorted(id.decode() for id in children)))
        return job if job is not None and tenant in (None, job.tenant) else None

    async def account(self, job_id: str, tenant: str | None) -> Account | None:
        """The job with its calls and the jobs that it asked for; None where this tenant has no such job."""
        values, calls, below = await self._account(id=job_id, fields=SHOWN)
        children = [
            Child(id.decode(), _readable(id.decode(), b"", row) if row else None, bool(at_work))
            for id, row, at_work in below
        ]
        found = tuple(sorted(children, key=lambda child: child.id))
        job = _job(job_id, b"", values, _calls(calls), tuple(child.id for child in found))
        return Account(job, found) if job is not None and tenant in (None, job.tenant) else None

    async def list(
        self,
        tenant: str | None,
        *,
        state: State | None = None,
        dead: bool = False,
        agent: str = "",
        reason: str = "",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """A page, newest first; with more to come it may be shorter than `limit`. tenant: None for everybody's.

        dead: dead letters only. reason: only those that are parked for it.

        Raises Invalid for a cursor that no page gave out.
        """
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal()):
            raise Invalid("the cursor is not one that a page gave out", field="cursor", remedy="leave it out to begin")
        before = "+inf" if cursor is None else f"({cursor}"
        name, parts = "dead" if dead else "jobs_in" if state else "jobs", {"state": state} if state and not dead else {}
        indexes = [keys.spell(name, tenant=whose, **parts) for whose in await self._tenants(tenant)]
        found: list[Job] = []
        for look in range(LOOKS):
            left = limit - len(found)
            # Without a condition beside the index each of them is shown.
            most = LOOKED_AT if agent or reason else min(LOOKED_AT, left + 1)
            then, *rows = await self._list(
                index=None if tenant is None else indexes[0],
                ids=await self._newest_of(indexes, before, most) if tenant is None else None,
                agent=agent,
                reason=reason,
                before=before,
                most=most,
                limit=left,
                fields=SHOWN,
            )
            found += [job for id, *row in rows if (job := _readable(id.decode(), *row)) is not None]
            before = then.decode()
            if not before or len(found) >= limit or look == LOOKS - 1:
                break
        return Page(tuple(found), before.lstrip("(") or None)

    async def _newest_of(self, indexes: Sequence[str], before: str, most: int) -> Sequence[str]:
        """Id and submission number of the newest jobs of all tenants, as `list.lua` takes them."""
        found: list[tuple[str, str]] = []
        for page in pages(indexes, TENANTS):
            # Who is older than those that are found already is not asked for.
            after = found[-1][1] if len(found) == most else "-inf"
            flat = await self._newest(indexes=page, before=before, after=after, most=most)
            texts = [text.decode() for text in flat]
            found += zip(texts[::2], texts[1::2], strict=True)
            found = sorted(found, key=lambda job: float(job[1]), reverse=True)[:most]
        return [text for job in found for text in job]

    async def count(self, tenant: str | None) -> Counts:
        """How many jobs there are. tenant: None for everybody's."""
        tenants = await self._tenants(tenant)
        sums = [0] * (len(State) + 1)
        for page in pages(tenants, TENANTS):
            counted = await self._count(tenants=page, states=list(State))
            sums = [sum(pair) for pair in zip(sums, counted, strict=True)]
        *states, dead = sums
        return Counts(dict(zip(State, states, strict=True)), dead)

    async def _tenants(self, tenant: str | None) -> Sequence[str]:
        """This one, or all that have jobs."""
        if tenant is not None:
            return [tenant]
        async with answering():
            names: Any = await self._redis.smembers(keys.spell("tenants"))
        return [name.decode() for name in names]

    async def tenants(self, most: int) -> Sequence[str]:
        """Some of those that have jobs, by name; all of them where they are no more. Raises StoreUnavailable."""
        async with answering():
            found: Any = await self._redis.srandmember(keys.spell("tenants"), most)
        return sorted(name.decode() for name in found)

    async def question(self, job_id: str) -> Sequence[tuple[str, str]]:
        """What was asked, as it was submitted, by whom and without pictures; nothing where there is no such job.

        Raises StoreUnavailable.
        """
        async with answering():
            spec: Any = await self._redis.hget(keys.spell("job", id=job_id), "spec")
        return tuple((said[0], said[1]) for said in unpack(spec)["input"]) if spec else ()

    async def workers_alive(self) -> Sequence[frozenset[str]]:
        """For each worker whose lease runs, the queues that it serves."""
        async with answering():
            seconds, micros = await self._redis.time()
            names: Any = await self._redis.zrange(
                keys.spell("workers"), seconds * 1000 + micros // 1000, "+inf", byscore=True
            )
            asked = self._redis.pipeline(transaction=False)
            for name in names:
                asked.hget(keys.spell("worker", worker=name.decode()), "queues")
            answers = await asked.execute(raise_on_error=False)
            # A record that makes no sense serves nothing; upkeep sees to it.
            return [frozenset((_text(q) or "").split(",") if isinstance(q, bytes) else ()) for q in answers]

    async def claim(self, job_id: str, worker: str, nonce: str) -> Claim | Untold | None:
        """Take the job for this worker, or None: a bell for a job that is claimed, ended or gone rings for nothing.

        Untold: it has ended, and this run is to tell Celery.

        nonce: random, made once for this run; the same claim again gets the same answer. Raises Fenced where the store
        does not know the worker any more.
        """
        said, *rest = await self._claim(id=job_id, worker=worker, nonce=nonce, spoilt=False, keep=self._keep)
        if said == b"gone":
            raise Fenced(f"the store does not know the worker {worker}")
        if said == b"nothing":
            await self._ringer.ring(rest[1])
            if rest[0] == b"excluded":
                why = "no such agent here, and nobody else took it yet"
                log.warning("agent_unknown", job_id=job_id, agent=rest[2].decode(), reason=why)
            elif rest[0] == b"given_up":
                log.error("agent_unknown", job_id=job_id, agent=rest[2].decode(), reason=AGENT_UNKNOWN.message)
            return None
        flat = rest[0]
        # The names are the same for every job, and a worker may hold thousands of records.
        record = {intern(name.decode()): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        if said == b"ended":
            job = _job(job_id, b"", [record.get(name) for name in SHOWN])
            return Untold(job) if job is not None else None
        _, version, turns, journal, doubts = rest
        try:
            return Claim(
                id=job_id,
                worker=worker,
                nonce=nonce,
                attempt=int(record["attempts"]),
                tenant=record["tenant"].decode(),
                agent=record["agent"].decode(),
                context_id=_text(record.get("context")),
                request_id=record["request_id"].decode(),
                spec=record["spec"],
                waited=(int(record["started"]) - int(record["created"])) / 1000,
                retries=int(record["retries"]),
                context_version=version,
                turns=tuple(turns),
                journal=tuple(journal),
                doubts=_doubts(doubts) if doubts else (),
                record=record,
            )
        except (KeyError, ValueError):
            # It is held: handed back it would be claimed again, and again. Upkeep raises the alarm.
            _, *rest = await self._claim(id=job_id, worker=worker, nonce=nonce, spoilt=True, keep=self._keep)
            await self._ringer.ring(rest[1])
            return None

    async def finish(self, claim: Claim, ending: Ending) -> Ended:
        """End the run: all of it in one step, or nothing but the money of its last call.

        Raises Fenced where this run no longer holds the job.
        """
        said, *rest = await self._finish(
            pack(ending.answer) if ending.answer is not None else b"",
            ending.turn,
            checked=ending.is_checked,
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            state=ending.state,
            model=ending.model or "",
            usage=orjson.dumps(dict(ending.usage)).decode() if ending.usage is not None else "",
            error=orjson.dumps([ending.error.code, ending.error.message]).decode() if ending.error else "",
            settlement=ending.settlement and ending.settlement.as_argument(),
            version=claim.context_version,
            keep=self._keep,
            max_messages=self._max_messages,
            max_bytes=self._max_bytes,
        )
        changed, money, *rest = rest
        tell_of_lane(ending.settlement, changed)
        tell_of_money(claim, ending.settlement, money)
        if ending.settlement is not None and money in BOOKED:
            self.on_booked(claim, ending.settlement)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        state, cost, in_doubt, appended, bells = rest
        await self._ringer.ring(bells)
        return Ended(State(state.decode()), int(cost), int(in_doubt), None if appended == b"" else appended == b"1")

    async def park(self, claim: Claim, reason: str, delay: timedelta, *, retry: bool = False) -> Parked | State:
        """Let go of the slot for a while. retry: it counts as a try.

        Answers the state in which the job ended instead, where it was asked to stop. Raises Fenced where this run no
        longer holds the job.
        """
        return await self._let_go(claim, reason=reason, delay=_ms(delay), retry=retry)

    async def wait_for_lane(
        self,
        claim: Claim,
        lane: str,
        wait: timedelta | None,
        *,
        most: tuple[int, int] = (0, 0),
        only: bool = True,
        retry: bool = False,
    ) -> Parked | State:
        """Let go of the slot until the lane may be asked again, which others find out. wait: how long that may be,
        None where nobody knows it.

        most: input and output tokens that the next call may use. only: whether it is the job's only lane; with others,
        it goes on after a while in any case, to ask them. Else as `park`.
        """
        return await self._let_go(claim, delay=-1 if wait is None else _ms(wait), retry=retry, lane=(lane, *most, only))

    async def wait_for_approval(self, claim: Claim, asked: Sequence[Asked], wait: timedelta | None) -> Parked | State:
        """Let go of the slot until somebody has decided about these calls, at most so long. Else as `park`.

        wait: None where it waited for them before, and waits on.
        """
        packed = orjson.dumps(list(asked)).decode()  # it writes dataclasses as they are
        return await self._let_go(
            claim, reason="waiting_approval", delay=-1 if wait is None else _ms(wait), asked=packed
        )

    async def wait_for_children(self, claim: Claim, longest: timedelta) -> Parked | State:
        """Let go of the slot until the jobs that this one asked for have ended, at most so long. Else as `park`."""
        return await self._let_go(claim, reason="waiting_children", delay=_ms(longest))

    async def findings(self, job_id: str, children: Sequence[str]) -> tuple[Finding | None, ...]:
        """Of these jobs, which this one asked for, how they ended; None for one that has not, or is not known."""
        async with answering():
            asked = self._redis.pipeline(transaction=False)
            asked.hmget(keys.spell("children", id=job_id), list(children))
            asked.hmget(keys.spell("answers", id=job_id), list(children))
            ends, answers = await asked.execute()
        return tuple(_finding(end, answer) for end, answer in zip(ends, answers, strict=True))

    async def leave_to_others(self, claim: Claim) -> Parked | State:
        """This worker does not know the job's agent: it is parked for five seconds, and not for this worker again.

        Answers FAILED where no worker has known it for as long as it is kept for one. Else as `park`.
        """
        return await self._let_go(claim, unknown=True)

    async def _let_go(
        self,
        claim: Claim,
        *,
        reason: str = "",
        delay: int = 0,
        retry: bool = False,
        unknown: bool = False,
        lane: tuple[str, int, int, bool] | None = None,
        asked: str | None = None,
    ) -> Parked | State:
        said, *rest = await self._park(
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            reason=reason,
            delay=delay,
            retry=retry,
            unknown=unknown,
            lane=lane,
            asked=asked,
            keep=self._keep,
        )
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        await self._ringer.ring(rest[1])
        return Parked(_time(rest[0])) if said == b"parked" else State(rest[0].decode())

    async def give_back(self, claim: Claim) -> None:
        """Hand the job back in good order: it is ready at once. Raises Fenced where this run no longer holds it."""
        said, *rest = await self._give_back(id=claim.id, worker=claim.worker, nonce=claim.nonce, keep=self._keep)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        await self._ringer.ring(rest[0])

    async def break_off(self, claim: Claim) -> str:
        """A fault of ours ended the run. Answers what became of the job: "ready", "dead", "cancelled" or "expired".

        Raises Fenced where this run no longer holds it.
        """
        said, *rest = await self._break_off(id=claim.id, worker=claim.worker, nonce=claim.nonce, keep=self._keep)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        await self._ringer.ring(rest[1])
        fate: str = rest[0].decode()
        return fate

    async def told(self, job_id: str, replays: int, *, later: timedelta = timedelta()) -> None:
        """Celery knows how this life of the job ended. Twice is as good as once.

        later: it could not be told yet, and a bell rings for it after so long, at most five minutes.
        """
        await self._ringer.ring(await self._told(id=job_id, replays=replays, keep=self._keep, later=_ms(later)))


def _ms(time: timedelta) -> int:
    return time // timedelta(milliseconds=1)


def _time(ms: bytes | int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


def _text(value: bytes | None) -> str | None:
    return value.decode() if value else None


def _calls(flat: Sequence[bytes]) -> tuple[Call, ...]:
    """Oldest first."""
    calls = []
    for name, text in zip(flat[::2], flat[1::2], strict=True):
        stands, bound, nanos, at, facts = text.split(b" ", 4)
        told = orjson.loads(facts)
        # What its lane expects of it, how its question is known again, and under what it is booked.
        for ours in ("took", "digest", "books"):
            told.pop(ours, None)
        calls.append(Call(name.decode(), stands.decode(), int(nanos), _time(at), told, int(bound)))
    return tuple(sorted(calls, key=lambda call: (call.at, call.id)))


def _doubts(flat: Sequence[bytes]) -> tuple[Doubt, ...]:
    """The newest first: names of calls sort by the time they were made. What makes no sense is nobody's to look up."""
    found = []
    for name, text in sorted(zip(flat[::2], flat[1::2], strict=True), reverse=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            _, bound, _, at, facts = text.split(b" ", 4)
            told = orjson.loads(facts)
            found.append(
                Doubt(
                    call=name.decode(),
                    lane=told["lane"],
                    bound=int(bound),
                    digest=told["digest"],
                    at=_time(at),
                    response=told.get("response", ""),
                    request_id=told.get("request_id", ""),
                    took=(int(told["took"][0]), int(told["took"][1])) if "took" in told else None,
                    books=told.get("books", ""),
                    waited=float(told.get("waited", 0)),
                    seconds=float(told.get("seconds", 0)),
                )
            )
    return tuple(found)


def _usage(calls: Sequence[Call]) -> dict[str, int] | None:
    """Of all calls that were paid, those that a run lost in between included."""
    paid = [call.facts["usage"] for call in calls if call.stands == "settled" and call.facts.get("usage")]
    names = dict.fromkeys(name for usage in paid for name in usage)
    return {name: sum(usage.get(name, 0) for usage in paid) for name in names} if paid else None


def _readable(job_id: str, *row: Any) -> Job | None:
    """As `_job`; None too where the record makes no sense: it hides no other."""
    try:
        return _job(job_id, *row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("record_not_readable", job_id=job_id, error=type(error).__name__)
        return None


def _line(job: NewJob) -> str:
    return f"{job.queue}/{job.agent}" if job.limited else job.queue


def _outlook(position: int | bytes = b"", starts: bytes = b"", mean: bytes = b"", left: bytes = b"") -> Outlook:
    return Outlook(
        position=None if position == b"" else int(position),
        starts_at=_time(starts) if starts else None,
        mean_cost=int(mean) if mean else None,
        budget_left=int(left) if left else None,
    )


def _parent(parent: Parent) -> dict[str, Any]:
    ancestors = [(id, "" if cap is None else str(cap)) for id, cap in parent.ancestors]
    facts = {"id": parent.id, "worker": parent.worker, "nonce": parent.nonce, "most": parent.most}
    return facts | {"ancestors": ancestors, "others": parent.others}


def _finding(end: bytes | None, answer: bytes | None) -> Finding | None:
    if not end:
        return None
    state, _, error = end.partition(b" ")
    why = JobError(*orjson.loads(error)) if error else None
    return Finding(State(state.decode()), unpack(answer) if answer else None, why)


def _job(
    job_id: str,
    waits_for: bytes,
    values: Sequence[Any],
    calls: tuple[Call, ...] = (),
    children: tuple[str, ...] = (),
) -> Job | None:
    r = dict(zip(WHOLE, values, strict=False))
    place = r["place"]
    if place is None:
        return None
    error = r["error"] and JobError(*orjson.loads(r["error"]))
    answer = r.get("answer")
    return Job(
        id=job_id,
        tenant=_text(r["tenant"]) or "",
        agent=_text(r["agent"]) or "",
        # A place that only a newer release knows is one where a job waits for something.
        state=State(r["state"].decode()) if r["state"] else SEEN_AS.get(place.decode(), State.PARKED),
        queue=_text(r["queue"]) or "",
        priority=PRIORITY_NAMES[int(r["priority"] or 1)],
        created_at=_time(r["created"] or 0),
        attempts=int(r["attempts"] or 0),
        context_id=_text(r["context"]),
        waits_for=_text(waits_for),
        metadata=orjson.loads(r["metadata"] or b"{}"),
        request_id=_text(r["request_id"]) or "",
        started_at=_time(r["started"]) if r["started"] else None,
        ended_at=_time(r["ended"]) if r["ended"] else None,
        deadline=_time(r["deadline"]) if r["deadline"] else None,
        reason=_text(r["reason"]),
        resume_at=_time(r["resume_at"]) if r["resume_at"] else None,
        answer=unpack(answer) if answer else None,
        is_checked=bool(r.get("checked")),
        error=error or None,
        model=_text(r["model"]),
        usage=_usage(calls) or (orjson.loads(r["usage"]) if r["usage"] else None),
        cost_nanos=int(r["cost"]) if r["cost"] else None,
        in_doubt_nanos=int(r["in_doubt"] or 0),
        calls=calls,
        approvals=read_asked(r.get("asked")) if r["reason"] == b"waiting_approval" else (),
        parent_id=_text(r["parent"]),
        children=children,
        children_cost_nanos=int(r["below_cost"] or 0),
        children_in_doubt_nanos=int(r["below_in_doubt"] or 0),
        context_appended=None if not r["appended"] else r["appended"] == b"1",
        steps=int(r["steps"] or 0),
        crashes=int(r["crashes"] or 0),
        dead=r["dead"] is not None,
        replays=int(r["replays"] or 0),
        stopping=r["stop"] is not None,
        stream=r["stream"] is not None,
        reserved_nanos=int(r["reserved"] or 0),
        children_reserved_nanos=int(r["below_reserved"] or 0),
        revision=int(r["revision"] or 0),
        max_cost_nanos=int(r["max_cost"]) if r["max_cost"] else None,
    )
