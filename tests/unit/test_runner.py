"""One run of a job over a line to the store that breaks where the test asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from celeriac.agents import runner as module
from celeriac.agents.agent import Agent
from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.runner import Runner, Summary
from celeriac.costs.budgets import Cap
from celeriac.costs.prices import Price, Prices
from celeriac.drill.proxy import Proxy
from celeriac.errors import (
    BadCredentials,
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelTimeout,
    Overloaded,
    QuotaExhausted,
    RateLimited,
)
from celeriac.gate.lanes import Caps, asking, heard, spelt
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import AGENT_UNKNOWN, Claim, NewJob, State
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.client import Models
from celeriac.llm.model import Answer, Lane, ModelClient, ModelRequest, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import SHIPPED_AGENTS, load_settings
from celeriac.stores import Stores, open_fleet, open_stores
from tests.conftest import Valkey
from tests.processes import until


@pytest.fixture
async def runs(proxy: Proxy) -> AsyncIterator[Stores]:
    """The stores of the worker w1, over the proxy."""
    settings = load_settings(redis_url=proxy.url)
    stores = open_stores(settings)
    fleet, line = open_fleet(settings, stores, name="line")
    await fleet.register("w1", ["celeriac"], 2, (), {"celeriac": ""})
    yield stores
    await stores.close()
    await line.aclose()


def runner(
    runs: Stores, model: ModelClient, registry: Registry | None = None, prices: Prices | None = None, **facts: Any
) -> Runner:
    made = Runner(runs, registry or read_agents(SHIPPED_AGENTS), model, prices or Prices(), **facts)
    made.worker = "w1"
    made.lease.renewed()
    return made


async def submitted(stores: Stores, agent: str = "assistant", context: str | None = "trip") -> str:
    job = NewJob(new_id(), "default", agent, "celeriac", (("user", "hi"),), context_id=context, ignore_result=False)
    return (await stores.jobs.submit(job)).id


TURNS = "celeriac:turns:default:trip"


def spoils(valkey: Valkey) -> Callable[[ModelRequest], str]:
    """A model that answers, while what is stored of the conversation is spoilt: the end cannot be written."""

    def answer(_: ModelRequest) -> str:
        valkey.client().set(TURNS, "no list")
        return "Paris"

    return answer


async def test_a_job_is_handed_back_though_its_run_is_cancelled_again(
    runs: Stores, proxy: Proxy, valkey: Valkey
) -> None:
    """The worker was told to stop, and then to stop at once: the next one has the job without waiting for a lease."""
    model = Scripted(lambda _: asyncio.Event().wait())  # type: ignore[arg-type,return-value]  # it never answers
    id, redis = await submitted(runs), valkey.client()
    run = asyncio.create_task(runner(runs, model).run(id))
    await until(lambda: bool(model.requests))
    proxy.hush()
    for _ in range(2):
        run.cancel()
        await asyncio.sleep(0.1)
    assert run.cancelled()
    assert redis.hget(f"celeriac:job:{id}", "place") == "running", "it was not written before the second time"
    proxy.speak()
    await until(lambda: redis.hget(f"celeriac:job:{id}", "place") in {"ready", "rung"})
    job = await runs.jobs.get(id, "default")
    assert job is not None
    assert (job.state, job.attempts, job.crashes) == (State.QUEUED, 1, 0)


async def test_a_finish_whose_answers_are_lost_is_sent_until_one_arrives(runs: Stores, proxy: Proxy) -> None:
    """More often than the Redis client tries by itself. The job ends once, and its context has one turn."""
    id, model = await submitted(runs), Scripted("Paris")
    one = runner(runs, model)
    swallow = proxy.swallow(script="finish", times=6)
    summary = await one.run(id)
    assert (len(swallow.answers), swallow.left) == (6, 0)
    assert summary is not None
    assert (summary.state, summary.error, one.writes, one.maybe_lost) == (State.SUCCEEDED, None, 2, [id])
    job, context = await runs.jobs.get(id, "default"), await runs.contexts.get("default", "trip")
    assert job is not None
    assert context is not None
    assert (job.state, job.attempts, job.answer) == (State.SUCCEEDED, 1, "Paris")
    assert [message.text for message in context.messages] == ["hi", "Paris"]
    assert (len(model.requests), await one.run(id)) == (1, None)


async def test_an_end_that_cannot_be_written_counts_as_a_crash(runs: Stores, valkey: Valkey) -> None:
    """Nobody is told anything, and the job is tried again; not for ever, since each time it may buy the same answer."""
    redis, model = valkey.client(), Scripted(spoils(valkey), "Rome")
    id, one = await submitted(runs), runner(runs, model)
    assert await one.run(id) is None
    job = await runs.jobs.get(id, "default")
    assert job is not None
    assert (job.state, job.crashes, [call.stands for call in job.calls]) == (State.QUEUED, 1, ["settled"])
    assert redis.hget("celeriac:worker:w1", "running") == "0"
    redis.delete(TURNS)
    summary = await one.run(id)
    assert summary is not None
    assert summary.state == State.SUCCEEDED


async def test_a_run_that_breaks_off_and_then_loses_its_job_says_nothing(
    runs: Stores, proxy: Proxy, valkey: Valkey
) -> None:
    """The store is away for longer than a lease: somebody else has the job, and a failure would be a lie."""
    id, one = await submitted(runs), runner(runs, Scripted(spoils(valkey)))
    swallow = proxy.swallow(script="break_off", cut=False)
    run = asyncio.create_task(one.run(id))
    await asyncio.wait_for(swallow.done.wait(), 10)
    one.lost(id)
    assert await asyncio.wait_for(run, 2) is None


async def test_a_run_that_breaks_off_is_not_disturbed_by_a_request_to_stop(
    runs: Stores, proxy: Proxy, valkey: Valkey
) -> None:
    """It has let go, or is about to: whoever takes the job next obeys."""
    id, one = await submitted(runs), runner(runs, Scripted(spoils(valkey)))
    swallow = proxy.swallow(script="break_off")
    run = asyncio.create_task(one.run(id))
    await asyncio.wait_for(swallow.done.wait(), 10)
    one.stop(id)
    assert await asyncio.wait_for(run, 20) is None


async def test_a_run_that_is_stopped_and_then_loses_its_job_says_nothing(
    runs: Stores, proxy: Proxy, valkey: Valkey
) -> None:
    """Its last words are under way when its worker is given up: whoever has the job says how it ends."""
    model = Scripted(lambda _: asyncio.Event().wait())  # type: ignore[arg-type,return-value]  # it never answers
    id, one = await submitted(runs), runner(runs, model)
    run = asyncio.create_task(one.run(id))
    await until(lambda: bool(model.requests))
    proxy.hush()
    one.stop(id)
    await asyncio.sleep(0.1)
    one.lost(id)
    assert await asyncio.wait_for(run, 5) is None
    assert not run.cancelled()
    proxy.speak()


async def test_a_worker_that_stops_gives_a_job_back_between_two_steps(
    runs: Stores, valkey: Valkey, tmp_path: Path
) -> None:
    """The call under way is waited for and stored, the next is the next worker's: nothing is in doubt."""
    file = tmp_path / "agents.toml"
    file.write_text(
        """
        [agents.thorough]
        description = "Takes three steps."
        instructions = "Answer."
        lanes = ["openai/gpt-5-mini"]
        follow_ups = ["Are you sure?", "Quite?"]
        """
    )

    def said(_: ModelRequest) -> str:
        one.stopping = len(model.requests) == 2
        return "Paris"

    model = Scripted(said, cycle=True)
    one = Runner(runs, read_agents(file), model, Prices())
    one.worker = "w1"
    one.lease.renewed()
    id = await submitted(runs, agent="thorough")
    assert await one.run(id) is None
    job = await runs.jobs.get(id, "default")
    assert job is not None
    assert (job.state, job.crashes, len(model.requests)) == (State.QUEUED, 0, 2)
    assert [call.stands for call in job.calls] == ["settled"] * 2
    summary = await one.run(id)
    assert summary is not None
    assert (summary.state, len(model.requests)) == (State.SUCCEEDED, 3)


