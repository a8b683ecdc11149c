"""The job store with time under the test's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from hypothesis import settings as hypothesis_settings

from celeriac.jobs.dispatch import celery_app, templates
from celeriac.jobs.lease import Fleet
from celeriac.jobs.model import Accepted, Claim, Ended, Ending, NewJob, State
from celeriac.jobs.store import JobStore, new_id, new_nonce
from celeriac.settings import Settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey

#: For test_every_order.py, by hand.
hypothesis_settings.register_profile("long", max_examples=1000, stateful_step_count=100)

CLOCK = "local now = tonumber(redis.call('GET', 'test:clock'))\n"


class Queue:
    """A store, a clock and the broker's lists, as a test wants to speak of them."""

    def __init__(self, stores: Stores, fleet: Fleet, client: redis.Redis, bells: dict[str, str]) -> None:
        self.stores = stores
        self.jobs: JobStore = stores.jobs
        self.fleet = fleet
        self.redis = client
        self.bells = bells
        self.now = 1_000_000

    def later(self, ms: int) -> None:
        self.now += ms
        self.redis.set("test:clock", self.now)

    async def submit(self, **facts: Any) -> Accepted:
        job = {
            "id": new_id(),
            "tenant": "default",
            "agent": "assistant",
            "queue": "celeriac",
            "input": (("user", "hi"),),
        }
        return await self.jobs.submit(NewJob(**(job | facts)))

    async def worker(self, name: str = "w1", *, slots: int = 10, queues: tuple[str, ...] = ("celeriac",)) -> str:
        await self.fleet.register(name, queues, slots, "agents", {q: self.bells.get(q, "") for q in queues})
        return name

    def rung(self, queue: str = "celeriac") -> list[str]:
        """The jobs whose bells lie in the broker's list, oldest first."""
        import json

        return [json.loads(bell)["headers"]["id"] for bell in reversed(self.redis.lrange(queue, 0, -1))]

    async def claim(self, job: Accepted | str, worker: str = "w1") -> Claim:
        claim = await self.try_claim(job, worker)
        assert claim is not None
        return claim

    async def try_claim(self, job: Accepted | str, worker: str = "w1", nonce: str = "") -> Claim | None:
        return await self.jobs.claim(job if isinstance(job, str) else job.id, worker, nonce or new_nonce())

    async def end(self, claim: Claim, **facts: Any) -> Ended:
        return await self.jobs.finish(claim, Ending(**({"state": State.SUCCEEDED, "answer": "Paris"} | facts)))

    async def finish(self, claim: Claim, **facts: Any) -> bool | None:
        """Whether the context took the turn, None for no turn."""
        return (await self.end(claim, **facts)).appended

    async def state(self, job: Accepted | str, tenant: str = "default") -> State:
        found = await self.jobs.get(job if isinstance(job, str) else job.id, tenant)
        assert found is not None
        return found.state


@pytest.fixture(scope="session")
def bells() -> dict[str, str]:
    return dict(templates(celery_app(Settings()), ["celeriac", "celeriac.suspects", "slow", "slow.suspects"]))


@pytest.fixture
async def queue(valkey: Valkey, settings: Settings, bells: dict[str, str]) -> AsyncIterator[Queue]:
    stores = open_stores(settings, clock=CLOCK)
    fleet, line = open_fleet(settings, stores, name="test", clock=CLOCK)
    opened = Queue(stores, fleet, valkey.client(), bells)
    opened.later(0)
    yield opened
    await stores.close()
    await line.aclose()
