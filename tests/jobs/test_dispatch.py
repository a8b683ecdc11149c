"""Dispatch rings as many bells as there are free slots, in fair order, and rings again what was lost."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from celeriac.jobs.canvas import Canvas
from celeriac.jobs.dispatch import RUN_JOB, Produced, celery_app
from celeriac.jobs.model import State
from celeriac.settings import Settings
from tests.jobs.conftest import Queue

MARGIN = 2


async def test_without_a_free_slot_no_bell_is_rung(queue: Queue) -> None:
    """The broker stays small: a bell nobody can answer is not rung."""
    await queue.submit()
    assert queue.rung() == []


async def test_bells_are_rung_for_free_slots_and_a_small_margin(queue: Queue) -> None:
    """However many jobs wait, and whoever rings."""
    jobs = [await queue.submit() for _ in range(20)]
    await queue.worker(slots=3)
    for _ in range(5):
        await queue.submit()
    await queue.fleet.upkeep()
    assert queue.rung() == [job.id for job in jobs[: 3 + MARGIN]]


async def test_a_finished_job_rings_for_the_next(queue: Queue) -> None:
    """A slot that falls free finds its next bell without a round trip of its own."""
    jobs = [await queue.submit() for _ in range(6)]
    await queue.worker(slots=1)
    claim = await queue.claim(jobs[0])
    before = len(queue.rung())
    await queue.finish(claim)
    assert queue.rung()[before:] == [jobs[3].id]


async def test_a_draining_worker_offers_nothing_and_takes_nothing_from_the_others(queue: Queue) -> None:
    """A deploy with long jobs must not stop the fleet."""
    await queue.worker("old", slots=5)
    for _ in range(5):
        await queue.claim(await queue.submit(), "old")
    await queue.fleet.heartbeat("old", 5, taking=False)
    await queue.worker("new", slots=2)
    jobs = [await queue.submit() for _ in range(10)]
    assert queue.rung()[5:] == [job.id for job in jobs[: 2 + MARGIN]]


async def test_a_silent_worker_offers_no_slots(queue: Queue) -> None:
    """Bells for a dead worker would wait in the broker for nobody."""
    await queue.worker()
    queue.later(15_001)
    await queue.fleet.upkeep()
    await queue.submit()
    assert queue.rung() == []
    assert await queue.jobs.workers_alive() == []


async def test_slots_that_change_are_counted(queue: Queue) -> None:
    """`pool_grow` and `pool_shrink` reach dispatch with the next heartbeat."""
    await queue.worker(slots=1)
    for _ in range(20):
        await queue.submit()
    assert len(queue.rung()) == 1 + MARGIN
    await queue.fleet.heartbeat("w1", 4, taking=True)
    await queue.fleet.upkeep()
    assert len(queue.rung()) == 4 + MARGIN


async def test_drifted_totals_are_counted_anew(queue: Queue) -> None:
    """The totals are a hint for speed: once per lease they are put right."""
    await queue.worker(slots=3)
    await queue.fleet.upkeep()
    queue.redis.hset("celeriac:free", "celeriac", 0)
    await queue.submit()
    assert queue.rung() == []
    queue.redis.delete("celeriac:recount")
    await queue.fleet.upkeep()
    assert len(queue.rung()) == 1
    assert queue.redis.hget("celeriac:free", "celeriac") == "3"


async def test_the_second_queue_of_a_group_does_not_starve(queue: Queue) -> None:
    """A finish dispatches over all queues of the worker's group, and its slots count once."""
    await queue.worker(slots=2, queues=("celeriac", "slow"))
    fast = [await queue.submit() for _ in range(10)]
    slow = [await queue.submit(queue="slow") for _ in range(2)]
    assert len(queue.rung()) + len(queue.rung("slow")) == 2 + MARGIN
    claims = [await queue.claim(job) for job in fast[:4]]
    for claim in claims:
        await queue.finish(claim)
    assert queue.rung("slow") == [job.id for job in slow]


async def test_a_tenant_with_one_job_does_not_wait_behind_a_flood(queue: Queue) -> None:
    """Dispatch goes round the tenants: with 1,000 jobs of A before it, B's job starts within two dispatches."""
    for _ in range(1000):
        await queue.submit(tenant="a")
    job = await queue.submit(tenant="b")
    await queue.worker(slots=1)
    assert job.id in queue.rung()[:2]


async def test_a_tenant_that_submits_again_keeps_its_turn(queue: Queue) -> None:
    """Who asks for more is not put back for it."""
    first = await queue.submit(tenant="a")
    await queue.submit(tenant="b")
    await queue.submit(tenant="a")
    await queue.worker(slots=1)
    assert queue.rung()[0] == first.id


