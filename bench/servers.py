"""Web servers: what taking a job costs the process that takes it."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from dataclasses import dataclass

import orjson

from bench.house import Cost, House, Web
from bench.load import load
from bench.question import AGENT, QUESTION

UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "{port}")
GRANIAN = ("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1")
KEY = "a-key-of-the-bench"
#: name -> how it is started, where it is asked, whether it is ours
SERVERS: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "celeriac": (("api_shim",), "/v1/jobs", True),
    "celeriac on granian": ((*GRANIAN, "--loop", "uvloop", "bench.shim_app:app"), "/v1/jobs", True),
    "plain, def": ((*UVICORN, "bench.plain_web:app"), "/threaded", False),
    "plain, async def": ((*UVICORN, "bench.plain_web:app"), "/blocking", False),
}


@dataclass(frozen=True, slots=True)
class Served:
    per_second: float
    cpu_ms: float


def serve(name: str, requests: int, connections: int = 32) -> Served | None:
    """Submit so many jobs that nobody runs. None: the server is not installed."""
    argv, path, ours = SERVERS[name]
    if importlib.util.find_spec(argv[0]) is None:
        return None
    with House(0) as house:
        if ours:
            env = {
                "CELERIAC_ENV": "prod",
                "CELERIAC_SHIM__API_KEYS__BENCH": KEY,
                "CELERIAC_REDIS_URL": house.valkey.url,
                "CELERIAC_SHIM__PORT": "{port}",
            }
            body = orjson.dumps({"agent": AGENT, "input": QUESTION})
        else:
            env = {"BENCH_REDIS": house.valkey.url}
            body = orjson.dumps({"input": QUESTION})
        with house.running(Web(*argv, env=env)) as web:
            warm = max(connections, requests // 5)
            asyncio.run(load(web.url, path, body, key=KEY, connections=connections, requests=warm))
            cost, began = Cost(web.pid), time.perf_counter()
            took = asyncio.run(load(web.url, path, body, key=KEY, connections=connections, requests=requests))
            seconds, used = time.perf_counter() - began, cost.cpu()
            return Served(len(took) / seconds, used / len(took) * 1000)
