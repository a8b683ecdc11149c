"""`python -m worker.health`: whether a worker on this host holds a lease. For the health checks of containers.

It asks the store and not the process, because what the store believes is what counts: a worker that hangs or is cut
off loses its lease. Exit status 0: one holds it; 1: none does, or the store does not answer within seconds, and the
reason is on standard error.
"""

from __future__ import annotations

import socket
import sys

import redis

from celeriac import keys
from celeriac.errors import Misconfigured
from celeriac.settings import load_settings

TIMEOUT = 3.0


def host() -> str:
    """How `celeriac.assembly.new_name` begins; spelled again here, as importing it costs a second of CPU."""
    return socket.gethostname().partition(".")[0]


def why_unhealthy() -> str:
    """In one line; "" if a lease of this host runs."""
    try:
        url = load_settings().redis_url.get_secret_value()
        with redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT) as store:
            seconds, micros = store.time()
            alive = store.zrange(keys.spell("workers"), seconds * 1000 + micros // 1000, "+inf", byscore=True)
    except Misconfigured as error:
        return str(error)
    except redis.RedisError as error:
        return f"the store does not answer ({type(error).__name__})"
    if any(name.startswith(f"{host()}.".encode()) for name in alive):
        return ""
    return f"no worker of {host()} holds a lease"


if __name__ == "__main__":
    sys.exit(why_unhealthy() or 0)