@pytest.mark.parametrize("taken", [False, True], ids=["the answer comes late", "somebody else has the job"])
async def test_a_cancel_whose_answer_is_late_says_nothing_else(
    runs: Stores, proxy: Proxy, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """However late: a run that was stopped ends as cancelled or says nothing, and is never a failure to Celery."""
    monkeypatch.setattr(module, "LAST_WORDS", 0.2)
    model = Scripted(lambda _: asyncio.Event().wait())  # type: ignore[arg-type,return-value]  # it never answers
    id, one = await submitted(runs), runner(runs, model)
    run = asyncio.create_task(one.run(id))
    await until(lambda: bool(model.requests))
    if taken:
        valkey.client().hset(f"celeriac:job:{id}", "nonce", "of another run")
    proxy.hush()
    one.stop(id)
    await asyncio.sleep(0.5)
    assert not run.done()
    proxy.speak()
    summary = await run
    assert (summary and summary.state) == (None if taken else State.CANCELLED)


async def shut(runs: Stores, lane: Lane, error: ModelError) -> None:
    """Somebody's call found it so."""
    claim = await runs.jobs.claim(await submitted(runs, context=None), "w1", new_nonce())
    assert isinstance(claim, Claim)
    await runs.journal.admit(claim, "c1", 0, {}, asking(lane, (0, 0), Caps(), 9.0))
    await runs.journal.settle(claim, Settlement("c1", "released", 0, 0, {}, heard(lane, error)))
    await runs.jobs.give_back(claim)


LANES = read_agents(SHIPPED_AGENTS)["assistant"].lanes


async def test_a_lane_that_opens_in_a_moment_is_waited_for_in_place(runs: Stores, valkey: Valkey) -> None:
    """Parking costs more than a second of a slot."""
    for lane in LANES:
        await shut(runs, lane, RateLimited(status=429, retry_after=1.0))
    opens = {lane: float(valkey.client().hget(f"celeriac:lane:{spelt(lane)}", "shut") or "inf") for lane in LANES}
    asked: list[float] = []

    def answer(_: ModelRequest) -> str:
        asked.append(time.time() * 1000)
        return "Paris"

    model = Scripted(answer)
    summary = await runner(runs, model).run(await submitted(runs))
    assert summary is not None
    assert (summary.state, len(asked)) == (State.SUCCEEDED, 1)
    assert asked[0] >= opens[model.requests[0].lane]


async def test_a_job_waits_for_the_lane_that_opens_first(runs: Stores, valkey: Valkey) -> None:
    """Nobody is asked, nothing is booked, and it is no try."""
    for lane, seconds in zip(LANES, (90.0, 30.0), strict=True):
        await shut(runs, lane, RateLimited(status=429, retry_after=seconds))
    model, id = Scripted("Paris"), await submitted(runs)
    summary = await runner(runs, model).run(id)
    assert summary is not None
    assert summary.error is not None
    assert (summary.state, summary.error.code, model.requests) == (State.PARKED, "lane_closed", [])
    record = valkey.client().hgetall(f"celeriac:job:{id}")
    assert (record["lane"], record["retries"], record.get("reserved", "0")) == (spelt(LANES[1]), "0", "0")


@pytest.mark.parametrize("error", [QuotaExhausted(status=429), BadCredentials(status=401)], ids=lambda e: e.code)
async def test_where_all_lanes_refuse_us_a_job_fails_at_once(runs: Stores, error: ModelError) -> None:
    """As the one that was asked did: waiting brings no money and no key."""
    for lane in LANES:
        await shut(runs, lane, error)
    model = Scripted("Paris")
    summary = await runner(runs, model).run(await submitted(runs))
    assert summary is not None
    assert summary.error is not None
    assert (summary.state, summary.error.code, model.requests) == (State.FAILED, error.code, [])


async def test_no_call_is_sent_without_a_lease(runs: Stores) -> None:
    """Who could not renew it for its whole length may have lost the job: it asks nobody until it knows."""
    model = Scripted("Paris")
    id, one = await submitted(runs), runner(runs, model)
    one.lease.length = timedelta(seconds=5)
    one.lease.renewed(time.monotonic() - 6)
    run = asyncio.create_task(one.run(id))
    await until(lambda: one.running == 1)
    await asyncio.sleep(0.3)
    assert model.requests == []
    one.lease.renewed()
    summary = await run
    assert summary is not None
    assert (summary.state, len(model.requests)) == (State.SUCCEEDED, 1)


async def test_an_older_run_of_the_same_job_is_cancelled_first(runs: Stores) -> None:
    """The store gave the job up and this very worker has it again: two runs of it in one process would both pay."""
    model = Scripted(*[lambda _: asyncio.Event().wait()] * 2)  # type: ignore[arg-type,return-value]  # it never answers
    id, one = await submitted(runs), runner(runs, model)
    older = asyncio.create_task(one.run(id))
    await until(lambda: len(model.requests) == 1)
    [run] = one.runs()
    await runs.jobs.give_back(run.claim)
    newer = asyncio.create_task(one.run(id))
    assert await older is None
    await until(lambda: len(model.requests) == 2)
    assert one.running == 1
    one.stop(id)
    summary = await newer
    assert summary is not None
    assert summary.state == State.CANCELLED


@pytest.mark.parametrize("how", ["answered", "stopped"])
async def test_a_run_that_writes_its_end_is_left_in_peace(runs: Stores, proxy: Proxy, how: str) -> None:
    """A stop comes too late, or again with the next heartbeat: it ends as what it was, and that is written once."""
    answered = asyncio.Event()

    async def answer(_: ModelRequest) -> str:
        await answered.wait()
        return "Paris"

    model = Scripted(answer)
    id, one = await submitted(runs), runner(runs, model)
    run = asyncio.create_task(one.run(id))
    await until(lambda: bool(model.requests))
    [running] = one.runs()
    proxy.hush()
    if how == "answered":
        answered.set()
    else:
        one.stop(id)
    await until(lambda: running.ends)
    one.stop(id)
    await asyncio.sleep(0.1)
    assert not run.done()
    proxy.speak()
    summary, job = await run, await runs.jobs.get(id, "default")
    assert summary is not None
    assert job is not None
    assert summary.state == job.state == (State.SUCCEEDED if how == "answered" else State.CANCELLED)
    assert (one.writes, one.maybe_lost) == (2, [id])


async def test_a_run_that_is_fenced_because_the_store_lost_history_is_adopted_and_finishes(
    runs: Stores, valkey: Valkey
) -> None:
    """The end that it writes is the first that it hears of it; its answer is paid, and is not thrown away."""
    answered = asyncio.Event()

    async def answer(_: ModelRequest) -> str:
        await answered.wait()
        return "Paris"

    model = Scripted(answer)
    id, one, raw = await submitted(runs), runner(runs, model), redis.Redis(port=valkey.port)
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), runs, name="heart")

    async def remind() -> None:
        for run in one.runs():
            assert await fleet.adopt(run.claim, one.worker) == "taken"
            run.adopted += 1

    one.recheck = remind
    then = {name: raw.dump(name) for name in raw.scan_iter()}
    run = asyncio.create_task(one.run(id))
    await until(lambda: bool(model.requests))
    raw.flushall()
    for name, text in then.items():
        raw.restore(name, 0, text)
    answered.set()
    summary, job = await run, await runs.jobs.get(id, "default")
    await line.aclose()
    assert summary is not None
    assert job is not None
    assert (summary.state, job.state, job.answer) == (State.SUCCEEDED, State.SUCCEEDED, "Paris")
    assert len(model.requests) == 1


