"""The agent loop: from a conversation to an outcome, step by step. Each finished step is stored before the next begins.

The model is asked, the tools that it wants called are called, it is asked again with what came of them, until it wants
none. The first question is the caller's; an agent's follow-ups are asked after it, one after the other, in the same
conversation, and the last answer is the job's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from celeriac.agents.agent import Agent
from celeriac.agents.calls import Calls
from celeriac.agents.check import Wrong
from celeriac.agents.children import Children
from celeriac.agents.choice import Choice, shortened
from celeriac.agents.course import Course, answer_step, wrong_with
from celeriac.agents.output import Output, bare, digest, judge
from celeriac.agents.parts import Parts
from celeriac.agents.toolbox import Toolbox
from celeriac.agents.tools import Result
from celeriac.connections import unpack
from celeriac.costs.money import nanos
from celeriac.errors import (
    CostLimit,
    JobBudgetFull,
    LocalFault,
    ModelError,
    OutputInvalid,
    StepLimit,
    TimeLimit,
    TokenLimit,
)
from celeriac.jobs.journal import Journal, Settlement
from celeriac.jobs.model import Asked, Claim, State
from celeriac.jobs.store import JobStore, new_id
from celeriac.llm.fallback import Fallback
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, ToolCall, Usage
from celeriac.llm.patient import Patience, Patient
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds after which an answer that is being judged is stored, for whoever goes on if this run cannot.
MOMENT: Final = 0.05
#: Tools of one job that are called side by side.
AT_ONCE: Final = 8
NOBODY: Final = Result("this call needs somebody's approval, and nobody has decided. It was not made.", failed=True)
CUT_OFF: Final = Result("your answer was cut off at its longest: this call was not made", failed=True)
UNKNOWN: Final = Result(
    "nobody knows what became of this call: whoever made it broke off in the middle. It was not made again.",
    failed=True,
)


class Interrupted(Exception):
    """The worker stops, and the job stands between two steps: it goes on elsewhere."""


class NeedsApproval(Exception):
    """Somebody has to allow these calls before the job goes on. wait: for how long; None where it waits on."""

    def __init__(self, asked: Sequence[Asked], wait: timedelta | None) -> None:
        super().__init__(f"{len(asked)} calls")
        self.asked = asked
        self.wait = wait


class NeedsChildren(Exception):
    """Jobs that this one asked for have not ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """text: the job's answer. usage: of all steps, those of former runs included. settlement: of the last call, to be
    booked with the end; None where it was booked by a former run. question: that was answered: the caller's, or what
    stood in its place. is_checked: the answer is JSON, and what it had to be.
    """

    text: str
    model: str
    usage: Usage
    settlement: Settlement | None
    question: Message
    is_checked: bool = False


