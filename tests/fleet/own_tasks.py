"""Our worker with tasks of an operator's own in it; some hold up what they should not."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import bootsteps, signals
from kombu.asynchronous import get_event_loop

from celeriac.logs import get_logger
from tasks.base import AsyncTask
from worker.app import app as app

log = get_logger(__name__)
pools: list[Any] = []


@signals.worker_ready.connect(weak=False)
def _ready(sender: Any, **_: Any) -> None:
    pools[:] = [sender.pool]


class SlowStart(bootsteps.Step):
    """Lets SLOW_START seconds pass before the worker registers, and half of them before its first messages."""

    requires = ("worker.lifecycle:Lifecycle",)

    def create(self, worker: Any) -> None:
        if seconds := os.environ.get("SLOW_START"):
            hooks = worker.pool.on_loop_start
            hooks.insert(0, lambda pool: asyncio.sleep(float(seconds)))
            hooks.append(lambda pool: asyncio.sleep(float(seconds) / 2))


app.steps["worker"].add(SlowStart)


def _block(till: float | str) -> None:
    """For so many seconds, or until there is a file of this name."""
    if isinstance(till, str):
        while not Path(till).exists():
            time.sleep(0.01)
    else:
        time.sleep(till)


@app.task(base=AsyncTask, name="blocks_the_loop", ignore_result=True)
async def blocks_the_loop(till: float | str) -> None:
    _block(till)  # it is what the tests are about


@app.task(base=AsyncTask, name="blocks_the_hub", ignore_result=True)
async def blocks_the_hub(till: float | str) -> None:
    """The thread that takes messages; jobs and heartbeats go on."""
    get_event_loop().call_soon(_block, till)


@app.task(base=AsyncTask, name="holds_a_slot", ignore_result=True)
async def holds_a_slot(till: str) -> None:
    """And nothing else, until there is a file of this name."""
    while not Path(till).exists():  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.05)


@app.task(base=AsyncTask, name="consumes", ignore_result=True)
async def consumes(*queues: str) -> None:
    pools[0].consume(queues)


@app.task(base=AsyncTask, name="says", ignore_result=True)
async def says(text: str) -> None:
    log.info("said", text=text)
