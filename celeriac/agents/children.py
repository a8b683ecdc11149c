"""Agents that ask other agents: each question is a job of its own, and the asking one waits outside every slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from celeriac.agents.agent import MOST_OTHERS, Agent
from celeriac.agents.calls import Calls
from celeriac.agents.tools import Result, as_text, wrong
from celeriac.connections import patiently
from celeriac.errors import Conflict
from celeriac.jobs.model import Claim, Finding, NewJob, Parent, State
from celeriac.jobs.store import PRIORITY_NAMES, JobStore
from celeriac.llm.model import Message, Said, ToolCall, ToolSpec

#: So many jobs may stand above one another: agents that ask each other in a circle end somewhere.
DEEPEST: Final = 4


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(min_length=1, description="All that it has to know: it sees nothing else.")]


class _HandOver(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(description="What it should know beside the conversation, which it sees.")] = ""


@dataclass(frozen=True, slots=True)
class AgentTool:
    """Another agent, which a model asks by calling this. hands_over: that one's answer is the job's."""

    agent: Agent
    hands_over: bool = False

    @property
    def name(self) -> str:
        """Providers take letters, digits, _ and -, at most 64."""
        return (("hand_over_to_" if self.hands_over else "ask_") + self.agent.name.replace(".", "_"))[:64]

    @property
    def spec(self) -> ToolSpec:
        what = "Hand the conversation over to this agent, which answers in your place: " if self.hands_over else "Ask: "
        schema = (_HandOver if self.hands_over else _Question).model_json_schema()
        schema.pop("title", None)
        return ToolSpec(self.name, what + self.agent.description, schema)

    def input(self, conversation: Sequence[Message], arguments: str) -> tuple[Said, ...] | Result:
        """What the other one is given, or what is wrong with the arguments. conversation: that is handed over."""
        try:
            if not self.hands_over:
                return (("user", _Question.model_validate_json(arguments or "{}").question),)
            note = _HandOver.model_validate_json(arguments or "{}").note
        except ValidationError as error:
            return wrong(error)
        said = [message.said() for message in conversation]
        return (*said, ("user", f"[This conversation is handed over to you. {note}".rstrip() + "]"))

    def result(self, finding: Finding) -> Result:
        """What the asking model is told."""
        if finding.state == State.SUCCEEDED:
            return Result(as_text(finding.answer or ""))
        why = f"{finding.error.code}: {finding.error.message}" if finding.error else str(finding.state)
        so_far = f"\nWhat it had so far:\n{finding.answer}" if finding.answer else ""
        return Result(as_text(f"the agent {self.agent.name} did not answer: {why}{so_far}"), failed=True)


class Children:
    """The jobs that one run asks for. expires_in: of each."""

    def __init__(
        self,
        jobs: JobStore,
        claim: Claim,
        calls: Calls,
        expires_in: timedelta | None = None,
    ) -> None:
        self._jobs = jobs
        self._claim = claim
        self._calls = calls
        self._expires_in = expires_in

    async def ask(
        self,
        id: str,
        tool: AgentTool,
        call: ToolCall,
        conversation: Sequence[Message],
        output_schema: Mapping[str, Any] | None = None,
    ) -> Result | None:
        """Submit the job with this id, once, however often it is said; or answer why that cannot be.

        conversation: that this job may hand over. output_schema: what this job's answer has to be, and so that of one
        that it hands over to.

        Raises Fenced, Stopped, StoreFull.
        """
        asked = tool.input(conversation, call.arguments)
        if isinstance(asked, Result):
            return asked
        try:
            await self.submit(id, tool.agent, asked, output_schema if tool.hands_over else None)
        except Conflict as error:
            return Result(f"{error}: answer yourself, with what there is", failed=True)
        return None

    async def submit(
        self,
        id: str,
        agent: Agent,
        input: tuple[Said, ...],
        output_schema: Mapping[str, Any] | None = None,
        others: tuple[str, ...] = (),
    ) -> None:
        """The job with this id, once, however often it is said. others: that are to be submitted after it.

        Raises Conflict where this one may not ask for so many, Fenced, Stopped, StoreFull.
        """
        claim = self._claim
        ancestors = ((claim.id, self._calls.cap), *claim.ancestors)
        if len(ancestors) > DEEPEST:
            raise Conflict(f"agents ask each other at most {DEEPEST} deep")
        job = NewJob(
            id=id,
            tenant=claim.tenant,
            agent=agent.name,
            queue=agent.queue,
            input=input,
            output_schema=output_schema,
            priority=PRIORITY_NAMES[int(claim.record.get("priority", 1))],
            metadata=orjson.loads(claim.record.get("metadata", b"{}")),
            request_id=claim.request_id,
            limited=agent.max_running is not None,
            limits={"max_cost_usd": f"{agent.max_cost:f}"},
            deadline=None if claim.deadline is None else datetime.fromtimestamp(claim.deadline, UTC),
            expires_in=self._expires_in,
        )

        async def submit() -> None:
            # Whoever was adopted meanwhile has another worker's name.
            parent = Parent(claim.id, claim.worker, claim.nonce, MOST_OTHERS, ancestors, others)
            await self._jobs.submit(replace(job, parent=parent))

        await self._calls.insist(submit)

    async def findings(self, ids: Sequence[str]) -> Mapping[str, Finding | None]:
        """By job; None for one that has not ended, or that the store has lost."""
        found = await patiently(lambda: self._jobs.findings(self._claim.id, ids))
        return dict(zip(ids, found, strict=True))
