"""The scenarios by name: each breaks one thing, in a way that happens, while jobs run.

What is checked after each is the history (`history.violations`); a scenario adds only what it promises besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from celeriac import keys
from celeriac.drill import blocking, slow_disk
from celeriac.drill.history import Rewind
from celeriac.drill.house import Kept, Plan
from celeriac.drill.slow_disk import SlowDisk
from celeriac.drill.stage import Size, Stage

#: What calls take by default: seconds, and up to so many more.
DELAY, JITTER = 0.5, 1.0
#: The longest call that a scenario's jobs make, for the history that a rewound store has lost.
LONGEST: Final = DELAY + JITTER + 1
SMALL: Final = {"CELERIAC_WORKER__CONCURRENCY": "10"}
DRAIN: Final = {"CELERIAC_WORKER__GRACE": "20"}


@dataclass(frozen=True)
class Scenario:
    """about: in one line. plan: the house it needs. short: it is part of the short drill.

    anywhere: it needs no processes of its own, and runs against a stack that is up. why_not: why it cannot run on this
    machine, "" if it can. settings: those that the release must have.
    """

    name: str
    about: str
    play: Callable[[Stage], Awaitable[None]]
    plan: Callable[[Size], Plan]
    anywhere: bool = False
    short: bool = False
    why_not: Callable[[], str] = lambda: ""
    settings: tuple[str, ...] = ()


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(
    about: str, *, plan: Callable[[Size], Plan] = lambda _: Plan(), **facts: Any
) -> Callable[[Callable[[Stage], Awaitable[None]]], Callable[[Stage], Awaitable[None]]]:
    def register(play: Callable[[Stage], Awaitable[None]]) -> Callable[[Stage], Awaitable[None]]:
        name = play.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, about, play, plan, **facts)
        return play

    return register


@scenario("nothing breaks", anywhere=True)
async def calm(stage: Stage) -> None:
    async with stage.load():
        pass


# Workers.


@scenario("a worker is killed with -9 every 2 s", short=True)
async def kill_workers(stage: Stage) -> None:
    async with stage.load() as load:
        async for _ in load.every(2):
            if (worker := await stage.busy_worker()) is not None:
                await stage.strike(worker)
    stage.expect(bool(stage.history.faults), "no worker was killed while it ran a job")


@scenario("one worker after the other is told to stop and started again; some jobs outlast the grace", short=True)
async def deploys(stage: Stage) -> None:
    await stage.provider.script({"model": "slow", "times": 0, "delay": 7})
    workers = stage.house.workers[:2]
    before = {worker.name: len(worker.statuses) for worker in workers}
    slow = stage.caller.wishes(
        f"{stage.name}-slow", max(2, stage.size.jobs // 20), 1, stage.rng, model="openai/slow", alone=True
    )
    async with stage.load():
        await stage.caller.submit_all(slow)
        for worker in workers:
            await stage.strike(worker, signal.SIGTERM)
            await _replaced(stage, worker)
    for worker in workers:
        statuses = worker.statuses[before[worker.name] :]
        stage.expect(statuses == [0], f"{worker.name} was told to stop and ended with {statuses}, not [0]")


async def _replaced(stage: Stage, worker: Kept) -> None:
    starts, said = worker.starts, worker.log.count("worker_registered")
    await stage.until(
        lambda: worker.starts > starts and worker.log.count("worker_registered") > said,
        f"{worker.name} to be replaced",
        60,
    )


@scenario("a worker is stopped for longer than its lease, and wakes", short=True)
async def zombies(stage: Stage) -> None:
    sleep = stage.size.lease * 1.5 + 1
    # Answered just before their worker wakes; the next asks again a lease after that fell asleep, and still waits then.
    await stage.provider.script({"model": "slow", "times": 0, "delay": sleep - 0.5})
    slow = 45 if stage.size.short else 12
    async with stage.load(over=max(stage.size.over, 2 * sleep)) as load:
        for part in (0.15, 0.6):
            await load.at(part)
            await stage.submit(slow, agent="unhurried", model="openai/slow", alone=True)
            await stage.in_flight(slow)
            if (worker := await stage.busy_worker()) is None:
                continue
            await _sleeps(stage, worker, sleep)
    stage.expect(bool(stage.history.faults), "no worker was stopped while it ran a job")


async def _sleeps(stage: Stage, worker: Kept, seconds: float) -> None:
    lost, back = worker.log.count("lease_lost"), worker.log.count("worker_registered")
    await stage.strike(worker, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    worker.signal(signal.SIGCONT)
    await stage.until(lambda: worker.log.count("lease_lost") > lost, f"{worker.name} to hear that it lost its lease")
    await stage.until(lambda: worker.log.count("worker_registered") > back, f"{worker.name} to be back in the fleet")


@scenario(
    "a draining worker with long jobs stands beside a fresh one", plan=lambda _: Plan(workers=1, env=SMALL | DRAIN)
)
async def draining_beside_fresh(stage: Stage) -> None:
    await stage.provider.script({"model": "slow", "times": 0, "delay": 12})
    old, *_ = stage.house.workers
    long = await stage.submit(10, model="openai/slow", alone=True)
    await stage.in_flight(10)
    await stage.strike(old, signal.SIGTERM)
    await stage.house.new_worker()
    # No more than the fresh one has room for: who waits then, waits for a slot that nobody counts.
    await stage.ended(await stage.submit(10, alone=True))
    waited = [job.started - job.created for job in stage.history.seen if job.id not in long and job.started]
    stage.expect(max(waited, default=99) < 5, f"jobs waited {max(waited, default=99):.1f} s beside a draining worker")


@scenario(
    "two queues are served by one group of workers, and full",
    plan=lambda _: Plan(workers=2, env=SMALL | {"CELERIAC_WORKER__QUEUES": "celeriac,second"}),
)
async def two_queues(stage: Stage) -> None:
    half = stage.size.jobs // 2
    first = await stage.submit(half)
    second = await stage.submit(half, agent="second")
    await stage.ended({*first, *second})
    ends = sorted(stage.history.seen, key=lambda job: job.ended or 0)[:half]
    share = sum(job.id in second for job in ends) / max(1, half)
    stage.expect(share > 0.2, f"of the first half of all ends only {share:.0%} were of the second queue")


@scenario(
    "the event loop of a worker is blocked for longer than a lease",
    plan=lambda size: Plan(
        options=("-I", blocking.__name__),
        env={blocking.SECONDS: f"{size.lease * 1.3:g}", "CELERIAC_WORKER__STALL": "1"},
    ),
)
async def loop_blocked(stage: Stage) -> None:
    async with stage.load() as load:
        await load.at(0.3)
        if (worker := await stage.busy_worker()) is not None:
            affected = await stage.running_on(worker)
            await stage.strike(worker, signal.SIGUSR2)
            await asyncio.sleep(stage.size.lease * 1.5)
            stage.expect(bool(affected), "no job ran on the loop that was blocked")
            again = [id for id, began in (await stage._began(affected)).items() if began != affected[id]]
            stage.expect(not again, f"{len(again)} of {len(affected)} jobs were run again for one slow function")
            named = blocking.block_the_loop.__name__ in worker.log
            stage.expect(named, "no log line has the stack of what blocked the loop")


@scenario("one job kills its process whenever it runs, among many", short=True)
async def poisoned_job(stage: Stage) -> None:
    await stage.provider.script({"model": "poison", "times": 0, "hang": True})
    [poison] = await stage.submit(1, model="openai/poison") or [""]
    killer = asyncio.create_task(_kill_who_asks(stage, "poison"))
    try:
        async with stage.load():
            pass
        await stage.ended([poison], stage.size.patience * 2)
        await stage.caller.all_ended(stage.size.patience)
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
    ends = {job.id: str(job.state) for job in stage.history.seen}
    stage.expect(ends.get(poison) == "failed", f"the poisoned job is {ends.get(poison)}, not failed")
    others = Counter(state for id, state in ends.items() if id != poison)
    stage.expect(set(others) <= {"succeeded"}, f"its neighbours ended so: {dict(others)}")


async def _kill_who_asks(stage: Stage, model: str) -> None:
    """The provider says whose key asked; the process that was started with that key dies."""
    while True:
        for line in await stage.provider.open():
            if line["model"] == model and (worker := stage.house.whose_key(line["key"])) is not None:
                await stage.strike(worker)
        await asyncio.sleep(0.02)


# Connections and bells.


@scenario("pops are swallowed: Redis answers, the bell never arrives, the connection is cut", short=True)
async def swallowed_pops(stage: Stage) -> None:
    async with stage.load() as load:
        await load.at(0.1)
        swallow = stage.house.worker_line.swallow(command="BRPOP", times=max(19, stage.size.jobs // 10))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(swallow.done.wait(), stage.size.over + stage.size.patience)
    stage.house.worker_line.deliver()
    stage.hit_by(swallow)
    stage.expect(bool(swallow.answers), "no pop was swallowed")


@scenario("answers of scripts are swallowed after their work was done, submit and finish among them", short=True)
async def swallowed_replies(stage: Stage) -> None:
    house, swallows = stage.house, []
    async with stage.load() as load:
        async for number in load.every(0.2):
            script = (
                ("finish", "submit", "claim")[number]
                if number < 3
                else stage.rng.choice(house.worker_line.scripts.names)
            )
            lines = [house.shim_line] if script in ("submit", "get", "list") else [house.worker_line]
            swallows += [line.swallow(script=script, cut=number % 5 != 4) for line in lines]
    for line in (house.shim_line, house.worker_line):
        line.deliver()
    swallowed = Counter(swallow.script for swallow in swallows if swallow.answers)
    stage.expect({"finish", "submit"} <= swallowed.keys(), f"swallowed were only {dict(swallowed)}")


@scenario("the broker's list is deleted, with the bells in it", anywhere=True, short=True)
async def bells_deleted(stage: Stage) -> None:
    if not stage.has_house:
        async with stage.load() as load:
            async for _ in load.every(0.5):
                await _delete_bells(stage)
        return
    workers, deleted = stage.house.workers, 0
    for _ in range(ROUNDS):
        # Stopped for less than a lease, or the list would be empty; as it is, each takes one bell all the same.
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        try:
            await stage.submit(stage.size.jobs // ROUNDS)
            deleted += await _delete_bells(stage)
        finally:
            for worker in workers:
                worker.signal(signal.SIGCONT)
        await asyncio.sleep(stage.size.over / ROUNDS)
    stage.expect(deleted > 0, "no bell was deleted")


ROUNDS: Final = 2


async def _delete_bells(stage: Stage) -> int:
    """How many queues had a list to delete."""
    deleted = 0
    for queue in await stage.queues():
        rung = await stage.redis.zrange(keys.spell("rung", queue=queue), 0, -1)
        if await stage.redis.delete(queue):
            deleted += 1
            stage.fault("bells deleted", dict.fromkeys(id.decode() for id in rung))
    return deleted


@scenario("the shim is killed with -9 after it stored a job and before it said so")
async def shim_killed(stage: Stage) -> None:
    async with stage.load() as load:
        async for _ in load.every(4):
            swallow = stage.house.shim_line.swallow(script="submit", cut=False)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(swallow.done.wait(), 2)
                stage.house.shim.signal(signal.SIGKILL)
            stage.house.shim_line.deliver()
    unanswered = [post for post in stage.history.posts if post.outcome == "unknown"]
    stage.expect(bool(unanswered), "no submission was left without an answer")


# Redis.


@scenario("Redis is killed with -9 and started again from its file", short=True)
async def redis_killed(stage: Stage) -> None:
    async with stage.load() as load:
        for part in (0.3,) if stage.size.short else (0.3, 0.7):
            await load.at(part)
            await stage.hit_everybody("redis killed")
            await stage.house.stop_redis(kill=True)
            await asyncio.sleep(1)
            await stage.house.start_redis()


@scenario("Redis is killed while an fsync is slow; what it had answered and lost is noticed", why_not=slow_disk.why_not)
async def slow_fsync(stage: Stage) -> None:
    await _killed_while_slow(stage, promised=False)


@scenario(
    "Redis is killed while an fsync is slow, with CELERIAC_DURABILITY=disk: nothing that was answered is lost",
    plan=lambda _: Plan(env={"CELERIAC_DURABILITY": "disk"}),
    why_not=slow_disk.why_not,
    settings=("CELERIAC_DURABILITY",),
)
async def slow_fsync_disk(stage: Stage) -> None:
    await _killed_while_slow(stage, promised=True)


async def _killed_while_slow(stage: Stage, *, promised: bool) -> None:
    house = stage.house
    async with stage.load() as load:
        await load.at(0.4)
        slow_since = time.time()
        async with SlowDisk(house.redis.pid):
            # An fsync begins every second; from then on writes wait for it, two seconds at most.
            await asyncio.sleep(2.5)
            await stage.hit_everybody("redis killed")
            killed = asyncio.create_task(house.stop_redis(kill=True))
            await asyncio.sleep(0.1)
        await killed
        if not promised:
            stage.history.rewinds.append(Rewind(slow_since, time.time(), LONGEST))
        await house.start_redis()
        stage.caller.look_again()


@scenario("Redis is put back to an older copy of its file while workers live")
async def redis_rewound(stage: Stage) -> None:
    house = stage.house
    async with stage.load() as load:
        await load.at(0.3)
        copied = time.time()
        copy = await asyncio.to_thread(house.copy_of_redis)
        await load.at(0.6)
        await stage.hit_everybody("redis rewound")
        await house.stop_redis(kill=True)
        await asyncio.to_thread(house.restore_redis, copy)
        stage.history.rewinds.append(Rewind(copied, time.time(), LONGEST))
        await house.start_redis()
        stage.caller.look_again()


@scenario("Redis is full: new work is refused, running work finishes, heartbeats go on", short=True)
async def redis_full(stage: Stage) -> None:
    async with stage.load() as load:
        await load.at(0.3)
        before = await stage.workers()
        running = {id for id, began in (await stage._began(stage.caller.open)).items() if began}
        # A call that is not booked yet is new work.
        await asyncio.sleep(0.3)
        await stage.redis.config_set("maxmemory", "1mb")
        try:
            await asyncio.sleep(max(3.0, stage.size.lease * 1.2))
            stage.expect(await stage.workers() == before, "a full Redis made workers lose their leases")
            stage.expect(not running & stage.caller.open, "jobs that ran before Redis was full did not end")
        finally:
            await stage.redis.config_set("maxmemory", "0")
    refused = [post for post in stage.history.posts if post.outcome == "refused"]
    stage.expect(bool(refused), "a full Redis took new work")
    stage.expect({post.status for post in refused} <= {503}, "a full Redis is not answered by 503")


@scenario("Redis answers slowly")
async def redis_slow(stage: Stage) -> None:
    before = await stage.workers()
    lines = (stage.house.shim_line, stage.house.worker_line)
    for line in lines:
        line.latency = 0.1 if stage.size.short else 0.3
    try:
        async with stage.load(stage.size.jobs // 2):
            pass
        await stage.caller.all_ended(stage.size.patience)
        stage.expect(await stage.workers() == before, "a slow Redis made workers lose their leases")
    finally:
        for line in lines:
            line.latency = 0


@scenario("Redis is away for 30 s while 200 jobs run: nobody exits or spins, and no finished call is bought again")
async def redis_away(stage: Stage) -> None:
    house, away = stage.house, 6.0 if stage.size.short else 30.0
    running = min(200, stage.size.jobs)
    await stage.provider.default(delay=3, jitter=1)
    ids = await stage.submit(running, alone=True)
    await stage.in_flight(running)
    starts = [worker.starts for worker in house.workers]
    await stage.hit_everybody("redis away")
    for line in (house.shim_line, house.worker_line):
        line.refuse()
    spent = [_cpu(worker) for worker in house.workers]
    await asyncio.sleep(away)
    for worker, was in zip(house.workers, spent, strict=True):
        share = (_cpu(worker) - was) / away
        stage.expect(share < 0.5, f"{worker.name} spins: {share:.0%} of a core while Redis is away")
    await _refused_with_a_time(stage)
    for line in (house.shim_line, house.worker_line):
        line.accept()
    await stage.ended(ids)
    stage.expect([worker.starts for worker in house.workers] == starts, "a worker exited while Redis was away")
    calls = Counter(line["about"].split()[0] for line in (await stage.provider.bill(lines=True))["lines"])
    again = [label for label, times in calls.items() if times > 1]
    stage.expect(not again, f"{len(again)} calls were bought again")


async def _refused_with_a_time(stage: Stage) -> None:
    status, header = await stage.caller.status_of("/v1/jobs")
    stage.expect(
        status == 503 and bool(header.get("Retry-After")), f"the shim answers {status}, not 503 with Retry-After"
    )


def _cpu(worker: Kept) -> float:
    """Seconds of CPU; 0.0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@scenario("records that make no sense are planted where upkeep looks, and a worker is killed", short=True)
