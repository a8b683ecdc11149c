"""Keeps a few processes running: started in order, each until it is ready, restarted when one dies, stopped in reverse.

Ours, because `supervisor` starts by priority without waiting for readiness and is a daemon with its own configuration
file, and honcho signals everything at once.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from celeriac.local.output import Output
from celeriac.local.processes import Child, Guard, Process, how_it_ended

ME = "celeriac"
FIRST_DELAY = 0.5
LONGEST_DELAY = 15.0
#: A child that was up for so long starts with the first delay again.
SETTLED = 30.0

T = TypeVar("T")


class Supervisor:
    """groups: started one after the other, stopped in the opposite order; the members of one all at once."""

    def __init__(self, groups: Sequence[Sequence[Process]], output: Output) -> None:
        self._groups = groups
        self._output = output
        self._guard = Guard()
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._killed = False

    def say(self, line: str) -> None:
        self._output.say(ME, line)

    async def start(self) -> None:
        """Raises `NotStarted` if a process dies before it is ready or takes too long; stop() is still due then."""
        await self._guard.start()
        for group in self._groups:
            firsts = []
            for process in group:
                first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._keepers[process.name] = asyncio.create_task(self._keep(process, first))
                firsts.append(first)
            await asyncio.gather(*firsts)

    async def _keep(self, process: Process, first: asyncio.Future[None]) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                child = await self._run_until_ready(process)
            except Exception as error:  # whatever it was, it is reported, and it must not end the watch
                if not first.done():
                    first.set_exception(error)
                    return
                reason = str(error)
            else:
                if not first.done():
                    first.set_result(None)
                status = await child.until_ended()
                reason = f"{process.name} {how_it_ended(status)}"
                if child.seconds_up > SETTLED:
                    delay = FIRST_DELAY
            self.say(f"{reason}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run_until_ready(self, process: Process) -> Child:
        child = await Child.start(process, self._guard, self._output)
        self._children[process.name] = child
        try:
            await child.until_ready()
        except Exception:
            child.kill()
            await child.until_ended()
            raise
        self.say(f"{process.name} is ready after {child.seconds_up:.1f} s (pid {child.pid})")
        return child

    async def stop(self) -> None:
        """Stop group by group, last first, each process with its deadline; nothing is left when this returns."""
        for group in reversed(self._groups):
            await asyncio.gather(*(self._stop(process) for process in group))
        await self._guard.stop()

    async def _stop(self, process: Process) -> None:
        if (keeper := self._keepers.get(process.name)) is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if (child := self._children.get(process.name)) is None:
            return
        if not await child.stop() and not self._killed:
            self.say(f"{process.name} did not stop within {process.stop_within.total_seconds():g} s: killed")

    def kill(self) -> None:
        """End everything at once; a stop() that is under way then returns soon."""
        self._killed = True
        for keeper in self._keepers.values():
            keeper.cancel()
        for child in self._children.values():
            child.kill()


async def run(supervisor: Supervisor, work: Callable[[], Awaitable[T]]) -> T | None:
    """Start everything, do `work` while it runs, and stop everything. None: a signal ended it before `work` was done.

    The first SIGINT, SIGTERM or SIGHUP stops in order, a second kills at once.
    """
    signals: list[signal.Signals] = []

    async def started() -> T:
        await supervisor.start()
        return await work()

    task = asyncio.create_task(started())

    def heard(number: signal.Signals) -> None:
        signals.append(number)
        if len(signals) == 1:
            supervisor.say(f"{number.name}: stopping (once more kills at once)")
            task.cancel()
        else:
            supervisor.kill()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` is respected
            loop.add_signal_handler(number, heard, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not signals:
            raise
        return None
    finally:
        await supervisor.stop()
