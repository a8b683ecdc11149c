"""One child process: started in a group of its own, heard, waited for, ended with everything that it started.

Each child leads its own session and process group: Ctrl-C in the terminal reaches the supervisor alone, and whatever a
child starts dies with its group. Before a child becomes its command it writes its group to the guard (`guard.py`), so
there is no moment in which a killed supervisor leaves a child behind. Only a descendant that makes itself a daemon, in
a session of its own, escapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Self

from celeriac.errors import NotStarted
from celeriac.local import guard
from celeriac.local.output import Output

#: Whether the process is of use yet. Asked again and again; it may take its time, and must not raise.
Probe = Callable[[], Awaitable[bool]]

# Standard input is the guard's pipe until the command takes over. A shell, because it starts in a millisecond, and
# because Python's own hook between fork and exec (`preexec_fn`) is unsafe in a process with threads.
_ANNOUNCED = """printf '+%s\\n' "$$" >&0 && exec "$@" </dev/null"""

PROBE_EVERY = 0.1
LINES_KEPT = 20
#: Seconds we grant to what should be immediate once a child has ended.
LINGER = 0.5


async def at_once() -> bool:
    return True


@dataclass(frozen=True)
class Process:
    """A command to keep running. env: added to our own environment. stop_within: then it is killed."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Probe = at_once
    ready_within: timedelta = timedelta(seconds=60)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within: timedelta = timedelta(seconds=5)


class Guard:
    """The program `guard.py`, started again if it dies. Our end of its pipe is what children announce themselves on."""

    def __init__(self) -> None:
        # We keep both ends: were the guard to die, children could still write, and the next guard reads on.
        self._read, self.pipe = os.pipe()
        self._groups: set[int] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._program: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        await self._spawn()
        self._keeping = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        self._program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__),
            stdin=self._read,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _keep(self) -> None:
        while self._program is not None:
            await self._program.wait()
            await asyncio.sleep(PROBE_EVERY)
            # Before it starts: it knows them from its first line on.
            os.write(self.pipe, "".join(f"+{group}\n" for group in self._groups).encode())
            await self._spawn()

    def watch(self, group: int) -> None:
        """Remember a group that has announced itself, for a guard that must be started again."""
        self._groups.add(group)

    def forget(self, group: int) -> None:
        self._groups.discard(group)
        os.write(self.pipe, f"-{group}\n".encode())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        os.close(self.pipe)
        os.close(self._read)
        if self._program is not None:
            await self._program.wait()


class Child:
    """One run of a `Process`."""

    def __init__(self, process: Process, guard: Guard, output: Output, running: asyncio.subprocess.Process) -> None:
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._guard = guard
        self._output = output
        self._running = running
        self._began = monotonic()
        self._hearing: asyncio.Task[None] | None = None
        self._gone = False

    @classmethod
    async def start(cls, process: Process, guard: Guard, output: Output) -> Self:
        # A pipe of our own: asyncio's would keep `wait()` from returning while a grandchild still holds it.
        read, write = os.pipe()
        try:
            running = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _ANNOUNCED, "sh", *process.argv),
                stdin=guard.pipe,
                stdout=write,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **process.env},
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        guard.watch(running.pid)
        child = cls(process, guard, output, running)
        child._hearing = asyncio.create_task(child._hear(read))
        return child

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def seconds_up(self) -> float:
        return monotonic() - self._began

    async def _hear(self, pipe: int) -> None:
        reader = asyncio.StreamReader()
        file = os.fdopen(pipe, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        rest = b""
        try:
            while chunk := await reader.read(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._heard(line)
            if rest:
                self._heard(rest)
        finally:
            transport.close()

    def _heard(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        self.last_lines.append(line)
        self._output.say(self.process.name, line)

    async def until_ready(self) -> None:
        """Raises `NotStarted`, with the last lines of its output, if it dies first or takes too long."""
        polling = asyncio.create_task(self._poll())
        ending = asyncio.create_task(self._running.wait())
        limit = self.process.ready_within.total_seconds()
        try:
            done, _ = await asyncio.wait({polling, ending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            polling.cancel()
            ending.cancel()
        if ending in done:
            await self.until_ended()
            raise self._not_started(f"{how_it_ended(ending.result())} before it was ready")
        if polling not in done:
            raise self._not_started(f"was not ready within {limit:g} s")
        polling.result()

    def _not_started(self, what: str) -> NotStarted:
        return NotStarted(f"{self.process.name} {what}", last_words=tuple(self.last_lines))

    async def _poll(self) -> None:
        while not await self.process.ready():  # noqa: ASYNC110  # another process cannot set an event of ours
            await asyncio.sleep(PROBE_EVERY)

    async def until_ended(self) -> int:
        """Wait for its end, end what it leaves behind in its group, hear its last words. Returns its exit status."""
        status = await self._running.wait()
        await self._end_group()
        if self._hearing is not None:
            # Only a descendant that left the group could still hold the pipe.
            await asyncio.wait([self._hearing], timeout=LINGER)
            self._hearing.cancel()
        return status

    async def _end_group(self) -> None:
        deadline = monotonic() + LINGER  # zombies that nobody reaps, as under a careless PID 1, stay in their group
        while self.kill() and monotonic() < deadline:  # noqa: ASYNC110  # nor can the kernel
            await asyncio.sleep(0.01)
        if not self._gone:
            self._gone = True  # from here on the number may be somebody else's
            self._guard.forget(self.pid)

    def kill(self) -> bool:
        """Kill the whole group. Returns whether there was anything to kill."""
        if self._gone:
            return False
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
            return False
        return True

    async def stop(self) -> bool:
        """Ask it to end, and kill it if it has not within its time. Returns whether it ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            self._running.send_signal(self.process.stop_signal)
        try:
            async with asyncio.timeout(self.process.stop_within.total_seconds()):
                await self._running.wait()
        except TimeoutError:
            self.kill()
            await self.until_ended()
            return False
        await self.until_ended()
        return True


def how_it_ended(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
