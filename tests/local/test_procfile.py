"""The commands of the Procfile as honcho and Heroku run them: by a shell, in the repository, on the port it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from honcho.environ import parse_procfile

from tests.conftest import Valkey
from tests.processes import ROOT, Process, free_port, wait_until

Up = Callable[[Process, str], bool]


def answers(path: str) -> Up:
    def up(process: Process, url: str) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(url + path).status_code == 200
        return False

    return up


def consumes(process: Process, url: str) -> bool:
    return " ready." in process.output()


UP: dict[str, Up] = {"web": answers("/readyz"), "worker": consumes, "flower": answers("/healthcheck")}


@pytest.mark.parametrize("name", UP)
def test_each_command_of_the_procfile_comes_up_and_ends(valkey: Valkey, name: str) -> None:
    """Web and Flower on the port that they are told. SIGTERM reaches them, and no shell that left them behind."""
    port = free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "PORT": str(port), "CELERIAC_REDIS_URL": valkey.url, "CELERIAC_SCRIPTED": "1"}
    process = Process("sh", "-c", parse_procfile((ROOT / "Procfile").read_text()).processes[name], env=env)
    try:

        def up() -> bool:
            assert process.running(), process.output()
            return UP[name](process, f"http://127.0.0.1:{port}")

        wait_until(up, f"{name} to come up", 60)
        process.signal(signal.SIGTERM)
        process.wait(30)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        process.kill()
