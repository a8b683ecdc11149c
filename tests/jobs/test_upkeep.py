"""Upkeep does what nobody else does, and nothing that it meets keeps it from going on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from redis.exceptions import ResponseError

from celeriac.contexts.store import encode_turn
from celeriac.jobs.model import State
from celeriac.llm.model import Message
from tests.jobs.conftest import Queue

TURN = encode_turn([Message("user", "hi"), Message("assistant", "Paris")])

Spoil = Callable[[Queue, str], object]
#: How a record may be broken: it says nothing that makes sense, or breaks the script that works on it.
SPOILT: dict[str, Spoil] = {
    "place": lambda queue, id: queue.redis.hdel(f"celeriac:job:{id}", "place"),
    "no tenant": lambda queue, id: queue.redis.hdel(f"celeriac:job:{id}", "tenant"),
    "crashes": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "crashes", "many"),
    "type": lambda queue, id: (queue.redis.delete(f"celeriac:job:{id}"), queue.redis.set(f"celeriac:job:{id}", "x")),
    "calls": lambda queue, id: queue.redis.set(f"celeriac:calls:{id}", "x"),
    "call": lambda queue, id: queue.redis.hset(f"celeriac:calls:{id}", "c1", "open nonsense"),
    "rings": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "rings", "x"),
    "canvas": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "canvas", "no JSON"),
    "empty canvas": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "canvas", "null"),
    "half a canvas": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "canvas", '{"ROOT": null}'),
    "retries": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "retries", "many"),
    "tellings": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "tellings", "x"),
}
BELL = ("canvas", "empty canvas", "half a canvas", "retries")
#: Place -> what breaks there.
BREAKS = {
    "held": ("place", "no tenant", "crashes", "type", "calls", "call"),
    "parked": ("place", "no tenant", "crashes", "type"),
    "deadlines": ("place", "no tenant", "crashes", "type", "calls", "call"),
    "rung": ("place", "no tenant", "crashes", "type", "rings", *BELL),
    "ready": ("place", "no tenant", "crashes", "type", *BELL),
    "suspects": ("place", "no tenant", "crashes", "type", *BELL),
    "untold": ("place", "no tenant", "crashes", "type", "tellings", *BELL),
    "stops": ("place", "no tenant", "crashes", "type"),
}


async def five_jobs(queue: Queue, place: str) -> list[str]:
    """In this place, and their bells gone."""
    facts = {"deadlines": {"expires_in": timedelta(seconds=10)}, "untold": {"ignore_result": False}}
    ids = [(await queue.submit(**facts.get(place, {}))).id for _ in range(5)]
    for id in ids:
        if place in {"held", "stops"}:
            await queue.claim(id)
        if place in {"stops", "untold"}:
            await queue.jobs.cancel(id, None)
        if place == "untold":  # there were too many to ring for at once
            queue.redis.hdel(f"celeriac:job:{id}", "tell_rings")
        elif place == "parked":
            await queue.jobs.park(await queue.claim(id), "retry", timedelta(seconds=10))
        elif place == "suspects":
            queue.redis.hset(f"celeriac:job:{id}", "crashes", 2)
            queue.redis.zadd("celeriac:suspects:celeriac:2", {id: 1})
    if place == "suspects":
        queue.redis.delete("celeriac:ready:celeriac:1:default", "celeriac:rotation:celeriac:1")
    queue.redis.delete("celeriac")
    return ids


@pytest.mark.parametrize(("place", "how"), [(place, how) for place, ways in BREAKS.items() for how in ways])
async def test_a_broken_record_is_set_aside_while_the_page_goes_on(
    queue: Queue, place: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it turns up; it is said once, and the jobs before and after it recover."""
    queue.planted = True
    await queue.worker("w1", slots=0 if place in {"ready", "suspects"} else 10)
    ids = await five_jobs(queue, place)
    broken, others = ids[2], [*ids[:2], *ids[3:]]
    if place == "held":
        await queue.jobs.cancel(broken, None)
    SPOILT[how](queue, broken)
    queue.slots["w1"] = 10
    await queue.worker("w2", slots=10)
    await queue.pass_time(20, *(["w2"] if place == "held" else ["w1", "w2"]))
    if place == "deadlines":
        assert {await queue.state(id) for id in others} == {State.EXPIRED}
    elif place == "stops":
        assert sorted((await queue.beat()).stop) == others
        await queue.fleet.disown("w1", broken)
        await queue.fleet.upkeep()
    else:
        assert sorted(queue.rung("celeriac.suspects" if place == "suspects" else "celeriac")) == others
    if place in {"ready", "rung"}:
        assert queue.redis.hget("celeriac:busy", "t:default") == "4"
    entries = queue.redis.zrange("celeriac:broken", 0, -1)
    assert {entry.partition(" ")[0] for entry in entries} == {broken}
    assert f"{broken} in {place}" in entries
    assert capsys.readouterr().out.count("record_set_aside") == len(entries)
    for name in queue.redis.scan_iter("celeriac:*"):
        if name.split(":")[1] in BREAKS:
            found = (
                queue.redis.smembers(name) if ":held:" in name or ":stops:" in name else queue.redis.zrange(name, 0, -1)
            )
            assert broken not in found, name