@pytest.mark.parametrize("stands", ["settled", "doubt"])
async def test_a_call_that_fails_after_the_store_lost_its_job_is_booked(
    runs: Stores, valkey: Valkey, stands: str
) -> None:
    """As in doubt, or at the price of the refusal: once the store was reminded of the job, in all sums."""
    flushed = asyncio.Event()

    async def fail(request: ModelRequest) -> str:
        await flushed.wait()
        lane = {"provider": request.lane.provider, "model": request.lane.model}
        if stands == "doubt":
            raise ModelTimeout("x", in_doubt=True, **lane)  # type: ignore[arg-type]
        raise ContentRefused("x", usage=Usage(input=10, output=10), **lane)

    agent = Agent("assistant", "", "", (CHEAP,), tries_per_lane=1)
    model = Scripted(fail)
    id, one = await submitted(runs, context=None), runner(runs, model, Registry({"assistant": agent}))
    settings = load_settings(redis_url=valkey.url)
    fleet, line = open_fleet(settings, runs, name="heart")

    async def remind() -> None:
        await fleet.register("w1", ["celeriac"], 2, (), {"celeriac": ""})
        for run in one.runs():
            assert await fleet.adopt(run.claim, one.worker) == "restored"
            run.adopted += 1

    one.recheck = remind
    run = asyncio.create_task(one.run(id))
    await until(lambda: bool(model.requests))
    valkey.client().flushall()
    flushed.set()
    await run
    await line.aclose()
    job = await runs.jobs.get(id, "default")
    assert job is not None
    assert [call.stands for call in job.calls] == [stands]
    sums = {name: int(valkey.client().hget("celeriac:used:all", name) or 0) for name in ("cost", "in_doubt")}
    assert sums == {"cost": job.cost_nanos or 0, "in_doubt": job.in_doubt_nanos or 0}
    assert sum(sums.values()) > 0


