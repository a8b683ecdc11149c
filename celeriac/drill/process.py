"""The fault-injecting provider as a process of its own, for tests, the drill and the benchmark."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp


class ProviderProcess:
    """Start it, tell it what to do, read its bill, stop it.

    async with ProviderProcess() as provider:
        await provider.script({"fault": "503"}, {"text": "Paris"})
        ...
        assert (await provider.bill())["calls"] == 1
    """

    def __init__(self) -> None:
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the provider is not started")
        return self._process.pid

    async def start(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "celeriac.drill.provider", "--port", "0", stdout=asyncio.subprocess.PIPE
        )
        line = await asyncio.wait_for(self._process.stdout.readline(), 30) if self._process.stdout else b""
        if not line:
            raise RuntimeError(f"the provider ended with {await self._process.wait()} before it listened")
        self.url = json.loads(line)["url"]
        return self

    async def stop(self) -> None:
        """SIGTERM; SIGKILL after two seconds."""
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.stop()

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
        bill: dict[str, Any] = await self._ask("GET", "/bill?lines=1" if lines else "/bill")
        return bill

    async def state(self) -> dict[str, int]:
        state: dict[str, int] = await self._ask("GET", "/state")
        return state

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
        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession()
        async with self._http.request(method, self.url + path, json=body) as answer:
            said = await answer.json()
            if answer.status != 200:
                raise ValueError(said["error"])
            return said
