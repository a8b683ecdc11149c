"""What a call costs with nothing around it: `AsyncOpenAI` over our transport, in a process of its own.

python -m bench.bare URL IN_FLIGHT CALLS      prints {"cpu_ms": ..., "seconds": ...}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import openai
import uvloop

from bench.question import INSTRUCTIONS, QUESTION
from celeriac.llm.transport import open_http


async def measure(url: str, in_flight: int, calls: int) -> dict[str, float]:
    """A first round opens the connections, then `calls` are measured."""
    async with open_http(in_flight) as http:
        sdk = openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0, timeout=120, http_client=http)
        free = asyncio.Semaphore(in_flight)

        async def call() -> None:
            async with free:
                await sdk.chat.completions.create(
                    model="gpt-5.4-mini",
                    messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": QUESTION}],
                    max_tokens=1024,
                )

        await asyncio.gather(*(call() for _ in range(in_flight)))
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(call() for _ in range(calls)))
        return {
            "cpu_ms": (time.process_time() - cpu) / calls * 1000,
            "seconds": time.perf_counter() - began,
        }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
