"""Ringing: how a worker hears of a job.

Where the broker is the store's own Redis, the dispatch script pushes Celery's own message itself, from a template that
Celery's code built once: 8-13 us of server time and none of ours. Elsewhere the script returns the bells, and the
ordinary producer publishes them, in a thread. A ring that fails is nobody's error: the job is stored, upkeep rings
again.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from celeriac.logs import get_logger
from celeriac.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

log = get_logger(__name__)

RUN_JOB: Final = "celeriac.run_job"

#: [queue, job id, retries, "true" if nobody asks Celery for the result]
Bell = Sequence[bytes]


def celery_app(settings: Settings) -> Celery:
    """The Celery application as every process of ours configures it. Imports Celery, which costs 0.2 s."""
    from celery import Celery
    from kombu import Exchange, Queue

    broker = (settings.broker_url or settings.redis_url).get_secret_value()
    app = Celery("celeriac", broker=broker, backend=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_queues=[
            # Without acknowledgement a bell costs the worker 0.7 ms less. Only on Redis, where nothing else limits what
            # a full worker would take from the others.
            Queue(name, Exchange(name), routing_key=name, no_ack=settings.broker_is_store)
            for name in settings.worker.queues
        ],
        task_default_queue=settings.worker.queues[0],
        task_create_missing_queues=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_publish_retry=False,
        worker_disable_prefetch=settings.broker_is_store,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={} if broker.startswith("amqp") else {"socket_keepalive": True, "socket_timeout": 30},
        result_expires=settings.jobs.result_ttl,
    )
    return app


class Ringer(Protocol):
    async def ring(self, bells: Iterable[Bell]) -> None:
        """Publish what the script could not push. Never raises for a broker that is away."""
        ...


class InScript:
    """The script rings; there is nothing left to do."""

    async def ring(self, bells: Iterable[Bell]) -> None:
        if missed := list(bells):
            # The workers run with another broker than this process thinks: upkeep rings for it in seconds.
            log.warning("bells_not_rung", bells=len(missed), reason="no worker left a template for its queue")


class Produced:
    """Celery's ordinary producer, in a thread: it blocks, and a broker that is away keeps it for seconds."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._rings: set[asyncio.Task[None]] = set()

    async def ring(self, bells: Iterable[Bell]) -> None:
        """Returns at once: the caller's job is stored, whether the broker answers or not."""
        if due := list(bells):
            ring = asyncio.create_task(self._ring(due))
            self._rings.add(ring)
            ring.add_done_callback(self._rings.discard)

    async def _ring(self, bells: list[Bell]) -> None:
        try:
            await asyncio.to_thread(self._publish, bells)
        except Exception as error:  # whatever a broker's client may raise; upkeep rings again
            log.warning("bells_not_rung", bells=len(bells), reason=type(error).__name__)

    def _publish(self, bells: list[Bell]) -> None:
        with self._app.producer_pool.acquire(block=True, timeout=5) as producer:
            for queue, job_id, retries, ignore_result in bells:
                self._app.send_task(
                    RUN_JOB,
                    args=[job_id.decode()],
                    task_id=job_id.decode(),
                    queue=queue.decode(),
                    retries=int(retries),
                    ignore_result=ignore_result == b"true",
                    producer=producer,
                    retry=False,
                )

    async def close(self) -> None:
        """Wait for the rings that are under way."""
        await asyncio.gather(*self._rings, return_exceptions=True)


def open_ringer(settings: Settings) -> InScript | Produced:
    return InScript() if settings.broker_is_store else Produced(celery_app(settings))


def templates(app: Celery, queues: Iterable[str]) -> Mapping[str, str]:
    """Celery's own message for a job of each queue, with @JOB@, @TAG@ (delivery), @RETRIES@ and @IGNORE@ to fill in.

    Built by the producer that `apply_async` uses, over kombu's in-memory transport. The body is stored as plain text
    instead of base64, so that the script can put the id in.
    """
    return {queue: _template(app, queue) for queue in queues}


def _template(app: Celery, queue: str) -> str:
    from kombu import Connection
    from kombu.utils.encoding import bytes_to_str

    caught: list[dict[str, Any]] = []
    with Connection("memory://") as connection, connection.channel() as channel:
        # The virtual transports' way to hand a finished message to a queue.
        channel._put = lambda _queue, message, **_: caught.append(message)  # type: ignore[attr-defined]  # virtual
        producer = app.amqp.Producer(channel)
        app.send_task(
            RUN_JOB, args=["@JOB@"], task_id="@JOB@", queue=queue, retries=0, ignore_result=True, producer=producer
        )
    message = caught[0]
    body = bytes_to_str(message["body"])
    if message["properties"].pop("body_encoding", None) == "base64":
        body = base64.b64decode(body).decode()
    message["body"] = body
    message["properties"]["delivery_tag"] = "@TAG@"
    message["headers"]["retries"] = "@RETRIES@"
    message["headers"]["ignore_result"] = "@IGNORE@"
    text = json.dumps(message, separators=(",", ":"))
    return text.replace('"@RETRIES@"', "@RETRIES@").replace('"@IGNORE@"', "@IGNORE@")
