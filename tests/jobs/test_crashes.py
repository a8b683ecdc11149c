"""A crashed process is one job's fault and the misfortune of many: suspects run in shrinking company, the guilty one
ends as a dead letter, the innocent succeed."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from celeriac.jobs.model import Accepted, Claim, Place, State
from tests.jobs.conftest import Queue

SUSPECTS = "celeriac.suspects"


class Crash:
    """Workers that die with what they hold."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.died = 0

    async def __call__(self, *jobs: Accepted, steps: int = 0) -> None:
        """All of them run in one process, which dies after each has made so many steps."""
        self.died += 1
        name = await self.queue.worker(f"dead{self.died}", slots=100)
        await self.queue.pass_time(2, name)
        for job in jobs:
            claim = await self.queue.claim(job, name)
            for _ in range(steps):
                await self.queue.stores.journal.commit(claim, len(claim.journal), {"text": "a step"}, None)
        await self.queue.given_up()
        self.queue.redis.delete("celeriac", SUSPECTS)


@pytest.fixture
def crash(queue: Queue) -> Crash:
    return Crash(queue)


async def crashes(queue: Queue, job: Accepted) -> int:
    return (await queue.job(job)).crashes


async def test_a_job_taken_from_a_dead_worker_has_crashed_once_more(queue: Queue, crash: Crash) -> None:
    """Unless it made a step since the last time: then it gets on, and is not what kills."""
    job = await queue.submit()
    await crash(job)
    assert await crashes(queue, job) == 1
    await crash(job, steps=1)
    assert await crashes(queue, job) == 1
    await crash(job)
    assert await crashes(queue, job) == 2
    await crash(job, steps=2)
    assert await crashes(queue, job) == 2
    assert (await queue.job(job)).steps == 3


async def test_a_job_handed_over_in_good_order_has_not_crashed(queue: Queue) -> None:
    """A deploy, a parked job, a claim whose answer was lost."""
    await queue.worker()
    job = await queue.submit()
    await queue.jobs.give_back(await queue.claim(job))
    await queue.claim(job)
    await queue.fleet.disown("w1", job.id)
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=1))
    await queue.pass_time(2, "w1")
    assert await crashes(queue, job) == 0


async def test_a_job_that_crashed_once_runs_anywhere(queue: Queue, crash: Crash) -> None:
    """A single crash is mostly the machine's."""
    job = await queue.submit()
    await crash(job)
    await queue.worker()
    await queue.claim(await queue.submit())
    await queue.finish(await queue.claim(job))


async def test_a_job_that_crashes_alone_in_the_end_is_a_dead_letter(queue: Queue, crash: Crash) -> None:
    """It has failed, says why, is listed, and is kept with all that a replay needs."""
    job = await queue.submit(context_id="c")
    await crash(job, steps=1)
    for _ in range(4):
        await crash(job)
        assert await queue.state(job) == State.QUEUED
    await crash(job)
    found = await queue.job(job)
    assert (found.state, found.dead, found.steps) == (State.FAILED, True, 1)
    assert found.error is not None
    assert found.error.code == "dead_letter"
    assert [dead.id for dead in (await queue.jobs.list("default", dead=True)).jobs] == [job.id]
    week = timedelta(days=7) / timedelta(milliseconds=1)
    for key in (f"celeriac:job:{job.id}", f"celeriac:journal:{job.id}"):
        assert week - 60_000 < queue.redis.pttl(key) <= week
    assert (await queue.submit(context_id="c")).waits_for is None


async def test_a_dead_letter_is_forgotten_after_its_time(queue: Queue) -> None:
    """It leaves the list of the dead with its record."""
    job = await queue.submit()
    for i in range(5):
        name = await queue.worker(f"w{i}")
        await queue.pass_time(2, name)
        await queue.claim(job, name)
        await queue.given_up()
    assert (await queue.job(job)).dead
    queue.redis.delete(f"celeriac:job:{job.id}")
    queue.later(7 * 86_400_000)
    await queue.fleet.upkeep()
    assert not queue.redis.exists("celeriac:dead:default", "celeriac:retention", "celeriac:jobs:default")


