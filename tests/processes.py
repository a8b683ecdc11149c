"""Real processes for tests: started on free ports, waited for, ended by pid with everything they started."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parent.parent


#: Below the ports that Linux gives to whoever asks for any (32768 and up), and for each process of the tests its own
#: thousand (less, where there are more than twelve of them): who is told a port of these is alone with it until its
#: server listens. They are told from anywhere in it on, so that two runs on one machine seldom meet.
_EACH = 12_000 // max(12, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")))
_FIRST = 20_000 + _EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw10").removeprefix("gw"))
_begin = _FIRST + random.randrange(_EACH)  # noqa: S311  # no secret
_ports = itertools.cycle([*range(_begin, _FIRST + _EACH), *range(_FIRST, _begin)])


def free_port() -> int:
    """A port on which nobody listens, and which no other test is told."""
    for port in itertools.islice(_ports, _EACH):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
            return port
    raise RuntimeError(f"no free port from {_FIRST} on")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.02)
    return answer


async def until(condition: Callable[[], bool]) -> None:
    """The same on an event loop, which goes on meanwhile."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


def held() -> float:
    """Seconds by the clock, without those in which this thread waited for a core: a busy machine adds nothing."""
    waited = "0 0"
    with contextlib.suppress(OSError):  # Linux tells, in nanoseconds
        waited = Path("/proc/thread-self/schedstat").read_text()
    return time.monotonic() - int(waited.split()[1]) / 1e9


class Process:
    """A child with its own process group; what it prints is kept."""

    def __init__(self, *argv: str, env: dict[str, str], cwd: Path = ROOT) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed in kill()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "OPENAI_", "ANTHROPIC_"))}
        self.process = subprocess.Popen(
            argv, env=clean | env, cwd=cwd, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.running():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """At once, with everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._log.close()


class Shim(Process):
    """`python -m api_shim` and a client of it."""

    def __init__(self, redis_url: str, **env: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.url, timeout=70)
        super().__init__(
            sys.executable,
            "-m",
            "api_shim",
            env={"CELERIAC_REDIS_URL": redis_url, "CELERIAC_SHIM__PORT": str(port), "CELERIAC_ENV": "dev"} | env,
        )

    def up(self) -> Shim:
        def answers() -> bool:
            assert self.running(), self.output()
            with contextlib.suppress(httpx2.TransportError):
                return self.http.get("/livez").status_code == 200
            return False

        wait_until(answers, "the shim to answer")
        return self

    def submit(self, **facts: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"} | facts)
        assert answer.status_code == 202, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def events(self, id: str, after: str = "") -> Iterator[httpx2.ServerSentEvent]:
        """What a reader of the job is told, until the stream ends."""
        headers = {"Last-Event-ID": after} if after else {}
        with self.http.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield from httpx2.EventSource(answer)

    def job(self, id: str, wait: float = 0) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{id}", params={"wait": wait} if wait else {})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@contextlib.contextmanager
def running(process: Any) -> Iterator[Any]:
    try:
        yield process.up()
    finally:
        process.stop()


class Worker(Process):
    """`celery -A worker.app worker`, ready once it consumes."""

    def __init__(self, redis_url: str, *options: str, app: str = "worker.app", **env: str) -> None:
        super().__init__(
            *(sys.executable, "-m", "celery", "-A", app, "worker", *options),
            env={"CELERIAC_REDIS_URL": redis_url} | env,
        )

    def up(self) -> Worker:
        def ready() -> bool:
            assert self.running(), self.output()
            return " ready." in self.output()

        wait_until(ready, "the worker to consume", 60)
        return self

    def lines(self) -> list[dict[str, Any]]:
        """What it logged, where CELERIAC_ENV is prod."""
        return [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
