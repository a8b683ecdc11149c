"""What children print, passed on line by line behind the name of who said it."""

from __future__ import annotations

import contextlib
from itertools import cycle
from typing import TextIO

COLOURS = ("36", "33", "32", "35", "34", "31")


class Output:
    """Writes `name | line`, names padded to the longest, in one colour a name if the stream is a terminal."""

    def __init__(self, stream: TextIO, names: tuple[str, ...] = ()) -> None:
        self._stream = stream
        self._width = max(map(len, names), default=0)
        self._colours = dict(zip(names, cycle(COLOURS), strict=False)) if stream.isatty() else {}

    def say(self, name: str, line: str) -> None:
        prefix = f"{name:<{self._width}} |"
        if colour := self._colours.get(name):
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        # Whoever read us may be gone (`celeriac up | head`): that is no reason to let the children down.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{prefix} {line}\n")
            self._stream.flush()