@pytest.mark.parametrize("how", BELL)
async def test_a_job_that_no_bell_can_be_made_for_fails_nobody_else(queue: Queue, how: str) -> None:
    """Whose turn to be rung for it was when another was submitted, or ended. It can still be cancelled."""
    queue.planted = True
    await queue.worker(slots=0)
    broken = [(await queue.submit(ignore_result=False)).id for _ in range(2)]
    for id in broken:
        SPOILT[how](queue, id)
    queue.slots["w1"] = 1
    await queue.beat()
    first = await queue.submit()
    assert queue.rung() == [first.id]
    claim = await queue.claim(first)
    queue.redis.zadd("celeriac:ready:celeriac:1:default", {broken[0]: 1})
    queue.redis.zadd("celeriac:rotation:celeriac:1", {"default": 1})
    await queue.finish(claim)
    assert await queue.state(first) == State.SUCCEEDED
    assert await queue.jobs.cancel(broken[1], None) == State.CANCELLED
    assert not queue.redis.exists("celeriac:busy")
    assert queue.redis.zrange("celeriac:broken", 0, -1) == [
        *(f"{id} in ready" for id in reversed(broken)),
        f"{broken[1]} in untold",
    ]


@pytest.mark.parametrize("how", ["place", "type"])
async def test_a_broken_record_does_not_hold_its_context_for_ever(queue: Queue, how: str) -> None:
    """The next in the line takes its turn."""
    queue.planted = True
    await queue.worker()
    first, broken, third = [await queue.submit(context_id="c") for _ in range(3)]
    SPOILT[how](queue, broken.id)
    await queue.finish(await queue.claim(first), turn=TURN)
    assert len((await queue.claim(third)).turns) == 1
    assert queue.redis.zrange("celeriac:broken", 0, -1) == [f"{broken.id} in line"]


def of_type(key: str) -> Spoil:
    return lambda queue, id: (queue.redis.delete(key.format(id)), queue.redis.set(key.format(id), "x"))


#: What a run is given, and cannot be read.
UNREADABLE: dict[str, Spoil] = {
    **{
        f"no {name}": lambda queue, id, name=name: queue.redis.hdel(f"celeriac:job:{id}", name)
        for name in ("spec", "request_id", "retries", "attempts", "created")
    },
    **{
        name: lambda queue, id, name=name: queue.redis.hset(f"celeriac:job:{id}", name, "many")
        for name in ("retries", "attempts", "created", "steps", "read_version")
    },
    "request_id": lambda queue, id: queue.raw.hset(f"celeriac:job:{id}", "request_id", b"\xff"),
    "journal": of_type("celeriac:journal:{}"),
    "turns": of_type("celeriac:turns:default:c"),
    "context": of_type("celeriac:context:default:c"),
    "messages": lambda queue, id: queue.redis.hset("celeriac:context:default:c", "messages", "many"),
    "calls": of_type("celeriac:calls:{}"),
}


