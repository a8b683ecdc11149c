"""The fault-injecting provider as a process of its own, for tests, the drill and the benchmark."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self

import aiohttp


class ProviderClient:
    """Tells a provider that runs what to do, and reads its bill. It belongs to no event loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    async def script(self, *behaviours: dict[str, Any]) -> None:
        """What the next calls meet, one behaviour after the other. Raises ValueError for one that does not exist."""
        await self._ask("POST", "/script", behaviours)

    async def default(self, **behaviour: Any) -> None:
        """What every call meets that nothing else is said about."""
        await self._ask("POST", "/default", behaviour)

    async def reset(self) -> None:
        """Drop script, default and bill."""
        for path in ("/script", "/default", "/bill"):
            await self._ask("DELETE", path)

    async def bill(self, *, lines: bool = False) -> dict[str, Any]:
        """calls, written, input, cache_read, cache_write, output; with lines each call, as `provider.Line` says."""
        bill: dict[str, Any] = await self._ask("GET", "/bill?lines=1" if lines else "/bill")
        return bill

    async def state(self) -> dict[str, int]:
        """seen, in_flight, peak, script, looks, kept."""
        state: dict[str, int] = await self._ask("GET", "/state")
        return state

    async def open(self) -> list[dict[str, Any]]:
        """The calls in flight, each as a line of the bill."""
        lines: list[dict[str, Any]] = await self._ask("GET", "/open")
        return lines

    async def requests(self) -> list[dict[str, Any]]:
        """The last 100 requests, oldest first: path, headers, body (the text that was sent)."""
        requests: list[dict[str, Any]] = await self._ask("GET", "/requests")
        return requests

    async def until(self, condition: Callable[[dict[str, int]], bool], patience: float = 10.0) -> dict[str, int]:
        """Wait until the provider's state fulfils the condition, as `lambda s: s["in_flight"] == 5`."""
        async with asyncio.timeout(patience):
            while not condition(state := await self.state()):  # noqa: ASYNC110  # it is in another process
                await asyncio.sleep(0.01)
        return state

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        async with aiohttp.ClientSession() as http, http.request(method, self.url + path, json=body) as answer:
            said = await answer.json()
            if answer.status != 200:
                raise ValueError(said["error"])
            return said


class ProviderProcess(ProviderClient):
    """Start it, tell it what to do, read its bill, stop it.

    async with ProviderProcess() as provider:
        await provider.script({"fault": "503"}, {"text": "Paris"})
        ...
        assert (await provider.bill())["calls"] == 1
    """

    def __init__(self) -> None:
        super().__init__("")
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the provider is not started")
        return self._process.pid

    def start(self) -> Self:
        """Blocks until it listens, about half a second."""
        command = [sys.executable, "-m", "celeriac.drill.provider", "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own module
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"the provider ended with {self._process.wait()} before it listened")
        self.url = json.loads(line)["url"]
        return self

    def stop(self) -> None:
        """SIGTERM; SIGKILL after two seconds."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)
