"""A worker's own port: `/livez`, `/readyz` and `/metrics`, answered by threads that no job can hold up.

Who may call: whoever reaches CELERIAC_WORKER__HEALTH_HOST and _PORT, which by default is nobody. There is no key, and
nothing in an answer that somebody said: times, counts, and the worker's name.

`/livez` fails for what a restart of this process would cure, and for nothing else. To kill a worker is to cut off calls
that are being paid for, so a Redis that restarts or a RabbitMQ that is away for an hour fails no worker's `/livez`:
- `loop`: it has been blocked for longer than its lease and the extension of it. Its jobs are others' by now.
- `consuming`: no message was taken for a minute in which the broker answered a connection of our own. A minute, because
  Celery asks a broker that is away every 30 s: it deserves one try after the broker is back.
- `heartbeat`: none for a lease, and in one lease more the store answered a connection of our own.
A process that answers nothing at all (it is stopped, or something holds the interpreter's lock) fails by the probe's
own time limit: 5 s, say, and three failures in a row.

`/readyz` fails whenever the worker takes no jobs, whoever is to blame: it starts, drains, is cut off from broker or
store, its loop is blocked. Nothing should be restarted for it; a rollout waits for it.

Both answer with what they know: `failing` names each reason, with a sentence.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import orjson
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celeriac.jobs.journal import breaker_changes, overruns
from celeriac.jobs.reach import ask_broker, ask_store
from celeriac.jobs.watchdog import LOST_AFTER
from celeriac.logs import get_logger
from celeriac.settings import Settings
from worker.lifecycle import DEAF_AFTER

log = get_logger(__name__)

#: Seconds between two looks at whether a server answers others while it does not seem to answer us.
LOOK: Final = 2.0
#: Seconds in which a broker that answers must have brought Celery back: twice its longest wait between two tries.
RECONNECTED: Final = 60.0
#: Seconds that store and broker get to answer such a look, and a caller to say what it wants.
PATIENCE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Signs:
    """How the worker is, at one moment. worker: "" before it registered. Durations are seconds; `blocked` is how long
    the loop has been, `loop_lag` how late it is or was last. taking: it takes messages, for the store answers it."""

    worker: str
    registered: bool
    stopping: bool
    hub_silent: float
    blocked: float
    heartbeat_age: float
    loop_lag: float
    stalls: int
    running: int
    slots: int
    taking: bool


class Suspicion:
    """Something of ours is silent. Is it us, or the server that it speaks to? answers: asks the server on a connection
    of its own, raises if there is no answer. patience: seconds in which it answers and ours must have recovered."""

    def __init__(self, answers: Callable[[], object], patience: float) -> None:
        self._answers = answers
        # Counted, not timed: a process that was stopped meanwhile has not looked.
        self._needed = max(1.0, patience / LOOK)
        self._looks = 0

    def look(self, silent: bool) -> None:
        if silent:
            try:
                self._answers()
            except Exception:  # whatever the client of a broker may raise: it does not answer us either
                silent = False
        self._looks = self._looks + 1 if silent else 0

    @property
    def confirmed(self) -> bool:
        """It is us."""
        return self._looks > self._needed


class Health:
    """Judges the signs. `look` is called every `LOOK` seconds by a thread of its own: it may have to wait for servers,
    and whoever asks for a verdict does not."""

    def __init__(
        self, signs: Callable[[], Signs], lease: float, store: Callable[[], object], broker: Callable[[], object]
    ) -> None:
        self.signs = signs
        self._lease = lease
        self._mute = Suspicion(store, lease)
        self._deaf = Suspicion(broker, RECONNECTED)

    def look(self) -> None:
        now = self.signs()
        runs = now.worker != "" and not now.stopping
        self._mute.look(runs and now.heartbeat_age > self._lease)
        self._deaf.look(runs and now.hub_silent > DEAF_AFTER)

    def dying(self, now: Signs) -> dict[str, str]:
        """What a restart would cure: name -> sentence."""
        failing = {}
        if now.blocked > LOST_AFTER * self._lease:
            failing["loop"] = f"blocked for {now.blocked:.0f} s; its jobs have been given to others"
        if self._deaf.confirmed:
            failing["consuming"] = f"no message taken for {now.hub_silent:.0f} s, though the broker answers"
        if self._mute.confirmed:
            failing["heartbeat"] = f"none for {now.heartbeat_age:.0f} s, though the store answers"
        return failing

    def unready(self, now: Signs) -> dict[str, str]:
        """Why it takes no jobs: name -> sentence."""
        if now.stopping:
            return {"draining": "it was told to stop"}
        if now.worker == "":
            return {"starting": "it has not registered with the store yet"}
        failing = {}
        if now.blocked > DEAF_AFTER:
            failing["loop"] = f"blocked for {now.blocked:.0f} s"
        if now.hub_silent > DEAF_AFTER:
            failing["consuming"] = f"no message could be taken for {now.hub_silent:.0f} s"
        elif not now.taking:
            failing["consuming"] = f"it takes no message while the store is silent, for {now.heartbeat_age:.0f} s now"
        if now.heartbeat_age > self._lease or not now.registered:
            failing["heartbeat"] = f"none for {now.heartbeat_age:.0f} s: it has lost its lease"
        return failing


class WorkerMetrics(Collector):
    """Read when asked for: nothing is counted a job."""

    def __init__(self, signs: Callable[[], Signs]) -> None:
        self._signs = signs

    def collect(self) -> Iterator[Metric]:
        now = self._signs()
        for name, help, value in (
            ("loop_lag_seconds", "How late the event loop is, or was last", now.loop_lag),
            ("jobs_in_flight", "Tasks that hold a slot", now.running),
            ("slots", "Tasks at once", now.slots),
            ("heartbeat_age_seconds", "Since the store last answered a heartbeat", now.heartbeat_age),
        ):
            yield GaugeMetricFamily(f"celeriac_worker_{name}", help, value)
        yield CounterMetricFamily("celeriac_worker_stalls", "How often something blocked the event loop", now.stalls)
        changes = CounterMetricFamily(
            "celeriac_breaker_changes",
            "How often a call of this worker opened the breaker of a lane, tried the lane out, or closed it",
            labels=("lane", "state"),
        )
        for labels, count in breaker_changes.copy().items():
            changes.add_metric(labels, count)
        yield changes
        over = CounterMetricFamily(
            "celeriac_overruns", "Calls of this worker that cost more than their bound", labels=("lane",)
        )
        for lane, count in overruns.copy().items():
            over.add_metric((lane,), count)
        yield over


class Pages:
    """The WSGI application."""

    def __init__(self, health: Health) -> None:
        self._health = health
        registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR, WorkerMetrics(health.signs)):
            registry.register(collector)
        self._metrics = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        judge = {"/livez": self._health.dying, "/readyz": self._health.unready}.get(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/metrics":
            return self._metrics(environ, start_response)  # type: ignore[no-any-return]  # a WSGI answer
        if judge is None:
            start_response("404 Not Found", [("Content-Type", "application/json")])
            return [orjson.dumps({"status": "not found", "paths": ["/livez", "/readyz", "/metrics"]})]
        now = self._health.signs()
        failing = judge(now)
        body = {
            "status": "failing" if failing else "ok",
            "failing": failing,
            "worker": now.worker,
            "consuming": now.taking and now.hub_silent <= DEAF_AFTER and not now.stopping,
            "loop_blocked_seconds": round(now.blocked, 1),
            "heartbeat_age_seconds": round(now.heartbeat_age, 1),
        }
        start_response("503 Service Unavailable" if failing else "200 OK", [("Content-Type", "application/json")])
        return [orjson.dumps(body)]


class _Quiet(WSGIRequestHandler):
    #: Who says nothing is not waited for.
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds."""


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for the host's name and may wait for it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve(settings: Settings, signs: Callable[[], Signs]) -> int:
    """Listen from now on until the process ends. Answers the port. Raises OSError where it is not free."""
    host, port = settings.worker.health_host, settings.worker.health_port or 0
    health = Health(
        signs,
        settings.jobs.lease.total_seconds(),
        store=partial(ask_store, settings, PATIENCE),
        broker=partial(ask_broker, settings, PATIENCE),
    )
    kind = _Server6 if ":" in host else _Server
    server = make_server(host, port, Pages(health), kind, _Quiet)
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    threading.Thread(target=_look, args=(health,), name="probes-look", daemon=True).start()
    log.info("probes_listen", host=host, port=server.server_port)
    return server.server_port


def _look(health: Health) -> None:
    while True:
        time.sleep(LOOK)
        health.look()