async def wrong_record(stage: Stage) -> None:
    redis, wrong = stage.redis, "01900000-0000-7000-8000-00000000dead"
    record = keys.spell("job", id=wrong)
    async with stage.load() as load:
        await load.at(0.2)
        await redis.hset(record, mapping={"place": "nowhere", "queue": "celeriac", "seq": "many"})
        await redis.zadd(keys.spell("rung", queue="celeriac"), {wrong: 0, "not even an id": 0})
        await redis.zadd(keys.spell("ready", line="celeriac", priority="1", tenant="default"), {wrong: 0})
        if (worker := await stage.busy_worker()) is not None:
            [name] = [n for n in await stage.workers() if f".{worker.pid}." in n]
            await redis.sadd(keys.spell("held", worker=name), wrong)
            await stage.strike(worker)
    stage.expect(bool(stage.history.faults), "no worker was killed while it ran a job")
    await stage.caller.all_ended(stage.size.patience)
    stage.expect(await _set_aside(stage, wrong), "nobody set the wrong record aside")
    await redis.delete(record)


async def _set_aside(stage: Stage, id: str) -> bool:
    """Whether the index of broken records names it, as "ID in PLACE"; it is taken out again."""
    key = keys.spell("broken")
    named = [entry for entry in await stage.redis.zrange(key, 0, -1) if entry.startswith(id.encode())]
    return bool(named and await stage.redis.zrem(key, *named))


# The provider.

FAULTS: Final = (
    "500", "503", "429", "529", "html", "truncated", "reset-before", "reset-after", "reset-middle", "no-usage", "null",
    "gateway", "object", "huge-usage",
)  # fmt: skip
#: The last call that fails closes its lane for a minute; more often there would be only closed lanes to see.
LAST_FAULT: Final = "quota"


@scenario("the provider fails in every way it can, one call in four")
async def provider_errors(stage: Stage) -> None:
    calls: list[dict[str, Any]] = []
    for _ in range(stage.size.jobs):
        fault = {"fault": stage.rng.choice(FAULTS)}
        calls.append(fault if stage.rng.random() < 1 / 4 else {"delay": DELAY})
    await stage.provider.script(*calls, {"fault": LAST_FAULT})
    async with stage.load():
        pass


@scenario("the provider hangs, one call in three")
async def provider_hangs(stage: Stage) -> None:
    calls: list[dict[str, Any]] = [
        {"hang": True} if stage.rng.random() < 1 / 3 else {"delay": DELAY} for _ in range(stage.size.jobs)
    ]
    await stage.provider.script(*calls)
    async with stage.load(agent="hasty"):
        pass
