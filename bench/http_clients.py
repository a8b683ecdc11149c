"""Which HTTP client carries the SDKs best at many calls in flight: CPU and wall time a call.

    python -m bench.http_clients            # 500 in flight
    python -m bench.http_clients 5000       # needs `ulimit -n` above twice that

`compare(in_flight)` is for a bench's main. Every client makes the same calls of one second each through `AsyncOpenAI`;
the last line is bare aiohttp, what a call costs without an SDK.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import aiohttp
import httpx2
import openai
import orjson
import uvloop

from celeriac.drill.process import ProviderProcess
from celeriac.llm.model import Lane, Message, ModelRequest
from celeriac.llm.openai import OpenAI
from celeriac.llm.transport import open_http

Call = Callable[[], Awaitable[object]]
#: Seconds that one client may take; what is not done by then is cancelled, and said.
PATIENCE = 60.0
MESSAGES: list[Any] = [{"role": ("user", "assistant")[i % 2], "content": "hello world " * 10} for i in range(5)]


@dataclass(frozen=True, slots=True)
class Measured:
    client: str
    calls: int
    in_flight: int
    cpu_ms: float
    seconds: float
    ideal_seconds: float
    finished: bool


def _create(*clients: httpx2.AsyncClient, url: str) -> Call:
    sdks = cycle([openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0, http_client=c) for c in clients])

    async def call() -> None:
        sdk = next(sdks)
        await sdk.chat.completions.create(model="m", messages=[], max_tokens=100, extra_body={"messages": MESSAGES})

    return call


@asynccontextmanager
async def _httpx2(url: str, n: int) -> AsyncIterator[Call]:
    limits = httpx2.Limits(max_connections=n, max_keepalive_connections=n)
    async with openai.DefaultAsyncHttpxClient(limits=limits, timeout=PATIENCE) as http:
        yield _create(http, url=url)


@asynccontextmanager
async def _httpx2_sharded(url: str, n: int) -> AsyncIterator[Call]:
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
    clients = [openai.DefaultAsyncHttpxClient(limits=limits, timeout=PATIENCE) for _ in range(-(-n // 100))]
    yield _create(*clients, url=url)
    for client in clients:
        await client.aclose()


@asynccontextmanager
async def _sdk_aiohttp(url: str, n: int) -> AsyncIterator[Call]:
    async with openai.DefaultAioHttpClient(limits=httpx2.Limits(max_connections=n), timeout=PATIENCE) as http:
        yield _create(http, url=url)


@asynccontextmanager
async def _ours_create(url: str, n: int) -> AsyncIterator[Call]:
    async with open_http(n) as http:
        yield _create(http, url=url)


@asynccontextmanager
async def _ours(url: str, n: int) -> AsyncIterator[Call]:
    messages = tuple(Message(message["role"], message["content"]) for message in MESSAGES)
    request = ModelRequest(Lane("openai", "m"), messages, deadline=PATIENCE)
    async with open_http(n) as http:
        client = OpenAI(http, key="k", base_url=url)
        yield lambda: client.answer(request)


@asynccontextmanager
async def _bare(url: str, n: int) -> AsyncIterator[Call]:
    body = orjson.dumps({"model": "m", "messages": MESSAGES, "max_tokens": 100})
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=n)) as session:

        async def call() -> None:
            headers = {"authorization": "Bearer k"}
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
                orjson.loads(await answer.read())

        yield call


CLIENTS = {
    "httpx2, one client": _httpx2,
    "httpx2, 100 connections a client": _httpx2_sharded,
    "the SDK's aiohttp client": _sdk_aiohttp,
    "our transport, SDK's create": _ours_create,
    "our transport, our adapter": _ours,
    "bare aiohttp, no SDK": _bare,
}


async def measure(name: str, in_flight: int, calls: int, *, latency: float = 1.0) -> Measured:
    """One client on this loop: a first round opens the connections, then `calls` are timed."""
    async with ProviderProcess() as provider:
        await provider.default(text="word " * 50, delay=latency)
        async with CLIENTS[name](provider.openai_url, in_flight) as call:
            free = asyncio.Semaphore(in_flight)

            async def one() -> None:
                async with free:
                    await call()

            finished = True
            began, cpu = time.perf_counter(), time.process_time()
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*(one() for _ in range(in_flight)))
                    began, cpu = time.perf_counter(), time.process_time()
                    await asyncio.gather(*(one() for _ in range(calls)))
            except TimeoutError:
                finished = False
            used, took = time.process_time() - cpu, time.perf_counter() - began
    return Measured(name, calls, in_flight, used / calls * 1000, took, latency * calls / in_flight, finished)


def compare(in_flight: int = 500, calls: int | None = None) -> list[Measured]:
    """Every client in turn, each on a loop and against a provider of its own; at most a minute each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * in_flight + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * in_flight + 1000), hard))
    return [uvloop.run(measure(name, in_flight, calls or 4 * in_flight)) for name in CLIENTS]


def main() -> None:
    in_flight = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"{'':34}{'CPU a call':>12}{'wall':>9}{'ideal':>8}   ({in_flight} in flight)")
    for made in compare(in_flight, 2 * in_flight if in_flight > 1000 else None):
        ended = "" if made.finished else "   not done in time"
        print(
            f"{made.client:34}{made.cpu_ms:9.2f} ms{made.seconds:7.1f} s{made.ideal_seconds:6.1f} s{ended}", flush=True
        )


if __name__ == "__main__":
    main()
