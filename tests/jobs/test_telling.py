"""Ends of which Celery is to be told: they are rung for until somebody says that it was."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import Accepted, Claim, State, Untold
from tests.jobs.conftest import Queue

#: Milliseconds that a run has to tell.
TELLING = 10_000
#: Ends that are rung for at once.
BELLS = 100


async def submit(queue: Queue, **facts: object) -> Accepted:
    """A job whose result somebody waits for in Celery."""
    return await queue.submit(**({"ignore_result": False} | facts))


def rung(queue: Queue) -> list[str]:
    """The bells that were rung since this was asked last."""
    ids = queue.rung()
    queue.redis.delete("celeriac")
    return ids


async def cancelled(queue: Queue) -> Accepted:
    """A job that ended outside every task, before its bell was answered."""
    job = await submit(queue)
    rung(queue)
    assert await queue.jobs.cancel(job.id, None) == State.CANCELLED
    return job


async def told_to(queue: Queue, job: Accepted, worker: str = "w1", nonce: str = "") -> Untold:
    claim: Claim | Untold | None = await queue.try_claim(job, worker, nonce)
    assert isinstance(claim, Untold)
    return claim


async def test_the_run_that_ends_a_job_tells(queue: Queue) -> None:
    """No other bell is rung and none is answered, unless it does not say so within its time."""
    await queue.worker()
    job = await submit(queue)
    claim = await queue.claim(job)
    assert claim.tell == 0
    rung(queue)
    await queue.finish(claim)
    assert rung(queue) == []
    assert await queue.try_claim(job) is None
    queue.later(TELLING - 1)
    await queue.fleet.heartbeat("w1", 10, taking=True)
    assert rung(queue) == []
    queue.later(1)
    await queue.fleet.upkeep()
    assert rung(queue) == [job.id]
    assert (await told_to(queue, job)).job.state == State.SUCCEEDED


@pytest.mark.parametrize("ends", ["unknown", "stopped"])
async def test_the_run_that_ends_a_job_in_place_of_parking_it_tells(queue: Queue, ends: str) -> None:
    """No worker has known its agent for too long, or it was asked to stop: no other run is rung for."""
    await queue.worker()
    await queue.worker("w2")
    job = await submit(queue)
    if ends == "unknown":
        await queue.jobs.leave_to_others(await queue.claim(job))
        queue.later(3_600_000)
        await queue.beat("w2")
        await queue.fleet.upkeep()
    claim = await queue.claim(job, "w2")
    if ends == "stopped":
        await queue.jobs.cancel(job.id, None)
    rung(queue)
    if ends == "unknown":
        assert await queue.jobs.leave_to_others(claim) == State.FAILED
    else:
        assert await queue.jobs.park(claim, "retry", timedelta(seconds=1)) == State.CANCELLED
    assert rung(queue) == []
    assert await queue.try_claim(job, "w2") is None
    assert claim.tell is not None
    await queue.jobs.told(job.id, claim.tell)
    assert not queue.redis.exists("celeriac:untold")


@pytest.mark.parametrize("facts", [{}, {"ignore_result": True, "canvas": Canvas("r")}], ids=["http", "celery"])
async def test_of_a_job_that_nobody_asks_celery_about_nothing_is_told(queue: Queue, facts: dict[str, object]) -> None:
    """It costs nothing either."""
    await queue.worker()
    claim = await queue.claim(await queue.submit(**facts))
    assert claim.tell is None
    await queue.finish(claim)
    assert not queue.redis.exists("celeriac:untold")


async def test_callbacks_are_told_where_the_result_is_ignored(queue: Queue) -> None:
    """A chord, a chain, a link: each waits for the end."""
    await queue.worker()
    for what in ("callbacks", "errbacks", "chain", "chord"):
        canvas = Canvas("r", **{what: [{"task": "shop.note"}]})  # type: ignore[arg-type]
        claim = await queue.claim(await queue.submit(ignore_result=True, canvas=canvas))
        assert claim.tell == 0


async def test_an_end_outside_a_task_is_rung_for_at_once(queue: Queue) -> None:
    """The run that answers is told how it ended, once, and the same claim again gets the same answer."""
    await queue.worker()
    await queue.worker("w2")
    job = await cancelled(queue)
    assert rung(queue) == [job.id]
    untold = await told_to(queue, job, nonce="n")
    assert (untold.job.state, untold.job.error and untold.job.error.code) == (State.CANCELLED, "cancelled")
    assert (await told_to(queue, job, nonce="n")).job == untold.job
    assert await queue.try_claim(job, "w2") is None
    await queue.jobs.told(job.id, untold.job.replays)
    assert await queue.try_claim(job, "w2") is None
    assert not queue.redis.exists("celeriac:untold")


@pytest.mark.parametrize(("seconds", "waits"), [(1, 1), (183, 183), (301, 300)])
async def test_what_cannot_be_told_yet_is_rung_for_when_it_can(queue: Queue, seconds: int, waits: int) -> None:
    """Not before, and whoever hears the bell then is to tell; it does not wait for more than five minutes."""
    await queue.worker()
    job = await cancelled(queue)
    untold = await told_to(queue, job)
    rung(queue)
    await queue.jobs.told(job.id, untold.job.replays, later=timedelta(seconds=seconds))
    for _ in range(waits):
        assert rung(queue) == []
        queue.later(1000)
        await queue.fleet.heartbeat("w1", 10, taking=True)
        await queue.fleet.upkeep()
    assert rung(queue) == [job.id]
    await told_to(queue, job)


async def test_an_expired_job_is_rung_for(queue: Queue) -> None:
    """By upkeep, or by the claim that came too late."""
    await queue.worker()
    late = await submit(queue)
    queue.redis.hset(f"celeriac:job:{late.id}", "deadline", queue.now)
    rung(queue)
    assert await queue.try_claim(late) is None
    assert rung(queue) == [late.id]
    assert (await told_to(queue, late)).job.state == State.EXPIRED


async def test_a_dead_letter_is_rung_for_on_the_ordinary_queue(queue: Queue) -> None:
    """Its worker died of running it, not of saying that it ended."""
    await queue.worker()
    job = await submit(queue)
    record = f"celeriac:job:{job.id}"
    await queue.claim(job)
    queue.redis.hset(record, "crashes", 4)
    rung(queue)
    await queue.worker("w2")
    for _ in range(17):
        queue.later(1000)
        await queue.fleet.heartbeat("w2", 10, taking=True)
        await queue.fleet.upkeep()
    assert queue.redis.hget(record, "dead") == "1"
    assert job.id in rung(queue)
    untold = await told_to(queue, job, "w2")
    assert untold.job.error is not None
    assert untold.job.error.code == "dead_letter"


async def test_what_stays_untold_is_rung_for_at_growing_intervals(queue: Queue) -> None:
    """3 s, 6 s, 12 s ... up to five minutes, for as long as nobody answers."""
    await queue.worker()
    job = await cancelled(queue)
    assert rung(queue) == [job.id]
    rings = []
    for second in range(1, 1300):
        queue.later(1000)
        await queue.fleet.heartbeat("w1", 10, taking=True)
        await queue.fleet.upkeep()
        if rung(queue):
            rings.append(second)
    assert rings == [3, 9, 21, 45, 93, 189, 381, 681, 981, 1281]


async def test_a_bell_that_waits_for_a_busy_worker_is_not_rung_again(queue: Queue) -> None:
    """It lies in the broker's list: it was not lost."""
    await queue.worker()
    job = await cancelled(queue)
    for _ in range(60):
        queue.later(1000)
        await queue.fleet.heartbeat("w1", 10, taking=True)
        await queue.fleet.upkeep()
    assert rung(queue) == [job.id]