@pytest.mark.parametrize("how", UNREADABLE)
async def test_a_job_that_no_run_can_be_given_is_set_aside(queue: Queue, how: str) -> None:
    """Nobody holds it or is rung for it again. Its slot is free, and the next job of its context takes its turn."""
    queue.planted = True
    await queue.worker(slots=1)
    broken, second = [await queue.submit(context_id="c", idempotency_key=key) for key in ("k1", "k2")]
    UNREADABLE[how](queue, broken.id)
    queue.redis.delete("celeriac")
    assert await queue.try_claim(broken) is None
    assert queue.rung() == ([second.id] if how != "context" else [])
    assert not queue.redis.exists("celeriac:held:w1")
    assert queue.redis.hget("celeriac:worker:w1", "running") == "0"
    assert f"{broken.id} in {'held' if how == 'request_id' else 'rung'}" in queue.redis.zrange("celeriac:broken", 0, -1)
    await queue.pass_time(90, "w1")
    assert broken.id not in queue.rung()
    if how not in {"turns", "context", "messages"}:
        await queue.claim(second)
    if how not in {"turns", "context", "messages", "calls"}:
        assert await queue.jobs.cancel(broken.id, None) == State.CANCELLED
        assert queue.redis.hgetall("celeriac:busy") == {"t:default": "1", "a:assistant": "1"}


@pytest.mark.parametrize("what", ["messages", "bytes"])
async def test_a_turn_is_appended_whole_or_not_at_all(queue: Queue, what: str) -> None:
    """What is kept of the context was spoilt while the job ran: the end is not written, and a later run's is, once."""
    queue.planted = True
    await queue.worker()
    job = await queue.submit(context_id="c")
    claim = await queue.claim(job)
    queue.redis.hset("celeriac:context:default:c", what, "many")
    with pytest.raises(ResponseError):
        await queue.finish(claim, turn=b"2:turn")
    assert (queue.redis.llen("celeriac:turns:default:c"), queue.record(job)["place"]) == (0, "running")
    await queue.jobs.break_off(claim)
    queue.redis.hdel("celeriac:context:default:c", what)
    await queue.finish(await queue.claim(job), turn=b"2:turn")
    assert queue.redis.lrange("celeriac:turns:default:c", 0, -1) == ["2:turn"]


@pytest.mark.parametrize("how", ["created", "attempts", "type", "no tenant", "calls"])
async def test_a_record_that_makes_no_sense_hides_no_other_from_whoever_looks(queue: Queue, how: str) -> None:
    """Just then somebody does."""
    queue.planted = True
    await queue.worker()
    ids = [(await queue.submit()).id for _ in range(3)]
    (UNREADABLE | SPOILT)[how](queue, ids[1])
    page = await queue.jobs.list("default")
    assert {job.id for job in page.jobs} >= {ids[0], ids[2]}


async def test_a_job_that_was_set_aside_while_its_worker_was_given_up_runs_no_more(queue: Queue) -> None:
    """Nobody holds it: nobody would hear a request to stop it, or obey its deadline."""
    queue.planted = True
    await queue.worker("w1")
    await queue.worker("w2")
    job = await queue.submit()
    await queue.claim(job, "w1")
    queue.redis.set(f"celeriac:calls:{job.id}", "no hash")
    await queue.pass_time(20, "w2")
    assert (queue.record(job)["place"], queue.redis.zcard("celeriac:workers")) == ("ready", 1)
    assert not queue.redis.exists("celeriac:busy", "celeriac:worker:w1", "celeriac:held:w1")
    queue.redis.delete(f"celeriac:calls:{job.id}")
    assert await queue.jobs.cancel(job.id, None) == State.CANCELLED


async def test_a_line_behind_nobody_is_not_forgotten(queue: Queue) -> None:
    """Whatever became of the holder's name: within a minute the first in the line takes its turn."""
    queue.planted = True
    await queue.worker()
    _, second, third = [await queue.submit(context_id="c") for _ in range(3)]
    queue.redis.hdel("celeriac:context:default:c", "holder")
    await queue.pass_time(60, "w1")
    assert second.id in queue.rung()
    assert queue.redis.hget("celeriac:context:default:c", "holder") == second.id
    assert third.id not in queue.rung()


