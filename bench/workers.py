"""Workers: the same calls by Celeriac, by plain Celery with threads, by plain Celery with processes."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from bench.house import PATIENCE, Cost, House, until
from bench.question import AGENT, INSTRUCTIONS, QUESTION
from bench.servers import KEY
from bench.talk import Talk, command
from celeriac import keys
from celeriac.jobs.model import NewJob
from celeriac.jobs.store import new_id
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_stores
from tests.processes import Shim


class Submit(Protocol):
    def __call__(self, jobs: int, agent: str = AGENT) -> None: ...


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker did with `jobs` jobs, `in_flight` at once. kb: memory a job in flight; mb: all, at the peak."""

    jobs: int
    in_flight: int
    per_second: float
    cpu_ms: float
    kb: float
    mb: float


async def _submit_all(stores: Stores, jobs: int, agent: str) -> None:
    free = asyncio.Semaphore(8)

    async def one() -> None:
        async with free:
            await stores.jobs.submit(
                NewJob(id=new_id(), tenant="default", agent=agent, queue="celeriac", input=(("user", QUESTION),))
            )

    await asyncio.gather(*(one() for _ in range(jobs)))


@contextmanager
def celeriac(house: House) -> Iterator[tuple[Submit, Callable[[], int]]]:
    """Through the store, as the shim does: the web servers are measured by themselves."""
    loop = asyncio.new_event_loop()

    async def opened() -> Stores:
        return open_stores(load_settings(redis_url=house.valkey.url), name="celeriac-bench")

    stores = loop.run_until_complete(opened())
    ended = [keys.spell("jobs_in", tenant="default", state=state) for state in ("succeeded", "failed")]
    try:
        yield (
            lambda jobs, agent=AGENT: loop.run_until_complete(_submit_all(stores, jobs, agent)),
            lambda: sum(int(house.redis.zcard(key)) for key in ended),
        )
        assert house.redis.zcard(ended[1]) == 0, "jobs failed"
    finally:
        loop.run_until_complete(stores.close())
        loop.close()


@contextmanager
def _plain(house: House) -> Iterator[tuple[Submit, Callable[[], int]]]:
    from celery import Celery

    app = Celery("plain", broker=house.valkey.url, backend=house.valkey.url, set_as_current=False)

    def submit(jobs: int, agent: str = AGENT) -> None:
        assert agent == AGENT  # the plain task knows no other
        with app.producer_or_acquire() as producer:
            for _ in range(jobs):
                app.send_task("plain.ask", args=[INSTRUCTIONS, QUESTION], producer=producer)

    def ended() -> int:
        # One key a result; the few others are of the broker.
        return (
            int(house.redis.dbsize())
            - sum(1 for _ in house.redis.scan_iter("_kombu*"))
            - int(house.redis.exists("celery", "unacked", "unacked_index", "unacked_mutex"))
        )

    try:
        yield submit, ended
    finally:
        app.close()


def load(kind: str, in_flight: int, jobs: int, delay: float, *, warm: int | None = None) -> Load:
    """kind: "celeriac", "threads" or "prefork". One round of `in_flight` jobs warms up, then `jobs` are measured."""
    with House(delay) as house:
        worker = house.celeriac_worker(in_flight) if kind == "celeriac" else house.plain_worker(kind, in_flight)
        caller = celeriac(house) if kind == "celeriac" else _plain(house)
        with worker as process, caller as (submit, ended):
            cost = Cost(process.pid)
            # A first job opens the clients; prefork has them open in all its processes.
            submit(1)
            until(lambda: ended() >= 1, "the first job")
            idle = 0.0 if kind == "prefork" else cost.memory()  # a call at once is a process, all of it
            warm = in_flight if warm is None else warm
            submit(warm)
            until(lambda: ended() >= 1 + warm, "the jobs that warm up")
            time.sleep(0.5)
            cost.reset()
            began, peak = time.perf_counter(), 0.0
            submit(jobs)

            def done() -> bool:
                nonlocal peak
                peak = max(peak, cost.memory())
                return ended() >= 1 + warm + jobs

            until(done, f"{jobs} jobs of {kind}", every=0.2)
            took, used = time.perf_counter() - began, cost.cpu()
            return Load(
                jobs=jobs,
                in_flight=in_flight,
                per_second=jobs / took,
                cpu_ms=used / jobs * 1000,
                kb=max(0.1, (peak - idle) / min(in_flight, jobs) * 1000),
                mb=peak,
            )


