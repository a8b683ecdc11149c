"""Conversations with a model, so many at once, and the CPU that this process spends on a call of theirs.

It runs in LiteLLM's environment too: of all packages it knows uvloop alone.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

MODEL = "gpt-5.4-mini"
MAX_TOKENS = 1024
#: What is printed when the first round is over.
WARM = "warm"
Ask = Callable[[list[dict[str, str]]], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Talk:
    """questions: one after the other, each with all that was said before."""

    instructions: str
    questions: tuple[str, ...]


def command(module: str, url: str, in_flight: int, conversations: int, talk: Talk) -> list[str]:
    """How a Python is told to run `module`, whose main is `main`."""
    return ["-m", module, url, str(in_flight), str(conversations), json.dumps(asdict(talk))]


def main(run: Callable[[str, int, int, Talk], Coroutine[Any, Any, dict[str, Any]]]) -> None:
    """Print what it answers, as JSON."""
    url, in_flight, conversations, talk = sys.argv[1:]
    given = json.loads(talk)
    made = uvloop.run(
        run(url, int(in_flight), int(conversations), Talk(given["instructions"], tuple(given["questions"])))
    )
    print(json.dumps(made))


async def measure(ask: Ask, talk: Talk, in_flight: int, conversations: int) -> dict[str, Any]:
    """A first round of one call each opens the connections, then the calls of `conversations` are measured.

    cpu_ms: user and system time of this process, a call.
    """
    free = asyncio.Semaphore(in_flight)

    async def converse(questions: tuple[str, ...]) -> None:
        async with free:
            messages = [{"role": "system", "content": talk.instructions}]
            for question in questions:
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": await ask(messages)})

    await asyncio.gather(*(converse(talk.questions[:1]) for _ in range(in_flight)))
    print(WARM, flush=True)  # whoever watches begins now
    began, used = time.perf_counter(), spent()
    await asyncio.gather(*(converse(talk.questions) for _ in range(conversations)))
    calls = conversations * len(talk.questions)
    return {"cpu_ms": (spent() - used) / calls * 1000, "seconds": time.perf_counter() - began}


def spent() -> float:
    """Seconds of CPU of this process so far, its own and the kernel's for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
