"""Real `celery worker` processes with the tasks of `pool_app`, started and ended by the tests that ask for them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.conftest import Valkey
from tests.processes import Worker, wait_until

#: Generous: the machine may be busy with other things.
PATIENCE = 40.0


def tell(valkey: Valkey, key: str, times: int = 1) -> None:
    """The tasks that wait until they are told."""
    valkey.client().rpush(f"told:{key}", *["go on"] * times)


class PoolWorker(Worker):
    """`celery -A pool_app worker`: its tasks are named `pool_app.*`, so it finds the module by that name."""

    def __init__(self, url: str, name: str, *options: str, **env: str) -> None:
        self.name = f"{name}@test"
        env = {"POOL_TEST_URL": url, "PYTHONPATH": str(Path(__file__).parent)} | env
        super().__init__(
            url,
            *("--without-mingle", "--without-gossip", "-n", self.name, "-l", "INFO"),
            *options,
            app="pool_app",
            **env,
        )

    def logged(self, text: str) -> str:
        wait_until(lambda: text in self.output(), f"{text!r} in the log")
        return self.output()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., PoolWorker]]:
    """start_worker(url, *options, **env): a worker that ends with the test, whatever it runs."""
    names = count()
    with ExitStack() as ended:

        def start(url: str, *options: str, **env: str) -> PoolWorker:
            worker = PoolWorker(url, f"w{next(names)}", *options, **env)
            ended.callback(worker.kill)
            return worker

        yield start


@contextmanager
def client_of(valkey: Valkey) -> Iterator[Celery]:
    app = Celery("client", broker=valkey.url, backend=valkey.url, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, result_extended=True)
    with app:
        yield app
        gc.collect()  # Celery's results say goodbye to their server when they are collected


@pytest.fixture
def celery(valkey: Valkey) -> Iterator[Celery]:
    """A caller who knows tasks by name only."""
    with client_of(valkey) as app:
        yield app


class Standing:
    """The worker that the tests of one module share."""

    def __init__(self, valkey: Valkey, worker: PoolWorker, celery: Celery) -> None:
        self.valkey, self.worker, self.celery = valkey, worker, celery

    def call(self, task: str, *args: Any, **options: Any) -> Any:
        return self.send(task, *args, **options).get(timeout=PATIENCE)

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.celery.send_task(f"pool_app.{task}", args, **options)

    def tell(self, key: str) -> None:
        tell(self.valkey, key)

    def marks(self, key: str) -> list[str]:
        return self.valkey.client().lrange(f"mark:{key}", 0, -1)

    def marked(self, key: str, n: int = 1) -> list[str]:
        marks: list[str] = wait_until(lambda: m if len(m := self.marks(key)) >= n else [], f"{n} marks of {key}")
        return marks


@pytest.fixture(scope="module")
def standing(valkey_server: Valkey) -> Iterator[Standing]:
    worker = PoolWorker(valkey_server.url, "standing", "-c", "20", "-E", POOL_TEST_STALL="0.4")
    with client_of(valkey_server) as celery:
        try:
            yield Standing(valkey_server, worker.up(), celery)
        finally:
            worker.kill()
