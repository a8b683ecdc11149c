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
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

from celeriac.jobs.canvas import Canvas
from celeriac.logs import get_logger
from celeriac.settings import RUN_JOB as RUN_JOB
from celeriac.settings import SUBMIT as SUBMIT
from celeriac.settings import SUSPECTS, Settings

if TYPE_CHECKING:
    from celery import Celery

log = get_logger(__name__)


def suspects(queue: str) -> str:
    return queue + SUSPECTS


def is_suspects(queue: str) -> bool:
    return queue.endswith(SUSPECTS)


#: [queue, job id, retries, "true" if nobody asks Celery for the result], and its canvas if it came through Celery
Bell = Sequence[bytes]


def celery_app(settings: Settings, application: type[Celery] | None = None) -> Celery:
    """The Celery application as every process of ours configures it. Imports Celery, which costs 0.2 s."""
    from celery import Celery
    from kombu import Exchange, Queue

    broker = (settings.broker_url or settings.redis_url).get_secret_value()
    app = (application or Celery)(
        "celeriac", broker=broker, backend=settings.redis_url.get_secret_value(), set_as_current=False
    )
    app.conf.update(
        task_queues=[
            # Without acknowledgement a bell costs the worker 0.7 ms less. Only on Redis, where nothing else limits what
            # a full worker would take from the others.
            Queue(name, Exchange(name), routing_key=name, no_ack=settings.broker_is_store)
            for name in settings.worker.queues
        ]
        # A submission is not stored yet: it is acknowledged once it is.
        + [Queue(SUBMIT, Exchange(SUBMIT), routing_key=SUBMIT)],
        # Where a callback goes that names no queue: not to us, who know no task of anybody else.
        task_default_queue="celery",
        task_routes={SUBMIT: {"queue": SUBMIT}},
        task_create_missing_queues=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_publish_retry=False,
        worker_disable_prefetch=settings.broker_is_store,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        # A broker may be away for as long as it takes: the worker's other work is safe in the store.
        broker_connection_max_retries=None,
        broker_transport_options={} if broker.startswith("amqp") else {"socket_keepalive": True, "socket_timeout": 30},
        result_expires=settings.jobs.result_ttl,
        result_chord_expires=settings.jobs.chord_ttl,
        # A store that is away for a moment must not turn an answer into a failure.
        result_backend_always_retry=True,
        result_backend_max_retries=30,
        result_backend_base_sleep_between_retries_ms=100,
        result_backend_max_sleep_between_retries_ms=2000,
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
    """Celery's ordinary producer, in a thread of its own over a connection of its own.

    Not Celery's pool of producers, which asks a broker that is away again and again, for ever, and not the event loop's
    threads, which name lookups need too. Each step has a time limit; what could not be published is dropped, and upkeep
    rings for it.
    """

    #: Seconds that a broker may take to answer.
    PATIENCE: Final = 5.0
    #: More bells than this wait for a broker that hangs only until upkeep rings for them.
    MOST: Final = 10_000

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bells")
        self._due: deque[Bell] = deque(maxlen=self.MOST)
        self._ringing: asyncio.Task[None] | None = None
        self._producer: Any = None

    async def ring(self, bells: Iterable[Bell]) -> None:
        """Returns at once: the caller's job is stored, whether the broker answers or not."""
        self._due.extend(bells)
        if self._due and self._ringing is None:
            self._ringing = asyncio.create_task(self._ring(), name="bells")

    async def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._due:
                bells = list(self._due)
                self._due.clear()
                try:
                    await loop.run_in_executor(self._thread, self._publish, bells)
                except Exception as error:  # whatever a broker's client may raise
                    # Those that came meanwhile would meet the same.
                    log.warning("bells_not_rung", bells=len(bells) + len(self._due), reason=type(error).__name__)
                    self._due.clear()
        finally:
            self._ringing = None

    def _publish(self, bells: list[Bell]) -> None:
        # Twice is harmless, and an idle connection does not know yet that the broker was started anew.
        if self._producer is not None:
            try:
                self._send(bells)
            except Exception:
                self._disconnect()
            else:
                return
        try:
            self._producer = self._connect()
            self._send(bells)
        except BaseException:
            self._disconnect()
            raise

    def _connect(self) -> Any:
        connection = self._app.connection_for_write(
            # We send nothing while there is nothing to send: a heartbeat would end the connection.
            heartbeat=0,
            connect_timeout=self.PATIENCE,
            # Confirmed: what is written to a broker that just went away is otherwise lost without an error.
            transport_options={**self._app.conf.broker_transport_options, "max_retries": 0, "confirm_publish": True},
        )
        return self._app.amqp.Producer(connection, auto_declare=False)

    def _send(self, bells: list[Bell]) -> None:
        for queue, job_id, retries, ignore_result, *canvas in bells:
            self._app.send_task(
                RUN_JOB,
                args=[job_id.decode()],
                task_id=job_id.decode(),
                queue=queue.decode(),
                retries=int(retries),
                ignore_result=ignore_result == b"true",
                **(Canvas.unpack(canvas[0]).options() if canvas else {}),
                producer=self._producer,
                retry=False,
                timeout=self.PATIENCE,
                confirm_timeout=self.PATIENCE,
            )

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.connection.collect(socket_timeout=0.5)

    async def close(self) -> None:
        """Wait for the bells that are under way, as long as a broker may take."""
        if self._ringing is not None:
            await asyncio.wait({self._ringing}, timeout=self.PATIENCE)
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)


def open_ringer(settings: Settings) -> InScript | Produced:
    return InScript() if settings.broker_is_store else Produced(celery_app(settings))


def templates(app: Celery, queues: Iterable[str]) -> Mapping[str, str]:
    """Celery's own message for a job of each queue, with @JOB@, @TAG@ (delivery), @RETRIES@, @IGNORE@ and the places of
    `Canvas.pack` to fill in.

    Built by the producer that `apply_async` uses, over kombu's in-memory transport. The body is stored as plain text
    instead of base64, so that the script can put the id and the callbacks in.
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
    args, kwargs, _ = json.loads(body)
    message["body"] = json.dumps([args, kwargs, "@EMBED@"])
    message["properties"]["delivery_tag"] = "@TAG@"
    message["headers"] |= {
        "retries": "@RETRIES@",
        "ignore_result": "@IGNORE@",
        "root_id": "@ROOT@",
        "parent_id": "@PARENT@",
        "group": "@GROUP@",
        "group_index": "@INDEX@",
    }
    # What is filled in there is JSON already; in the body, JSON inside a JSON text.
    text = re.sub(
        r'"(@(?:RETRIES|IGNORE|ROOT|PARENT|GROUP|INDEX)@)"', r"\1", json.dumps(message, separators=(",", ":"))
    )
    return text.replace(r"\"@EMBED@\"", "@EMBED@")
