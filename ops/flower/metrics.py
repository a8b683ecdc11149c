"""`/metrics` of Flower: its own series, and after them the money, jobs, queues, lanes and budgets of the whole fleet.

Importing this puts our handler in the place of Flower's. What it adds is read from the store at each scrape, in a few
round trips, and nothing of it is kept here: a restart changes no number. Without the store Flower's own series are
answered all the same, and `celeriac_store_up` is 0. docs/money.md lists the series.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flower.urls import handlers
from flower.views import monitor
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celeriac.agents.registry import lane as lane_of
from celeriac.connections import answering
from celeriac.costs.books import OTHER, unspelt
from celeriac.costs.budgets import Use
from celeriac.costs.usage import EVER, Row
from celeriac.errors import StoreUnavailable
from celeriac.gate.lanes import Known, Lines
from celeriac.jobs.census import Counted
from celeriac.jobs.model import ENDS
from celeriac.llm.model import CLASSES
from celeriac.logs import get_logger
from ops.flower.handlers import SOURCES, set_own_headers
from ops.flower.sources import Sources

log = get_logger(__name__)

#: Seconds that the store gets for all of a scrape. Prometheus waits for ten.
PATIENCE: Final = 2.0
#: Lanes, and scopes with a budget, that have series of their own: callers may name any model.
MOST_LANES: Final = 100
MOST_SCOPES: Final = 500
#: Lines in which jobs wait for a lane, or for money, that are told apart.
MOST_LINES: Final = 2000
#: The scopes of single jobs count as one: an id is no label.
JOB: Final = "job"

LANE_STATES: Final = ("closed", "open", "half_open")


@dataclass(frozen=True, slots=True)
class Found:
    """What the store said. in_doubt: of all calls, and of those to each lane. lanes: those with series of their own.
    scopes_left_out: that have a budget and no series.
    """

    usage: Sequence[Row]
    in_doubt: tuple[int, Mapping[str, int]]
    counted: Counted
    lanes: Sequence[Known]
    waiting: Lines
    lanes_left_out: int
    budgets: Mapping[str, Sequence[Use]]
    scopes_left_out: int


async def read(sources: Sources) -> Found | None:
    """None where the store is away, or holds what makes no sense."""
    try:
        async with answering(within=PATIENCE):
            return await _read(sources)
    except StoreUnavailable as error:
        log.warning("metrics_without_store", reason=str(error))
    except Exception:  # a key of another type, say: Flower's own series are answered all the same
        log.exception("metrics_without_store")
    return None


async def _read(sources: Sources) -> Found:
    stores, agents = sources.stores, list(sources.registry)
    usage, counted, (budgets, scopes_left_out), waiting, overran = await asyncio.gather(
        stores.usage.ever(),
        stores.census.count({agent.queue for agent in agents}),
        stores.budgets.some(MOST_SCOPES),
        stores.lanes.lines(MOST_LINES),
        stores.lanes.overran(),
    )
    called = [row.group["model"] for row in usage]
    # Those of the agents first, then those that wait for an operator, then those that jobs wait for.
    own = sorted({lane for agent in agents for lane in agent.lanes}, key=str)
    lanes = dict.fromkeys([*own, *sorted(overran, key=str), *waiting.lanes, *map(lane_of, called)])
    lanes.pop(lane_of(f"{OTHER}/{OTHER}"), None)
    named = list(lanes)[:MOST_LANES]
    in_doubt, known = await asyncio.gather(stores.usage.in_doubt(sorted(set(called))), stores.lanes.look(named))
    left_out = len(lanes) - len(named)
    return Found(usage, in_doubt, counted, known, waiting, left_out, budgets, scopes_left_out)


def dollars(nanos: int) -> float:
    """As Prometheus has numbers; right to the nano-dollar up to about a million dollars."""
    return nanos / 10**9


class Series(Collector):
    """found: None for a store that is away."""

    def __init__(self, found: Found | None) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        up = self._found is not None
        yield GaugeMetricFamily("celeriac_store_up", "Whether the store answered this scrape", float(up))
        if self._found is not None:
            yield from _money(self._found)
            yield from _jobs(self._found.counted)
            yield from _gate(self._found)
            yield from _budgets(self._found)
            left_out = GaugeMetricFamily(
                "celeriac_metrics_left_out", "Lanes, and scopes with a budget, beyond those shown", labels=("what",)
            )
            left_out.add_metric(("lanes",), self._found.lanes_left_out)
            left_out.add_metric(("budgets",), self._found.scopes_left_out)
            yield left_out


def _money(found: Found) -> Iterator[Metric]:
    for name, help, column, of in (
        ("calls", "Calls that have ended, answered or not", "calls", float),
        ("errors", "Of these, those without an answer when they ended", "errors", float),
        ("cost_usd", "What calls cost, settled", "cost", dollars),
        ("cache_saved_usd", "What tokens read from a cache would have cost more", "saved", dollars),
    ):
        family = CounterMetricFamily(f"celeriac_llm_{name}", help, labels=EVER)
        for row in found.usage:
            family.add_metric(_whose(row), of(row.sums[column]))
        yield family
    tokens = CounterMetricFamily("celeriac_llm_tokens", "Billed tokens, each in one class", labels=(*EVER, "class"))
    for row in found.usage:
        for name in CLASSES:
            tokens.add_metric((*_whose(row), name), row.sums[name])
    yield tokens
    in_doubt = GaugeMetricFamily(
        "celeriac_llm_in_doubt_usd", "What may have been billed besides, at most", labels=("provider", "model")
    )
    total, of_lanes = found.in_doubt
    rest = {f"{OTHER}/{OTHER}": max(0, total - sum(of_lanes.values()))}
    for lane, nanos in {**of_lanes, **rest}.items():
        in_doubt.add_metric((lane_of(lane).provider, lane_of(lane).model), dollars(nanos))
    yield in_doubt


def _whose(row: Row) -> tuple[str, ...]:
    lane = lane_of(row.group["model"])
    return row.group["tenant"], row.group["agent"], lane.provider, lane.model


def _jobs(counted: Counted) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("celeriac_jobs", "Jobs that have not ended", labels=("state",))
    for state, number in counted.states.items():
        jobs.add_metric((state,), number)
    yield jobs
    ended = CounterMetricFamily("celeriac_jobs_ended", "Jobs that ended so", labels=("state",))
    for end, number in (dict.fromkeys(map(str, sorted(ENDS)), 0) | dict(counted.ended)).items():
        ended.add_metric((end,), number)
    yield ended
    queues = GaugeMetricFamily(
        "celeriac_queue_jobs",
        "Jobs that want a slot, or have one: together, what to scale by",
        labels=("queue", "state"),
    )
    for name, queue in sorted(counted.queues.items()):
        for place in ("ready", "rung", "running", "due"):
            queues.add_metric((name, place), getattr(queue, place))
    yield queues


def _gate(found: Found) -> Iterator[Metric]:
    state = GaugeMetricFamily("celeriac_lane_state", "1 for how a lane's breaker is", labels=("lane", "state"))
    wait = GaugeMetricFamily("celeriac_lane_cool_off_seconds", "For how long nobody asks the lane", labels=("lane",))
    over = GaugeMetricFamily(
        "celeriac_lane_overrun_ratio",
        "What its dearest call cost, of its bound; 1 where none was above",
        labels=("lane",),
    )
    limit = GaugeMetricFamily("celeriac_lane_rate_limit", "What a rate allows in its period", labels=("lane", "rate"))
    left = GaugeMetricFamily("celeriac_lane_rate_left", "What is left of it", labels=("lane", "rate"))
    for known in found.lanes:
        name, is_in = str(known.lane), "open" if known.breaker == "shut" else known.breaker
        for which in LANE_STATES:
            state.add_metric((name, which), float(which == is_in))
        wait.add_metric((name,), known.wait.total_seconds())
        over.add_metric((name,), known.over)
        for bucket, rate in sorted(known.rates.items()):
            limit.add_metric((name, bucket), rate.most)
            left.add_metric((name, bucket), rate.left)
    waiting = GaugeMetricFamily("celeriac_lane_waiting_jobs", "Jobs that wait for the lane", labels=("lane",))
    own = {known.lane: known.waiting for known in found.lanes}
    for lane, jobs in own.items():
        waiting.add_metric((str(lane),), jobs)
    others = found.waiting.other_lanes + sum(jobs for lane, jobs in found.waiting.lanes.items() if lane not in own)
    waiting.add_metric((OTHER,), others)
    yield from (state, wait, over, limit, left, waiting)


def _budgets(found: Found) -> Iterator[Metric]:
    cap, used, reserved, left = (
        GaugeMetricFamily(f"celeriac_budget_{name}_usd", help, labels=("scope", "window"))
        for name, help in (
            ("cap", "What the budget allows in the window that is open"),
            ("used", "Of it, settled and in doubt"),
            ("reserved", "Of it, for calls that are being made"),
            ("left", "Of it, what may still be admitted"),
        )
    )
    for scope, uses in found.budgets.items():
        for use in uses:
            labels = scope, use.cap.window
            cap.add_metric(labels, dollars(use.cap.nanos))
            used.add_metric(labels, dollars(use.settled + use.in_doubt))
            reserved.add_metric(labels, dollars(use.reserved))
            left.add_metric(labels, dollars(use.left))
    yield from (cap, used, reserved, left)
    waiting = GaugeMetricFamily("celeriac_budget_waiting_jobs", "Jobs that wait for money", labels=("scope",))
    for scope, jobs in _by_scope(found.waiting, found.budgets).items():
        waiting.add_metric((scope,), jobs)
    yield waiting


def _by_scope(waiting: Lines, shown: Iterable[str]) -> dict[str, int]:
    jobs = dict.fromkeys(shown, 0) | {JOB: waiting.of_jobs, OTHER: waiting.other_scopes}
    for spelt, number in waiting.scopes.items():
        scope = unspelt(spelt)
        jobs[scope if scope in jobs else OTHER] += number
    return jobs


class Metrics(monitor.Metrics):  # type: ignore[misc]  # Flower has no types
    """Whoever may ask Flower for its metrics is told these too; pages of other sites are not."""

    def set_default_headers(self) -> None:
        set_own_headers(self)

    async def get(self) -> None:
        await super().get()
        found = await read(self.settings[SOURCES])
        # Thousands of lines take a while to write: in a thread, the loop goes on.
        self.write(await asyncio.get_running_loop().run_in_executor(None, generate_latest, Series(found)))


def _take_place() -> None:
    """The list is read when Flower starts, after its configuration; the URL prefix is put before then."""
    for number, handler in enumerate(handlers):
        if isinstance(handler, tuple) and handler[1] is monitor.Metrics:
            handlers[number] = (handler[0], Metrics)


_take_place()