async def test_only_a_crash_alone_makes_a_dead_letter(queue: Queue, crash: Crash) -> None:
    """Two that always crash together stay suspects: each could be innocent."""
    await queue.worker("w1", slots=0)
    jobs = [await queue.submit() for _ in range(2)]
    for _ in range(3):
        await crash(*jobs)
    assert [await crashes(queue, job) for job in jobs] == [3, 3]
    await crash(*jobs)
    assert [await crashes(queue, job) for job in jobs] == [4, 4]
    await crash(jobs[0])
    assert await queue.state(jobs[0]) == State.FAILED
    assert await queue.state(jobs[1]) == State.QUEUED


async def test_whoever_was_in_company_all_the_same_is_no_dead_letter(queue: Queue) -> None:
    """However often each has crashed: a history that was lost may have put them together."""
    await queue.worker("dead")
    jobs = [await queue.submit() for _ in range(2)]
    for job in jobs:
        await queue.claim(job, "dead")
        queue.redis.hset(f"celeriac:job:{job.id}", "crashes", 4)
    queue.redis.hset("celeriac:worker:dead", "suspects", 2)
    await queue.given_up()
    assert [await queue.state(job) for job in jobs] == [State.QUEUED] * 2


@pytest.mark.parametrize(("before", "company"), [(2, 32), (3, 4), (4, 1)])
async def test_suspects_run_in_shrinking_company(queue: Queue, crash: Crash, before: int, company: int) -> None:
    """32, 4, 1: as many bells, and as many claims, whatever bells there are."""
    jobs = [await queue.submit() for _ in range(40)]
    await crash(*jobs)
    await crash(*jobs)
    for job in jobs:  # further crashes in groups would take this test minutes
        queue.redis.hset(f"celeriac:job:{job.id}", "crashes", before)
    queue.redis.rename("celeriac:suspects:celeriac:2", f"celeriac:suspects:celeriac:{before}")
    await queue.worker(slots=100)
    for _ in range(2):
        await queue.pass_time(2, "w1")
        assert queue.rung(SUSPECTS) == [job.id for job in jobs[:company]]
    claims = [await queue.claim(id) for id in queue.rung(SUSPECTS)]
    await queue.pass_time(2, "w1")
    assert len(queue.rung(SUSPECTS)) == company
    await queue.finish(claims[0])
    assert queue.rung(SUSPECTS)[company:] == [jobs[company].id]
    await queue.claim(jobs[company])


async def test_a_suspect_is_not_claimed_beyond_the_company_of_those_who_run(queue: Queue, crash: Crash) -> None:
    """A stale bell does not get round it, and the most suspect of them decides."""
    jobs = [await queue.submit() for _ in range(6)]
    await crash(*jobs)
    await crash(*jobs)
    await queue.worker(slots=100)
    await queue.pass_time(2, "w1")
    await queue.claim(jobs[0])
    queue.redis.hset("celeriac:worker:w1", "company", 1)
    assert await queue.try_claim(jobs[1]) is None
    assert await queue.state(jobs[1]) == State.QUEUED
    queue.redis.hset("celeriac:worker:w1", "company", 32)
    await queue.pass_time(2, "w1")
    await queue.claim(jobs[1])


def crashed_again(queue: Queue, *jobs: Accepted) -> None:
    """As if they had, without those whose bells would be out meanwhile."""
    for job in jobs:
        queue.redis.hset(f"celeriac:job:{job.id}", "crashes", 3)
        queue.redis.zrem("celeriac:suspects:celeriac:2", job.id)
        queue.redis.zadd("celeriac:suspects:celeriac:3", {job.id: queue.record(job)["seq"]})


