"""The agent loop: from a conversation to an outcome, step by step. Each finished step is stored before the next begins.

A step is one question and its answer. The first question is the caller's; an agent's follow-ups are asked after it, one
after the other, in the same conversation, and the last answer is the job's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from celeriac.agents.agent import Agent
from celeriac.agents.calls import Calls
from celeriac.agents.choice import Choice, shortened
from celeriac.connections import unpack
from celeriac.errors import ContextTooLong
from celeriac.jobs.journal import Journal, Settlement
from celeriac.jobs.model import Claim
from celeriac.llm.fallback import Fallback
from celeriac.llm.model import Answer, Lane, Message, ModelClient, ModelRequest, Usage
from celeriac.llm.patient import Patience, Patient
from celeriac.logs import get_logger

log = get_logger(__name__)


class Interrupted(Exception):
    """The worker stops, and the job stands between two steps: it goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """text: the job's answer. usage: of all steps, those of former runs included. settlement: of the last call, to be
    booked with the end; None where it was booked by a former run.
    """

    text: str
    model: str
    usage: Usage
    settlement: Settlement | None


async def run(
    agent: Agent,
    conversation: Sequence[Message],
    calls: Calls,
    journal: Journal,
    claim: Claim,
    *,
    lanes: Sequence[Lane],
    max_output_tokens: int,
    stopping: Callable[[], bool],
) -> Outcome:
    """Follow the agent from the step that the job has reached. stopping: asked when a step is stored and one is left.

    Raises ModelError, Fenced, Stopped, Interrupted.
    """
    messages, usage = list(conversation), Usage()
    done = [unpack(step) for step in claim.journal]
    patient = Patient(calls, Patience(agent.tries_per_lane))
    settlement: Settlement | None = None
    text = model = ""
    for number in range(1 + len(agent.follow_ups)):
        if number > 0:
            messages += [Message("assistant", text), Message("user", agent.follow_ups[number - 1])]
        if number < len(done):
            step = done[number]
            text, model = step["text"], step["model"]
            usage += Usage.from_dict(step["usage"])
            continue
        calls.step = number + 1
        request = ModelRequest(
            lane=lanes[0],
            messages=tuple(messages),
            instructions=agent.instructions,
            max_output_tokens=max_output_tokens,
            temperature=agent.temperature,
            deadline=agent.timeout.total_seconds(),
            api=agent.api,
        )
        choice = Choice(
            agent,
            calls.prices,
            request,
            deadline=claim.deadline,
            waited=claim.waited_for_lanes,
            is_last_try=claim.retries >= agent.max_retries,
        )
        answer = await _ask([(lane, patient) for lane in lanes], choice)
        text, model = answer.text, answer.model
        usage += answer.usage
        settlement = calls.settlement(answer)
        if number < len(agent.follow_ups):
            made = {"text": text, "model": model, "usage": answer.usage.as_dict(), "call": answer.call}
            await calls.insist(partial(journal.commit, claim, number, made, settlement))
            calls.booked(settlement)
            settlement = None
            if stopping():
                raise Interrupted
    return Outcome(text, model, usage, settlement)


async def _ask(lanes: Sequence[tuple[Lane, ModelClient]], choice: Choice) -> Answer:
    while True:
        try:
            return await Fallback(lanes, worth=choice.worth).answer(choice.request)
        except ContextTooLong:
            messages = choice.request.messages
            left = shortened(messages) if choice.agent.too_long == "trim" else None
            if left is None:
                raise
            log.warning("conversation_trimmed", messages=len(messages), left=len(left))
            choice = replace(choice, request=replace(choice.request, messages=left))
