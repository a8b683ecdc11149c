"""A job's receipt: what each of its calls cost, and what those cost that it asked for.

A call is a line on the receipt of the job that made it, and on no other. What those cost that work for a job is told as
sums beside its own: whoever adds up the `own` totals of all receipts counts each call once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any, Final

from celeriac.costs.money import shares, usd
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import FORMAT, TOTALS, sum_usage
from celeriac.jobs.model import Account, Call, Child, Job, rfc_3339
from celeriac.llm.model import CLASSES, Lane, Usage


def receipt(account: Account, prices: Prices) -> dict[str, Any]:
    """As `ReceiptOut` of the shim describes it, not signed yet. prices: to tell a call's cost by class of tokens."""
    job = account.job
    return {
        "format": FORMAT,
        "job_id": job.id,
        "tenant": job.tenant,
        "agent": job.agent,
        "parent_id": job.parent_id,
        "state": job.state.value,
        "submitted_at": rfc_3339(job.created_at),
        "ended_at": _moment(job.ended_at),
        "currency": "USD",
        "revision": job.revision,
        "final": _is_final(job) and not any(child.at_work for child in account.children),
        "own": _own(job),
        "lines": [_line(call, prices) for call in job.calls],
        "children": _children(job, account.children),
    }


def _is_final(job: Job) -> bool:
    """As far as the job knows by itself. The sums of those that work for it are part of its record."""
    open_sums = job.in_doubt_nanos, job.reserved_nanos, job.children_in_doubt_nanos, job.children_reserved_nanos
    return job.state.ended and not any(open_sums)


def _own(job: Job) -> dict[str, Any]:
    """The job's own sums, as its cap and its other views have them."""
    listed = {
        total: sum(call.nanos for call in job.calls if call.stands == stands) for stands, (total, _) in TOTALS.items()
    }
    cost = job.cost_nanos or 0
    return {
        "calls": len(job.calls),
        "usage": sum_usage(call.facts.get("usage") for call in job.calls if call.stands == "settled"),
        "cost_usd": usd(cost),
        "in_doubt_usd": usd(job.in_doubt_nanos),
        "reserved_usd": usd(job.reserved_nanos),
        # A store that lost history may know what was spent from a worker, and not on what.
        "unlisted_cost_usd": usd(cost - listed["cost_usd"]),
        "unlisted_in_doubt_usd": usd(job.in_doubt_nanos - listed["in_doubt_usd"]),
    }


def _line(call: Call, prices: Prices) -> dict[str, Any]:
    facts, settled = call.facts, call.stands == "settled"
    parts = by_class(call, prices) if settled else None
    return {
        "call_id": call.id,
        "attempt": facts.get("attempt"),
        "step": facts.get("step", 1),
        "lane": facts.get("lane", ""),
        "model": facts.get("model"),
        "stands": call.stands,
        "error": facts.get("error"),
        "started_at": rfc_3339(call.at),
        "waited_seconds": _seconds(facts.get("waited")),
        "seconds": _seconds(facts.get("seconds")),
        "request_id": facts.get("request_id", ""),
        "tier": facts.get("tier", ""),
        "usage": facts.get("usage"),
        "region": facts.get("region", ""),
        "price_source": facts.get("price_source"),
        "price_row": facts.get("price_row"),
        "price_date": facts.get("price_date"),
        "estimated": facts.get("estimated", False),
        "overrun": facts.get("overrun", False),
        "late": facts.get("late", False),
        "cost_usd": usd(call.nanos) if settled else None,
        "cost_by_class_usd": parts and {name: usd(nanos) for name, nanos in parts.items()},
        "bound_usd": usd(call.bound),
    }


def _children(job: Job, children: tuple[Child, ...]) -> dict[str, Any]:
    jobs = [child.job for child in children if child.job is not None]
    cost = sum((child.cost_nanos or 0) + child.children_cost_nanos for child in jobs)
    in_doubt = sum(child.in_doubt_nanos + child.children_in_doubt_nanos for child in jobs)
    return {
        "cost_usd": usd(job.children_cost_nanos),
        "in_doubt_usd": usd(job.children_in_doubt_nanos),
        "reserved_usd": usd(job.children_reserved_nanos),
        # Whoever was asked may have been forgotten before who asked: what it cost is in the sums.
        "unlisted_cost_usd": usd(job.children_cost_nanos - cost),
        "unlisted_in_doubt_usd": usd(job.children_in_doubt_nanos - in_doubt),
        "jobs": [_child(child) for child in children],
    }


def _child(child: Child) -> dict[str, Any]:
    job = child.job
    known = job and {
        "agent": job.agent,
        "state": job.state.value,
        "revision": job.revision,
        "final": _is_final(job) and not child.at_work,
        "cost_usd": usd(job.cost_nanos or 0),
        "in_doubt_usd": usd(job.in_doubt_nanos),
        "children_cost_usd": usd(job.children_cost_nanos),
        "children_in_doubt_usd": usd(job.children_in_doubt_nanos),
    }
    return {"job_id": child.id, **(known or dict.fromkeys(CHILD))}


#: What a receipt says of a job that the other one asked for, null once its record has aged out.
CHILD: Final = (
    "agent", "state", "revision", "final", "cost_usd", "in_doubt_usd", "children_cost_usd", "children_in_doubt_usd",
)  # fmt: skip


def by_class(call: Call, prices: Prices) -> Mapping[str, int] | None:
    """What each class of tokens cost in a settled call, in nano-dollars; together exactly what was booked.

    None where the prices of today do not make what was booked: they have changed since, or the call itself cost
    something. All that is known here of how prices are kept is in this function.
    """
    provider, _, model = str(call.facts.get("lane", "")).partition("/")
    usage, billed = call.facts.get("usage"), call.facts.get("model")
    if not usage or not billed:
        return None
    used = Usage.from_dict(usage)
    tier, region = str(call.facts.get("tier", "")), str(call.facts.get("region", ""))
    rates = prices.rates(Lane(provider, model), billed, used, call.at, tier=tier, region=region)
    exact = {name: Fraction(rate) * getattr(used, name) for name, rate in zip(CLASSES, rates, strict=True)}
    try:
        return shares(call.nanos, exact)
    except ValueError:
        return None


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.3f}"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else rfc_3339(moment)