GONE: dict[str, Spoil] = {
    **{how: SPOILT[how] for how in ("place", "no tenant", "type")},
    "gone": lambda queue, id: queue.redis.delete(f"celeriac:job:{id}"),
    "ended": lambda queue, id: queue.redis.hset(f"celeriac:job:{id}", "place", "ended"),
}


@pytest.mark.parametrize("how", GONE)
async def test_a_context_does_not_wait_for_a_holder_that_is_no_more(queue: Queue, how: str) -> None:
    """Within a minute the next in the line takes its turn, and after that the one behind it."""
    queue.planted = True
    await queue.worker()
    holder, second, third = [await queue.submit(context_id="c") for _ in range(3)]
    await queue.claim(holder)
    GONE[how](queue, holder.id)
    await queue.pass_time(60, "w1")
    await queue.finish(await queue.claim(second), turn=TURN)
    assert len((await queue.claim(third)).turns) == 1
    assert (f"{holder.id} in context" in queue.redis.zrange("celeriac:broken", 0, -1)) == (how != "gone")
    assert not queue.redis.exists("celeriac:behind")


@pytest.mark.parametrize("how", GONE)
async def test_a_new_job_does_not_wait_for_a_holder_that_is_no_more(queue: Queue, how: str) -> None:
    """Nor is it refused for that one; who waited longer goes first."""
    queue.planted = True
    await queue.worker()
    for context, waits in (("c", False), ("d", True)):
        holder = await queue.submit(context_id=context)
        second = await queue.submit(context_id=context) if waits else None
        GONE[how](queue, holder.id)
        new = await queue.submit(context_id=context, if_busy="wait" if waits else "reject")
        assert new.waits_for == (second and second.id)
        await queue.claim(second or new)


@pytest.mark.parametrize(
    ("place", "index"),
    [
        ("ready", "ready:celeriac:1:default"),
        ("suspects", "suspects:celeriac:2"),
        ("rung", "rung:celeriac"),
        ("running", "held:w1"),
        ("parked", "parked"),
    ],
)
async def test_a_context_does_not_wait_for_a_holder_that_was_set_aside(queue: Queue, place: str, index: str) -> None:
    """It stands where nobody looks, whatever its record says."""
    queue.planted = True
    await queue.worker(slots=0 if place in {"ready", "suspects"} else 10)
    holder = await queue.submit(context_id="c")
    if place == "suspects":
        queue.redis.hset(f"celeriac:job:{holder.id}", "crashes", 2)
        queue.redis.zadd("celeriac:suspects:celeriac:2", {holder.id: 1})
    if place in {"running", "parked"}:
        claim = await queue.claim(holder)
    if place == "parked":
        await queue.jobs.park(claim, "retry", timedelta(hours=1))
    second = await queue.submit(context_id="c")
    assert second.waits_for == holder.id
    queue.redis.delete(f"celeriac:{index}")
    assert (await queue.submit(context_id="c")).waits_for == second.id


async def test_a_retry_does_not_wait_for_a_holder_that_is_no_more(queue: Queue) -> None:
    """It enters as a new job does."""
    queue.planted = True
    await queue.worker()
    job = await queue.submit(context_id="c")
    await queue.jobs.cancel(job.id, None)
    GONE["gone"](queue, (await queue.submit(context_id="c")).id)
    replayed = await queue.jobs.replay(job.id, "default")
    assert replayed is not None
    assert replayed.waits_for is None
    await queue.claim(job)


async def test_a_holder_that_is_still_to_come_back_keeps_its_context(queue: Queue) -> None:
    """However long it is parked, or by whomever: the line behind it is looked at, and waits."""
    await queue.worker()
    holder, second = [await queue.submit(context_id="c") for _ in range(2)]
    await queue.jobs.park(await queue.claim(holder), "retry", timedelta(hours=1))
    await queue.pass_time(600, "w1")
    queue.redis.hset(f"celeriac:job:{holder.id}", "place", "paused")
    await queue.pass_time(600, "w1")
    queue.redis.hset(f"celeriac:job:{holder.id}", "place", "parked")
    assert (await queue.job(second)).waits_for == holder.id
    assert (await queue.submit(context_id="c")).waits_for == holder.id