async def test_high_goes_before_low_and_low_is_not_starved(queue: Queue) -> None:
    """One dispatch in ten begins from below."""
    low = [await queue.submit(priority="low") for _ in range(10)]
    high = [await queue.submit(priority="high") for _ in range(100)]
    await queue.worker(slots=60)
    rung = queue.rung()
    assert rung[0] == high[0].id
    assert 2 <= len({job.id for job in low} & set(rung)) <= 10
    assert sum(job.id in rung for job in high) >= 50


async def test_a_lost_bell_is_rung_again_at_growing_intervals(queue: Queue) -> None:
    """3 s, 6 s, 12 s ... up to a minute, and only while the broker's list lost it."""
    await queue.worker()
    await queue.submit()
    queue.redis.delete("celeriac")
    rings = []
    for second in range(1, 150):
        queue.later(1000)
        await queue.fleet.heartbeat("w1", 10, taking=True)
        await queue.fleet.upkeep()
        if queue.redis.delete("celeriac"):
            rings.append(second)
    assert rings == [3, 9, 21, 45, 93]


async def test_no_two_bells_have_the_same_delivery_tag(queue: Queue) -> None:
    """Celery's consumer would take the second for the first."""
    await queue.worker()
    await queue.submit()
    first = json.loads(queue.redis.rpop("celeriac"))
    await queue.pass_time(5, "w1")
    second = json.loads(queue.redis.rpop("celeriac"))
    assert first["headers"]["id"] == second["headers"]["id"]
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]


async def test_a_lost_bell_is_not_rung_again_while_no_slot_is_free(queue: Queue) -> None:
    """It would wait in the broker for nobody; as soon as a slot is free, it is rung."""
    await queue.worker(slots=1)
    jobs = [await queue.submit() for _ in range(2)]
    claim = await queue.claim(jobs[0])
    queue.redis.delete("celeriac")
    await queue.pass_time(30, "w1")
    assert queue.rung() == []
    await queue.finish(claim)
    await queue.pass_time(5, "w1")
    assert queue.rung() == [jobs[1].id]


async def test_a_pool_that_shrank_below_its_jobs_takes_no_room_from_the_others(queue: Queue) -> None:
    """It offers nothing, and not less than nothing."""
    await queue.worker("small", slots=5)
    for _ in range(5):
        await queue.claim(await queue.submit(), "small")
    await queue.fleet.heartbeat("small", 1, taking=True)
    await queue.worker("w2", slots=3)
    before = len(queue.rung())
    for _ in range(10):
        await queue.submit()
    assert len(queue.rung()) - before == 3 + MARGIN


async def test_a_lost_bell_is_rung_again_for_any_group_that_has_slots(queue: Queue) -> None:
    """Another group that serves the same queue may be full, or only drain."""
    queue.redis.set("celeriac:recount", "1", px=10_000)  # else the order of the groups is anyone's guess
    await queue.worker("full", slots=1)
    await queue.claim(await queue.submit(), "full")
    await queue.worker("w2", slots=1, queues=("celeriac", "slow"))
    job = await queue.submit()
    queue.redis.delete("celeriac")
    await queue.pass_time(5, "full", "w2")
    assert queue.rung() == [job.id]


async def test_a_slow_group_gets_no_second_bell(queue: Queue) -> None:
    """Bells that still lie in the broker's list were not lost."""
    await queue.worker()
    await queue.submit()
    for _ in range(60):
        queue.later(1000)
        await queue.fleet.heartbeat("w1", 10, taking=True)
        await queue.fleet.upkeep()
    assert len(queue.rung()) == 1


@pytest.mark.parametrize("template", [True, False])
async def test_a_bell_that_a_busy_worker_took_and_has_not_answered_is_not_rung_again(
    queue: Queue, template: bool
) -> None:
    """A loop with too much to do would get more to do. It says how many it has; one bell more than that was lost."""
    queue.bells = queue.bells if template else {}
    await queue.worker("w1", queues=("celeriac", "slow"))
    jobs = [await queue.submit() for _ in range(3)]
    await queue.submit(queue="slow")

    async def rings(unclaimed: int) -> list[str]:
        queue.redis.delete("celeriac", "slow")  # all were taken
        before = [queue.record(job)["rings"] for job in jobs]
        for _ in range(60):
            queue.later(1000)
            await queue.fleet.heartbeat("w1", 10, taking=True, unclaimed=unclaimed)
            await queue.fleet.upkeep()
            if [queue.record(job)["rings"] for job in jobs] != before:
                return [job.id for job in jobs if queue.record(job)["rings"] == "2"]
        return []

    assert await rings(4) == []
    # Nobody knows which one it was. Where the broker's list can be counted, they are rung one after the other.
    assert len(await rings(3)) == (1 if template else 3)


