"""Every script may arrive twice: the client sends it again when the answer was lost, and gets the second answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from celeriac.connections import Script
from celeriac.contexts.store import encode_turn
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Asked, JobError, Parked, State
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])
#: They count what was said, not what was done.
COUNT = {"celeriac:turn", "celeriac:beats", "celeriac:round", "celeriac:upkeep", "test:clock"}


class Resent:
    """A script whose first answer is always lost. Nothing may change at the second time."""

    def __init__(self, queue: Queue, script: Script, name: str, seen: set[str]) -> None:
        self._queue, self._script, self._name, self._seen = queue, script, name, seen

    async def __call__(self, *blobs: bytes, **arguments: Any) -> Any:
        await self._script(*blobs, **arguments)
        before = self._look()
        answer = await self._script(*blobs, **arguments)
        assert self._look() == before, self._name
        self._seen.add(self._name)
        return answer

    def _look(self) -> dict[str, Any]:
        return {name: text for name, text in self._queue.everything().items() if name not in COUNT}


@pytest.fixture
def seen(queue: Queue) -> Iterator[set[str]]:
    """The scripts that were sent twice. At the end: all that change anything."""
    names: set[str] = set()
    every: set[str] = set()
    for part in (queue.jobs, queue.fleet, queue.stores.journal, queue.stores.contexts, queue.stores.doubts):
        for name, script in list(vars(part).items()):
            # Those only look.
            if isinstance(script, Script) and name not in {"_outlook_of", "_dry_run"}:
                every.add(name)
                setattr(part, name, Resent(queue, script, name, names))
    yield names
    assert names == every


async def test_every_script_may_arrive_twice(queue: Queue, seen: set[str]) -> None:
    """A day in the life of a store, in which every answer is lost once."""
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
    await queue.given_up("w1", "w3")
    assert (await queue.stores.doubts.resolve(bad.id, "c3", 4, "test")).again
    assert (await queue.job(bad.id)).crashes == 1
    await queue.worker("w4")
    told = await queue.claim(await queue.submit(stream=True, ignore_result=False), "w4")
    await queue.finish(told)
    await queue.jobs.told(told.id, 0)
    await queue.jobs.list(None)
    await queue.jobs.count(None)
    assert await queue.fleet.leave("w3") is True
    asks = await queue.claim(await queue.submit(stream=True), "w4")
    await queue.jobs.wait_for_approval(asks, [Asked("1.c", "sell", "{}")], timedelta(hours=1))
    assert await queue.jobs.resume(asks.id, None, approve=True, calls=["1.c"]) == 0
