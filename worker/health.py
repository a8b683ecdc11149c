"""`python -m worker.health`: whether the worker on this host takes jobs, or drains. For health checks of containers.

Exit status 0: it does; 1: it does not, and the reason is on standard error. Where CELERIAC_WORKER__HEALTH_PORT is set,
the worker itself is asked. Elsewhere the store is, because what the store believes is what counts: a worker that hangs
or is cut off loses its lease, and one that is deaf says so in its heartbeat. Of several on a host one is enough.

This says "healthy" only of a worker that can work, and so it fails while Redis is away. What restarts whatever it finds
failing should ask the port's `/livez` instead (see `worker.probes`).
"""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from typing import Any

import redis

from celeriac import keys
from celeriac.errors import Misconfigured
from celeriac.settings import Settings, load_settings

TIMEOUT = 3.0


def host() -> str:
    """How `celeriac.assembly.new_name` begins; spelled again here, as importing it costs a second of CPU."""
    return socket.gethostname().partition(".")[0]


def why_unhealthy() -> str:
    """In one line; "" if a worker of this host is healthy."""
    try:
        settings = load_settings()
    except Misconfigured as error:
        return str(error)
    return _ask_worker(settings) if settings.worker.health_port else _ask_store(settings)


def _ask_worker(settings: Settings) -> str:
    address, port = settings.worker.health_host, settings.worker.health_port
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  # compared, not bound
    url = f"http://[{address}]:{port}/readyz" if ":" in address else f"http://{address}:{port}/readyz"
    # Not through a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            answer = opener.open(url, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            failing: dict[str, str] = json.load(answer)["failing"]
    except (OSError, ValueError, KeyError) as error:
        return f"no worker answers on port {port} ({type(error).__name__})"
    if "draining" in failing:
        return ""
    return "; ".join(f"{name}: {why}" for name, why in failing.items())


def _ask_store(settings: Settings) -> str:
    url = settings.redis_url.get_secret_value()
    try:
        with redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT) as store:
            seconds, micros = store.time()
            now = seconds * 1000 + micros // 1000
            alive = [name.decode() for name in store.zrange(keys.spell("workers"), now, "+inf", byscore=True)]
            ours = [name for name in alive if name.startswith(f"{host()}.")]
            records: list[list[Any]] = [
                store.hmget(keys.spell("worker", worker=name), "taking", "slots") for name in ours
            ]
    except redis.RedisError as error:
        return f"the store does not answer ({type(error).__name__})"
    if not ours:
        return f"no worker of {host()} holds a lease"
    # A worker that drains offers no slots at all.
    if any(taking == b"1" or slots == b"0" for taking, slots in records):
        return ""
    return f"{', '.join(ours)}: holds a lease and takes no jobs"


if __name__ == "__main__":
    sys.exit(why_unhealthy() or 0)