async def test_the_less_suspect_go_first_and_the_others_wait(queue: Queue, crash: Crash) -> None:
    """One level at a time, so that the company is not spoilt by bells that nobody may answer."""
    twice, thrice = [[await queue.submit() for _ in range(n)] for n in (2, 3)]
    for _ in range(2):
        await crash(*twice, *thrice)
    crashed_again(queue, *thrice)
    await queue.worker()
    await queue.pass_time(1, "w1")
    assert queue.rung(SUSPECTS) == [job.id for job in twice]
    for job in twice:
        await queue.finish(await queue.claim(job))
    await queue.pass_time(1, "w1")
    assert queue.rung(SUSPECTS)[2:] == [job.id for job in thrice]


async def test_suspects_whose_tenant_is_at_its_limit_hold_up_no_others(queue: Queue, crash: Crash) -> None:
    """Of those who crashed more often, the next may go on."""
    held, other = await queue.submit(), await queue.submit(tenant="b")
    for _ in range(2):
        await crash(held, other)
    crashed_again(queue, other)
    await queue.worker("w1", limits={"t:default": 1})
    running = await queue.claim(await queue.submit(), "w1")
    await queue.worker("w2", limits={"t:default": 1})
    await queue.pass_time(2, "w1", "w2")
    assert queue.rung(SUSPECTS) == [other.id]
    await queue.finish(await queue.claim(other, "w2"))
    await queue.finish(running)
    await queue.pass_time(2, "w1", "w2")
    await queue.claim(held, "w2")


async def test_no_more_suspects_than_slots(queue: Queue, crash: Crash) -> None:
    """A small process takes as many as it runs jobs."""
    jobs = [await queue.submit() for _ in range(6)]
    await crash(*jobs)
    await crash(*jobs)
    await queue.worker(slots=2)
    await queue.pass_time(2, "w1")
    assert len(queue.rung(SUSPECTS)) == 2


async def suspect(queue: Queue, crash: Crash, **facts: object) -> Accepted:
    job = await queue.submit(**facts)
    await crash(job)
    await crash(job)
    return job


async def test_suspects_wait_until_a_process_is_theirs_alone(queue: Queue, crash: Crash) -> None:
    """The idlest worker runs nothing else from then on, and suspects only once its other jobs have ended."""
    job = await suspect(queue, crash)
    await queue.worker("busy", slots=5)
    for other in [await queue.submit() for _ in range(3)]:
        await queue.claim(other, "busy")
    await queue.worker("idle", slots=5)
    innocent = await queue.claim(await queue.submit(), "idle")
    await queue.pass_time(2, "busy", "idle")
    assert (await queue.beat("idle")).quarantined is True
    assert (await queue.beat("busy")).quarantined is False
    assert queue.rung(SUSPECTS) == []
    assert await queue.try_claim(job, "idle") is None
    await queue.finish(innocent)
    assert queue.rung(SUSPECTS) == [job.id]
    await queue.claim(job, "idle")


async def test_a_worker_that_is_not_in_quarantine_takes_no_suspect(queue: Queue, crash: Crash) -> None:
    """Its bell came by a way of its own: the suspect goes back to its line."""
    job = await suspect(queue, crash)
    await queue.worker("w1")
    await queue.pass_time(2, "w1")
    await queue.worker("w2")
    assert job.id in queue.rung(SUSPECTS)
    assert await queue.try_claim(job, "w2") is None
    await queue.pass_time(2, "w1", "w2")
    await queue.claim(job, "w1")


async def test_a_quarantined_worker_takes_nobody_else(queue: Queue, crash: Crash) -> None:
    """It may have popped a bell before it heard of its quarantine: the job stays for the others."""
    await suspect(queue, crash)
    await queue.worker("w1")
    other = await queue.submit()
    await queue.worker("w2")
    await queue.pass_time(1, "w1", "w2")
    quarantined, free = ("w1", "w2") if (await queue.beat("w1")).quarantined else ("w2", "w1")
    assert await queue.try_claim(other, quarantined) is None
    assert queue.record(other)["place"] == Place.READY
    await queue.pass_time(1, "w1", "w2")
    await queue.finish(await queue.claim(other, free))


