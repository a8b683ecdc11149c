"""Whether store and broker answer: asked by probes, in a thread, on a connection that is made for the question.

Both return if there is an answer and raise whatever the client raises if there is none. seconds: how long each step of
asking may take.
"""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celeriac.settings import Settings


def ask_store(settings: Settings, seconds: float) -> None:
    _ping(settings.redis_url.get_secret_value(), seconds)


def ask_broker(settings: Settings, seconds: float) -> None:
    url = (settings.broker_url or settings.redis_url).get_secret_value()
    if not url.startswith(("amqp", "pyamqp")):
        _ping(url, seconds)
        return
    # Imported late: a shim whose broker is the store does without Celery's libraries.
    from kombu import Connection

    # All of the handshake: a server that hangs takes connections and says nothing.
    timeouts = {"read_timeout": seconds, "write_timeout": seconds}
    with Connection(url, connect_timeout=seconds, transport_options=timeouts) as connection:
        connection.ensure_connection(max_retries=0)


def _ping(url: str, seconds: float) -> None:
    with redis.Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        client_name="celeriac-probe",
    ) as client:
        client.ping()
