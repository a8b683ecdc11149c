"""The drill's own Valkey, provider, shim and workers on this machine: to be killed, stopped, rewound and started again.

Everything is on free ports, with its state in a directory of its own, and told nothing by the environment of whoever
drills: no setting and no key of theirs reaches a process here. A guard ends what is left, however we end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final, Self, TextIO

from celeriac.connections import Redis, open_redis
from celeriac.drill.process import ProviderClient
from celeriac.drill.proxy import HOST, KnownScripts, Proxy
from celeriac.local import ports, probes
from celeriac.local.output import Output
from celeriac.local.processes import Child, Guard, Process
from celeriac.local.valkey import url, valkey

#: Seconds until a supervisor starts again what has died.
RESTART: Final = 0.5
#: Variables of whoever drills that would reach a process of ours.
FOREIGN: Final = ("CELERIAC_", "OPENAI_", "ANTHROPIC_", "REDIS_", "SENTRY_")
#: The longest that one call of an agent may take, unless it is `hasty`, or `unhurried`.
CALL: Final = 20.0

AGENTS: Final = f"""
[agents.drill]
description = "Says what it was told."
lanes = ["openai/gpt-5.4-mini", "anthropic/claude-haiku-5-5"]
timeout_seconds = {CALL:g}

[agents.hasty]
description = "The same, and waits for no provider."
lanes = ["openai/gpt-5.4-mini", "anthropic/claude-haiku-5-5"]
timeout_seconds = 2

[agents.unhurried]
description = "The same, and waits for as long as it takes."
lanes = ["openai/gpt-5.4-mini", "anthropic/claude-haiku-5-5"]
timeout_seconds = 60