async def test_what_a_silent_worker_took_is_rung_again(queue: Queue) -> None:
    """It may have died with its bells: three seconds without a heartbeat are enough, long before its lease ends."""
    await queue.worker("w1", slots=1)
    await queue.worker("w2", slots=1)
    job = await queue.submit()
    queue.redis.delete("celeriac")
    await queue.fleet.heartbeat("w1", 1, taking=True, unclaimed=1)
    for _ in range(2):
        queue.later(1400)
        await queue.fleet.heartbeat("w2", 1, taking=True)
        await queue.fleet.upkeep()
    assert queue.rung() == []
    queue.later(1400)
    await queue.fleet.upkeep()
    assert queue.rung() == [job.id]


async def test_with_a_broker_of_its_own_the_caller_gets_the_bells(queue: Queue) -> None:
    """Without a template nothing is pushed into the store's Redis."""
    queue.bells = {}
    rung = []

    class Collected:
        async def ring(self, bells: list[list[bytes]]) -> None:
            rung.extend(bells)

    queue.jobs._ringer = queue.fleet._ringer = Collected()  # type: ignore[assignment]
    await queue.worker()
    job = await queue.submit()
    assert rung == [[b"celeriac", job.id.encode(), b"0", b"true"]]
    assert queue.redis.llen("celeriac") == 0
    queue.later(3000)
    await queue.fleet.heartbeat("w1", 10, taking=True)
    await queue.fleet.upkeep()
    assert len(rung) == 2


async def test_a_worker_leaves_in_good_order_when_it_holds_nothing(queue: Queue) -> None:
    """Its slots go with it; one that still holds a job stays until its lease ends."""
    await queue.worker()
    claim = await queue.claim(await queue.submit())
    assert await queue.fleet.leave("w1") is False
    await queue.finish(claim)
    assert await queue.fleet.leave("w1") is True
    assert queue.redis.keys("celeriac:worker*") == []
    assert queue.redis.hget("celeriac:free", "celeriac") == "0"
    await queue.submit()
    assert len(queue.rung()) == 1  # the first job's, that nobody popped


async def test_one_worker_does_the_upkeep_and_the_next_takes_over(queue: Queue) -> None:
    """A lock saves work: who heartbeats first in a second does it for all."""
    await queue.worker("w1")
    await queue.worker("w2")

    async def keepers() -> list[str | None]:
        found = []
        for name in ("w1", "w2"):
            await queue.fleet.heartbeat(name, 10, taking=True)
            found.append(queue.redis.get("celeriac:upkeep"))
        return found

    assert await queue.while_it_holds(keepers) == ["w1", "w1"]


#: What may hang on a job, with all that could break out of a JSON text inside a JSON text.
NASTY = {
    "task": "shop.note",
    "args": ['a "quote"', "a \\ backslash", "@JOB@ @EMBED@ %1", "\n\u2028 \U0001f600"],
    "kwargs": {},
}
CANVAS = Canvas(
    root_id="the-root",
    parent_id="the-parent",
    group="the-group",
    group_index=3,
    callbacks=[NASTY, {"task": "shop.other"}],
    errbacks=[NASTY],
    chain=[{"task": "shop.last", "options": {"task_id": "x"}}, NASTY],
    chord=NASTY,
)


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({}, {"ignore_result": True}),
        ({"canvas": CANVAS, "ignore_result": False}, {"ignore_result": False, **CANVAS.options()}),
        ({"canvas": Canvas("r"), "ignore_result": True}, {"ignore_result": True, "root_id": "r"}),
    ],
    ids=["http", "canvas", "celery"],
)
async def test_the_bell_is_celerys_own_message(
    queue: Queue, settings: Settings, facts: dict[str, Any], options: dict[str, Any]
) -> None:
    """Field by field what `send_task` would have sent, but for the tag and a body in plain text."""
    await queue.worker()
    job = await queue.submit(**facts)
    rung = json.loads(queue.redis.rpop("celeriac"))
    app = celery_app(settings)
    app.send_task(RUN_JOB, args=[job.id], task_id=job.id, queue="celeriac", retries=0, **options)
    sent = json.loads(queue.redis.rpop("celeriac"))
    body = base64.b64decode(sent.pop("body")).decode()
    assert sent["properties"].pop("body_encoding") == "base64"
    assert json.loads(rung.pop("body")) == json.loads(body)
    for message in (rung, sent):
        message["properties"].pop("delivery_tag")
        message["properties"].pop("reply_to")
        message["headers"].pop("origin")
        message["properties"]["delivery_info"].pop("exchange")
    assert rung == sent


