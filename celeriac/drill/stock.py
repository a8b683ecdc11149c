"""The swallowed pop against stock Celery with `acks_late` and `reject_on_worker_lost`, through the same proxy."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from celeriac.connections import open_redis
from celeriac.drill import stock_app
from celeriac.drill.proxy import HOST, Proxy, Swallow
from celeriac.drill.run import Options, drill
from celeriac.local import ports
from celeriac.local.output import Output
from celeriac.local.processes import Child, Guard, Process
from celeriac.local.valkey import url, valkey

#: Seconds in which nothing more comes, after which what is missing is lost: twice the visibility timeout and more.
QUIET: Final = 3.0 * stock_app.VISIBILITY


@dataclass(frozen=True)
class Compared:
    """The same number of jobs and of swallowed pops each."""

    jobs: int
    swallowed: int
    lost_stock: int
    lost_ours: int

    def as_json(self) -> dict[str, int]:
        return {
            "jobs": self.jobs,
            "swallowed": self.swallowed,
            "lost_stock": self.lost_stock,
            "lost_celeriac": self.lost_ours,
        }

    def __str__(self) -> str:
        return (
            f"{self.swallowed} pops swallowed among {self.jobs} jobs: "
            f"stock Celery with acks_late lost {self.lost_stock}, Celeriac {self.lost_ours}"
        )


def compare(jobs: int, say: Callable[[str], None]) -> Compared:
    """Swallow each pop once, here and there. Raises NotStarted."""
    say("stock Celery: pops are swallowed")
    swallowed, lost = asyncio.run(stock(jobs))
    [ours] = drill(Options(scenarios=("swallowed-pops",), jobs=jobs, short=True), say)
    return Compared(jobs, swallowed, lost, ours.count("lost"))


async def stock(tasks: int, quiet: float = QUIET) -> tuple[int, int]:
    """Send so many tasks; the answer of each pop but the last is swallowed, and the worker is killed and started again.

    quiet: seconds in which nothing happens, after which what is missing is lost. Answers how many answers were
    swallowed and how many tasks never ran.
    """
    directory = Path(tempfile.mkdtemp(prefix="celeriac-stock-"))
    try:
        async with AsyncExitStack() as open_:
            return await _stock(tasks, quiet, directory, open_)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _stock(tasks: int, quiet: float, directory: Path, open_: AsyncExitStack) -> tuple[int, int]:
    guard = Guard()
    open_.push_async_callback(guard.stop)
    await guard.start()
    [port] = ports.free(HOST, 1)
    log = open_.enter_context((directory / "log").open("w"))

    async def start(process: Process) -> Child:
        child = await Child.start(process, guard, Output(log))
        open_.push_async_callback(child.stop)
        await child.until_ready()
        return child

    await start(valkey(directory / "redis", port))
    redis: Any = open_redis(url(port), connections=2, name="drill")
    open_.push_async_callback(redis.aclose)
    proxy = await open_.enter_async_context(Proxy(port))

    async def listening() -> bool:
        return bool(await redis.exists("_kombu.binding.celery.pidbox"))

    worker = Process(
        "stock",
        (sys.executable, "-m", "celery", "-A", stock_app.__name__, "worker", "-c", "1", "--without-mingle"),
        {stock_app.BROKER: proxy.url, stock_app.NOTES: url(port)},
        ready=listening,
        stop_within=timedelta(seconds=5),
    )
    child = await start(worker)
    swallow = proxy.swallow(command="BRPOP", times=tasks - 1)
    await asyncio.to_thread(_send, url(port), tasks)
    await _settled(redis, swallow, tasks, quiet)
    child.kill()
    await child.until_ended()
    proxy.deliver()
    await start(worker)
    await _settled(redis, None, tasks, quiet)
    ran = {int(number) for number in await redis.lrange(stock_app.DONE, 0, -1)}
    return len(swallow.answers), tasks - len(ran)


def _send(broker: str, tasks: int) -> None:
    from celery import Celery

    app = Celery(broker=broker)
    for number in range(tasks):
        app.send_task(stock_app.note.name, args=[number])


async def _settled(redis: Any, swallow: Swallow | None, tasks: int, quiet: float) -> None:
    """Wait until every task ran, or until nothing has happened for a while."""
    last, since = (-1, -1), time.monotonic()
    while time.monotonic() - since < quiet:
        ran = await redis.llen(stock_app.DONE)
        now = ran, len(swallow.answers) if swallow else 0
        if ran >= tasks:
            return
        if now != last:
            last, since = now, time.monotonic()
        await asyncio.sleep(0.1)
