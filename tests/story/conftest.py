"""A whole house for stories: Valkey, a provider, a worker and a shim, as an operator would start them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from celeriac.drill.process import ProviderProcess
from celeriac.settings import SHIPPED_AGENTS
from tests.conftest import Valkey
from tests.processes import Shim, Worker, running

#: Beside those that we ship.
AGENTS: Final = """
[agents.impatient]
description = "Is not tried again."
instructions = "Answer."
lanes = ["openai/gpt-5.4-mini", "anthropic/claude-haiku-5-5"]
max_retries = 0

[agents.thorough]
description = "Takes two steps."
instructions = "Answer."
lanes = ["openai/gpt-5-mini"]
follow_ups = ["Are you sure?"]
max_retries = 0
"""


class House:
    def __init__(self) -> None:
        self._open = ExitStack()
        self.valkey = Valkey().start()
        self._open.callback(self.valkey.remove)
        self.provider = ProviderProcess().start()
        self._open.callback(self.provider.stop)
        self.env = {
            "CELERIAC_OPENAI_BASE_URL": self.provider.openai_url,
            "CELERIAC_ANTHROPIC_BASE_URL": self.provider.url,
            "OPENAI_API_KEY": "secret-openai-key",
            "ANTHROPIC_API_KEY": "secret-anthropic-key",
        }

    def worker(self, *options: str, **env: str) -> Worker:
        worker: Worker = self._open.enter_context(running(Worker(self.valkey.url, *options, **(self.env | env))))
        return worker

    def workers(self, *options: tuple[str, ...], envs: Sequence[dict[str, str]] = (), **env: str) -> list[Worker]:
        """One for each of these, started together. envs: of each."""
        own = envs or [{}] * len(options)
        made = [
            Worker(self.valkey.url, *its, **(self.env | env | more)) for its, more in zip(options, own, strict=True)
        ]
        for worker in made:
            self._open.callback(worker.stop)
        return [worker.up() for worker in made]

    def shim(self, **env: str) -> Shim:
        shim: Shim = self._open.enter_context(running(Shim(self.valkey.url, **env)))
        return shim

    def celeriac(self, *arguments: str, **env: str) -> str:
        """What the command says, as an operator of this house types it."""
        command = [sys.executable, "-m", "celeriac.cli", *arguments]
        env = os.environ | self.env | {"CELERIAC_REDIS_URL": self.valkey.url} | env
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def close(self) -> None:
        self._open.close()

    def due(self, *jobs: str) -> None:
        """The time of these has come, whenever it was to be."""
        self.valkey.client().zadd("celeriac:parked", dict.fromkeys(jobs, 1))

    @contextmanager
    def held(self) -> Iterator[None]:
        """The provider is frozen: what it has been asked, and is asked meanwhile, it answers afterwards."""
        os.kill(self.provider.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.provider.pid, signal.SIGCONT)

    # The provider, for tests that are not asynchronous.
    def scripted(self, *behaviours: dict[str, Any]) -> None:
        asyncio.run(self.provider.script(*behaviours))

    def always(self, **behaviour: Any) -> None:
        asyncio.run(self.provider.default(**behaviour))

    def bill(self) -> dict[str, Any]:
        return asyncio.run(self.provider.bill(lines=True))

    def asked(self) -> list[dict[str, Any]]:
        return asyncio.run(self.provider.requests())

    def in_flight(self) -> int:
        return asyncio.run(self.provider.state())["in_flight"]

    def peak(self) -> int:
        return asyncio.run(self.provider.state())["peak"]


class Home(House):
    """One worker and one shim, started once for all stories that break nothing."""

    def __init__(self) -> None:
        super().__init__()
        agents = Path(self._open.enter_context(TemporaryDirectory())) / "agents.toml"
        agents.write_text(SHIPPED_AGENTS.read_text() + AGENTS)
        self.the_worker = self.worker(CELERIAC_AGENTS_FILE=str(agents))
        self.the_shim = self.shim(CELERIAC_AGENTS_FILE=str(agents))

    def ask(self, text: str = "What is the capital of France?", **facts: Any) -> dict[str, Any]:
        """Submit a job and wait for its end."""
        return self.the_shim.job(self.the_shim.submit(input=text, **facts)["id"], wait=60)


@pytest.fixture(scope="package")
def one_home() -> Iterator[Home]:
    with closing(Home()) as home:
        yield home


@pytest.fixture
def home(one_home: Home) -> Home:
    """The provider has forgotten what the test before told it, and the fleet how that went."""
    asyncio.run(one_home.provider.reset())
    redis = one_home.valkey.client()
    redis.delete("celeriac:lane:none", *redis.scan_iter("celeriac:lane:*"))
    return one_home


@pytest.fixture
def house() -> Iterator[House]:
    """An empty house of one's own, to break."""
    with closing(House()) as opened:
        yield opened