async def test_a_job_that_fails_since_no_worker_knows_its_agent_is_told_to_celery_as_that(
    runs: Stores, valkey: Valkey
) -> None:
    """Before it is too late it is parked, which is no error; nothing is asked of a model."""
    model = Scripted("Paris")
    id, one = await submitted(runs, agent="unheard-of"), runner(runs, model)
    valkey.client().hset(f"celeriac:job:{id}", "unknown_since", 1)  # other workers have said so for long
    summary, job = await one.run(id), await runs.jobs.get(id, "default")
    assert summary is not None
    assert job is not None
    assert (summary.state, summary.error, summary.tell) == (State.FAILED, AGENT_UNKNOWN, 0)
    assert (job.state, job.error) == (State.FAILED, AGENT_UNKNOWN)
    parked = await one.run(await submitted(runs, agent="unheard-of"))
    assert parked is not None
    assert (parked.state, parked.error, model.requests) == (State.PARKED, None, [])


async def test_a_lane_that_nobody_was_asked_of_is_no_try(runs: Stores, valkey: Valkey) -> None:
    """Not where the fleet remembers that there is no money left, and not where this worker has no key."""
    await shut(runs, LANES[1], RateLimited(status=429, retry_after=3600.0))
    clients: tuple[ModelClient, ...] = (Models({"anthropic": Scripted()}), Scripted())
    for models in clients:
        if isinstance(models, Scripted):
            await shut(runs, LANES[0], QuotaExhausted(status=429))
        id = await submitted(runs)
        summary = await runner(runs, models).run(id)
        assert summary is not None
        assert (summary.state, valkey.client().hget(f"celeriac:job:{id}", "retries")) == (State.PARKED, "0")
        await runs.jobs.cancel(id, None)


