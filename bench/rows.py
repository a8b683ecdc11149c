"""The rows of the table: what is measured, beside what, and which target it has."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import calls, money, servers, workers
from bench.environment import WITHOUT


@dataclass(frozen=True, slots=True)
class Row:
    """ours, plain: the measure of Celeriac, and of plain Celery at its best; None: not measured.

    target: in words. met: None where the row has none. note: shown in place of a number that is missing. rate: whether
    more is better; else it is a cost.
    """

    name: str
    unit: str
    ours: float | None
    plain: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    rate: bool = False

    @property
    def better(self) -> float | None:
        """How many times better ours is than the plain one; below 1 it is worse."""
        if not self.ours or not self.plain:
            return None
        return self.ours / self.plain if self.rate else self.plain / self.ours


@dataclass(frozen=True, slots=True)
class Size:
    in_flight: int
    jobs: int
    seconds: float
    call_seconds: float
    processes: int
    prefork_jobs: int
    rounds: int
    held: int
    held_seconds: float
    idle_jobs: int
    rest: float
    requests: int
    booked: int


FULL = Size(500, 2000, 1.0, 2.0, 8, 80, 3, 5000, 30.0, 200, 30.0, 3000, 4000)
QUICK = Size(20, 40, 0.1, 0.1, 2, 4, 1, 50, 0.3, 5, 1.0, 100, 80)


def rows(size: Size, router: Path | None = None) -> Iterator[Row]:
    """One group of rows after the other, as they are measured. router: as `calls.one_round` takes it."""
    yield from _at_work(size)
    yield from _called(size, router)
    yield from _booked(size)
    yield from _held(size)
    yield from _idle(size)
    yield from _at_rest(size)
    yield from _taken(size)


def _at_work(size: Size) -> Iterator[Row]:
    n = size.in_flight
    ours, threads, bare = [], [], []
    # In turn, and of the CPU time the least: what else the machine does meanwhile only adds to it.
    for _ in range(size.rounds):
        ours.append(workers.load("celeriac", n, size.jobs, size.seconds))
        bare.append(workers.bare(n, size.jobs, size.seconds))
        threads.append(workers.load("threads", n, size.jobs, size.seconds))
    prefork = workers.load("prefork", size.processes, size.prefork_jobs, size.seconds)
    few = f"{size.processes} processes"
    mine, theirs, call = min(ours, key=cpu), min(threads, key=cpu), min(bare)
    yield Row(f"Jobs a second, {n} in flight; plain: {n} threads", "", most(ours), most(threads), rate=True)
    yield Row(f"The same; plain: prefork, {few}", "", most(ours), prefork.per_second, rate=True)
    yield Row("CPU of the worker a job; plain: threads", "ms", mine.cpu_ms, theirs.cpu_ms)
    yield Row(f"The same; plain: prefork, {few}", "ms", mine.cpu_ms, prefork.cpu_ms)
    yield Row("Memory a job in flight; plain: threads", "KB", mine.kb, theirs.kb)
    yield Row(f"The same; plain: prefork, {few}", "KB", mine.kb, prefork.kb)
    yield Row("Memory of the worker in all; plain: threads", "MB", mine.mb, theirs.mb)
    yield Row("CPU of a bare `AsyncOpenAI` call over our transport", "ms", call)
    # Of rounds, for what else the machine does comes and goes: each is beside its own call.
    ratio = statistics.median(load.cpu_ms / one for load, one in zip(ours, bare, strict=True))
    yield Row("CPU of the worker a job / of a bare call", "x", ratio, None, "at most 2.5", ratio <= 2.5)


#: Of so many calls in flight that it counts as all of them: the provider is asked for it five times a second.
NEARLY = 0.95


def _called(size: Size, router: Path | None) -> Iterator[Row]:
    n = size.in_flight
    # In turn: what else the machine does meanwhile adds to all three.
    rounds = [calls.one_round(n, size.call_seconds, router) for _ in range(size.rounds)]
    ours, bare = [ours for ours, _, _ in rounds], [bare for _, bare, _ in rounds]
    theirs = [routed for _, _, routed in rounds if routed]
    mine = statistics.median(one.cpu_ms for one in ours)
    beside = f"LiteLLM {theirs[0].version}'s `Router`" if theirs else f"LiteLLM's `Router`, left out by {WITHOUT}"
    yield Row(
        f"CPU of a model call with gate, price and journal, {n} in flight: user and system time of the process that "
        f"calls, and of no other; the middle of {size.rounds} rounds. Ours is all that a worker spends on jobs of "
        f"{calls.CALLS} calls, claims and ends with it, since there is no call without a job; plain: {beside}",
        "ms",
        mine,
        statistics.median(one.cpu_ms for one in theirs) if theirs else None,
        "at most 3",
        mine <= 3 and all(one.in_flight >= n * NEARLY for one in (*ours, *bare, *theirs)),
    )
    yield Row(
        "The same; plain: the bare `AsyncOpenAI` call over our transport, in the same conversations",
        "ms",
        mine,
        statistics.median(one.cpu_ms for one in bare),
    )
    yield Row("What such a call costs Redis", "ms", statistics.median(one.store_ms for one in ours))
    yield Row(
        f"Such calls in flight at once, as the provider saw them; plain: {beside}",
        "",
        statistics.median(one.in_flight for one in ours),
        statistics.median(one.in_flight for one in theirs) if theirs else None,
        rate=True,
    )


def _booked(size: Size) -> Iterator[Row]:
    booked = money.booked(size.booked, size.rounds)
    yield Row(
        "CPU of admitting and settling a call, with two caps in each of five scopes; plain: two `EVALSHA` of redis-py "
        "that do nothing",
        "us",
        booked.ours,
        booked.bare,
        "at most 250",
        booked.ours <= 250,
    )
    report = money.reported(5)
    what = f"Report of the usage of {money.DAYS} days and {money.SERIES} series, by day and model"
    yield Row(what, "ms", report, None, "at most 50", report <= 50)


def cpu(load: workers.Load) -> float:
    return load.cpu_ms


def most(loads: list[workers.Load]) -> float:
    return max(load.per_second for load in loads)


def _held(size: Size) -> Iterator[Row]:
    held = workers.hold(size.held, size.held_seconds)
    what = f"{size.held} jobs of {size.held_seconds:g} s in one worker process"
    yield Row(f"{what}: calls in flight at once", "", held.in_flight)
    yield Row(f"{what}: memory", "MB", held.mb, None, "below 500", held.mb < 500)
    yield Row(f"{what}: memory a job in flight", "KB", held.kb)
    yield Row(f"{what}: CPU a job", "ms", held.cpu_ms)


def _idle(size: Size) -> Iterator[Row]:
    rounds = [
        (workers.idle_celeriac(size.idle_jobs, 0.05), workers.idle_plain(size.idle_jobs, 0.05))
        for _ in range(size.rounds)
    ]
    ours, plain = (middle(of_one) for of_one in zip(*rounds, strict=True))
    p50 = ours.waited.p50
    what = "Submit to visible result less the provider's time, idle"
    yield Row(f"{what}: p50", "ms", p50, plain.waited.p50, "at most 15", p50 <= 15)
    yield Row(f"{what}: p95", "ms", ours.waited.p95, plain.waited.p95)
    mine = sum(count for who, count in ours.commands.items() if who != "celery")
    yield Row("Commands to Redis a job, our own", "", mine, None, "at most 6", mine <= 6)
    yield Row("Commands to Redis a job, Celery's", "", ours.commands.get("celery", 0), plain.commands["celery"])


def middle(rounds: Sequence[workers.Idle]) -> workers.Idle:
    """The round whose p50 is the middle one: of a wait, what is usual counts, not the luckiest."""
    return sorted(rounds, key=lambda idle: idle.waited.p50)[len(rounds) // 2]


def _at_rest(size: Size) -> Iterator[Row]:
    ours, plain = (workers.at_rest(kind, size.rest) for kind in ("celeriac", "threads"))
    yield Row(
        "A worker with nothing to do, upkeep included, of a core",
        "%",
        ours.worker,
        plain.worker,
        "at most 1",
        ours.worker <= 1,
    )
    yield Row("What it costs Redis, of a core", "%", ours.store, plain.store)


def _taken(size: Size) -> Iterator[Row]:
    served: dict[str, list[servers.Served]] = {name: [] for name in servers.SERVERS}
    for _ in range(size.rounds):
        for name, rounds in served.items():
            if one := servers.serve(name, size.requests):
                rounds.append(one)
    best = {name: min(rounds, key=lambda one: one.cpu_ms) for name, rounds in served.items() if rounds}
    ours, granian, threaded, blocking = (best.get(name) for name in servers.SERVERS)
    assert ours is not None
    for plain, how in ((threaded, "`def`"), (blocking, "`async def`, blocking")):
        assert plain is not None
        name = f"Submissions a second; plain: {how}"
        if plain is threaded:
            enough = ours.per_second >= 2 * plain.per_second
            yield Row(name, "", ours.per_second, plain.per_second, "twice as many", enough, rate=True)
        else:
            yield Row(name, "", ours.per_second, plain.per_second, rate=True)
        yield Row(f"CPU of the server each; plain: {how}", "ms", ours.cpu_ms, plain.cpu_ms)
    missing = "" if granian else "not installed: pip install granian"
    yield Row(
        "Submissions a second, our shim on granian", "", granian.per_second if granian else None, None, note=missing
    )
    yield Row(
        "CPU of the server each, our shim on granian", "ms", granian.cpu_ms if granian else None, None, note=missing
    )