[agents.second]
description = "The same, on a queue of its own."
lanes = ["openai/gpt-5.4-mini"]
timeout_seconds = {CALL:g}
queue = "second"
"""


@dataclass(frozen=True)
class Plan:
    """What a house is made of. Two scenarios with equal plans may share one.

    env: for shim and workers. options: for each worker's command line. redis: further options of the server.
    """

    workers: int = 3
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    redis: tuple[str, ...] = ()


class Kept:
    """One process, started again whenever it ends, as a supervisor would. made: makes its n-th start, from 0."""

    def __init__(self, house: House, name: str, made: Callable[[int], Process]) -> None:
        self.name = name
        self._house = house
        self._made = made
        self._log: TextIO | None = None
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.starts = 0
        #: How its runs ended: exit statuses, or minus the signal.
        self.statuses: list[int] = []
        #: When the running process was started, seconds since 1970.
        self.since = 0.0

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._child.pid if self._child is not None else 0

    @property
    def log(self) -> str:
        """All that it has printed, over all its starts."""
        return self._house.log_file(self.name).read_text(errors="replace")

    async def start(self) -> None:
        """Returns when it is of use. Raises NotStarted."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(ready), name=f"keep {self.name}")
        await ready

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        while True:
            child = await self._run()
            if not ready.done():
                try:
                    await child.until_ready()
                except Exception as error:
                    ready.set_exception(error)
                else:
                    ready.set_result(None)
            self.statuses.append(await child.until_ended())
            if self._child is child:
                self._child = None
            await asyncio.sleep(RESTART)

    async def _run(self) -> Child:
        if self._log is None:
            self._log = self._house.log_file(self.name).open("a")
        self._child = await Child.start(self._made(self.starts), self._house.guard, Output(self._log))
        self.starts += 1
        self.since = time.time()
        return self._child

    def signal(self, number: signal.Signals) -> bool:
        """Whether there was a process to tell."""
        if self._child is None:
            return False
        if number == signal.SIGKILL:
            return self._child.kill()
        try:
            os.kill(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def stop(self, *, kill: bool = False) -> None:
        """End it, and do not start it again: in good order within its time, or at once."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        child, self._child = self._child, None
        if child is not None:
            if kill:
                child.kill()
                await child.until_ended()
            else:
                await child.stop()
        if self._log is not None:
            self._log.close()
            self._log = None


class House:
    """Open while inside. Raises NotStarted, with the last words of what did not start."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.guard = Guard()
        self._open = AsyncExitStack()
        self._starts, self._numbers = itertools.count(1), itertools.count(1)
        #: The end of a worker's provider key -> the worker that was started with it, and its process then.
        self._keys: dict[str, tuple[Kept, int]] = {}
        self.workers: list[Kept] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _start(self) -> None:
        for name in ("redis", "logs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.agents = self.directory / "agents.toml"
        self.agents.write_text(AGENTS)
        redis, provider, shim = ports.free(HOST, 3)
        self.shim_url = f"http://{HOST}:{shim}"
        self._redis_port = redis
        self.redis_url = url(redis)
        self._open.push_async_callback(self.guard.stop)
        await self.guard.start()

        self.redis = await self._kept("redis", lambda _: self._redis_process())
        self.direct: Redis = open_redis(self.redis_url, connections=4, name="drill")
        self._open.push_async_callback(self.direct.aclose)
        scripts = KnownScripts()
        self.shim_line = await self._open.enter_async_context(Proxy(redis, scripts))
        self.worker_line = await self._open.enter_async_context(Proxy(redis, scripts))
        self.provider = ProviderClient(f"http://{HOST}:{provider}")
        await self._kept("provider", lambda _: self._provider_process(provider))
        self.shim = await self._kept("shim", lambda _: self._shim_process(shim))
        self._open.push_async_callback(self._stop_workers)
        await asyncio.gather(*(self.new_worker() for _ in range(self.plan.workers)))

    async def _kept(self, name: str, made: Callable[[int], Process]) -> Kept:
        kept = Kept(self, name, made)
        self._open.push_async_callback(kept.stop)
        await kept.start()
        return kept

    async def new_worker(self, **env: str) -> Kept:
        """One more worker, once it is registered. env: besides the plan's."""
        number = next(self._numbers)
        kept = Kept(self, f"worker-{number}", lambda start: self._worker_process(kept, number, start, env))
        self.workers.append(kept)
        await kept.start()
        return kept

    async def _stop_workers(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    def log_file(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def log_files(self, prefix: str = "") -> Iterator[Path]:
        return (self.directory / "logs").glob(f"{prefix}*.log")

    def whose_key(self, key: str) -> Kept | None:
        """The worker that asked the provider with this key, if the process that did so still runs."""
        kept, start = self._keys.get(key, (None, 0))
        return kept if kept is not None and kept.starts == start + 1 and kept.pid else None

    # Redis.

    async def stop_redis(self, *, kill: bool) -> None:
        """kill -9, or in good order; it stays away until it is started."""
        await self.redis.stop(kill=kill)

    async def start_redis(self) -> None:
        await self.redis.start()

    def copy_of_redis(self) -> Path:
        """What is in its files now, as a backup."""
        copy = self.directory / f"redis-copy-{time.time_ns()}"
        shutil.copytree(self.directory / "redis", copy)
        return copy

    def restore_redis(self, copy: Path) -> None:
        """Its files as they were. It must not run."""
        shutil.rmtree(self.directory / "redis")
        shutil.copytree(copy, self.directory / "redis")

    # What each process is told.

    def _env(self, redis_url: str) -> dict[str, str]:
        foreign = dict.fromkeys((name for name in os.environ if name.startswith(FOREIGN)), "")
        return (
            foreign | {"CELERIAC_REDIS_URL": redis_url, "CELERIAC_AGENTS_FILE": str(self.agents)} | dict(self.plan.env)
        )

    def _here(self, *argv: str) -> tuple[str, ...]:
        """Run where no `.env` of whoever drills is read."""
        return ("/bin/sh", "-c", 'cd "$0" && exec "$@"', str(self.directory), *argv)

    def _redis_process(self) -> Process:
        process = valkey(self.directory / "redis", self._redis_port)
        return replace(process, name="redis", argv=(*process.argv, *self.plan.redis))

    def _provider_process(self, port: int) -> Process:
        argv = self._here(sys.executable, "-m", "celeriac.drill.provider", "--port", str(port))
        return Process("provider", argv, ready=probes.http(f"{self.provider.url}/state"))

    def _shim_process(self, port: int) -> Process:
        env = self._env(self.shim_line.url) | {"CELERIAC_SHIM__PORT": str(port)}
        return Process(
            "shim", self._here(sys.executable, "-m", "api_shim"), env, ready=probes.http(f"{self.shim_url}/readyz")
        )

    def _worker_process(self, kept: Kept, number: int, start: int, env: Mapping[str, str]) -> Process:
        key = f"{next(self._starts):04d}"
        self._keys[key] = kept, start
        log = self.log_file(kept.name)
        said = log.stat().st_size if log.exists() else 0

        async def registered() -> bool:
            return b"worker_registered" in log.read_bytes()[said:]

        argv = (sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-n", f"drill{number}@%h")
        ours = {
            "CELERIAC_OPENAI_BASE_URL": self.provider.openai_url,
            "CELERIAC_ANTHROPIC_BASE_URL": self.provider.url,
            "OPENAI_API_KEY": f"drill-{key}",
            "ANTHROPIC_API_KEY": f"drill-{key}",
            "CELERIAC_WORKER__GRACE": "5",
        }
        return Process(
            kept.name,
            self._here(*argv, *self.plan.options),
            self._env(self.worker_line.url) | ours | dict(self.plan.env) | dict(env),
            ready=registered,
            stop_within=timedelta(seconds=12),
        )


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process open as many files as it may, while inside: each connection through a proxy takes two."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
