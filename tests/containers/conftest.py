"""Whoever ends the tests by SIGTERM, as a CI does that has waited too long, gets the stack removed too."""

from __future__ import annotations

import signal
from types import FrameType


def pytest_sessionstart() -> None:
    def leave(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
