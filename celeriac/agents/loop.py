"""The agent loop: from a conversation to an outcome. One step so far: one question, one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celeriac.agents.agent import Agent
from celeriac.costs.prices import Price, Prices
from celeriac.llm.fallback import Fallback
from celeriac.llm.model import Answer, Lane, Message, ModelClient, ModelRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    answer: Answer
    price: Price


async def run(
    agent: Agent,
    messages: Sequence[Message],
    models: ModelClient,
    prices: Prices,
    *,
    lanes: Sequence[Lane],
    max_output_tokens: int,
) -> Outcome:
    """Ask the lanes in order until one answers. Raises ModelError, with the attempts that were made."""
    answer = await Fallback([(lane, models) for lane in lanes]).answer(
        ModelRequest(
            lane=lanes[0],
            messages=tuple(messages),
            instructions=agent.instructions,
            max_output_tokens=max_output_tokens,
            temperature=agent.temperature,
            deadline=agent.timeout.total_seconds(),
            api=agent.api,
        )
    )
    return Outcome(answer, prices.price(answer.lane, answer.model, answer.usage))
