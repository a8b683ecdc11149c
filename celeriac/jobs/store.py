"""The job store, as callers and runs use it. One change of state is one script; every script may arrive twice."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson
from uuid_utils import uuid7

from celeriac import keys
from celeriac.connections import ALWAYS, CLOCK, NEW_WORK, READ, Redis, Scripts, answering, pack, unpack
from celeriac.errors import Conflict, Fenced, Invalid
from celeriac.jobs import model
from celeriac.jobs.dispatch import Ringer
from celeriac.jobs.model import (
    PRIORITIES,
    SEEN_AS,
    Accepted,
    Claim,
    Ending,
    Job,
    JobError,
    NewJob,
    Page,
    Place,
    Priority,
    State,
)

HERE: Final = Path(__file__).parent
PRIORITY_NAMES: Final[Mapping[int, Priority]] = {number: name for name, number in PRIORITIES.items()}

#: What a caller may see of a record; the answer and the receipt only of one job at a time.
SHOWN: Final = (
    "place", "state", "tenant", "agent", "queue", "priority", "created", "attempts", "context", "metadata",
    "request_id", "started", "ended", "error", "model", "usage", "cost", "appended",
)  # fmt: skip
WHOLE: Final = (*SHOWN, "answer", "receipt")


def new_id() -> str:
    """A UUIDv7: ids sort by the time they were made."""
    return str(uuid7())


def new_nonce() -> str:
    """Random, so that no failover can give the same one out twice."""
    return secrets.token_hex(16)


def scripts(redis: Redis, context_helpers: str, clock: str = CLOCK) -> Scripts:
    """The helpers that every script of the job store stands on."""
    return Scripts(redis, model.lua() + context_helpers + (HERE / "lines.lua").read_text(), clock)


class JobStore:
    """ringer: rings what a script could not ring itself. result_ttl: how long an ended job is kept."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        ringer: Ringer,
        *,
        result_ttl: timedelta,
        context_ttl: timedelta,
        max_messages: int,
        max_bytes: int,
    ) -> None:
        self._redis = redis
        self._ringer = ringer
        self._ending: dict[str, Any] = {
            "result_ttl": int(result_ttl.total_seconds() * 1000),
            "context_ttl": int(context_ttl.total_seconds() * 1000),
            "max_messages": max_messages,
            "max_bytes": max_bytes,
        }
        self._submit = scripts.load(HERE / "submit.lua", NEW_WORK)
        self._claim = scripts.load(HERE / "claim.lua", ALWAYS)
        self._finish = scripts.load(HERE / "finish.lua", ALWAYS)
        self._give_back = scripts.load(HERE / "give_back.lua", ALWAYS)
        self._get = scripts.load(HERE / "get.lua", READ)
        self._list = scripts.load(HERE / "list.lua", READ)

    async def submit(self, job: NewJob) -> Accepted:
        """Take the job: once this returns, it is stored. The same id again is the same job.

        Raises Conflict where the context is busy and the job would not wait, StoreFull, StoreUnavailable.
        """
        spec = {
            "input": job.input,
            "model": job.model,
            "max_output_tokens": job.max_output_tokens,
        }
        said, *rest = await self._submit(
            pack(spec),
            job_id=job.id,
            id=job.id,
            tenant=job.tenant,
            agent=job.agent,
            queue=job.queue,
            priority=PRIORITIES[job.priority],
            context=job.context_id,
            if_busy=job.if_busy,
            request_id=job.request_id,
            metadata=orjson.dumps(dict(job.metadata)).decode(),
            ignore_result=True,
        )
        if said == b"busy":
            raise Conflict(
                f"context {job.context_id} is held by job {rest[0].decode()}",
                field="context_id",
                remedy='wait for that job to end, or submit with "if_busy": "wait"',
            )
        created, holder, bells = rest
        await self._ringer.ring(bells)
        return Accepted(job.id, _time(created), holder.decode() or None)

    async def get(self, job_id: str, tenant: str) -> Job | None:
        """The job, answer included; None where this tenant has no such job."""
        waits_for, values = await self._get(id=job_id, fields=WHOLE)
        job = _job(job_id, waits_for, values)
        return job if job is not None and job.tenant == tenant else None

    async def list(
        self, tenant: str, *, state: State | None = None, agent: str = "", cursor: str | None = None, limit: int = 50
    ) -> Page:
        """A page, newest first. Raises Invalid for a cursor that no page gave out."""
        if cursor is not None and not cursor.isdecimal():
            raise Invalid("the cursor is not one that a page gave out", field="cursor", remedy="leave it out to begin")
        before = "+inf" if cursor is None else f"({cursor}"
        found: list[Job] = []
        while True:
            left = limit - len(found)
            then, *rows = await self._list(
                tenant=tenant, state=state or "", agent=agent, before=before, limit=left, fields=SHOWN
            )
            found += [job for id, *row in rows if (job := _job(id.decode(), *row)) is not None]
            if not then or len(found) >= limit:
                return Page(tuple(found), then.decode().lstrip("(") or None)
            before = then.decode()

    async def workers_alive(self) -> int:
        """Workers whose lease runs."""
        async with answering():
            seconds, micros = await self._redis.time()
            return int(await self._redis.zcount(keys.spell("workers"), seconds * 1000 + micros // 1000, "+inf"))

    async def claim(self, job_id: str, worker: str, nonce: str) -> Claim | None:
        """Take the job for this worker, or None: a bell for a job that is claimed, ended or gone rings for nothing.

        nonce: random, made once for this run; the same claim again gets the same answer. Raises Fenced where the store
        does not know the worker any more.
        """
        said, *rest = await self._claim(id=job_id, worker=worker, nonce=nonce)
        if said == b"gone":
            raise Fenced(f"the store does not know the worker {worker}")
        if said == b"nothing":
            return None
        flat, version, turns = rest
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        return Claim(
            id=job_id,
            worker=worker,
            nonce=nonce,
            attempt=int(record[b"attempts"]),
            tenant=record[b"tenant"].decode(),
            agent=record[b"agent"].decode(),
            context_id=_text(record.get(b"context")),
            request_id=record[b"request_id"].decode(),
            spec=record[b"spec"],
            waited=(int(record[b"started"]) - int(record[b"created"])) / 1000,
            context_version=version,
            turns=tuple(turns),
        )

    async def finish(self, claim: Claim, ending: Ending) -> bool | None:
        """End the run: all of it in one step, or nothing. Answers whether the context took the turn, None for no turn.

        Raises Fenced where this run no longer holds the job.
        """
        said, *rest = await self._finish(
            pack(ending.answer) if ending.answer is not None else b"",
            pack(ending.receipt) if ending.receipt is not None else b"",
            ending.turn,
            id=claim.id,
            worker=claim.worker,
            nonce=claim.nonce,
            state=ending.state,
            model=ending.model or "",
            usage=orjson.dumps(dict(ending.usage)).decode() if ending.usage is not None else "",
            cost=str(ending.cost_nanos) if ending.cost_nanos is not None else "",
            error=orjson.dumps([ending.error.code, ending.error.message]).decode() if ending.error else "",
            version=claim.context_version,
            **self._ending,
        )
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        appended, bells = rest
        await self._ringer.ring(bells)
        return None if appended == b"" else appended == b"1"

    async def give_back(self, claim: Claim) -> None:
        """Hand the job back in good order: it is ready at once. Raises Fenced where this run no longer holds it."""
        said, *rest = await self._give_back(id=claim.id, worker=claim.worker, nonce=claim.nonce)
        if said == b"fenced":
            raise Fenced("this run no longer holds the job")
        await self._ringer.ring(rest[1])


def _time(ms: bytes | int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


def _text(value: bytes | None) -> str | None:
    return value.decode() if value else None


def _job(job_id: str, waits_for: bytes, values: Sequence[Any]) -> Job | None:
    r = dict(zip(WHOLE, values, strict=False))
    place = r["place"]
    if place is None:
        return None
    error = r["error"] and JobError(*orjson.loads(r["error"]))
    answer, receipt = r.get("answer"), r.get("receipt")
    return Job(
        id=job_id,
        tenant=_text(r["tenant"]) or "",
        agent=_text(r["agent"]) or "",
        state=State(r["state"].decode()) if r["state"] else SEEN_AS[Place(place.decode())],
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
        answer=unpack(answer) if answer else None,
        error=error or None,
        model=_text(r["model"]),
        usage=orjson.loads(r["usage"]) if r["usage"] else None,
        cost_nanos=int(r["cost"]) if r["cost"] else None,
        receipt=unpack(receipt) if receipt else None,
        context_appended=None if not r["appended"] else r["appended"] == b"1",
    )