async def test_a_quarantined_worker_takes_no_room_from_the_others(queue: Queue, crash: Crash) -> None:
    """Its slots are not offered, and the suspects that it runs are not subtracted from theirs."""
    job = await suspect(queue, crash)
    await queue.worker("w1", slots=3)
    await queue.pass_time(2, "w1")
    await queue.claim(job, "w1")
    for _ in range(20):
        await queue.submit()
    assert queue.rung() == []
    await queue.worker("w2", slots=3)
    assert len(queue.rung()) == 5


async def test_quarantine_ends_with_the_last_suspect(queue: Queue, crash: Crash) -> None:
    """The worker offers its slots to everybody again."""
    job = await suspect(queue, crash)
    await queue.worker(slots=3)
    await queue.pass_time(2, "w1")
    claim = await queue.claim(job)
    await queue.pass_time(2, "w1")
    assert (await queue.beat()).quarantined is True
    await queue.finish(claim)
    await queue.pass_time(1, "w1")
    assert (await queue.beat()).quarantined is False
    await queue.submit()
    assert len(queue.rung()) == 1


async def test_one_worker_is_quarantined_and_where_there_are_many_a_quarter(queue: Queue, crash: Crash) -> None:
    """One for each 32 suspects, and never more than a quarter of the fleet but for the first."""
    jobs = [await queue.submit() for _ in range(98)]
    await crash(*jobs)
    await crash(*jobs)
    names = [await queue.worker(f"w{i}", slots=100) for i in range(7)]
    await queue.pass_time(20, *names)
    assert queue.redis.scard("celeriac:quarantined") == 1
    names.append(await queue.worker("w7", slots=100))
    await queue.pass_time(20, *names)
    assert queue.redis.scard("celeriac:quarantined") == 2


async def test_few_suspects_need_one_worker_however_many_there_are(queue: Queue, crash: Crash) -> None:
    """The others go on with everybody else's jobs."""
    jobs = [await queue.submit() for _ in range(5)]
    await crash(*jobs)
    await crash(*jobs)
    names = [await queue.worker(f"w{i}", slots=1) for i in range(8)]
    await queue.pass_time(20, *names)
    assert queue.redis.scard("celeriac:quarantined") == 1


async def test_a_suspect_whose_bell_is_out_when_its_worker_dies_is_not_forgotten(queue: Queue, crash: Crash) -> None:
    """Another worker is quarantined for it, and its bell rung again."""
    job = await suspect(queue, crash)
    await queue.worker("dead")
    await queue.worker("w2", slots=1)
    await queue.pass_time(2, "dead", "w2")
    queue.redis.delete(SUSPECTS)
    await queue.given_up("w2")
    await queue.pass_time(10, "w2")
    assert job.id in queue.rung(SUSPECTS)
    await queue.claim(job, "w2")


async def test_a_quarantined_worker_that_drains_is_replaced(queue: Queue, crash: Crash) -> None:
    """Whoever takes no bells is no place for suspects, however long it lives on."""
    job = await suspect(queue, crash)
    await queue.worker("old")
    await queue.pass_time(1, "old")
    await queue.fleet.heartbeat("old", 10, taking=False)
    await queue.worker("new")
    queue.later(1000)
    await queue.fleet.upkeep()
    assert (await queue.beat("new")).quarantined is True
    await queue.claim(job, "new")


async def test_a_quarantined_worker_that_says_nothing_is_replaced_before_its_lease_ends(
    queue: Queue, crash: Crash
) -> None:
    """It may be dead: suspects are not to wait for it, and the silent are not chosen either."""
    job = await suspect(queue, crash)
    await queue.worker("silent")
    await queue.worker("new")
    await queue.pass_time(1, "silent", "new")
    [chosen] = queue.redis.smembers("celeriac:quarantined")
    other = "new" if chosen == "silent" else "silent"
    queue.later(2500)
    await queue.beat(other)
    await queue.fleet.upkeep()
    assert (await queue.beat(other)).quarantined is True
    await queue.claim(job, other)


async def replaced(queue: Queue) -> tuple[str, str]:
    """Who is in quarantine and says nothing, and who is there in its place; the first was heard again just now."""
    names = {await queue.worker("w1"), await queue.worker("w2")}
    await queue.pass_time(1, *names)
    [silent] = queue.redis.smembers("celeriac:quarantined")
    [other] = names - {silent}
    queue.later(2500)
    await queue.beat(other)
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == names
    await queue.beat(silent)
    return silent, other