@pytest.mark.parametrize("back", [60_000, 10 * 3_600_000], ids=["a minute", "ten hours"])
async def test_a_clock_that_goes_back_does_not_put_off_the_telling(queue: Queue, back: int) -> None:
    """Neither of an end that is rung for, nor of one whose teller died: within the longest wait of any."""
    queue.later(2 * back)
    await queue.worker()
    jobs = [await submit(queue) for _ in range(2)]
    claims = [await queue.claim(job) for job in jobs]
    await queue.finish(claims[0])
    await queue.jobs.cancel(jobs[1].id, None)
    await queue.jobs.park(claims[1], "retry", timedelta(seconds=1))
    queue.later(TELLING)
    await queue.fleet.upkeep()
    for job in jobs:
        await told_to(queue, job)
    rung(queue)
    queue.later(-back)
    await queue.beat()
    await queue.fleet.upkeep()
    assert queue.redis.zcount("celeriac:untold", queue.now + 300_001, "+inf") == 0
    told: set[str] = set()
    for _ in range(330):
        queue.later(1000)
        await queue.beat()
        await queue.fleet.upkeep()
        for id in rung(queue):
            if isinstance(await queue.try_claim(id), Untold):
                told.add(id)
    assert told == {job.id for job in jobs}


async def test_thousands_of_ends_do_not_hold_up_the_jobs_that_wait(queue: Queue) -> None:
    """A hundred bells are out for them at most; each end that was told rings for the next."""
    await queue.worker(slots=1000)
    jobs = [await submit(queue) for _ in range(3 * BELLS)]
    rung(queue)
    for job in jobs:
        await queue.jobs.cancel(job.id, None)
    await queue.fleet.upkeep()
    told = []
    while bells := rung(queue):
        assert len(bells) <= BELLS
        for bell in bells:
            claim = await queue.try_claim(bell)
            assert isinstance(claim, Untold)
            await queue.jobs.told(bell, claim.job.replays)
            told.append(bell)
    assert sorted(told) == sorted(job.id for job in jobs)


