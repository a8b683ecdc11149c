"""Looking at programs that a test has started."""

from __future__ import annotations

import psutil

#: Seconds that starting all of it may take on a busy machine.
PATIENCE = 90.0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """Everybody it has started, and they in turn; not those that have ended and are only not waited for yet."""
    try:
        return [child for child in psutil.Process(pid).children(recursive=True) if alive(child.pid)]
    except psutil.NoSuchProcess:
        return []
