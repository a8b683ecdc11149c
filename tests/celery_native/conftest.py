"""A whole house, a shop beside it that speaks nothing but Celery, and what the shop sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import pytest
import redis
from celery import Celery, Signature
from celery.result import AsyncResult

from celeriac.connections import unpack
from celeriac.jobs.dispatch import SUBMIT
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_stores
from tests.processes import Worker, wait_until
from tests.story.conftest import House
from tests.story.conftest import home as home  # over the `one_home` of this folder

T = TypeVar("T")

#: Seconds. Whatever happens, nobody waits longer.
PATIENCE = 60


class Town(House):
    """A house, and a shop that hands it jobs. client: the shop's Celery application: two URLs and no code of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Celery("shop", broker=self.valkey.url, backend=self.valkey.url, set_as_current=False)

    def shop(self) -> Worker:
        """A stock Celery worker with the shop's own tasks."""
        options = ("-P", "threads", "-c", "2", "-n", "shop@%h", "-l", "info")
        return self.worker(*options, app="tests.celery_native.shop", SHOP_URL=self.valkey.url)

    def dying_worker(self, moment: str, **env: str) -> Worker:
        """A worker of ours that is killed at a given moment of its first job: see `dying_app`."""
        return self.worker("-n", "dying@%h", app="tests.celery_native.dying_app", DIE_WHEN=moment, **env)

    def ask(self, text: str = "What is the capital of France?", **facts: Any) -> Signature[Any]:
        """A job as a signature."""
        request = {"agent": "assistant", "input": text} | facts
        return self.client.signature(SUBMIT, args=[request], queue=SUBMIT)

    def tell(self, about: str = "") -> Signature[Any]:
        """The shop's own task that writes down what it is told."""
        return self.client.signature("shop.note", kwargs={"about": about})

    def notes(self, about: str = "", at_least: int = 1) -> list[Any]:
        """What was written down, once there is so much."""
        key = f"shop:notes:{about}"
        client = self.valkey.client()
        wait_until(lambda: client.llen(key) >= at_least, f"{at_least} notes about {about!r}", PATIENCE)
        return [json.loads(text) for text in client.lrange(key, 0, -1)]

    def record(self, result: AsyncResult[Any]) -> dict[str, str]:
        return self.valkey.client().hgetall(f"celeriac:job:{result.id}")

    def stored(self, result: AsyncResult[Any], place: str = "") -> dict[str, str]:
        """The record of the job, once it is there (in this place)."""

        def found() -> dict[str, str] | None:
            record = self.record(result)
            return record if record and place in {"", record.get("place")} else None

        record: dict[str, str] = wait_until(found, f"job {result.id} to be {place or 'stored'}", PATIENCE)
        return record

    def answer(self, result: AsyncResult[Any]) -> str | None:
        """What only the store knows."""
        packed = redis.Redis(port=self.valkey.port).hget(f"celeriac:job:{result.id}", "answer")
        return unpack(packed) if packed else None

    def untold(self) -> list[str]:
        return self.valkey.client().zrange("celeriac:untold", 0, -1)

    def revoke(self, result: AsyncResult[Any] | str, **facts: Any) -> None:
        self.client.control.revoke(result if isinstance(result, str) else result.id, **facts)

    def cancel(self, result: AsyncResult[Any]) -> None:
        """As `POST /v1/jobs/{id}/cancel` does: it needs no worker."""
        asyncio.run(self._with_stores(lambda stores: stores.jobs.cancel(result.id, None)))

    def retry(self, result: AsyncResult[Any], tenant: str = "default") -> None:
        """As `POST /v1/jobs/{id}/retry` does."""

        assert asyncio.run(self._with_stores(lambda stores: stores.jobs.replay(result.id, tenant))) is not None

    async def _with_stores(self, ask: Callable[[Stores], Awaitable[T]]) -> T:
        stores = open_stores(load_settings(redis_url=self.valkey.url))
        try:
            return await ask(stores)
        finally:
            await stores.close()

    def state(self, result: AsyncResult[Any] | str) -> str:
        """What Celery's backend says now."""
        return self.client.AsyncResult(result if isinstance(result, str) else result.id).state

    def close(self) -> None:
        # Results that are thrown away later would unsubscribe from a server that is gone.
        self.client.backend.result_consumer.subscribed_to.clear()
        self.client.close()
        super().close()


def get(result: AsyncResult[Any]) -> Any:
    """The result as one sees it who has the id alone: what came before it in its canvas is not looked at."""
    return result.app.AsyncResult(result.id).get(timeout=PATIENCE)


class Home(Town):
    """Started once for all tests that break nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.the_worker = self.worker()
        self.the_shop = self.shop()


@pytest.fixture(scope="package")
def one_home() -> Iterator[Home]:
    with closing(Home()) as home:
        yield home


@pytest.fixture
def town() -> Iterator[Town]:
    """An empty town of one's own, to break."""
    with closing(Town()) as opened:
        yield opened
