"""A whole house with Flower in it, started once: the tests here look and break nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from celeriac.local.stack import FLOWER_CONF
from tests.processes import Process, free_port, running, wait_until
from tests.story.conftest import Home

QUESTION = "Where did the unmistakable question go?"
ANSWER = "Into the unmistakable answer."
#: What must be nowhere in Flower and in the broker.
SECRET = "unmistakable"


class Flower(Process):
    """`celery -A worker.app flower` as `celeriac up` starts it, and a client of it."""

    def __init__(self, redis_url: str, cwd: Path, *options: str, prefix: str = "", **env: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}{prefix}"
        self.http = httpx2.Client(base_url=self.url, timeout=30)
        super().__init__(
            *(sys.executable, "-m", "celery", "-A", "worker.app", "flower"),
            *(f"--conf={FLOWER_CONF}", "--address=127.0.0.1", f"--port={port}", *options),
            env={"CELERIAC_REDIS_URL": redis_url, "FLOWER_UNAUTHENTICATED_API": "true"} | env,
            cwd=cwd,
        )

    def up(self) -> Flower:
        def answers() -> bool:
            assert self.running(), self.output()
            with contextlib.suppress(httpx2.TransportError):
                return self.http.get("/healthcheck").status_code == 200
            return False

        wait_until(answers, "Flower to answer", 60)
        return self

    def page(self, path: str) -> str:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def ended(self, job: str) -> dict[str, Any]:
        """What the API says of a job, once it has ended there."""
        return self.in_state(job, "SUCCESS", "FAILURE")

    def in_state(self, job: str, *states: str) -> dict[str, Any]:
        """The same, once it is in one of these of Celery's states."""

        def info() -> dict[str, Any] | None:
            answer = self.http.get(f"/api/task/info/{job}")
            return answer.json() if answer.status_code == 200 and answer.json()["state"] in states else None

        task: dict[str, Any] = wait_until(info, f"Flower to see {job} as {' or '.join(states)}")
        return task

    def rows(self) -> dict[str, dict[str, Any]]:
        """The tasks page as a browser fills it: job id -> row."""
        order = {"order[0][column]": 0, "order[0][dir]": "asc", "columns[0][data]": "name"}
        answer = self.http.get("/tasks/datatable", params={"draw": 1, "start": 0, "length": 100} | order)
        assert answer.status_code == 200, answer.text
        return {row["uuid"]: row for row in answer.json()["data"]}


@pytest.fixture(scope="package")
def home() -> Iterator[Home]:
    home = Home()
    home.always(text=ANSWER)
    yield home
    home.close()


@pytest.fixture(scope="package")
def flower(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Started in an empty directory; it says what it imports."""
    empty = tmp_path_factory.mktemp("elsewhere")
    with running(Flower(home.valkey.url, empty, PYTHONPROFILEIMPORTTIME="1")) as flower:
        wait_until(lambda: flower.http.get("/api/workers").json(), "Flower to see the worker")
        yield flower


@pytest.fixture(scope="package")
def succeeded(home: Home, flower: Flower) -> dict[str, Any]:
    return home.ask(QUESTION)


@pytest.fixture(scope="package")
def failed(home: Home, flower: Flower) -> dict[str, Any]:
    """Its provider does not take the request."""
    home.scripted({"status": 400})
    return home.ask(QUESTION)
