"""What a worker does, done by hand for one job and over the real store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

from celeriac.contexts.store import encode_turn
from celeriac.jobs.dispatch import celery_app, templates
from celeriac.jobs.journal import Settlement
from celeriac.jobs.lease import Fleet
from celeriac.jobs.model import Asked, Claim, Ending, JobError, State
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Message
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey

USAGE = {"input_tokens": 3, "output_tokens": 1}


def finish(valkey: Valkey, job_id: str, answer: str = "Paris", context: bool = False, *, checked: bool = False) -> None:
    """One call, settled for 1,234 nano-dollars, and its answer. checked: against a schema."""

    async def end(stores: Stores, _: Fleet, claim: Claim) -> None:
        turn = encode_turn([Message("user", "hi"), Message("assistant", answer)]) if context else b""
        settlement = await call(stores, claim)
        ending = Ending(State.SUCCEEDED, answer, model="x-1", usage=USAGE, turn=turn, settlement=settlement)
        await stores.jobs.finish(claim, replace(ending, is_checked=checked))

    _run(valkey, job_id, end)


def fail(valkey: Valkey, job_id: str, *, steps: int = 0) -> None:
    """So many steps that are stored, then an error."""

    async def end(stores: Stores, _: Fleet, claim: Claim) -> None:
        for step in range(steps):
            await stores.journal.commit(claim, step, {"text": "so far"}, await call(stores, claim))
        error = JobError("overloaded", "the provider is overloaded")
        await stores.jobs.finish(claim, Ending(State.FAILED, error=error))

    _run(valkey, job_id, end)


def start(valkey: Valkey, job_id: str) -> None:
    """It runs, and nobody ends it."""

    async def nothing(stores: Stores, fleet: Fleet, claim: Claim) -> None: ...

    _run(valkey, job_id, nothing, stays=True)


def ask(valkey: Valkey, job_id: str, *calls: dict[str, str]) -> None:
    """Its agent wants these calls allowed."""

    async def wait(stores: Stores, _: Fleet, claim: Claim) -> None:
        await stores.jobs.wait_for_approval(claim, [Asked(**call) for call in calls], timedelta(hours=1))

    _run(valkey, job_id, wait)


def crash(valkey: Valkey, job_id: str, queue: str = "celeriac") -> None:
    """For the last time, alone: it ends as a dead letter."""

    async def die(stores: Stores, fleet: Fleet, claim: Claim) -> None:
        await stores.redis.hset(f"celeriac:job:{job_id}", "crashes", "4")
        await stores.redis.zadd("celeriac:workers", {claim.worker: 1})  # its lease has ended
        await fleet.upkeep()

    _run(valkey, job_id, die, queue=queue)


async def call(stores: Stores, claim: Claim) -> Settlement:
    facts = {"lane": "openai/x", "seconds": 0.1, "error": None, "request_id": "", "model": "x-1", "usage": USAGE}
    name = new_id()
    await stores.journal.admit(claim, name, 5_000, {"lane": "openai/x"})
    return Settlement(name, "settled", 5_000, 1_234, facts)


def _run(
    valkey: Valkey,
    job_id: str,
    do: Callable[[Stores, Fleet, Claim], Awaitable[None]],
    *,
    stays: bool = False,
    queue: str = "celeriac",
) -> None:
    async def run() -> None:
        settings = load_settings(redis_url=valkey.url)
        stores = open_stores(settings)
        fleet, line = open_fleet(settings, stores, name="test")
        name = new_nonce()
        await fleet.register(name, [queue], 100, (), dict(templates(celery_app(settings), [queue])))
        claim = await stores.jobs.claim(job_id, name, new_nonce())
        assert claim is not None
        await do(stores, fleet, claim)
        if not stays:
            await fleet.leave(name)
        await stores.close()
        await line.aclose()

    asyncio.run(run())
