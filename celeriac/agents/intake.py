"""Jobs from Celery's own callers: checked as those over HTTP are, and stored under the id of the submitting task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from celeriac.agents.registry import Registry
from celeriac.connections import patiently
from celeriac.errors import Invalid, NotFound, StoreFull
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import Accepted, State
from celeriac.jobs.request import MAX_TEXT, Submission, read_submission
from celeriac.jobs.store import JobStore
from celeriac.llm.model import Said
from celeriac.settings import NAME

#: As many messages as a request may hold.
MAX_MESSAGES = 1000


class Intake:
    """chord_ttl: no job that a Celery chord waits for is parked for longer."""

    def __init__(self, jobs: JobStore, registry: Registry, *, chord_ttl: timedelta) -> None:
        self._jobs = jobs
        self._registry = registry
        self._chord_ttl = chord_ttl

    async def take(
        self,
        job_id: str,
        asked: Any,
        canvas: Canvas,
        *,
        previous: Any = None,
        ignore_result: bool = False,
        run_at: datetime | None = None,
        deadline: datetime | None = None,
    ) -> Accepted:
        """Store the job; the same id again is the same job. A store that is away is waited for.

        previous: the result of what came before it in its chain. run_at, deadline: as Celery's own `eta` and `expires`
        have it; what the request says goes first, and the earlier deadline counts. Raises Invalid and Conflict, whose
        message names the field; StoreFull.
        """
        if not re.fullmatch(NAME, job_id):
            raise Invalid(
                "task_id: use up to 64 letters, digits, '.', '_' and '-', or leave it to Celery", field="task_id"
            )
        request = read_submission(asked)
        try:
            agent = self._registry[request.agent]
        except NotFound as error:
            raise Invalid(f"agent: {error}; {error.remedy}", field="agent") from error
        try:
            self._registry.check_model(agent, request.model)
        except Invalid as error:
            raise Invalid(f"model: {error}; {error.remedy}", field="model") from error
        try:
            self._registry.check_input(agent, request.messages())
        except Invalid as error:
            raise Invalid(f"input: {error}; {error.remedy}", field="input") from error
        run_at = request.run_at or run_at
        if run_at and canvas.chords() and run_at - datetime.now(UTC) > self._chord_ttl:
            raise Invalid(
                f"run_at: a chord waits for this job, and no longer than {self._chord_ttl} (CELERIAC_JOBS__CHORD_TTL)",
                field="run_at",
            )
        deadlines = [time for time in (request.deadline, deadline) if time]
        before = await self._before(request, previous)
        job = request.as_job(
            job_id,
            request.tenant,
            queue=agent.queue,
            limited=agent.max_running is not None,
            most=agent.max_cost,
            before=before,
            request_id=canvas.root_id,
            run_at=run_at,
            deadline=min(deadlines, default=None),
            expires_in=request.expires_in,
            canvas=canvas,
            ignore_result=ignore_result,
        )
        return await patiently(lambda: self._jobs.submit(job), unless=(StoreFull,))

    async def _before(self, request: Submission, previous: Any) -> list[Said]:
        """The result before this job as messages, where the request wants it; of a chord, one message a member."""
        if request.previous == "ignore" or previous is None:
            return []
        results = previous if isinstance(previous, list) else [previous]
        texts = [await self._text(result, request.tenant) for result in results]
        if len(texts) >= MAX_MESSAGES or any(not 0 < len(text) <= MAX_TEXT for text in texts):
            raise Invalid(
                "previous: the result before this job is empty, or too long to be its input", field="previous"
            )
        return [("user", text) for text in texts]

    async def _text(self, result: Any, tenant: str) -> str:
        if isinstance(result, str):
            return result
        if isinstance(result, Mapping) and isinstance(result.get("job_id"), str):
            job = await patiently(lambda: self._jobs.get(result["job_id"], tenant))
            if job is None or job.state != State.SUCCEEDED or job.answer is None:
                raise Invalid(f"previous: {tenant} has no answer of a job {result['job_id']}", field="previous")
            return job.answer
        return orjson.dumps(result).decode()