async def test_of_two_in_quarantine_for_one_place_one_is_handed_back(queue: Queue, crash: Crash) -> None:
    """The silent one is heard again while the suspect waits: everybody else's jobs are not to wait as well."""
    job = await suspect(queue, crash)
    await replaced(queue)
    await queue.fleet.upkeep()
    [stays] = queue.redis.smembers("celeriac:quarantined")
    [back] = {"w1", "w2"} - {stays}
    ordinary = await queue.submit()
    assert queue.rung() == [ordinary.id]
    await queue.claim(ordinary, back)
    await queue.pass_time(2, "w1", "w2")
    assert queue.redis.smembers("celeriac:quarantined") == {stays}
    await queue.claim(job, stays)


async def test_who_runs_others_still_is_handed_back_first(queue: Queue, crash: Crash) -> None:
    """Suspects would wait for them."""
    job = await suspect(queue, crash)
    await queue.worker("w2")
    before = [await queue.claim(await queue.submit(), "w2") for _ in range(2)]
    silent, other = await replaced(queue)
    assert (silent, other) == ("w1", "w2")
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == {"w1"}
    await queue.claim(job, "w1")
    for claim in before:
        await queue.finish(claim)


async def test_who_runs_suspects_is_not_handed_back_before_they_end(queue: Queue, crash: Crash) -> None:
    """They are to have a process of their own until then."""
    jobs = [await queue.submit() for _ in range(3)]
    await crash(*jobs)
    await crash(*jobs)
    silent, other = await replaced(queue)
    claims = [await queue.claim(job, name) for job, name in zip(jobs, (silent, other), strict=False)]
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == {silent, other}
    await queue.finish(claims[1])
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == {silent}
    await queue.claim(jobs[2], silent)


async def test_a_worker_whose_heartbeat_is_overdue_is_quarantined_only_where_no_other_is(
    queue: Queue, crash: Crash
) -> None:
    """It may be dead: one that is busy and alive is the better place."""
    await suspect(queue, crash)
    await queue.worker("idle")
    queue.later(1700)
    await queue.worker("busy")
    await queue.claim(await queue.submit(), "busy")
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == {"busy"}
    await queue.beat("busy", taking=False)
    await queue.fleet.upkeep()
    assert "idle" in queue.redis.smembers("celeriac:quarantined")


async def test_no_suspect_is_rung_for_a_quarantined_worker_that_drains(queue: Queue, crash: Crash) -> None:
    """Nobody would answer."""
    await suspect(queue, crash)
    await queue.worker()
    other = await queue.claim(await queue.submit())
    await queue.pass_time(1, "w1")
    assert (await queue.beat(taking=False)).quarantined is True
    await queue.finish(other)
    assert queue.rung(SUSPECTS) == []


async def test_a_quarantined_worker_that_leaves_is_forgotten(queue: Queue, crash: Crash) -> None:
    """The next one takes its place."""
    job = await suspect(queue, crash)
    await queue.worker("w1")
    await queue.pass_time(1, "w1")
    assert await queue.fleet.leave("w1") is True
    assert queue.redis.smembers("celeriac:quarantined") == set()
    await queue.worker("w2")
    queue.redis.delete(SUSPECTS)
    await queue.pass_time(5, "w2")
    await queue.claim(job, "w2")


async def test_a_run_that_is_broken_off_counts_as_a_crash_of_its_job_alone(queue: Queue) -> None:
    """At last it is a dead letter; one that was asked to stop ends as that. The free slot is the next job's."""
    queue.planted = True
    await queue.worker(slots=1)
    first = await queue.claim(await queue.submit())
    second = await queue.submit()
    assert second.id not in queue.rung()
    queue.redis.hset(f"celeriac:job:{first.id}", "crashes", 4)
    assert await queue.jobs.break_off(first) == "dead"
    assert (await queue.job(first.id)).dead
    assert second.id in queue.rung()
    claim = await queue.claim(second)
    await queue.jobs.cancel(second.id, None)
    assert await queue.jobs.break_off(claim) == "cancelled"
    assert await queue.state(second) == State.CANCELLED


