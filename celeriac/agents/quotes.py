"""Quotes: what a job costs at most and probably, and when it probably starts. Told with each job, or without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from celeriac.agents.agent import Agent
from celeriac.agents.registry import lane
from celeriac.costs.books import Account, labels_of, spelt
from celeriac.costs.money import nanos
from celeriac.costs.prices import Prices
from celeriac.jobs.model import NewJob, Outlook
from celeriac.llm.model import Lane, Usage
from celeriac.settings import CostSettings

#: Where no job of the agent has ended yet: characters a token, as in English, and the part of its output limit that an
#: answer takes. Rough; a job that ended teaches better.
CHARACTERS: Final = 4
ANSWER: Final = Decimal("0.5")


@dataclass(frozen=True, slots=True)
class Quote:
    """In nano-dollars. most: the job's cap, which each of its calls is held to. expected: what jobs of this agent cost
    lately ("history"), or one call at the price of its first lane ("prices"). budget_left: of the tightest budget that
    it is in and that its caller may be told of, None where there is none. position: about how many jobs go before it,
    None where that does not say when it starts. starts_at: None where nobody can say.
    """

    most: int
    expected: int
    basis: Literal["history", "prices"]
    budget_left: int | None
    position: int | None
    starts_at: datetime | None


def asked_first(model: str | None, agent: Agent) -> Lane:
    """model: the job's own, if it has one."""
    return lane(model) if model is not None else agent.lanes[0]


def scopes_of(
    tenant: str, agent: Agent, model: str | None, metadata: Mapping[str, str], costs: CostSettings
) -> tuple[str, ...]:
    """Whose budgets a job's first call is in, as the scripts take them."""
    account = Account(tenant, agent.name, labels_of(costs.labels, metadata))
    return account.spelt_scopes(asked_first(model, agent))


def own_scopes(tenant: str) -> tuple[str, ...]:
    """Those of them that are its tenant's own. Any other is everybody's: what it leaves says what others spent."""
    return (spelt(f"tenant:{tenant}"),)


def quote(job: NewJob, agent: Agent, outlook: Outlook, prices: Prices, most: int | None = None) -> Quote:
    """Of a job as it was stored, or would be. most: of one that was stored before, whose agent may have another cap
    today.
    """
    if most is None:
        most = nanos(Decimal(job.limits["max_cost_usd"]))
    known = outlook.mean_cost if job.model is None else None
    expected = _by_prices(job, agent, prices) if known is None else known
    return Quote(
        most=most,
        expected=min(most, expected),
        basis="prices" if known is None else "history",
        budget_left=outlook.budget_left,
        position=outlook.position,
        starts_at=outlook.starts_at,
    )


def _by_prices(job: NewJob, agent: Agent, prices: Prices) -> int:
    asked = asked_first(job.model, agent)
    characters = len(agent.instructions) + sum(len(text) for text in _texts(job))
    output = int(ANSWER * (job.max_output_tokens or agent.max_output_tokens))
    usage = Usage(input=characters // CHARACTERS, output=output)
    return prices.price(asked, asked.model, usage).nanos


def _texts(job: NewJob) -> Sequence[str]:
    return [said[1] for said in job.input]
