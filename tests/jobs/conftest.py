"""The job store with time under the test's hand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis
from hypothesis import settings as hypothesis_settings

from celeriac.jobs.dispatch import celery_app, templates
from celeriac.jobs.lease import Beat, Fleet
from celeriac.jobs.model import Accepted, Claim, Ended, Ending, Job, NewJob, State
from celeriac.jobs.store import JobStore, new_id, new_nonce
from celeriac.settings import Settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey
from tests.jobs.explained import Look

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
        self.raw = redis.Redis(port=client.get_connection_kwargs()["port"])
        self.bells = bells
        self.slots: dict[str, int] = {}
        self.now = 1_000_000
        #: A test that plants what the scripts never write says so: at its end not everything can be explained.
        self.planted = False

    def later(self, ms: int) -> None:
        self.now += ms
        # Time goes by in a full store too.
        self.redis.eval("#!lua flags=allow-oom\nredis.call('SET', 'test:clock', ARGV[1])", 0, self.now)

    async def pass_time(self, seconds: int, *alive: str) -> None:
        """In steps that upkeep takes for no outage. These workers live on, all others are silent."""
        while seconds > 0:
            self.later(min(5, seconds) * 1000)
            seconds -= 5
            for worker in alive:
                await self.fleet.heartbeat(worker, self.slots[worker], taking=True)
            await self.fleet.upkeep()

    async def given_up(self, *alive: str) -> None:
        """All but these workers fall silent until upkeep has given them up."""
        await self.pass_time(20, *alive)

    async def submit(self, **facts: Any) -> Accepted:
        job = {
            "id": new_id(),
            "tenant": "default",
            "agent": "assistant",
            "queue": "celeriac",
            "input": (("user", "hi"),),
        }
        return await self.jobs.submit(NewJob(**(job | facts)))

    async def worker(
        self,
        name: str = "w1",
        *,
        slots: int = 10,
        queues: tuple[str, ...] = ("celeriac",),
        limits: dict[str, int] | None = None,
        agents: tuple[str, ...] = (),
    ) -> str:
        bells = {name: self.bells.get(name, "") for queue in queues for name in (queue, f"{queue}.suspects")}
        await self.fleet.register(name, queues, slots, agents, bells, limits)
        self.slots[name] = slots
        return name

    async def beat(self, worker: str = "w1", *, taking: bool = True, list_held: bool = False) -> Beat:
        return await self.fleet.heartbeat(worker, self.slots[worker], taking=taking, list_held=list_held)

    async def while_it_holds(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What is answered within the life of the lock of upkeep, which Redis keeps by its own clock: asked anew where
        the machine was too busy for that.
        """
        for _ in range(10):
            self.redis.delete("celeriac:upkeep")
            began = time.monotonic()
            said = await ask()
            if time.monotonic() - began < 0.85:
                return said
        raise TimeoutError("the machine is too busy")

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

    async def job(self, job: Accepted | str, tenant: str = "default") -> Job:
        found = await self.jobs.get(job if isinstance(job, str) else job.id, tenant)
        assert found is not None
        return found

    async def state(self, job: Accepted | str, tenant: str = "default") -> State:
        return (await self.job(job, tenant)).state

    def record(self, job: Accepted | Claim | str) -> dict[str, str]:
        return self.redis.hgetall(f"celeriac:job:{job if isinstance(job, str) else job.id}")

    async def miscounted(self, look: Look) -> list[str]:
        """Where the census differs from the records."""
        queues = {job["queue"] for job in look.jobs.values()}
        return look.miscounted(await self.stores.census.count(queues), self.now)

    def everything(self) -> dict[str, bytes]:
        """The store as it stands, to compare or to go back to."""
        soon_gone = {"celeriac:recount", "celeriac:upkeep", "celeriac:quiet", "celeriac:room"}
        names = [name for name in self.redis.scan_iter(count=1000) if name not in soon_gone]
        return {name: text for name in names if (text := self.raw.dump(name))}

    def rewind(self, then: dict[str, bytes]) -> None:
        """The store loses history: an older file is loaded. No job that has ended may be in it: it would not age."""
        self.redis.flushall()
        for name, text in then.items():
            self.raw.restore(name, 0, text)
        self.later(0)


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
    if not opened.planted:
        look = Look(opened.redis)
        assert list(look.faults()) == []
        assert await opened.miscounted(look) == []
    await stores.close()
    await line.aclose()
