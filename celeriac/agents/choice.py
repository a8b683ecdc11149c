"""Whether the next lane is worth asking, or the one before it worth waiting for; and what is left out of a conversation
that is too long for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from celeriac.agents.agent import Agent
from celeriac.costs.prices import Prices
from celeriac.errors import BudgetFull, ContentRefused, ContextTooLong, LaneClosed, ModelError, RateLimited
from celeriac.llm.fallback import is_lasting
from celeriac.llm.model import Lane, Message, ModelRequest


@dataclass(frozen=True, slots=True)
class Choice:
    """Of one agent for one question. deadline: of the job, in seconds since 1970; None for none. waited: seconds since
    it first had to wait for this answer. is_last_try: if this one fails, so does the job.
    """

    agent: Agent
    prices: Prices
    request: ModelRequest
    deadline: float | None = None
    waited: float = 0.0
    is_last_try: bool = False

    def worth(self, error: ModelError, lane: Lane) -> bool:
        """Whether this lane is to be asked after another one's error."""
        if isinstance(error, ContextTooLong):
            return self._longer(lane, Lane(error.provider, error.model))
        if isinstance(error, ContentRefused):
            return self.agent.refused == "next"
        if isinstance(error, LaneClosed | RateLimited) and error.retry_after is not None:
            patience = self.agent.patience.total_seconds()
            return self.is_last_try or not (
                0 < patience >= self.waited + error.retry_after
                and self._bound(lane) > self._bound(Lane(error.provider, error.model))
                and self._in_time(error.retry_after)
            )
        if isinstance(error, BudgetFull) and error.why == "never":
            # Also where the cap is not the lane's own: what is too dear there may be cheap enough here.
            return error.next_lane or self._bound(lane) < self._bound(Lane(error.provider, error.model))
        return error.next_lane

    def trims(self, error: ModelError) -> bool:
        """Whether a part of the conversation is left out after this one, of all lanes: it was too long for one of them,
        and time will cure no other.
        """
        too_long = isinstance(error, ContextTooLong) or any(a.code == ContextTooLong.code for a in error.attempts)
        if not too_long or self.agent.too_long != "trim" or isinstance(error, ContentRefused):
            return False
        return self.is_last_try or is_lasting(error)

    def _longer(self, lane: Lane, other: Lane) -> bool:
        window, its = self.prices.window(lane), self.prices.window(other)
        return window is None or its is None or window > its

    def _bound(self, lane: Lane) -> int:
        return self.prices.bound(replace(self.request, lane=lane))

    def _in_time(self, wait: float) -> bool:
        """Whether there is time enough to wait and then to ask."""
        return self.deadline is None or time.time() + wait + self.request.deadline <= self.deadline


def shortened(messages: Sequence[Message], tail: int = 0) -> tuple[Message, ...] | None:
    """Without the older half of its turns; None where only the last one is left. tail: so many messages at the end make
    no sense without what is before them."""
    before = messages[: len(messages) - tail]
    turns = [number for number, message in enumerate(before) if message.role == "user"]
    return tuple(messages[turns[len(turns) // 2] :]) if len(turns) > 1 else None
