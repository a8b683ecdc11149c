"""A worker's lease: what it compares with the store, and what it remembers for the store, heartbeat by heartbeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from celeriac.agents.registry import read_agents
from celeriac.drill.proxy import Proxy
from celeriac.jobs.model import NewJob, State
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import ModelRequest
from celeriac.llm.scripted import Scripted
from celeriac.settings import load_settings
from tests.conftest import Valkey
from tests.processes import until
from worker.lifecycle import MAY_BE_LOST, Lease, Offer


@pytest.fixture
async def lease(proxy: Proxy) -> AsyncIterator[Lease]:
    """Of a worker with a model that echoes, over the proxy."""
    settings = load_settings(redis_url=proxy.url, scripted=True)
    opened = Lease(settings, lambda: Offer(4, True, 0), {"celeriac": ""}, lambda _: None, pytest.fail)
    await opened.open()
    yield opened
    await opened.close()


async def submitted(lease: Lease) -> str:
    job = NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),))
    return (await lease.parts.stores.jobs.submit(job)).id


async def compares(lease: Lease) -> None:
    """A heartbeat of the kind that comes once per lease."""
    lease._listed = float("-inf")
    await lease.say()


class Past:
    """What the store holds now, to be brought back later."""

    def __init__(self, valkey: Valkey) -> None:
        self._redis = redis.Redis(port=valkey.port)
        self._then = {name: self._redis.dump(name) for name in self._redis.scan_iter()}

    def comes_back(self) -> None:
        self._redis.flushall()
        for name, text in self._then.items():
            if text is not None:
                self._redis.restore(name, 0, text)


def place(valkey: Valkey, id: str) -> str | None:
    found: str | None = valkey.client().hget(f"celeriac:job:{id}", "place")
    return found


async def test_a_job_is_handed_back_once_it_was_strange_twice_in_a_row(lease: Lease, valkey: Valkey) -> None:
    """The list may be older than what the worker has begun or ended since: one look proves nothing."""
    id = await submitted(lease)
    runner = lease.parts.runner
    assert await lease.parts.stores.jobs.claim(id, runner.worker, new_nonce()) is not None
    await compares(lease)
    assert place(valkey, id) == "running"
    runner._claiming.add(id)
    await compares(lease)
    runner._claiming.clear()
    await compares(lease)
    assert place(valkey, id) == "running", "the second time was not the next one"
    await compares(lease)
    assert place(valkey, id) in {"ready", "rung"}


async def test_a_job_that_cannot_be_handed_back_keeps_no_other(lease: Lease, valkey: Valkey) -> None:
    """Its record makes no sense: that is said, and the others go to other workers; the worker leaves in good order."""
    ids, runner = [await submitted(lease) for _ in range(4)], lease.parts.runner
    for id in ids:
        assert await lease.parts.stores.jobs.claim(id, runner.worker, new_nonce()) is not None
    valkey.client().set(f"celeriac:calls:{ids[1]}", "x")
    await compares(lease)
    await compares(lease)
    places = [place(valkey, id) for id in ids]
    assert places.count("running") == 1
    assert places[1] == "running"


async def test_a_claim_whose_answer_is_late_is_not_handed_back(lease: Lease, proxy: Proxy, valkey: Valkey) -> None:
    """The store says that the worker holds it, the worker does not have it yet: it will, and runs it once."""
    id = await submitted(lease)
    swallow = proxy.swallow(script="claim", cut=False)
    run = asyncio.create_task(lease.parts.runner.run(id))
    await asyncio.wait_for(swallow.done.wait(), 10)
    for _ in range(3):
        await compares(lease)
    assert place(valkey, id) == "running"
    proxy.cut()
    summary, job = await run, await lease.parts.stores.jobs.get(id, "default")
    assert summary is not None
    assert job is not None
    assert (summary.state, job.attempts) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("failed", [True, False], ids=["failed", "answered"])
async def test_what_may_be_lost_is_named_whatever_became_of_the_heartbeat_in_between(
    lease: Lease, proxy: Proxy, valkey: Valkey, capsys: pytest.CaptureFixture[str], failed: bool
) -> None:
    """Redis was away and came back with an older file: the alarm names the jobs whose ends it may have forgotten."""
    assert lease._heart is not None
    lease._heart.cancel()
    ids = [await submitted(lease) for _ in range(2)]
    lease.parts.runner.released.append((time.monotonic() - MAY_BE_LOST - 1, "safe"))
    await lease.say()
    past = Past(valkey)
    for id in ids:
        summary = await lease.parts.runner.run(id)
        assert summary is not None
        assert summary.state == State.SUCCEEDED
    if failed:
        proxy.refuse()
    await lease.say()
    past.comes_back()
    proxy.accept()
    assert ("heartbeat_lost" in capsys.readouterr().out) is failed
    await lease.say()
    [alarm] = [line for line in capsys.readouterr().out.splitlines() if "store_lost_history" in line]
    assert all(id in alarm for id in ids)
    assert "safe" not in alarm


async def test_a_run_that_hears_first_that_its_worker_was_given_up_does_not_keep_it_from_coming_back(
    lease: Lease, valkey: Valkey
) -> None:
    """Its end is fenced before the next heartbeat. The worker registers anew, though the run is cancelled."""
    assert lease._heart is not None
    lease._heart.cancel()
    id, runner, redis = await submitted(lease), lease.parts.runner, valkey.client()
    before = runner.worker

    def given_up(_: ModelRequest) -> str:
        redis.zrem("celeriac:workers", before)
        redis.hset(f"celeriac:job:{id}", "nonce", "of another run")
        return "Paris"

    runner._models = Scripted(given_up)
    assert await runner.run(id) is None
    await until(lambda: lease.registered and lease.worker != before)
    await lease.say()
    assert redis.zscore("celeriac:workers", lease.worker) is not None


async def test_a_worker_that_could_not_come_back_tries_again_at_the_next_heartbeat(
    lease: Lease, valkey: Valkey
) -> None:
    """Whatever broke its registration off."""
    lease._registered = False
    before = lease.worker
    await lease.say()
    assert lease.registered
    assert lease.worker != before
    assert valkey.client().zscore("celeriac:workers", lease.worker) is not None


async def test_a_store_that_lost_history_hears_of_all_runs_though_one_is_lost(lease: Lease, valkey: Valkey) -> None:
    """The run that finds out is the one that is not to go on: the others are adopted all the same."""
    assert lease._heart is not None
    lease._heart.cancel()
    runner, first, rest = lease.parts.runner, asyncio.Event(), asyncio.Event()
    ids = [await submitted(lease) for _ in range(3)]
    await lease.say()
    past = Past(valkey)
    await lease.say()
    waits = [lambda _, event=event: event.wait() for event in (first, rest, rest)]
    model = runner._models = Scripted(*waits)  # type: ignore[arg-type]
    runs = []
    for id in ids:
        runs.append(asyncio.create_task(runner.run(id)))
        await until(lambda: len(model.requests) == len(runs))
    past.comes_back()
    assert await lease.parts.stores.jobs.cancel(ids[0], "default") == State.CANCELLED
    first.set()
    assert await runs[0] is None
    await until(lambda: all(run.adopted for run in runner.runs()))
    rest.set()
    assert [summary and summary.state for summary in await asyncio.gather(*runs)] == [None] + [State.SUCCEEDED] * 2
    states = [job and job.state for job in [await lease.parts.stores.jobs.get(id, "default") for id in ids]]
    assert states == [State.CANCELLED, State.SUCCEEDED, State.SUCCEEDED]


@pytest.mark.parametrize("known", [True, False], ids=["queued", "not known"])
async def test_a_step_that_a_store_without_history_refuses_is_stored_once_it_was_reminded(
    lease: Lease, valkey: Valkey, tmp_path: Path, known: bool
) -> None:
    """As an end is. The run heard of it first, before any heartbeat: no step is made twice, and the job goes on."""
    assert lease._heart is not None
    lease._heart.cancel()
    agents = tmp_path / "agents.toml"
    agents.write_text('[agents.assistant]\ndescription = "Asks twice."\nlanes = ["openai/x"]\nfollow_ups = ["Sure?"]\n')
    runner, rest = lease.parts.runner, asyncio.Event()
    runner._registry = read_agents(agents)
    past = Past(valkey)
    id = await submitted(lease)
    if known:
        past = Past(valkey)
    await lease.say()
    model = runner._models = Scripted(lambda _: rest.wait(), "Yes")  # type: ignore[arg-type,return-value]
    run = asyncio.create_task(runner.run(id))
    await until(lambda: len(model.requests) == 1)
    past.comes_back()
    rest.set()
    summary = await run
    job = await lease.parts.stores.jobs.get(id, "default")
    assert summary is not None
    assert job is not None
    assert (summary.state, job.state, job.answer) == (State.SUCCEEDED, State.SUCCEEDED, "Yes")
    assert (len(model.requests), job.steps) == (2, 1)


async def test_a_job_that_cannot_be_adopted_keeps_no_other_from_it(lease: Lease, valkey: Valkey) -> None:
    """What is stored of it makes no sense: that is said, and nothing of it is written."""
    assert lease._heart is not None
    lease._heart.cancel()
    runner, rest, past = lease.parts.runner, asyncio.Event(), Past(valkey)
    await lease.say()
    ids = [await submitted(lease) for _ in range(3)]
    model = runner._models = Scripted(*[lambda _: rest.wait()] * 3)  # type: ignore[arg-type,list-item]
    runs = []
    for id in ids:
        runs.append(asyncio.create_task(runner.run(id)))
        await until(lambda: len(model.requests) == len(runs))
    past.comes_back()
    valkey.client().set(f"celeriac:journal:{ids[0]}", "no list")
    await lease.say()
    assert [run.adopted for run in runner.runs()] == [0, 1, 1]
    assert not valkey.client().exists(f"celeriac:job:{ids[0]}")
    rest.set()
    assert [summary and summary.state for summary in await asyncio.gather(*runs)] == [None] + [State.SUCCEEDED] * 2


async def test_a_lease_runs_from_when_it_was_asked_for(lease: Lease, proxy: Proxy) -> None:
    """The answer may have been long under way: by then the store's own count has gone on."""
    assert lease._heart is not None
    lease._heart.cancel()
    proxy.hush()
    asked = time.monotonic()
    saying = asyncio.create_task(lease.say())
    await asyncio.sleep(0.5)
    proxy.speak()
    await saying
    assert asked <= lease.heard < asked + 0.4


async def test_a_worker_takes_nothing_while_it_waits_for_the_store(lease: Lease, proxy: Proxy) -> None:
    """Also where it waits to hear what has become of its runs: what it took it could not claim."""
    proxy.hush()
    recheck = asyncio.create_task(lease._recheck())
    await until(lambda: lease.takes == "none")
    proxy.speak()
    await recheck
    await until(lambda: lease.takes == "all")


async def test_a_claim_that_was_cut_off_is_handed_back_before_the_worker_leaves(lease: Lease, valkey: Valkey) -> None:
    """The process was told to stop before its answer came: the job waits for no lease, and has not crashed."""
    id, runner = await submitted(lease), lease.parts.runner
    assert await lease.parts.stores.jobs.claim(id, runner.worker, new_nonce()) is not None
    await lease.close()
    assert place(valkey, id) in {"ready", "rung"}
    assert valkey.client().hget(f"celeriac:job:{id}", "crashes") in {None, "0"}
    assert valkey.client().zcard("celeriac:workers") == 0


async def test_a_worker_that_drains_tells_its_runs(lease: Lease) -> None:
    """They give their jobs back at the next step border."""
    draining = asyncio.Event()
    draining.set()
    await lease.drain(draining)
    assert lease.parts.runner.stopping