async def test_an_end_that_no_run_survives_telling_is_given_up(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a hundred of them, with an alarm; then its record ages like any other."""
    await queue.worker()
    job = await cancelled(queue)
    for i in range(100):
        assert queue.redis.ttl(f"celeriac:job:{job.id}") == -1
        await told_to(queue, job, (await queue.worker(f"dies-{i}")))
        queue.later(300_000)
        await queue.fleet.upkeep()
    assert "celery_not_told" in capsys.readouterr().out
    assert not queue.redis.exists("celeriac:untold")
    assert queue.redis.ttl(f"celeriac:job:{job.id}") > 0


async def test_a_record_does_not_age_before_its_end_was_told(queue: Queue) -> None:
    """However long that takes; then it lives as long as any."""
    await queue.worker()
    job = await cancelled(queue)
    record = f"celeriac:job:{job.id}"
    assert queue.redis.ttl(record) == -1
    assert queue.redis.zcard("celeriac:retention") == 0
    await queue.jobs.told(job.id, 0)
    assert 0 < queue.redis.ttl(record) <= 86_400
    assert queue.redis.zcard("celeriac:retention") == 1


async def test_an_end_that_cannot_be_told_ages_all_the_same(queue: Queue) -> None:
    """No bell can be made for it. It is kept as long as any end, and not for ever."""
    queue.planted = True
    await queue.worker()
    job = await queue.submit(ignore_result=False)
    queue.redis.hset(f"celeriac:job:{job.id}", "canvas", "{")
    await queue.jobs.cancel(job.id, None)
    await queue.pass_time(20, "w1")
    assert not queue.redis.exists("celeriac:untold")
    assert queue.redis.pttl(f"celeriac:job:{job.id}") > 0
    assert queue.redis.zcard("celeriac:retention") == 1


async def test_a_broken_record_does_not_keep_the_next_end_from_being_told(queue: Queue) -> None:
    """Whoever has told of one end rings for the oldest that makes sense."""
    queue.planted = True
    broken, first, second = [await cancelled(queue) for _ in range(3)]
    await queue.worker()
    queue.redis.delete(f"celeriac:job:{broken.id}")
    queue.redis.set(f"celeriac:job:{broken.id}", "x")
    await queue.jobs.told(first.id, 0)
    assert rung(queue) == [second.id]
    assert queue.redis.zrange("celeriac:broken", 0, -1) == [f"{broken.id} in untold"]


async def test_a_retry_takes_back_what_was_not_told(queue: Queue) -> None:
    """And who tells of the former end a moment too late does not stand for the next one."""
    await queue.worker()
    job = await cancelled(queue)
    former = await told_to(queue, job)
    await queue.jobs.replay(job.id, "default")
    assert not queue.redis.exists("celeriac:untold")
    claim = await queue.claim(job)
    await queue.finish(claim)
    await queue.jobs.told(job.id, former.job.replays)
    assert queue.redis.zscore("celeriac:untold", job.id) is not None
    assert claim.tell == 1
    await queue.jobs.told(job.id, claim.tell)
    assert not queue.redis.exists("celeriac:untold")


async def test_where_nobody_serves_its_queue_any_more_another_queue_tells(queue: Queue) -> None:
    """Every worker can; with none at all it waits for one."""
    job = await queue.submit(queue="slow", ignore_result=False)
    await queue.jobs.cancel(job.id, None)
    assert queue.rung() + queue.rung("slow") == []
    await queue.worker()
    await queue.fleet.upkeep()
    assert queue.rung() == [job.id]
