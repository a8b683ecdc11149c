"""The tasks that the tests of the pool run; configured by the environment."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from celery import Celery, bootsteps, current_task, signals
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu import Queue
from pydantic import BaseModel

from tasks.base import AsyncTask
from tests.processes import held
from worker.pool import Job, TaskPool

URL = os.environ["POOL_TEST_URL"]
CONF: dict[str, Any] = json.loads(os.environ.get("POOL_TEST_CONF", "{}"))
NO_ACK = os.environ.get("POOL_TEST_NO_ACK") == "1"

marks = redis.Redis.from_url(URL, decode_responses=True)
app = Celery("pool_app", broker=URL, backend=URL)
app.conf.update(
    worker_pool="worker.pool:TaskPool",
    task_queues=[Queue("celery", no_ack=NO_ACK), Queue("other")],
    task_routes={"pool_app.plain": {"queue": "other"}},
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    result_extended=True,
)
app.conf.update(CONF)

if stall := os.environ.get("POOL_TEST_STALL"):
    TaskPool.stall = float(stall)
if grace := os.environ.get("POOL_TEST_GRACE"):
    TaskPool.grace = float(grace)


def mark(key: str, value: object = 1) -> None:
    marks.rpush(f"mark:{key}", str(value))


async def told(key: str) -> None:
    """Returns once the test says a word about this, to this task alone."""
    while await asyncio.to_thread(marks.blpop, [f"told:{key}"], 1) is None:
        pass


class SlowBackend(RedisBackend):
    def store_result(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(1.0)
        return super().store_result(*args, **kwargs)


class Owner(bootsteps.StartStopStep):
    """Stands for the owner of the process: stores that open before the first message and close after the last job."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> None:
        if isinstance(worker.pool, TaskPool):
            app.pool_of_the_worker = worker.pool  # type: ignore[attr-defined]  # ours, for the tasks below
            worker.pool.on_loop_start.append(open_stores)
            if queues := os.environ.get("POOL_TEST_CONSUME"):
                worker.pool.consume(queues.split(","))
            worker.pool.on_loop_stop.append(close_stores)


async def open_stores(pool: TaskPool) -> None:
    if os.environ.get("POOL_TEST_FAILING_HOOK"):
        raise ConnectionError("the store is not there")
    await asyncio.sleep(0.2)
    mark("life", "opened")
    background.add(asyncio.create_task(tell_draining(pool)))
    if path := os.environ.get("POOL_TEST_STATUS"):
        background.add(asyncio.create_task(tell_status(pool, path)))


async def close_stores(pool: TaskPool) -> None:
    mark("life", f"closed with {pool.running} running")


background: set[asyncio.Task[None]] = set()


async def tell_draining(pool: TaskPool) -> None:
    await pool.draining.wait()
    mark("life", f"draining with {pool.running} running and {pool.free} free")


async def tell_status(pool: TaskPool, path: str) -> None:
    while True:
        status = {"age": time.monotonic() - pool.hub_ticked, "free": pool.free, "running": pool.running}
        Path(path + ".new").write_text(json.dumps(status))
        os.replace(path + ".new", path)
        await asyncio.sleep(0.1)


app.steps["worker"].add(Owner)


@app.task(base=AsyncTask)
async def add(x: int, y: int) -> int:
    await asyncio.sleep(0.01)
    return x + y


@app.task
def plain(x: int) -> int:
    return x * 2


@app.task(base=AsyncTask, bind=True)
async def who_am_i(self: Any) -> list[Any]:
    async def child() -> Any:
        await asyncio.sleep(0.01)
        return self.request.id

    before = self.request.id
    children = await asyncio.gather(child(), child())
    thread = await asyncio.to_thread(lambda: self.request.id)
    return [before, *children, thread, self.request.id, current_task.name]


@app.task(base=AsyncTask, bind=True, max_retries=5)
async def retry_twice(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(base=AsyncTask, bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0, "max_retries": 5})
async def autoretried(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise ConnectionError("busy")
    return int(self.request.retries)


class Order(BaseModel):
    item: str
    count: int


@app.task(base=AsyncTask, pydantic=True)
async def double(order: Order) -> Order:
    await asyncio.sleep(0)
    return Order(item=order.item, count=order.count * 2)


@app.task(base=AsyncTask)
async def ignored() -> None:
    await asyncio.sleep(0)
    mark("ignored")
    raise Ignore


@app.task(base=AsyncTask)
async def collect(automatic: bool) -> int:
    """Collect garbage now, and later by itself or not. Answers how many jobs and accounts of failures there were."""
    there = sum(type(thing) in (ExceptionInfo, Job) for thing in gc.get_objects())
    await asyncio.sleep(0)
    gc.collect()
    (gc.enable if automatic else gc.disable)()
    return there


@app.task(base=AsyncTask)
async def rejected() -> None:
    await asyncio.sleep(0)
    raise Reject("no", requeue=False)


@app.task(base=AsyncTask)
async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("on purpose")


@app.task(base=AsyncTask, ignore_result=True)
async def unstored() -> None:
    await asyncio.sleep(0)
    mark("unstored")


@app.task(base=AsyncTask)
async def nests(x: int) -> int:
    await asyncio.sleep(0)
    inner = add.apply((x, 1)).get(disable_sync_subtasks=False)
    await asyncio.sleep(0)
    return int(inner) + 1


@app.task(base=AsyncTask)
async def delegates() -> str:
    await asyncio.sleep(0)
    return str(add.delay(2, 3).id)


@app.task(base=AsyncTask, bind=True)
async def reports(self: Any) -> str:
    await asyncio.sleep(0)
    self.update_state(state="HALFWAY", meta={"at": 50})
    mark("reports", self.AsyncResult(self.request.id).state)
    return "done"


@app.task(base=AsyncTask)
async def cancels_itself() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@app.task(base=AsyncTask, soft_time_limit=0.3)
async def soft_caught() -> str:
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.05)
        return "cleaned up"
    return "never"