DEAR = Lane("anthropic", "claude-opus-4-6")


@pytest.mark.parametrize(
    ("waited", "deadline", "retries", "asked"),
    [(0, None, 0, False), (0, 40, 0, True), (0, 600, 0, False), (50, None, 0, True), (0, None, 3, True)],
    ids=["patient", "no time to wait", "time to wait", "waited long", "last try"],
)
async def test_an_agent_with_patience_waits_for_its_cheap_lane(
    runs: Stores, valkey: Valkey, waited: int, deadline: int | None, retries: int, asked: bool
) -> None:
    """Within its patience and its deadline; the dearer lane is asked where it has waited long enough, or would fail."""
    cheap = LANES[0]
    await shut(runs, cheap, RateLimited(status=429, retry_after=30.0))
    agent = Agent("assistant", "", "", (cheap, DEAR), patience=timedelta(seconds=60), timeout=timedelta(seconds=20))
    model = Scripted("Paris")
    job = NewJob(
        new_id(),
        "default",
        "assistant",
        "celeriac",
        (("user", "hi"),),
        expires_in=None if deadline is None else timedelta(seconds=deadline),
    )
    await runs.jobs.submit(job)
    record = {"retries": retries} | ({"lane_since": int((time.time() - waited) * 1000)} if waited else {})
    valkey.client().hset(f"celeriac:job:{job.id}", mapping=record)
    summary = await runner(runs, model, Registry({"assistant": agent})).run(job.id)
    assert summary is not None
    assert [request.lane for request in model.requests] == ([DEAR] if asked else [])
    assert summary.state == (State.SUCCEEDED if asked else State.PARKED)


CHEAP = Lane("openai", "gpt-5-mini")


