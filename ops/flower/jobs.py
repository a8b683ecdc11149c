"""The pages of jobs: all tenants' as a list to look through and act on, and one with its receipt."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

import orjson

from celeriac.costs.money import usd
from celeriac.errors import Conflict, Invalid, NotFound
from celeriac.jobs.model import REPLAYABLE, Job, State, as_retried, rfc_3339
from celeriac.jobs.store import JobStore
from celeriac.logs import get_logger
from celeriac.settings import NAME
from ops.flower.handlers import Act, Data, Page

log = get_logger(__name__)

PAGE: Final = 50
#: Jobs that one request acts on; whoever wants all that match asks again with the cursor.
MOST_AT_ONCE: Final = 100
MOST_NAMES: Final = 200
APPROVAL: Final = "waiting_approval"

Action = Literal["cancel", "retry", "replay", "approve", "decline"]
#: What is refused says this of itself.
NEEDS: Final[Mapping[Action, str]] = {
    "cancel": "only a job that has not ended can be cancelled",
    "retry": "only a job that failed, was cancelled or expired can be started again",
    "replay": "only a dead letter can be replayed",
    "approve": "it waits for no approval",
    "decline": "it waits for no approval",
}


@dataclass(frozen=True, slots=True)
class Match:
    """Which jobs are meant, "" for any. what: a state, or one of WHATS."""

    what: str = ""
    agent: str = ""
    tenant: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Match:
        """Raises Invalid."""
        if strange := given.keys() - {"what", "agent", "tenant"}:
            raise Invalid(f"nothing is filtered by {', '.join(sorted(strange))}", remedy="use what, agent, tenant")
        found = cls(**{name: str(value or "") for name, value in given.items()})
        if found.what and found.what not in WHATS:
            raise Invalid(f"no job is {found.what!r}", field="what", remedy=f"use {', '.join(WHATS)}")
        for field, name in (("agent", found.agent), ("tenant", found.tenant)):
            if name and not re.fullmatch(NAME, name):
                raise Invalid(f"{name!r} is no name", field=field, remedy="use letters, digits and . _ -")
        return found


#: What may be looked for -> how the store is asked for it.
WHATS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{str(state): {"state": state} for state in State},
    APPROVAL: {"state": State.PARKED, "reason": APPROVAL},
    "dead": {"dead": True},
}


def may(job: Job) -> list[Action]:
    """What can be done with it."""
    if job.dead:
        return ["replay"]
    if job.state in REPLAYABLE:
        return ["retry"]
    if job.state.ended:
        return []
    return ["approve", "decline", "cancel"] if job.reason == APPROVAL else [] if job.stopping else ["cancel"]


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "reason": job.reason,
        "resume_at": _moment(job.resume_at),
        "dead": job.dead,
        "stopping": job.stopping,
        "agent": job.agent,
        "tenant": job.tenant,
        "model": job.model,
        "created_at": _moment(job.created_at),
        "started_at": _moment(job.started_at),
        "ended_at": _moment(job.ended_at),
        "attempts": job.attempts,
        "error": job.error and job.error.code,
        "cost_usd": usd(job.cost_nanos or 0),
        "in_doubt_usd": usd(job.in_doubt_nanos),
        "may": may(job),
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else rfc_3339(at)


class JobsPage(Page):
    template = "jobs.html"


class JobsData(Data):
    async def answer(self, *_: str) -> Any:
        jobs = self.sources.stores.jobs
        names = ("what", "agent", "tenant")
        match = Match.of({name: self.get_argument(name, "", escape=False) for name in names})
        if id := self.get_argument("id", "", escape=False):
            found = await jobs.get(id, match.tenant or None)
            rows, cursor = [_row(found)] if found is not None else [], None
        else:
            page = await _page(jobs, match, self.get_argument("cursor", None, escape=False), PAGE)
            rows, cursor = [_row(job) for job in page[0]], page[1]
        counts = await jobs.count(match.tenant or None)
        return {
            "jobs": rows,
            "cursor": cursor,
            "counts": {**{str(state): count for state, count in counts.states.items()}, "dead": counts.dead},
            "agents": sorted(agent.name for agent in self.sources.registry)[:MOST_NAMES],
            "tenants": await jobs.tenants(MOST_NAMES),
        }


async def _page(jobs: JobStore, match: Match, cursor: str | None, limit: int) -> tuple[Sequence[Job], str | None]:
    page = await jobs.list(
        match.tenant or None, agent=match.agent, cursor=cursor or None, limit=limit, **WHATS.get(match.what, {})
    )
    return page.jobs, page.cursor


class JobPage(Page):
    template = "job.html"

    def facts(self, *arguments: str) -> dict[str, Any]:
        return {"job_id": arguments[0]}


class JobData(Data):
    async def answer(self, *arguments: str) -> Any:
        [id] = arguments
        jobs = self.sources.stores.jobs
        account = await jobs.account(id, None)
        job = await jobs.get(id, None)
        if account is None or job is None:
            raise NotFound(f"there is no job {id}", remedy="ended jobs are kept for CELERIAC_JOBS__RESULT_TTL")
        shows = self.sources.settings.flower.show_text
        approvals = [{"call": asked.call, "tool": asked.tool} for asked in job.approvals]
        said: dict[str, Any] = {
            "job": _row(job)
            | {
                "priority": job.priority,
                "queue": job.queue,
                "context_id": job.context_id,
                "deadline": _moment(job.deadline),
                "replays": job.replays,
                "error_message": job.error and job.error.message,
                "approvals": approvals,
            },
            "receipt": await self.sources.receipt(account),
            "text": None,
        }
        if shows:
            for known, asked in zip(approvals, job.approvals, strict=True):
                known["arguments"] = asked.arguments
            question = [{"by": role, "text": text} for role, text in await jobs.question(id)]
            said["text"] = {"question": question, "answer": job.answer}
        return said


class JobsAct(Act):
    """{"action": ..., "ids": [...]}, or {"action": ..., "match": {...}, "cursor": ...} for a page of all that match."""

    async def answer(self, *_: str) -> Any:
        action, reason, asked = self._asked()
        jobs = self.sources.stores.jobs
        refused: list[dict[str, str]] = []
        cursor: str | None = None
        if "match" in asked:
            found, cursor = await _page(jobs, Match.of(asked["match"]), asked.get("cursor"), MOST_AT_ONCE)
            meant = [job for job in found if _is_for(action, job)]
        else:
            meant = [job async for job in self._named(asked["ids"], action, refused)]
        done: list[str] = []
        unsure = ""
        try:
            for job in as_retried(meant) if action in ("retry", "replay") else meant:
                # Where no answer comes, nobody knows whether it was done.
                unsure = job.id
                try:
                    await _do(jobs, action, job, reason)
                except (Conflict, Invalid) as error:
                    refused.append({"id": job.id, "reason": str(error)})
                else:
                    done.append(job.id)
                unsure = ""
        finally:
            facts = {"job_ids": done, "refused": len(refused)} | ({"unsure": unsure} if unsure else {})
            log.info("jobs_acted_on", action=action, by=self.who, **facts)
        return {"done": done, "refused": refused, "cursor": cursor}

    def _asked(self) -> tuple[Action, str, Mapping[str, Any]]:
        try:
            asked = orjson.loads(self.request.body)
            action, reason = asked["action"], asked.get("reason") or ""
            if action not in get_args(Action) or not isinstance(reason, str) or len(reason) > 1000:
                raise ValueError(action)
            if "match" in asked:
                is_asked = isinstance(asked["match"], dict) and isinstance(asked.get("cursor"), str | None)
            else:
                ids = asked["ids"]
                is_asked = len(ids) <= MOST_AT_ONCE and all(isinstance(id, str) for id in ids)
            if not is_asked:
                raise ValueError(action)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Invalid(
                "this asks for nothing that can be done",
                remedy=f'write {{"action": one of {", ".join(get_args(Action))}, "ids": at most {MOST_AT_ONCE}}}',
            ) from error
        return action, reason.strip(), asked

    async def _named(self, ids: Sequence[str], action: Action, refused: list[dict[str, str]]) -> AsyncIterator[Job]:
        for id in dict.fromkeys(ids):
            job = await self.sources.stores.jobs.get(id, None)
            if job is None:
                refused.append({"id": id, "reason": f"there is no job {id}"})
            elif not _is_for(action, job):
                refused.append({"id": id, "reason": f"it is {job.state}: {NEEDS[action]}"})
            else:
                yield job


def _is_for(action: Action, job: Job) -> bool:
    # A dead letter is started again like any other that failed.
    return action in may(job) or (action == "retry" and job.dead)


async def _do(jobs: JobStore, action: Action, job: Job, reason: str) -> None:
    """Raises Conflict, Invalid, StoreUnavailable."""
    match action:
        case "cancel":
            await jobs.cancel(job.id, job.tenant)
        case "retry" | "replay":
            await jobs.replay(job.id, job.tenant)
        case "approve" | "decline":
            # Lists do not have them, and they may have been decided meanwhile.
            whole = await jobs.get(job.id, job.tenant)
            calls = [asked.call for asked in whole.approvals] if whole is not None else []
            if not calls:
                raise Conflict(NEEDS[action])
            await jobs.resume(job.id, job.tenant, approve=action == "approve", calls=calls, reason=reason)