async def test_a_worker_that_drains_is_not_quarantined(queue: Queue, crash: Crash) -> None:
    """However idle it is."""
    job = await suspect(queue, crash)
    await queue.worker("idle")
    await queue.worker("busy")
    other = await queue.claim(await queue.submit(), "busy")
    await queue.fleet.heartbeat("idle", 10, taking=False)
    await queue.fleet.upkeep()
    assert queue.redis.smembers("celeriac:quarantined") == {"busy"}
    await queue.finish(other)
    await queue.claim(job, "busy")


async def test_limits_hold_for_suspects(queue: Queue, crash: Crash) -> None:
    """A tenant's suspects run at most as many at once as its limit says; those of others go on."""
    jobs = [await queue.submit() for _ in range(3)]
    other, reviews = await queue.submit(tenant="b"), [await queue.submit(tenant="b", agent="reviewer") for _ in "12"]
    everybody = [*jobs, other, *reviews]
    await crash(*everybody)
    await crash(*everybody)
    await queue.worker(limits={"t:default": 1, "a:reviewer": 1})
    await queue.pass_time(2, "w1")
    assert queue.rung(SUSPECTS) == [jobs[0].id, other.id, reviews[0].id]
    await queue.finish(await queue.claim(jobs[0]))
    await queue.pass_time(1, "w1")
    assert queue.rung(SUSPECTS)[3:] == [jobs[1].id]


class Living:
    """Workers that take what they may and end it after three seconds."""

    def __init__(self, queue: Queue, **lists: str) -> None:
        self.queue, self.lists = queue, lists
        self.held: dict[str, list[Claim]] = {worker: [] for worker in lists}

    async def for_seconds(self, seconds: int) -> None:
        for second in range(seconds):
            for worker, where in self.lists.items():
                quarantined = (await self.queue.beat(worker)).quarantined
                if second % 3 == 0:
                    for claim in self.held[worker]:
                        await self.queue.finish(claim)
                    self.held[worker] = []
                while len(self.held[worker]) < self.queue.slots[worker]:
                    bell = self.queue.redis.rpop(f"{where}.suspects" if quarantined else where)
                    if not bell:
                        break
                    if claim := await self.queue.try_claim(json.loads(bell)["headers"]["id"], worker):
                        self.held[worker].append(claim)
            self.queue.later(1000)
            await self.queue.fleet.upkeep()


async def test_a_suspect_that_a_limit_holds_back_keeps_no_worker_idle(queue: Queue, crash: Crash) -> None:
    """Its tenant's only job at once runs elsewhere, for long: those of others go on meanwhile, also where one worker is
    all there is. Then it runs."""
    held = await suspect(queue, crash)
    limits = {"t:default": 1}
    await queue.worker("elsewhere", slots=1, queues=("slow",), limits=limits)
    long = await queue.claim(await queue.submit(queue="slow"), "elsewhere")
    await queue.worker("w1", slots=1, limits=limits)
    others = [await queue.submit(tenant="b") for _ in range(5)]
    living = Living(queue, w1="celeriac")
    for _ in range(30):
        await queue.beat("elsewhere")
        await living.for_seconds(1)
        assert not (await queue.beat("w1")).quarantined
    assert {await queue.state(job, "b") for job in others} == {State.SUCCEEDED}
    await queue.finish(long)
    await living.for_seconds(8)
    assert await queue.state(held) == State.SUCCEEDED