def bare(in_flight: int, calls: int, delay: float) -> float:
    """CPU ms of a bare call, in a process of its own."""
    with House(delay) as house:
        talk = Talk(INSTRUCTIONS, (QUESTION,))
        argv = [sys.executable, *command("bench.bare", house.provider.openai_url, in_flight, calls, talk)]
        out = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        return float(json.loads(out.splitlines()[-1])["cpu_ms"])


@dataclass(frozen=True, slots=True)
class Held:
    """in_flight: calls that the provider saw at once."""

    jobs: int
    in_flight: int
    mb: float
    kb: float
    cpu_ms: float
    seconds: float


def hold(jobs: int, delay: float) -> Held:
    """So many jobs in flight in one worker process, each of `delay` seconds; raises where one does not succeed."""
    with House(delay) as house, house.celeriac_worker(jobs) as process, celeriac(house) as (submit, ended):
        cost, idle, peak = Cost(process.pid), Cost(process.pid).memory(), 0.0
        began = time.perf_counter()
        submit(jobs)

        def done() -> bool:
            nonlocal peak
            peak = max(peak, cost.memory())
            return ended() >= jobs

        until(done, f"{jobs} jobs of {delay:g} s", every=0.25)
        took = time.perf_counter() - began
        seen = asyncio.run(house.provider.state())["peak"]
        return Held(jobs, seen, peak, (peak - idle) / jobs * 1000, cost.cpu() / jobs * 1000, took)


@dataclass(frozen=True, slots=True)
class Waited:
    """Milliseconds from submit to the visible result, less the provider's delay."""

    p50: float
    p95: float


def _waited(took: list[float], delay: float) -> Waited:
    ms = sorted((seconds - delay) * 1000 for seconds in took)
    return Waited(statistics.median(ms), ms[int(len(ms) * 0.95)])


@dataclass(frozen=True, slots=True)
class Idle:
    """commands: what a job sends to Redis, by whom; heartbeats and upkeep left out."""

    waited: Waited
    commands: dict[str, float]


def _idle(house: House, one: Callable[[], float], jobs: int) -> Idle:
    for _ in range(5):
        one()
    took = [one() for _ in range(jobs)]
    counted = 20
    with house.counting() as commands:
        for _ in range(counted):
            one()
    per_job = {who: count / counted for who, count in commands.items() if who != "lease"}
    return Idle(_waited(took, house.delay), per_job)


def idle_celeriac(jobs: int, delay: float) -> Idle:
    """One job after the other through the shim, with a long poll."""
    env = {"CELERIAC_ENV": "prod", "CELERIAC_SHIM__API_KEYS__BENCH": KEY}
    with House(delay) as house, house.celeriac_worker(100), house.running(Shim(house.valkey.url, **env)) as shim:
        shim.http.headers["X-API-Key"] = KEY

        def one() -> float:
            began = time.perf_counter()
            id = shim.submit(input=QUESTION)["id"]
            job: dict[str, Any] = shim.job(id, wait=30)
            assert job["state"] == "succeeded", job
            return time.perf_counter() - began

        return _idle(house, one, jobs)


def idle_plain(jobs: int, delay: float) -> Idle:
    """One job after the other: `send_task` and `get()` in one process, with no web server between."""
    from celery import Celery

    with House(delay) as house, house.plain_worker("threads", 100):
        app = Celery("plain", broker=house.valkey.url, backend=house.valkey.url, set_as_current=False)

        def one() -> float:
            began = time.perf_counter()
            app.send_task("plain.ask", args=[INSTRUCTIONS, QUESTION]).get(timeout=30)
            return time.perf_counter() - began

        try:
            return _idle(house, one, jobs)
        finally:
            app.close()


@dataclass(frozen=True, slots=True)
class AtRest:
    """What a worker with nothing to do costs, in percent of a core. store: what it costs its Redis."""

    worker: float
    store: float


def at_rest(kind: str, seconds: float) -> AtRest:
    """kind: "celeriac" or "threads". The only worker, so the one that does all upkeep."""
    with House(0) as house:
        worker = house.celeriac_worker(100) if kind == "celeriac" else house.plain_worker(kind, 100)
        assert house.valkey.process is not None
        with worker as process:
            time.sleep(3)  # what it does once, after its start
            costs = Cost(process.pid), Cost(house.valkey.process.pid)
            time.sleep(seconds)
            return AtRest(*(cost.cpu() / seconds * 100 for cost in costs))
