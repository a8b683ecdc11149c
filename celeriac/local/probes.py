"""Questions that tell whether a process is of use yet. None of them raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from celeriac.local.processes import Probe

TIMEOUT = aiohttp.ClientTimeout(total=5)


def http(url: str, good: Callable[[int], bool] = lambda status: status == 200) -> Probe:
    async def probe() -> bool:
        try:
            async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(url) as response:
                return good(response.status)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    return probe


def redis(host: str, port: int) -> Probe:
    """The server answers PING; one that is still loading its append-only file does not."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    return probe