async def test_the_producer_publishes_the_same_bell_as_the_script(queue: Queue, settings: Settings) -> None:
    """With a broker of its own the caller publishes: callbacks, chain, group and chord are on that bell too."""
    await queue.worker()
    await queue.submit(canvas=CANVAS, ignore_result=False)
    pushed = json.loads(queue.redis.rpop("celeriac"))
    queue.bells = {}
    rung: list[list[bytes]] = []

    class Collected:
        async def ring(self, bells: list[list[bytes]]) -> None:
            rung.extend(bells)

    queue.jobs._ringer = Collected()  # type: ignore[assignment]
    queue.redis.delete("celeriac:bell:celeriac")
    job = await queue.submit(canvas=CANVAS, ignore_result=False)
    produced = Produced(celery_app(settings))
    produced._publish([tuple(bell) for bell in rung])
    published = json.loads(queue.redis.rpop("celeriac"))
    await produced.close()
    args, kwargs, embed = json.loads(base64.b64decode(published["body"]))
    assert (args, kwargs, embed) == ([job.id], {}, json.loads(pushed["body"])[2])
    same = ("root_id", "parent_id", "group", "group_index", "ignore_result", "retries", "task")
    assert {name: published["headers"][name] for name in same} == {name: pushed["headers"][name] for name in same}


def test_a_canvas_survives_the_record() -> None:
    """Whatever it holds."""
    assert Canvas.unpack(CANVAS.pack()) == CANVAS
    assert Canvas.unpack(Canvas("r").pack()) == Canvas("r")


@pytest.mark.parametrize("jobs", [1, 200])
async def test_every_job_ends_however_few_the_slots(queue: Queue, jobs: int) -> None:
    """Answering every bell once is enough to run everything."""
    for i in range(jobs):
        await queue.submit(tenant=f"t{i % 7}", priority=("low", "normal", "high")[i % 3])
    await queue.worker(slots=2)
    done = 0
    while bell := queue.redis.rpop("celeriac"):
        claim = await queue.claim(json.loads(bell)["headers"]["id"])
        await queue.finish(claim)
        done += 1
    assert done == jobs
    for i in range(min(jobs, 7)):
        page = await queue.jobs.list(f"t{i}", limit=200)
        assert {job.state for job in page.jobs} == {State.SUCCEEDED}


async def started(queue: Queue, jobs: int) -> list[str]:
    """The jobs in the order in which the one slot of worker w1 runs them."""
    order: list[str] = []
    while len(order) < jobs:
        for name in ("celeriac", "slow"):
            if (bell := queue.redis.rpop(name)) and (claim := await queue.try_claim(json.loads(bell)["headers"]["id"])):
                order.append(claim.id)
                await queue.finish(claim)
    return order


@pytest.mark.parametrize("turn", range(4))
async def test_queues_of_a_group_take_turns_whatever_else_counts(queue: Queue, turn: int) -> None:
    """One slot that falls free at a time, two long lines: both get on."""
    fast = [(await queue.submit()).id for _ in range(20)]
    for _ in range(20):
        await queue.submit(queue="slow")
    queue.redis.incr("celeriac:turn", turn)
    await queue.worker(slots=1, queues=("celeriac", "slow"))
    order = await started(queue, 20)
    assert 8 <= len({*order} & {*fast}) <= 12


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("queues", [("celeriac",), ("celeriac", "slow")])
async def test_low_is_not_starved_whatever_else_counts(queue: Queue, turn: int, queues: tuple[str, ...]) -> None:
    """One slot that falls free at a time, an endless line of high: low starts within ten dispatches, in either line."""
    for i in range(60):
        await queue.submit(priority="high", agent="reviewer" if i % 2 else "assistant", limited=bool(i % 2))
    for i in range(20):
        await queue.submit(priority="low", agent="reviewer" if i % 2 else "assistant", limited=bool(i % 2))
    queue.redis.incr("celeriac:turn", turn)
    await queue.worker(slots=1, queues=queues, limits={"a:reviewer": 3})
    order = [(queue.record(id)["priority"], queue.record(id)["agent"]) for id in await started(queue, 45)]
    low = [i for i, (priority, _) in enumerate(order) if priority == "2"]
    assert 3 <= len(low) <= 5
    assert {agent for priority, agent in order if priority == "2"} == {"assistant", "reviewer"}
    assert 15 <= sum(agent == "reviewer" for _, agent in order) <= 30