async def test_a_clock_that_goes_back_does_not_put_off_the_look_at_a_holder(queue: Queue) -> None:
    """It is due within a minute, whatever the clock said when the line began."""
    queue.planted = True
    await queue.worker()
    holder, second = [await queue.submit(context_id="c") for _ in range(2)]
    queue.redis.zadd("celeriac:behind", {"default:c": queue.now + 3_600_000})
    GONE["gone"](queue, holder.id)
    await queue.pass_time(70, "w1")
    await queue.claim(second)


async def test_a_time_that_makes_no_sense_does_not_fail_the_end_of_another_job(queue: Queue) -> None:
    """Who follows in the context is ready at once."""
    queue.planted = True
    await queue.worker()
    first, second = [await queue.submit(context_id="c") for _ in range(2)]
    queue.redis.hset(f"celeriac:job:{second.id}", "run_at", "soon")
    await queue.finish(await queue.claim(first), turn=TURN)
    await queue.claim(second)


@pytest.mark.parametrize("place", BREAKS)
async def test_a_record_of_a_newer_release_stays_where_it_is(
    queue: Queue, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two releases serve one store during a deploy: a place that this one does not know is not broken."""
    queue.planted = True
    await queue.worker("w1", slots=0 if place in {"ready", "suspects"} else 10)
    ids = await five_jobs(queue, place)
    newer, others = ids[0], ids[1:]
    queue.redis.hset(f"celeriac:job:{newer}", "place", "paused")
    record = queue.record(newer)
    queue.slots["w1"] = 10
    await queue.worker("w2", slots=10)
    await queue.pass_time(20, *(["w2"] if place == "held" else ["w1", "w2"]))
    if place == "deadlines":
        assert {await queue.state(id) for id in others} == {State.EXPIRED}
    elif place == "stops":
        assert sorted((await queue.beat()).stop) == ids
    else:
        assert set(queue.rung("celeriac.suspects" if place == "suspects" else "celeriac")) == set(others)
    assert queue.record(newer) == record
    assert not queue.redis.exists("celeriac:broken")
    assert "record_set_aside" not in capsys.readouterr().out
    if place in {"held", "stops"}:
        assert newer in queue.redis.smembers(f"celeriac:{place}:w1")
    else:
        index = {
            "ready": "ready:celeriac:1:default",
            "rung": "rung:celeriac",
            "suspects": "suspects:celeriac:2",
        }.get(place, place)
        assert queue.redis.zscore(f"celeriac:{index}", newer) is not None


async def test_many_of_a_newer_release_do_not_hold_up_the_others(queue: Queue) -> None:
    """However many of them are due before."""
    queue.planted = True
    await queue.worker()
    for _ in range(250):
        job = await queue.submit(run_at=datetime.fromtimestamp(queue.now / 1000 + 1, UTC))
        queue.redis.hset(f"celeriac:job:{job.id}", "place", "paused")
    own = await queue.submit(run_at=datetime.fromtimestamp(queue.now / 1000 + 2, UTC))
    queue.later(2000)
    more, _ = await queue.fleet._due(page=200, keep=queue.fleet._keep)
    await queue.fleet.upkeep()
    assert (more, queue.rung(), queue.redis.zcard("celeriac:parked")) == (0, [own.id], 250)


async def test_a_job_of_a_newer_release_keeps_its_turn_in_its_context(queue: Queue) -> None:
    """Who stands behind it goes first; it stays in the line."""
    queue.planted = True
    await queue.worker()
    first, newer, third = [await queue.submit(context_id="c") for _ in range(3)]
    queue.redis.hset(f"celeriac:job:{newer.id}", "place", "paused")
    await queue.finish(await queue.claim(first), turn=TURN)
    assert len((await queue.claim(third)).turns) == 1
    assert queue.redis.zrange("celeriac:line:default:c", 0, -1) == [newer.id]


async def test_a_broken_worker_does_not_keep_the_others_from_being_given_up(queue: Queue) -> None:
    """What it ran goes to others too."""
    await queue.worker("broken")
    await queue.worker("dead")
    jobs = [await queue.submit() for _ in range(2)]
    await queue.claim(jobs[0], "broken")
    await queue.claim(jobs[1], "dead")
    queue.redis.delete("celeriac", "celeriac:worker:broken")
    queue.redis.set("celeriac:worker:broken", "x")
    await queue.worker("w2")
    await queue.pass_time(20, "w2")
    assert sorted(queue.rung()) == [job.id for job in jobs]
    assert queue.redis.zrange("celeriac:broken", 0, -1) == ["broken in workers"]


async def test_what_is_broken_is_said_though_an_answer_was_lost(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever did upkeep may have died before it could say so."""
    queue.planted = True
    await queue.worker(slots=0)
    SPOILT["place"](queue, (await queue.submit(run_at=None)).id)
    queue.slots["w1"] = 10
    await queue.beat()
    await queue.fleet._upkeep(lease=15_000, budgets="0 0")
    assert queue.redis.zcard("celeriac:broken") == 1
    await queue.fleet.upkeep()
    await queue.fleet.upkeep()
    assert capsys.readouterr().out.count("record_set_aside") == 1


async def test_what_is_broken_is_said_once_and_bounded(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what turns up within the same millisecond as the last that was said."""
    queue.planted = True
    await queue.worker(slots=0)
    for round in range(2):
        for _ in range(3):
            SPOILT["place"](queue, (await queue.submit(run_at=None)).id)
        queue.slots["w1"] = 10
        await queue.beat()
        await queue.fleet.upkeep()
        await queue.fleet.upkeep()
        assert capsys.readouterr().out.count("record_set_aside") == 3, round
        await queue.fleet.heartbeat("w1", 0, taking=True)
    queue.redis.zadd("celeriac:broken", {f"x{i}": i - 2000 for i in range(1500)})
    SPOILT["place"](queue, (await queue.submit()).id)
    await queue.beat()
    await queue.fleet.upkeep()
    assert queue.redis.zcard("celeriac:broken") == 1000


async def test_a_record_that_is_gone_leaves_its_places_without_an_alarm(queue: Queue) -> None:
    """It went with a history that was lost, or by hand."""
    queue.planted = True
    await queue.worker()
    jobs = [await queue.submit(expires_in=timedelta(seconds=9)) for _ in range(2)]
    await queue.claim(jobs[0])
    for job in jobs:
        queue.redis.delete("celeriac", f"celeriac:job:{job.id}")
    await queue.worker("w2")
    await queue.pass_time(20, "w2")
    assert not queue.redis.exists("celeriac:rung:celeriac", "celeriac:held:w1", "celeriac:deadlines", "celeriac:broken")


async def test_slots_without_a_bell_get_one(queue: Queue) -> None:
    """Whoever should have rung and did not: upkeep rings for it."""
    await queue.worker(slots=0)
    job = await queue.submit()
    await queue.fleet.heartbeat("w1", 5, taking=True)
    await queue.fleet.upkeep()
    assert queue.rung() == [job.id]


async def test_an_idle_store_is_left_as_it_is(queue: Queue) -> None:
    """A round in which nothing happened writes nothing but the time."""
    await queue.worker()
    await queue.fleet.upkeep()
    before = queue.everything()
    await queue.fleet.upkeep()
    assert queue.everything() == before


async def test_ended_jobs_are_swept_page_by_page(queue: Queue) -> None:
    """Whose record has aged out leaves the lists, a few hundred a round."""
    await queue.worker(slots=300)
    for _ in range(250):
        await queue.jobs.cancel((await queue.submit()).id, None)
    for name in queue.redis.keys("celeriac:job:*"):
        queue.redis.delete(name)
    queue.later(86_400_000)
    await queue.fleet.upkeep()
    assert 0 < queue.redis.zcard("celeriac:jobs:default") <= 50
    await queue.fleet.upkeep()
    assert not queue.redis.exists("celeriac:jobs:default", "celeriac:jobs:default:cancelled", "celeriac:retention")
