"""A disk whose fsync does not return: Redis runs on, and only the thread that syncs its append-only file is frozen.

Redis fsyncs in a thread of its own (`bio_aof`). Frozen by ptrace, that thread looks to the server exactly like a disk
that takes its time: writes are held back in memory for up to two seconds, and a `kill -9` then loses what was answered
meanwhile. Linux only; the server must be a child of ours, or we must be root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final, Self

THREAD: Final = "bio_aof"
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ANY_THREAD: Final = 0x40000000  # __WALL: of waitpid, for threads that are no processes


def why_not() -> str:
    """Why there can be no slow disk here; "" if there can."""
    return "" if sys.platform == "linux" else "only Linux can freeze a single thread of another process"


class SlowDisk:
    """While inside, no fsync of the Redis with this process id returns. Raises OSError where it cannot be frozen.

    All calls of ptrace must come from one thread, which waits here for as long as the disk is slow.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._frozen = threading.Event()
        self._release = threading.Event()
        self._error: OSError | None = None
        self._tracer = threading.Thread(target=self._hold, name="slow disk", daemon=True)

    async def __aenter__(self) -> Self:
        self._tracer.start()
        await asyncio.to_thread(self._frozen.wait)
        if self._error is not None:
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release.set()
        await asyncio.to_thread(self._tracer.join)

    def _hold(self) -> None:
        ptrace = _ptrace()
        try:
            thread = _syncing_thread(self._pid)
            ptrace(SEIZE, thread)
            ptrace(INTERRUPT, thread)
            os.waitpid(thread, ANY_THREAD)
        except OSError as error:
            self._error = error
            self._frozen.set()
            return
        self._frozen.set()
        self._release.wait()
        try:
            ptrace(DETACH, thread)
        except OSError:  # the server was killed: its process ends only once we have taken note
            with contextlib.suppress(OSError):
                os.waitpid(thread, ANY_THREAD)


def _syncing_thread(pid: int) -> int:
    for comm in Path(f"/proc/{pid}/task").glob("*/comm"):
        if comm.read_text().strip() == THREAD:
            return int(comm.parent.name)
    raise OSError(f"process {pid} has no thread {THREAD}")


def _ptrace() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int, thread: int) -> None:
        if libc.ptrace(request, thread, None, None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace: {os.strerror(number)}")

    return ptrace
