"""Every script may arrive twice: the client sends it again when the answer was lost, and gets the second answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from celeriac.connections import Script
from celeriac.contexts.store import encode_turn
from celeriac.costs.books import Account, counts
from celeriac.costs.budgets import Cap
from celeriac.gate.lanes import Caps, asking, heard
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Asked, JobError, Parked, State
from celeriac.llm.model import Lane, Message
from tests.jobs.conftest import Queue

LANE = Lane("openai", "gpt-5-mini")
TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])
#: They count what was said or seen, not what was done.
COUNT = {"celeriac:turn", "celeriac:beats", "celeriac:round", "celeriac:upkeep", "celeriac:pace", "test:clock"}


class Resent:
    """A script whose first answer is always lost. Nothing may change at the second time."""

    def __init__(self, queue: Queue, script: Script, name: str, seen: dict[str, bool]) -> None:
        self._queue, self._script, self._name, self._seen = queue, script, name, seen

    async def __call__(self, *blobs: bytes, **arguments: Any) -> Any:
        await self._script(*blobs, **arguments)
        before = self._look()
        answer = await self._script(*blobs, **arguments)
        # Told at the end: upkeep goes on where a part of it fails.
        self._seen[self._name] = self._seen.get(self._name, True) and self._look() == before
        return answer

    def _look(self) -> dict[str, Any]:
        return {name: text for name, text in self._queue.everything().items() if name not in COUNT}


@pytest.fixture
def seen(queue: Queue) -> Iterator[dict[str, bool]]:
    """The scripts that were sent twice, and whether each changed nothing then. At the end: all that change anything."""
    names: dict[str, bool] = {}
    every: set[str] = set()
    stores = queue.stores
    parts = (stores.journal, stores.contexts, stores.doubts, stores.lanes, stores.budgets, stores.alerts)
    for part in (queue.jobs, queue.fleet, *parts):
        for name, script in list(vars(part).items()):
            # These only look.
            if isinstance(script, Script) and name not in {"_outlook_of", "_dry_run", "_use"}:
                every.add(name)
                setattr(part, name, Resent(queue, script, name, names))
    yield names
    assert names == dict.fromkeys(every, True)


async def test_every_script_may_arrive_twice(queue: Queue, seen: dict[str, bool]) -> None:
    """A day in the life of a store, in which every answer is lost once."""
    queue.later(1_800_000_000_000)
    await queue.worker()
    await queue.worker("w2", limits={"t:b": 2})
    jobs = [
        await queue.submit(stream=True, context_id="c" if i < 3 else None, idempotency_key=f"k{i}") for i in range(9)
    ]
    assert [job.waits_for for job in jobs[1:3]] == [jobs[0].id] * 2
    claims = {job.id: await queue.claim(job) for job in [jobs[0], *jobs[3:]]}
    run = claims[jobs[0].id]
    assert run.attempt == 1
    await queue.stores.journal.admit(run, "c1", 9, {})
    await queue.stores.journal.note(run, "c1", "resp_1")
    await queue.stores.journal.say(run, "c1", 1, 0, "one")
    await queue.stores.journal.commit(run, 0, {"text": "one"}, Settlement("c1", "settled", 9, 4, {}), told={"step": 1})
    await queue.stores.journal.admit(run, "c2", 9, {})
    ended = await queue.end(run, turn=TURN, settlement=Settlement("c2", "settled", 9, 5, {}))
    assert (ended.state, ended.cost_nanos, ended.appended) == (State.SUCCEEDED, 9, True)
    account = await queue.jobs.account(run.id, "default")
    assert account is not None
    assert (account.job.revision, len(account.job.calls)) == (4, 2)
    assert isinstance(await queue.jobs.park(claims[jobs[3].id], "retry", timedelta(seconds=5)), Parked)
    await queue.jobs.give_back(claims[jobs[4].id])
    assert await queue.jobs.cancel(claims[jobs[5].id].id, "default") == State.RUNNING
    assert await queue.jobs.park(claims[jobs[5].id], "retry", timedelta(seconds=5)) == State.CANCELLED
    assert await queue.jobs.cancel(jobs[1].id, "default") == State.CANCELLED
    bad = claims[jobs[6].id]
    assert (await queue.end(bad, state=State.FAILED, answer=None, error=JobError("timeout", "no"))).state == "failed"
    replayed = await queue.jobs.replay(bad.id, "default")
    assert replayed is not None
    assert replayed.fresh is False
    await queue.fleet.disown("w1", jobs[7].id)
    assert await queue.state(jobs[7]) == State.QUEUED
    assert await queue.jobs.break_off(claims[jobs[8].id]) == "ready"
    assert (await queue.job(jobs[8].id)).crashes == 1
    kept = await queue.claim(jobs[2])
    await queue.worker("w3")
    assert await queue.fleet.adopt(kept, "w3") == "kept"
    kept.worker = "w3"
    assert await queue.stores.contexts.delete("default", "c") is True
    assert await queue.finish(kept, turn=TURN) is False
    assert await queue.stores.contexts.delete("default", "c") is True
    assert await queue.stores.contexts.get("default", "c") is None
    again = await queue.claim(bad.id, "w2")
    assert await queue.stores.journal.admit(again, "c3", 9, {})
    waits = await queue.claim(await queue.submit(), "w3")
    await queue.jobs.wait_for_lane(waits, "openai/m", timedelta(0))
    await queue.given_up("w1", "w3")
    assert (await queue.stores.doubts.resolve(bad.id, "c3", 4, "test")).again
    assert (await queue.job(bad.id)).crashes == 1
    await queue.worker("w4")
    told = await queue.claim(await queue.submit(stream=True, ignore_result=False), "w4")
    await queue.finish(told)
    await queue.jobs.told(told.id, 0)
    buys = await queue.claim(await queue.submit(), "w4")
    books = partial(Account("default", "assistant").books, Lane("openai", "gpt-5.4-mini"))
    await queue.stores.journal.admit(buys, "c4", 9, {}, books=books)
    await queue.stores.journal.settle(buys, Settlement("c4", "settled", 9, 9, {}, counts=counts(None, 9)))
    await queue.stores.budgets.put("all", [Cap("day", 99), Cap("ever", 100)], "test")
    queue.redis.zadd("celeriac:broken", {"nonsense": 7})
    await queue.fleet.upkeep()
    assert queue.redis.get("celeriac:alarmed") == "7"
    await queue.stores.budgets.put("all", [Cap("day", 1)], "test")
    await queue.stores.budgets.delete("all", "test")
    assert [change.became for change in await queue.stores.budgets.changes()] == [
        None,
        (Cap("day", 1),),
        (Cap("day", 99), Cap("ever", 100)),
    ]
    taken = await queue.stores.alerts.take("log", timedelta(seconds=30))
    assert [alert.percent for alert in taken.alerts] == [None, None, 80, 100]
    assert await queue.stores.alerts.told(taken, taken.alerts[0])
    await queue.stores.alerts.failed(taken, timedelta(milliseconds=1))
    queue.later(2)
    again = await queue.stores.alerts.take("log", timedelta(seconds=30))
    assert (again.tries, len(again.alerts)) == (1, 3)
    await queue.stores.alerts.told(again, again.alerts[0])
    await queue.jobs.list(None)
    await queue.jobs.count(None)
    assert await queue.fleet.leave("w3") is True
    asks = await queue.claim(await queue.submit(stream=True), "w4")
    await queue.jobs.wait_for_approval(asks, [Asked("1.c", "sell", "{}")], timedelta(hours=1))
    assert await queue.jobs.resume(asks.id, None, approve=True, calls=["1.c"]) == 0
    dear = await queue.claim(await queue.submit(), "w4")
    for call, strict, was in ("c4", False, "raised"), ("c5", True, "closed"):
        await queue.stores.journal.admit(dear, call, 9, {}, asking(LANE, (0, 0), Caps(), 30.0))
        says = heard(LANE, over=2000, strict=strict)
        await queue.stores.journal.settle(dear, Settlement(call, "settled", 9, 18, {}, says))
        assert await queue.stores.lanes.open(LANE) == was
    assert await queue.stores.lanes.open(LANE) == ""
    [known] = await queue.stores.lanes.look([LANE])
    assert (known.over, known.wait) == (1, timedelta(0))
    [ends] = await queue.stores.lanes.ends([LANE], 2)
    assert ends.answered == 2