class Run:
    """One run of a job, from the step that it has reached. stopping: asked when a step is stored and one is left.
    output: what its last answer has to be, None for any text. longest_wait: for those that it asks, None for any.
    split_to: who answers for the parts of a long question.
    """

    def __init__(
        self,
        agent: Agent,
        toolbox: Toolbox,
        conversation: Sequence[Message],
        calls: Calls,
        journal: Journal,
        jobs: JobStore,
        claim: Claim,
        *,
        lanes: Sequence[Lane],
        max_output_tokens: int,
        stopping: Callable[[], bool],
        output: Output | None = None,
        longest_wait: timedelta | None = None,
        split_to: Agent | None = None,
    ) -> None:
        self._agent = agent
        self._toolbox = toolbox
        self._calls = calls
        self._journal = journal
        self._claim = claim
        self._lanes = lanes
        self._max_output_tokens = max_output_tokens
        self._stopping = stopping
        self._output = output
        self._schema, self._checkable = (digest(output), output.checkable) if output else ("", None)
        self._judging: asyncio.Task[Wrong | None] | None = None
        self._course = Course(conversation, agent.follow_ups, claim.life)
        self._children = Children(jobs, claim, calls, longest_wait)
        self._parts: Parts | None = None
        if split_to is not None and agent.split_over is not None:
            self._parts = Parts(agent.split_over, split_to, self._children, claim.life)
        self._storing = asyncio.Lock()
        calls.cap = nanos(agent.max_cost)
        for step in claim.journal:
            self._course.take(unpack(step))

    async def to_its_end(self) -> Outcome:
        """Raises ModelError, LimitReached, Fenced, Stopped, Interrupted, NeedsApproval, NeedsChildren."""
        try:
            return await self._to_its_end()
        finally:
            if self._judging is not None:
                self._judging.cancel()

    async def _to_its_end(self) -> Outcome:
        course = self._course
        while True:
            while course.pending:
                await self._call_tools()
            if course.handed_over is not None or course.unjudged:
                if (text := await self._judged()) is not None:
                    return Outcome(text, course.model, course.usage, None, course.question, self._output is not None)
                continue
            if self._parts is not None and self._parts.are_asked(course):
                if not await self._parts.shorten(course, self._store):
                    raise NeedsChildren
                self._go_on()
                continue
            self._check_limits()
            began = time.monotonic()
            answer = await self._ask()
            seconds = time.monotonic() - began
            settlement, facts = self._calls.settlement(answer), {}
            if not answer.calls and course.would_be_done:
                if self._output is None:
                    text, wrong = answer.text, None
                else:
                    self._calls.keep = partial(self._keep, answer, seconds, settlement)
                    if not await self._is_judged(self._judge(answer.text, answer.stop_reason)):
                        await self._calls.keep()
                        self._go_on()
                        continue
                    self._calls.keep = None
                    text, wrong = bare(answer.text), await self._verdict()
                if wrong is None:
                    course.answered(text, answer.model, answer.usage, ())
                    is_checked = self._output is not None
                    return Outcome(text, answer.model, course.usage, settlement, course.question, is_checked)
                if self._is_repaired:
                    raise _invalid(wrong.place, answer.text or course.text)
                facts = wrong_with(wrong.told, self._schema)
            await self._store(answer_step(answer, seconds, **facts), settlement)
            self._calls.booked(settlement)
            self._go_on()

    @property
    def _is_repaired(self) -> bool:
        return bool(self._schema) and self._course.repaired_for == self._schema

    async def _is_judged(self, judging: Coroutine[Any, Any, Wrong | None]) -> bool:
        """In a moment; else it goes on."""
        self._judging = asyncio.create_task(judging)
        await asyncio.wait([self._judging], timeout=MOMENT)
        return self._judging.done() and self._judging.exception() is None

    async def _verdict(self) -> Wrong | None:
        assert self._judging is not None  # noqa: S101  # it is asked for what is being judged
        wrong = await self._judging
        self._judging = None
        if wrong is not None:
            log.warning("output_invalid", repaired=self._is_repaired)
        return wrong

    async def _judge(self, text: str, stop_reason: str) -> Wrong | None:
        assert self._output is not None  # noqa: S101  # without one, any text will do
        try:
            return await judge(self._output, text, stop_reason)
        except OSError as error:
            log.exception("output_not_checked")
            raise LocalFault(f"the answer cannot be checked here and now: {type(error).__name__}", ours=True) from error

    async def _keep(self, answer: Answer, seconds: float, settlement: Settlement | None) -> None:
        """Whoever goes on judges it."""
        await self._store(answer_step(answer, seconds, unjudged=answer.stop_reason), settlement)
        self._calls.keep = None
        self._calls.booked(settlement)

    async def _judged(self) -> str | None:
        """The text that is stored to be the job's answer, if it will do; None where the model has to answer again.

        Raises OutputInvalid where it has done so before, or was not the one that answered.
        """
        course, handed_over = self._course, self._course.handed_over
        text = course.text if handed_over is None else handed_over
        if course.refused:
            raise _invalid(course.refused, text, handed_over=handed_over is not None)
        if self._output is None:
            return text
        if self._judging is None:
            self._judging = asyncio.create_task(self._judge(text, course.unjudged))
        if (wrong := await self._verdict()) is None:
            return bare(text)
        if handed_over is None and not self._is_repaired:
            await self._store({"kind": "judged", **wrong_with(wrong.told, self._schema)})
            self._go_on()
            return None
        await self._store({"kind": "judged", "life": self._claim.life, "place": wrong.place})
        raise _invalid(wrong.place, text, handed_over=handed_over is not None)

    def _go_on(self) -> None:
        if self._stopping():
            raise Interrupted

    async def _store(self, step: dict[str, Any], settlement: Settlement | None = None) -> None:
        async with self._storing:  # tools end side by side
            number = self._course.steps
            told = self._told(number, step) if self._claim.stream else None
            await self._calls.insist(partial(self._journal.commit, self._claim, number, step, settlement, told=told))
            self._course.take(step)

    def _told(self, number: int, step: dict[str, Any]) -> dict[str, Any]:
        """What those who read along are told of a step: never what a tool was asked or answered."""
        told = {"step": number + 1, "kind": step["kind"]}
        if step["kind"] == "answer":
            return told | {"call": step["call"], "tools": [name for _, name, _ in step["calls"]]}
        if step["kind"] == "result":
            return told | {"tool": self._course.pending[step["call"]].name, "failed": step["failed"]}
        if step["kind"] == "children":
            return told | {"jobs": list(step["jobs"].values())}
        return told | ({"jobs": list(step["jobs"])} if step["kind"] == "split" else {})

    async def _call_tools(self) -> None:
        """All that the model wants called and that may be, side by side. Each result is stored as it comes."""
        course, box = self._course, self._toolbox
        for call in list(course.pending.values()) if course.is_cut else ():
            # What is missing of the arguments nobody knows.
            await self._store(_result(call, CUT_OFF, 0.0))
        for call in [call for call in course.pending.values() if call.id in course.started]:
            # A run that is gone began it, and it must not be made twice.
            await self._store(_result(call, UNKNOWN, 0.0))
        waits = await self._ask_agents()
        allowed = await self._allowed(waits)
        if waits and not allowed:
            raise NeedsChildren
        once = [call.id for call in allowed if not box.is_idempotent(call)]
        if once:
            await self._store({"kind": "started", "calls": once})
        room = asyncio.Semaphore(AT_ONCE)

        async def make(call: ToolCall) -> None:
            async with room:
                # Who lost its lease may have been given up: another run says what became of these calls.
                await self._calls.leased()
                began = time.monotonic()
                result = await box.call(call)
                seconds = time.monotonic() - began
                log.info("tool_called", tool=call.name, failed=result.failed, seconds=round(seconds, 3))
                await self._store(_result(call, result, seconds))

        tasks = [asyncio.create_task(make(call)) for call in allowed]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._go_on()

    async def _ask_agents(self) -> bool:
        """Each call that asks another agent has its job. Whether one of them has not ended."""
        course, box = self._course, self._toolbox
        asking = {call.id: tool for call in course.pending.values() if (tool := box.agent(call)) is not None}
        if not asking:
            return False
        if new := {call: new_id() for call in asking if call not in course.children}:
            await self._store({"kind": "children", "jobs": new})
        findings = await self._children.findings([course.children[call] for call in asking])
        waits = False
        for name, tool in asking.items():
            call, job = course.pending[name], course.children[name]
            if (finding := findings[job]) is not None:
                step = _result(call, tool.result(finding), 0.0)
                if tool.hands_over and finding.state == State.SUCCEEDED:
                    step |= {"text": finding.answer or "", "final": True}
                await self._store(step)
            # Also one that was submitted before: the store may have lost it.
            elif (result := await self._children.ask(job, tool, call, course.given, self._checkable)) is not None:
                await self._store(_result(call, result, 0.0))
            else:
                waits = True
        return waits

    async def _allowed(self, waits: bool) -> list[ToolCall]:
        """The calls that may be made now. Those that were refused get their results.

        waits: for agents that were asked; what they say comes first. Raises NeedsApproval.
        """
        decided, is_over = self._claim.decided, self._claim.asked_over
        asked_before = {asked.call for asked in self._claim.asked}
        undecided: list[Asked] = []
        allowed: list[ToolCall] = []
        for call in list(self._course.pending.values()):
            if self._toolbox.agent(call) is not None:
                continue
            # What is said of a call is said of that turn's alone, whoever names calls.
            name = f"{self._course.asked}.{call.id}"
            said = decided.get(name)
            if not self._toolbox.needs_approval(call) or (said is not None and said.approved):
                allowed.append(call)
            elif said is not None:
                await self._store(_result(call, refused(said.reason), 0.0))
            elif name in asked_before and is_over:
                await self._store(_result(call, NOBODY, 0.0))
            else:
                undecided.append(Asked(name, call.name, call.arguments))
        if undecided and not allowed and not waits:
            again = all(asked.call in asked_before for asked in undecided)
            raise NeedsApproval(undecided, None if again else self._agent.approval_time)
        return allowed

    def _check_limits(self) -> None:
        agent, course = self._agent, self._course
        used = course.usage.total
        if course.asked >= agent.max_steps:
            raise StepLimit(f"the agent has asked its model {course.asked} times (max_steps)", partial=course.text)
        if agent.max_tokens is not None and used >= agent.max_tokens:
            raise TokenLimit(f"the job has used {used} tokens (max_tokens)", partial=course.text)
        if agent.max_time is not None and course.seconds >= agent.max_time.total_seconds():
            raise TimeLimit(f"the job's steps have taken {course.seconds:.0f} s (max_seconds)", partial=course.text)

    async def _ask(self) -> Answer:
        agent, calls, course = self._agent, self._calls, self._course
        calls.step = course.steps + 1
        patient = Patient(calls, Patience(agent.tries_per_lane))
        lanes = [(lane, patient) for lane in self._lanes]
        request = ModelRequest(
            lane=self._lanes[0],
            messages=tuple(course.messages),
            instructions=agent.instructions,
            tools=self._toolbox.specs,
            schema=self._output.schema if self._output and course.would_be_done else None,
            max_output_tokens=self._max_output_tokens,
            temperature=agent.temperature,
            deadline=agent.timeout.total_seconds(),
            api=agent.api,
            stored=agent.stored,
        )
        choice = Choice(
            agent,
            calls.prices,
            request,
            deadline=self._claim.deadline,
            waited=self._claim.waited_for_lanes,
            is_last_try=self._claim.retries >= agent.max_retries,
        )
        while True:
            try:
                return await Fallback(lanes, worth=choice.worth).answer(choice.request)
            except ModelError as error:
                messages = choice.request.messages
                left = shortened(messages, course.repair) if choice.trims(error) else None
                if left is None:
                    if isinstance(error, JobBudgetFull):
                        raise CostLimit(str(error), partial=course.text) from error
                    raise
                log.warning("conversation_trimmed", messages=len(messages), left=len(left))
                choice = replace(choice, request=replace(choice.request, messages=left))


def _invalid(place: str, text: str, *, handed_over: bool = False) -> OutputInvalid:
    which = ", of the agent that it was handed over to," if handed_over else ""
    again = "" if handed_over else ", and was not when it was asked for again"
    return OutputInvalid(f"the answer{which} is not what its schema asks for{again}: {place}", partial=text)


def refused(reason: str) -> Result:
    """What the model is told of a call that somebody refused."""
    return Result("this call was refused, and not made" + (f": {reason}" if reason else "."), failed=True)


def _result(call: ToolCall, result: Result, seconds: float) -> dict[str, Any]:
    return {
        "kind": "result",
        "call": call.id,
        "text": result.text,
        "failed": result.failed,
        "seconds": round(seconds, 3),
    }
