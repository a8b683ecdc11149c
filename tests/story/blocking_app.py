"""Our worker with an operator's own tasks in it, which hold up what they should not."""

from __future__ import annotations

import time

from kombu.asynchronous import get_event_loop

from tasks.base import AsyncTask
from worker.app import app as app


@app.task(base=AsyncTask, name="blocks_the_loop", ignore_result=True)
async def blocks_the_loop(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  # it is what the tests are about


@app.task(base=AsyncTask, name="blocks_the_hub", ignore_result=True)
async def blocks_the_hub(seconds: float) -> None:
    """The thread that takes messages; jobs and heartbeats go on."""
    get_event_loop().call_soon(time.sleep, seconds)