@app.task(base=AsyncTask, soft_time_limit=0.3)
async def soft_group() -> None:
    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            mark("soft_group", "child ended")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        group.create_task(child())


@app.task(base=AsyncTask, bind=True, time_limit=0.4)
async def hard(self: Any) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        mark(f"cancelled:{self.request.id}")
        raise


@app.task(base=AsyncTask, bind=True, time_limit=0.4)
async def hard_and_stubborn(self: Any) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        mark(f"stubborn:{self.request.id}")
    return "a success that nobody asked for"


async def waiting(self: Any, key: str, seconds: float | None = 60.0) -> str:
    """Tells when it begins and how it ends. seconds: None for until it is told."""
    mark(f"{key}:began", self.request.id)
    try:
        await (told(key) if seconds is None else asyncio.sleep(seconds))
    except asyncio.CancelledError:
        mark(f"{key}:cancelled", self.request.id)
        raise
    mark(f"{key}:ended", self.request.id)
    return key


app.task(waiting, base=AsyncTask, bind=True, name="pool_app.waits")
app.task(waiting, base=AsyncTask, bind=True, name="pool_app.waits_late", acks_late=True)


@app.task(base=AsyncTask, ignore_result=True)
async def follows_the_queues(key: str) -> None:
    """Consumes what the list `queues:{key}` says, one set of names after the other; null: what it did at first."""
    pool: TaskPool = app.pool_of_the_worker  # type: ignore[attr-defined]  # put there by Owner
    while True:
        # Shorter than the client waits for an answer.
        told = await asyncio.to_thread(marks.blpop, [f"queues:{key}"], 1)
        if told is None:
            continue
        queues = json.loads(told[1])
        pool.consume(queues)
        mark(f"{key}:told", ",".join(queues or ()))


@app.task(base=AsyncTask)
async def blocks(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  # it is what the test is about


@app.task(base=AsyncTask)
async def blocks_until_told(key: str) -> None:
    mark(f"{key}:began")
    marks.blpop([f"told:{key}"], 30)


@app.task
def blocks_a_thread(key: str) -> str:
    """Until it is told."""
    mark(f"{key}:began")
    marks.blpop([f"told:{key}"], 30)
    return str(current_task.request.id)


@app.task(base=AsyncTask, backend=SlowBackend(app=app, url=URL))
async def stored_slowly() -> float:
    return time.time()


@app.task(base=AsyncTask)
async def worst_lag(key: str) -> float:
    """How late the loop was at worst until it is told."""
    worst, end = 0.0, asyncio.create_task(told(key))
    mark(f"{key}:began")
    while not end.done():
        before = held()
        await asyncio.sleep(0.01)
        worst = max(worst, held() - before - 0.01)
    return worst


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@app.task(base=AsyncTask)
async def paints(value: str) -> list[str]:
    before = colour.get()
    colour.set(value)
    await asyncio.sleep(0.1)
    return [before, colour.get()]


@app.task(base=AsyncTask)
async def exits() -> None:
    await asyncio.sleep(0)
    sys.exit(3)


@app.task(base=AsyncTask)
async def crashes_the_loop() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(60)


gate = asyncio.Event()
inside = 0


@app.task(base=AsyncTask, ignore_result=True)
async def at_the_gate() -> None:
    global inside
    inside += 1
    marks.set("inside", inside) if inside % 50 == 0 else None
    await gate.wait()
    inside -= 1
    if inside == 0:
        mark("gate", "empty")


@app.task(base=AsyncTask, ignore_result=True)
async def opens_the_gate() -> None:
    gate.set()


def note(signal: str) -> Any:
    def receive(sender: Any = None, task_id: str = "", **_: Any) -> None:
        task_id = task_id or getattr(getattr(sender, "request", None), "id", "") or ""
        if sender is not None and sender.name in {"pool_app.paints", "pool_app.fails"}:
            mark(f"signals:{task_id}", signal)

    return receive


receivers = {name: note(name) for name in ("task_prerun", "task_success", "task_failure", "task_postrun")}
for name, receiver in receivers.items():
    getattr(signals, name).connect(receiver, weak=False)