async def of_two_lanes(
    runs: Stores, lanes: tuple[Lane, Lane], *lines: Line, cost: str = "10", retries: int = 3
) -> tuple[Summary, list[Lane]]:
    """How a run of such an agent ends, and who was asked."""
    agent = Agent("assistant", "", "", lanes, max_cost=Decimal(cost), tries_per_lane=1, max_retries=retries)
    model, id = Scripted(*lines), await submitted(runs)
    summary = await runner(runs, model, Registry({"assistant": agent})).run(id)
    assert summary is not None
    return summary, [request.lane for request in model.requests]


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        (BadCredentials("x"), [2, 2, 1]),
        (QuotaExhausted("x"), [2, 2, 1]),
        (Overloaded("x", retry_after=9.0), [2, 2]),
    ],
    ids=["no key", "no money", "busy"],
)
async def test_what_is_too_long_for_the_lane_that_is_left_is_made_shorter(
    runs: Stores, first: ModelError, asked: list[int]
) -> None:
    """Where no other one will ever take it whole; else the job waits for that. In numbers of questions."""
    other = Lane("openai", "gpt-4o")
    agent = Agent("assistant", "", "", (CHEAP, other), tries_per_lane=1, too_long="trim")
    first.provider, first.model = CHEAP.provider, CHEAP.model
    too_long = ContextTooLong("x", provider=other.provider, model=other.model)
    model = Scripted(first, too_long, "Paris")
    context = (("user", "one"), ("assistant", "1"), ("user", "two"))
    job = NewJob(new_id(), "default", "assistant", "celeriac", context)
    await runs.jobs.submit(job)
    summary = await runner(runs, model, Registry({"assistant": agent})).run(job.id)
    assert summary is not None
    assert [sum(m.role == "user" for m in request.messages) for request in model.requests] == asked
    assert summary.state == (State.SUCCEEDED if len(asked) == 3 else State.PARKED)


BUSY = RateLimited("busy", provider=CHEAP.provider, model=CHEAP.model, retry_after=7.0)


async def test_a_lane_that_is_too_dear_for_the_job_does_not_end_it(runs: Stores) -> None:
    """Where a cheaper one may answer, at once or in seven seconds. Where none can it ends, and nobody was asked."""
    summary, asked = await of_two_lanes(runs, (DEAR, CHEAP), "Paris", cost="0.02")
    assert (summary.state, asked) == (State.SUCCEEDED, [CHEAP])
    summary, asked = await of_two_lanes(runs, (DEAR, CHEAP), "Paris", cost="0.001")
    assert (summary.state, summary.error and summary.error.code) == (State.FAILED, "cost_limit")
    assert asked == []
    summary, asked = await of_two_lanes(runs, (CHEAP, DEAR), BUSY, cost="0.02")
    assert (summary.state, summary.error and summary.error.code) == (State.PARKED, "rate_limited")
    assert asked == [CHEAP]


@pytest.mark.parametrize("cap", [20_000_000, 30_000_000], ids=["never", "spent"])
async def test_a_lane_that_is_too_dear_for_a_budget_does_not_hold_up_its_job(runs: Stores, cap: int) -> None:
    """It waits for the lane that opens in seven seconds, and not for the next month."""
    await runs.budgets.put("tenant:default", [Cap("month", cap)], "test")
    answer = Answer("x", Usage(input=10, output=1000), CHEAP, CHEAP.model)
    await of_two_lanes(runs, (CHEAP, DEAR), answer)
    summary, _ = await of_two_lanes(runs, (CHEAP, DEAR), BUSY)
    assert (summary.state, summary.error and summary.error.code) == (State.PARKED, "rate_limited")
    assert summary.resume_at is not None
    assert summary.resume_at < datetime.now(UTC) + timedelta(minutes=1)


@pytest.mark.parametrize("wait", [None, 7.0])
async def test_a_lane_without_room_lets_no_other_be_asked_without_end(runs: Stores, wait: float | None) -> None:
    """Each time that one is asked is a try: a lane whose money is held does not make the others free."""
    await runs.budgets.put("provider:anthropic", [Cap("day", 40_000_000)], "test")
    model, holds = Scripted(lambda _: asyncio.Event().wait()), await submitted(runs, context=None)  # type: ignore[arg-type,return-value]
    holding = asyncio.create_task(
        runner(runs, model, Registry({"assistant": Agent("assistant", "", "", (DEAR,))})).run(holds)
    )
    await until(lambda: bool(model.requests))
    failed = Overloaded("x", provider=CHEAP.provider, model=CHEAP.model, retry_after=wait)
    summary, asked = await of_two_lanes(runs, (DEAR, CHEAP), failed, retries=0)
    assert (summary.state, asked) == (State.FAILED, [CHEAP])
    summary, _ = await of_two_lanes(runs, (DEAR, CHEAP), failed, retries=1)
    assert summary.state == State.PARKED
    holding.cancel()
    await asyncio.wait([holding])


