"""pytest-celery without Docker: its own setup and clusters, over nodes that are the processes of a house."""

from __future__ import annotations

from signal import SIGKILL, Signals

import pytest
from celery import Celery

# The fixtures of its setup by name, for this folder. As a plugin, which `-p no:celery` keeps out, it would give every
# test of the project its nodes in containers too.
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryTestWorker
from pytest_celery import celery_backend_cluster as celery_backend_cluster
from pytest_celery import celery_backend_cluster_config as celery_backend_cluster_config
from pytest_celery import celery_broker_cluster as celery_broker_cluster
from pytest_celery import celery_broker_cluster_config as celery_broker_cluster_config
from pytest_celery import celery_setup as celery_setup
from pytest_celery import celery_setup_app as celery_setup_app
from pytest_celery import celery_setup_cls as celery_setup_cls
from pytest_celery import celery_setup_config as celery_setup_config
from pytest_celery import celery_setup_name as celery_setup_name
from pytest_celery import celery_worker_cluster as celery_worker_cluster
from pytest_celery import celery_worker_cluster_config as celery_worker_cluster_config

from tests.conftest import Valkey
from tests.processes import Worker
from tests.story.conftest import House
from tests.story.conftest import house as house


class ValkeyContainer:
    """What pytest-celery's nodes ask of a Docker container, answered by a Valkey of ours."""

    name = id = "valkey"

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self.celeryconfig = {"url": server.url, "host_url": server.url}

    @property
    def status(self) -> str:
        return "exited" if self._server.process is None else "running"

    def ready(self) -> bool:
        return self.status == "running"

    def reload(self) -> None:
        """Nothing to look up anew: we hold the process itself."""

    def kill(self, signal: str | int) -> None:
        self._server.stop(kill=signal in {"SIGKILL", SIGKILL})

    def restart(self, timeout: float) -> None:
        self._server.stop()
        self._server.start()


class WorkerContainer:
    """The same for the worker, `celery -A worker.app worker`. Its log is that of its last start.

    At DEBUG, where Celery's own lines about a run are, which pytest-celery looks for.
    """

    name = id = "local"

    def __init__(self, house: House) -> None:
        self._house = house
        self._process = self._start()

    def _start(self) -> Worker:
        return self._house.worker("-n", f"{self.worker_name()}@{self.id}", CELERIAC_LOG_LEVEL="DEBUG")

    def worker_name(self) -> str:
        return "worker"

    @property
    def status(self) -> str:
        return "running" if self._process.running() else "exited"

    def ready(self) -> bool:
        return self.status == "running"

    def logs(self) -> str:
        return self._process.output()

    def reload(self) -> None:
        """As for Valkey: there is nothing to look up."""

    def kill(self, signal: str | int) -> None:
        number = Signals[signal] if isinstance(signal, str) else signal
        self._process.signal(number)
        if number == SIGKILL:
            self._process.wait()

    def restart(self, timeout: float) -> None:
        self._process.stop()
        self._process = self._start()


@pytest.fixture
def celery_broker(house: House) -> CeleryTestBroker:
    return CeleryTestBroker(ValkeyContainer(house.valkey))


@pytest.fixture
def celery_backend(house: House) -> CeleryTestBackend:
    return CeleryTestBackend(ValkeyContainer(house.valkey))


@pytest.fixture
def celery_worker(house: House, celery_setup_app: Celery) -> CeleryTestWorker:
    return CeleryTestWorker(WorkerContainer(house), celery_setup_app)
