"""Whether an answer, or arguments, are what a JSON schema asks for, found out by processes that may be lost.

`jsonschema_rs` judges. Nothing interrupts it, it holds the interpreter's lock, and no schema says how much it will do.
Measured: 20,000 lists and an enum of 8,000 took 90 s; to say what is wrong took 3 s for 2 KB nested six deep, in two
forms each, and 8 s and 1.9 GB for 600 KB that have none of a hundred forms. So it has a process, which is ended then.
What takes longer than most has a second one: nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Self

import orjson

from celeriac.agents import judge
from celeriac.logs import get_logger

log = get_logger(__name__)

#: Seconds of the processor in which a judge has to know whether an answer is right: one that all wait for, and one for
#: what takes longer.
QUICK: Final = 0.1
SLOW: Final = 1.0
#: Seconds by the clock for each of those: a machine may be busy, and a judge may have been stopped.
PATIENCE: Final = 20.0
#: Seconds by the clock for the start of a judge.
START: Final = 20.0
#: Schemas that are remembered since a judge was lost over them.
REMEMBERED: Final = 1_000


@dataclass(frozen=True, slots=True)
class Wrong:
    """told: to the model, where in its answer and what, at most `LONGEST` characters. place: in the schema, or what is
    wrong in other words: it holds nothing of the answer.
    """

    told: str = field(repr=False)
    place: str


TOO_MUCH: Final = Wrong("it is too long, or nested too deep, to be checked", "too much to check")


class Killed(ChildProcessError):
    """By somebody, memory being short: that tells nothing of the answer."""


class Checker:
    """Starts its judges when they are first needed, and again when they were lost. They end with its context.

    event: what the log calls it when one is lost.
    """

    def __init__(self, event: str = "output_check_lost") -> None:
        self._quick, self._slow = _Judge(QUICK, event), _Judge(SLOW, event)
        self._costly: dict[bytes, None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._quick.close()
        await self._slow.close()

    async def wrong(self, schema: str, text: str) -> Wrong | None:
        """What is wrong with an answer, None for nothing. schema: one that `checked_schema` has taken. Both are JSON.

        Raises OSError where it cannot be found out here and now.
        """
        line, name, said = orjson.dumps([schema, text]) + b"\n", sha256(schema.encode()).digest(), []
        if name not in self._costly:
            with suppress(TimeoutError, Killed):
                said = await self._quick.asked(line)
            if not _is_whole(said):
                self._costly[name] = None
                if len(self._costly) > REMEMBERED:
                    del self._costly[next(iter(self._costly))]
        if not said:
            try:
                said = await self._slow.asked(line)
            except Killed:
                said = await self._slow.asked(line)
        if not said:
            return TOO_MUCH
        return None if said[-1] is None else Wrong(*said[-1])


def _is_whole(said: list[Any]) -> bool:
    """What is wrong is said in general, and then in particular."""
    return len(said) == 2 or said == [None]


class _Judge:
    """One process, and those who wait for it. seconds: of the processor that it may take."""

    def __init__(self, seconds: float, event: str) -> None:
        self._seconds = seconds
        self._event = event
        self._turns = asyncio.Lock()
        self._process: Process | None = None
        self._endings: set[asyncio.Task[tuple[bytes, bytes]]] = set()

    async def asked(self, line: bytes) -> list[Any]:
        """What it says of an answer, all of it or until it is lost.

        Raises TimeoutError, and any other OSError where it does not start, or is killed.
        """
        async with self._turns:
            said: list[Any] = []
            try:
                if self._process is not None and self._process.returncode is not None:
                    self._kill()
                if self._process is None:
                    await self._start()
                async with asyncio.timeout(PATIENCE * self._seconds):
                    await self._ask(line, said)
            except TimeoutError:
                log.warning(self._event, code="timeout")
                raise
            finally:
                if not _is_whole(said):
                    # Also where nobody wants to know any more: what it says next is not for the next one.
                    self._kill()
            return said

    async def _ask(self, line: bytes, said: list[Any]) -> None:
        process = self._process
        assert process is not None  # noqa: S101  # it was started
        assert process.stdin is not None  # noqa: S101  # it is a pipe
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        with suppress(ConnectionError):
            process.stdin.write(line)
            await process.stdin.drain()
        while not _is_whole(said):
            if not (word := await process.stdout.readline()):
                code = await process.wait()
                log.warning(self._event, code=code)
                if code == -signal.SIGKILL and not said:
                    raise Killed("the judge of answers was killed")
                return
            said.append(orjson.loads(word))

    async def _start(self) -> None:
        """In a session of its own: what a terminal or a supervisor tells a group is not for it. It imports what we do,
        and has none of our keys. Its last words, which may hold an answer, are nobody's.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", judge.__name__, str(self._seconds)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        first = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(START):
                first = await self._process.stdout.readline()
        if first != judge.READY:
            raise ChildProcessError("the judge of answers does not start")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            ending = asyncio.create_task(process.communicate())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def close(self) -> None:
        self._kill()
        await asyncio.gather(*self._endings, return_exceptions=True)
