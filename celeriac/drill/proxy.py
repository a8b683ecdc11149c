"""A TCP proxy between a process and Redis that breaks the conversation where a drill asks for it.

    async with Proxy(port) as proxy:                    # Redis listens on `port` of this machine
        worker(redis_url=proxy.url)
        lost = proxy.swallow(command="BRPOP", times=5)  # popped, answered, never delivered; then the line is cut
        again = proxy.swallow(script="finish", times=3)
        proxy.latency = 0.2
        proxy.refuse(); ...; proxy.accept()
        proxy.hush(); ...; proxy.speak()                # a black hole: lines stay open, nothing passes

It follows each connection command by command, so that it knows which answer belongs to what. A script is known by its
file's name: the proxy has seen the text when it was loaded, and the text ends with that of the file. Where several
proxies lead to one server, give them the same `KnownScripts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Self

import celeriac

HOST: Final = "127.0.0.1"
CHUNK: Final = 2**16
#: After these a connection is a subscription: answers no longer belong to commands.
SUBSCRIBES: Final = frozenset({"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR"})
#: What a blocking pop answers when it popped nothing.
NOTHING: Final = (b"*-1\r\n", b"$-1\r\n", b"_\r\n")


def value_end(data: bytes | bytearray, at: int = 0) -> int:
    """Where the RESP value (2 or 3) that begins at `at` ends, or -1 if it is not complete yet."""
    missing = 1
    while missing:
        line = data.find(b"\r\n", at)
        if line < 0:
            return -1
        kind, head = data[at : at + 1], data[at + 1 : line]
        at = line + 2
        missing -= 1
        if kind in (b"$", b"=", b"!"):
            at += max(int(head) + 2, 0) if head != b"-1" else 0
            if at > len(data):
                return -1
        elif kind in (b"*", b"~", b">"):
            missing += max(int(head), 0)
        elif kind == b"%":
            missing += 2 * int(head)
        elif kind == b"|":  # attributes of the value that follows
            missing += 2 * int(head) + 1
    return at


def words_of(command: bytes | bytearray) -> list[bytes]:
    """The words of one complete command, which clients send as an array of bulk strings."""
    words, at = [], command.find(b"\r\n") + 2
    while at < len(command):
        line = command.find(b"\r\n", at)
        size = int(command[at + 1 : line])
        words.append(bytes(command[line + 2 : line + 2 + size]))
        at = line + 2 + size + 2
    return words


@cache
def _texts() -> dict[bytes, str]:
    """Text of a Lua file of ours -> its name without suffix."""
    files = Path(celeriac.__file__).parent.rglob("*.lua")
    return {file.read_bytes(): file.stem for file in files}


class KnownScripts:
    """Which digest is which of our Lua files, learned from the texts that pass by."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def learn(self, text: bytes) -> None:
        for ending, name in _texts().items():
            if text.endswith(ending):
                self._names[hashlib.sha1(text).hexdigest().encode()] = name  # noqa: S324  # Redis names scripts so

    @property
    def names(self) -> list[str]:
        """The scripts that somebody loaded."""
        return sorted(set(self._names.values()))

    def name(self, digest: bytes) -> str:
        """ "" for a script that is not ours."""
        return self._names.get(digest.lower(), "")


@dataclass(eq=False)
class Swallow:
    """Answers that do not arrive. left: how many are still to go, done: set when none is. skip: how many pass before.

    answers: what was swallowed, with the time (seconds since 1970).
    """

    command: str
    script: str
    cut: bool
    left: int
    skip: int = 0
    answers: list[tuple[float, bytes]] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def takes(self, command: str, script: str, answer: bytes) -> bool:
        if not self.left or (self.command and self.command != command) or (self.script and self.script != script):
            return False
        # Errors pass: NOSCRIPT means that nothing was done, and an empty pop that nothing was taken.
        if answer.startswith(b"-") or answer in NOTHING:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left -= 1
        self.answers.append((time.time(), answer))
        if not self.left:
            self.done.set()
        return True