@pytest.mark.parametrize("limit", ["t:default", "a:assistant"])
async def test_what_falls_free_of_a_limit_is_kept_for_a_suspect(queue: Queue, crash: Crash, limit: str) -> None:
    """It stands in no line, and would never have its turn beside those that come without end. They go on when it is
    rung for."""
    held = await suspect(queue, crash)
    limits = {limit: 1}
    await queue.worker("elsewhere", slots=1, queues=("slow",), limits=limits)
    await queue.worker("w1", slots=1, limits=limits)
    flood = [await queue.submit(queue="slow", limited=limit.startswith("a:")) for _ in range(40)]
    living = Living(queue, w1="celeriac", elsewhere="slow")
    await living.for_seconds(20)
    assert await queue.state(held) == State.SUCCEEDED
    await living.for_seconds(200)
    assert {await queue.state(job) for job in flood} == {State.SUCCEEDED}


async def test_what_is_kept_for_a_suspect_is_kept_until_a_worker_is_its_own(queue: Queue, crash: Crash) -> None:
    """The one that is chosen has another job to end first, and its tenant's jobs come without end."""
    held = await suspect(queue, crash)
    limits = {"t:default": 1}
    await queue.worker("elsewhere", slots=1, queues=("slow",), limits=limits)
    await queue.worker("w1", slots=2, limits=limits)
    long = await queue.claim(await queue.submit(tenant="b"), "w1")
    flood = [await queue.submit(queue="slow") for _ in range(40)]
    living = Living(queue, elsewhere="slow")
    for _ in range(12):
        await living.for_seconds(1)
        await queue.beat("w1")
    ended = [await queue.state(job) for job in flood].count(State.SUCCEEDED)
    await queue.finish(long)
    both = Living(queue, w1="celeriac", elsewhere="slow")
    both.held["elsewhere"] = living.held["elsewhere"]
    await both.for_seconds(10)
    assert await queue.state(held) == State.SUCCEEDED
    assert ended <= 2, "its tenant's others wait meanwhile"


async def test_a_bell_that_only_a_quarantined_worker_could_answer_holds_up_no_suspect(queue: Queue) -> None:
    """It counts for the limit that the suspect waits for, and each would wait for the other."""
    await queue.worker("w1", slots=1, limits={"t:a": 1})
    first = await queue.submit(tenant="a")
    assert queue.rung() == [first.id]
    queue.redis.delete("celeriac")
    claim = await queue.claim(first)
    others = [await queue.submit(tenant="b") for _ in range(2)]
    second = await queue.submit(tenant="a")
    queue.redis.hset(f"celeriac:job:{first.id}", "crashes", 1)
    await queue.jobs.break_off(claim)
    assert second.id in queue.rung()
    await Living(queue, w1="celeriac").for_seconds(60)
    jobs = [(first, "a"), (second, "a"), *((job, "b") for job in others)]
    assert {await queue.state(job, tenant) for job, tenant in jobs} == {State.SUCCEEDED}


async def test_one_job_that_kills_its_process_ends_dead_and_takes_nobody_along(queue: Queue) -> None:
    """Among 1,000, half of which have made no step when they are taken away; within a few rounds."""
    poison = (await queue.submit()).id
    innocent = [(await queue.submit()).id for _ in range(1000)]
    living: list[str] = []
    deaths = rounds = 0
    while queue.redis.zcard("celeriac:jobs:default:succeeded") + queue.redis.zcard("celeriac:dead:default") < 1001:
        rounds += 1
        assert rounds * 5 < 300, "it took more than minutes"
        while len(living) < 3:
            living.append(await queue.worker(f"w{rounds}.{len(living)}", slots=200))
        await queue.pass_time(5, *living)
        for name in list(living):
            quarantined = (await queue.beat(name)).quarantined
            held: list[Claim] = []
            while bell := queue.redis.rpop(SUSPECTS if quarantined else "celeriac"):
                if claim := await queue.try_claim(json.loads(bell)["headers"]["id"], name):
                    held.append(claim)
            for claim in held[::2]:
                if claim.id != poison:
                    await queue.stores.journal.commit(claim, len(claim.journal), {"text": "a step"}, None)
            if any(claim.id == poison for claim in held):
                living.remove(name)
                deaths += 1
            else:
                for claim in held:
                    await queue.finish(claim)
    assert (await queue.job(poison)).dead
    assert {await queue.state(id) for id in innocent} == {State.SUCCEEDED}
    assert 5 <= deaths <= 7