async def test_a_job_that_waits_for_a_lane_says_what_it_needs(runs: Stores, valkey: Valkey) -> None:
    """The tokens that its next call may use, and whether it has other lanes to look at meanwhile."""
    for lane in LANES:
        await shut(runs, lane, RateLimited(status=429, retry_after=90.0))
    for model, only in ((None, False), (str(LANES[0]), True)):
        job = NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),), model=model)
        await runs.jobs.submit(job)
        await runner(runs, Scripted()).run(job.id)
        record = valkey.client().hgetall(f"celeriac:job:{job.id}")
        assert int(record["lane_input"]) > 0
        assert record["lane_output"] == "1024"
        assert (int(record["parked_for"]) > 60_000) == only
        await runs.jobs.cancel(job.id, None)


async def test_a_chords_member_does_not_wait_longer_than_the_chord(runs: Stores, valkey: Valkey) -> None:
    """All that it waited for lanes counts."""
    for lane in LANES:
        await shut(runs, lane, RateLimited(status=429, retry_after=30.0))
    chord = Canvas("r", group="g", chord={"task": "shop.note"})
    for waited, state in ((0, State.PARKED), (3600, State.FAILED)):
        job = NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),), canvas=chord)
        await runs.jobs.submit(job)
        if waited:
            valkey.client().hset(f"celeriac:job:{job.id}", "lane_since", int((time.time() - waited) * 1000))
        made = runner(runs, Scripted(), chord_ttl=timedelta(minutes=30))
        summary = await made.run(job.id)
        assert summary is not None
        assert summary.state == state
        await runs.jobs.cancel(job.id, None)


async def test_a_model_that_nobody_can_price_is_not_asked_where_that_is_refused(runs: Stores) -> None:
    """Nothing is booked, and the job says why; another lane of its agent is asked."""
    strict, model = Prices(refuses_unknown=True), Scripted("Paris", "Paris")
    job = NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),), model="openai/no-such-model")
    id = (await runs.jobs.submit(job)).id
    summary = await runner(runs, model, prices=strict).run(id)
    assert summary is not None
    assert summary.error is not None
    assert (summary.state, summary.error.code, model.requests) == (State.FAILED, "price_unknown", [])
    found = await runs.jobs.get(id, "default")
    assert found is not None
    assert (found.calls, found.in_doubt_nanos) == ((), 0)
    agents = read_agents(SHIPPED_AGENTS)
    lanes = (Lane("openai", "no-such-model"), Lane("openai", "gpt-5-mini"))
    registry = Registry({agent.name: replace(agent, lanes=lanes) for agent in agents}, {}, {}, {})
    summary = await runner(runs, model, registry, prices=strict).run(await submitted(runs))
    assert summary is not None
    assert (summary.state, [str(request.lane) for request in model.requests]) == (
        State.SUCCEEDED,
        ["openai/gpt-5-mini"],
    )


async def test_an_estimate_is_alerted_and_kept_with_its_call(runs: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """A tier that nobody knows: which row was taken, and what the answer said."""
    lane = Lane("openai", "gpt-5.4")
    answer = Answer("Paris", Usage(10, output=1), lane, "gpt-5.4-2026-03-05", tier="scale", region="eu")
    id = await submitted(runs)
    await runner(runs, Scripted(answer)).run(id)
    job = await runs.jobs.get(id, "default")
    assert job is not None
    (call,) = job.calls
    assert {
        name: call.facts[name] for name in ("estimated", "tier", "price_tier", "region", "price_row", "price_date")
    } == {
        "estimated": True,
        "tier": "scale",
        "price_tier": "scale",
        "region": "eu",
        "price_row": "openai/gpt-5.4",
        "price_date": "",
    }
    assert call.facts["price_source"].startswith("genai-prices ")
    assert call.nanos == (10 * 5000 + 30_000) * 11 // 10
    [line] = [line for line in capsys.readouterr().out.splitlines() if "price_estimated" in line]
    assert "scale" in line


class Noting(Prices):
    """Remembers as of when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[datetime | None] = []

    def price(self, lane: Lane, model: str, usage: Usage, at: datetime | None = None, **terms: str) -> Price:
        self.at.append(at)
        return super().price(lane, model, usage, at, **terms)


async def test_a_call_is_priced_as_of_when_it_was_sent(runs: Stores) -> None:
    """Its answer may come after a price has changed; its bound was that of before."""
    sent: list[datetime] = []

    def answer(_: ModelRequest) -> str:
        sent.append(datetime.now(UTC))
        return "Paris"

    prices = Noting()
    await runner(runs, Scripted(answer), prices=prices).run(await submitted(runs))
    (at,) = prices.at
    assert at is not None
    assert at <= sent[0]