class Proxy:
    """Listens on a free port. latency: seconds before each piece of an answer is passed on."""

    def __init__(self, port: int, scripts: KnownScripts | None = None) -> None:
        self._target = port
        self.scripts = scripts or KnownScripts()
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._swallows: list[Swallow] = []
        self._speaking = asyncio.Event()
        self._speaking.set()
        self._accepting = True
        self.latency = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def connections(self) -> int:
        return len(self._lines)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._lines:  # noqa: ASYNC110  # each line ends in a task of its own
            await asyncio.sleep(0.01)

    def swallow(
        self, *, command: str = "", script: str = "", times: int = 1, skip: int = 0, cut: bool = True
    ) -> Swallow:
        """From now on, when `skip` have passed, do not deliver the next `times` answers to this command, or to calls of
        this script.

        cut: the connection is cut then. Else it stays open, and nothing more arrives on it.
        """
        swallow = Swallow(command, script, cut, times, skip)
        self._swallows.append(swallow)
        return swallow

    def mend(self) -> None:
        """Break nothing any more."""
        self.deliver()
        self.latency = 0.0
        self.accept()
        self.speak()

    def deliver(self) -> None:
        """Swallow nothing more."""
        self._swallows.clear()

    def cut(self) -> None:
        """Cut every connection."""
        for line in self._lines:
            line.cut()

    def refuse(self) -> None:
        """Cut every connection, and each new one as it comes."""
        self._accepting = False
        self.cut()

    def accept(self) -> None:
        self._accepting = True

    def hush(self) -> None:
        """Nothing passes, in either direction, and nobody is told."""
        self._speaking.clear()

    def speak(self) -> None:
        """What was held back passes."""
        self._speaking.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, reader, writer)
        self._lines.add(line)
        try:
            if self._accepting:
                await line.run()
        finally:
            line.cut()
            self._lines.discard(line)


class _Line:
    """One connection of a client, and ours to Redis for it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = reader, writer
        self._to_redis: asyncio.StreamWriter | None = None
        self._asked: deque[tuple[str, str]] = deque()  # (command, script) without an answer yet
        self._subscribed = False
        self._mute = False

    def cut(self) -> None:
        self._to_client.transport.abort()
        if self._to_redis is not None:
            self._to_redis.transport.abort()

    async def run(self) -> None:
        try:
            from_redis, self._to_redis = await asyncio.open_connection(HOST, self._proxy._target)
        except OSError:
            return
        ways = [asyncio.create_task(self._commands()), asyncio.create_task(self._answers(from_redis))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _commands(self) -> None:
        assert self._to_redis is not None  # noqa: S101  # run() opened it
        data = bytearray()
        with contextlib.suppress(OSError):
            while chunk := await self._from_client.read(CHUNK):
                data += chunk
                while (end := value_end(data)) > 0:
                    self._note(words_of(data[:end]))
                    await self._pass(self._to_redis, data[:end])
                    del data[:end]

    def _note(self, words: list[bytes]) -> None:
        command = words[0].decode(errors="replace").upper()
        script = ""
        if command in ("EVALSHA", "EVALSHA_RO"):
            script = self._proxy.scripts.name(words[1])
        elif command == "SCRIPT" and words[1].upper() == b"LOAD":
            self._proxy.scripts.learn(words[2])
        elif command == "EVAL":
            self._proxy.scripts.learn(words[1])
            script = self._proxy.scripts.name(hashlib.sha1(words[1]).hexdigest().encode())  # noqa: S324
        elif command in SUBSCRIBES:
            self._subscribed = True
        self._asked.append((command, script))

    async def _answers(self, from_redis: asyncio.StreamReader) -> None:
        data = bytearray()
        with contextlib.suppress(OSError):
            while chunk := await from_redis.read(CHUNK):
                if self._proxy.latency:
                    await asyncio.sleep(self._proxy.latency)
                data += chunk
                if self._subscribed:
                    await self._pass(self._to_client, data)
                    data.clear()
                while (end := value_end(data)) > 0:
                    if self._swallowed(data[:end]):
                        return
                    if not self._mute:
                        await self._pass(self._to_client, data[:end])
                    del data[:end]

    def _swallowed(self, answer: bytearray) -> bool:
        """Whether the line is cut here."""
        if answer.startswith(b">") or not self._asked:  # a message of its own accord (RESP 3)
            return False
        command, script = self._asked.popleft()
        for swallow in self._proxy._swallows:
            if swallow.takes(command, script, bytes(answer)):
                self._mute = True
                return swallow.cut
        return False

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes | bytearray) -> None:
        if not self._proxy._speaking.is_set():
            await self._proxy._speaking.wait()
        writer.write(bytes(data))
        await writer.drain()
