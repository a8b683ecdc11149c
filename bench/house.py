"""The processes of a measurement, started here and ended here, and what they cost: CPU, memory, Redis commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import psutil
import redis

from celeriac.drill.process import ProviderProcess
from tests.conftest import Valkey
from tests.processes import Process, Worker, free_port, wait_until

#: Seconds that one measurement may take before it is given up.
PATIENCE = 180.0


def allow_many_files() -> int:
    """Let this process and its children open as many files as they may; answers how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, *, every: float = 0.05) -> None:
    """As a test waits, but looking less often: what looks costs CPU too."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for: {what}")
        time.sleep(every)


TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class Cost:
    """What a process and its children have used since this was made, or `reset`."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.reset()

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _spent(self) -> float:
        spent = 0.0
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def reset(self) -> None:
        self._began = self._spent()

    def cpu(self) -> float:
        """Seconds. The clock of a process ticks: less than one is not seen, and counts as one."""
        return max(TICK, self._spent() - self._began)

    def memory(self) -> float:
        """Resident MB. Of several processes, each page that they share counts once (Linux; elsewhere once for each)."""
        processes, total = self._all(), 0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _proportional(process) if len(processes) > 1 else process.memory_info().rss
        return total / 1e6


def _proportional(process: psutil.Process) -> int:
    used = process.memory_full_info()
    return int(getattr(used, "pss", used.rss))


class PlainWorker(Worker):
    """`celery -A bench.plain_app worker`."""

    def __init__(self, redis_url: str, *options: str, **env: str) -> None:
        Process.__init__(
            self,
            *(sys.executable, "-m", "celery", "-A", "bench.plain_app", "worker", "--loglevel", "INFO"),
            *("--without-mingle", "--without-gossip", *options),
            env={"BENCH_REDIS": redis_url} | env,
        )


class Web(Process):
    """A web server on a free port. argv: with "{port}" where the port goes."""

    def __init__(self, *argv: str, env: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = [arg.format(port=self.port) for arg in argv]
        super().__init__(sys.executable, "-m", *given, env={k: v.format(port=self.port) for k, v in env.items()})

    def up(self) -> Self:
        import socket

        def listens() -> bool:
            assert self.running(), self.output()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_until(listens, "the web server to listen")
        return self


class House:
    """A Valkey and a provider for one measurement."""

    def __init__(self, delay: float) -> None:
        from bench.question import ANSWER

        self._open = contextlib.ExitStack()
        self.delay = delay
        self.valkey = Valkey().start()
        self._open.callback(self.valkey.remove)
        self.provider = ProviderProcess().start()
        self._open.callback(self.provider.stop)
        asyncio.run(self.provider.default(text=ANSWER, delay=delay))
        self.redis: redis.Redis = self.valkey.client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextlib.contextmanager
    def running(self, process: Any) -> Iterator[Any]:
        """The process, up; if it broke, what it printed."""
        try:
            yield process.up()
        except BaseException:
            print(process.output()[-3000:], file=sys.stderr)
            raise
        finally:
            process.signal(signal.SIGKILL)  # it holds nothing that anybody wants
            process.stop()

    def celeriac_worker(self, concurrency: int, **env: str) -> Any:
        env = {
            "CELERIAC_ENV": "prod",
            "CELERIAC_SHIM__API_KEYS__BENCH": "a-key-that-nobody-uses",
            "CELERIAC_OPENAI_BASE_URL": self.provider.openai_url,
            "OPENAI_API_KEY": "k",
            "CELERIAC_WORKER__CONCURRENCY": str(concurrency),
        } | env
        return self.running(Worker(self.valkey.url, **env))

    def plain_worker(self, pool: str, concurrency: int) -> Any:
        in_one = 1 if pool == "prefork" else concurrency
        env = {"BENCH_OPENAI": self.provider.openai_url, "BENCH_CONCURRENCY": str(in_one)}
        return self.running(PlainWorker(self.valkey.url, "--pool", pool, "--concurrency", str(concurrency), **env))

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """The commands that clients send meanwhile, by who sent them; what a script does inside is not counted.

        The counter is filled at the end. `shim` and `worker`: Celeriac's own; `lease`: its heartbeat and
        upkeep; `celery`: Celery's, and the plain app's.
        """
        counted: Counter[str] = Counter()
        with self.redis.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis has no types there
            yield counted
            self.redis.echo("bench-end")
            names = {client["addr"]: client["name"] for client in self.redis.client_list()}
            while True:
                seen = monitor.next_command()
                if seen["command"].startswith("ECHO bench-end"):
                    break
                if seen["client_type"] == "tcp":
                    name = names.get(f"{seen['client_address']}:{seen['client_port']}", "")
                    counted[name.removeprefix("celeriac-") if name.startswith("celeriac-") else "celery"] += 1
