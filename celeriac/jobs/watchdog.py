"""A worker whose event loop is blocked cannot renew its lease: a thread beside it may, once.

A hundred innocent jobs should not be run again because one function is slow. But a loop that stays blocked is a dead
worker: there is one extension, by at most one lease, until the loop has said something itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celeriac.logs import get_logger

log = get_logger(__name__)

#: After so many leases without a heartbeat a worker has lost its jobs, whatever its watchdog could do: the extension
#: comes when half a lease has gone.
LOST_AFTER: Final = 1.5
#: Seconds that the store may take to answer: the thread that asks has other things to watch.
PATIENCE: Final = 1.0


class Watchdog:
    """For one thread. text: the whole of `extend.lua`. lease: how long a worker's lease runs."""

    def __init__(self, url: str, text: str, *, lease: timedelta) -> None:
        self._url = url
        self._text = text
        self._lease = lease.total_seconds()
        self._client: redis.Redis | None = None
        self._extend: Any = None
        self._tried = 0.0

    def watch(self, worker: str, heard: float, late: float, stack: Callable[[], str]) -> None:
        """Called again and again while the loop is blocked. Asks for the extension when it is due; never raises.

        worker: the name under which the lease runs. heard: `time.monotonic()` of the last heartbeat. late: seconds by
        which the loop is late. stack: what blocks it.
        """
        silent = time.monotonic() - heard
        # Most of the silence may be the store's; then it is not the loop that should have an extension.
        if heard == self._tried or silent < self._lease / 2 or late < self._lease / 8:
            return
        try:
            said = self.extend(worker)
        except redis.RedisError as error:
            # Asked again at the next look, as long as there is a lease.
            log.warning("lease_not_extended", worker=worker, reason=type(error).__name__, seconds=round(late, 1))
            return
        self._tried = heard
        if said:
            log.error("lease_extended", worker=worker, seconds=round(late, 1), stack=stack())
        else:
            log.error("lease_ended_while_blocked", worker=worker, seconds=round(late, 1), stack=stack())

    def extend(self, worker: str) -> bool:
        """One more lease, without slots. False: the store gave the worker up. Raises RedisError."""
        if self._extend is None:
            patience = min(PATIENCE, self._lease / 8)
            self._client = redis.Redis.from_url(
                self._url,
                socket_timeout=patience,
                socket_connect_timeout=patience,
                retry=Retry(NoBackoff(), 0),
                client_name="celeriac-watchdog",
            )
            self._extend = self._client.register_script(self._text)
        arguments = orjson.dumps({"worker": worker, "lease": int(self._lease * 1000)})
        return bool(self._extend(keys=(), args=(arguments,))[0] != b"gone")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
