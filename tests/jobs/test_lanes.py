"""What the fleet knows of a lane: when it is left alone, who tries it out, and who waits for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from celeriac.errors import (
    BadAnswer,
    BadCredentials,
    BadModelRequest,
    ContentRefused,
    ContextTooLong,
    CostLimit,
    LocalFault,
    ModelError,
    ModelTimeout,
    Overloaded,
    ProviderFailed,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from celeriac.gate.lanes import Caps, asking, heard, spelt, unheard
from celeriac.jobs.journal import Admitted, Closed, Settlement, breaker_changes
from celeriac.jobs.model import Claim, Parked, Place, State
from celeriac.llm.model import Lane, Usage
from tests.jobs.conftest import Queue

LANE = Lane("openai", "llama3:8b")
KEY = f"celeriac:lane:{spelt(LANE)}"
LEASE = timedelta(seconds=30)
DOOR = asking(LANE, (0, 0), Caps(), LEASE.total_seconds())


class Callers:
    """Runs that call one lane."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self.queue, self.claim, self.calls = queue, claim, 0

    async def ask(self, name: str = "") -> Closed | str:
        """The name of a call that may be made, or why not."""
        self.calls += 1
        name = name or f"c{self.calls}"
        said = await self.queue.stores.journal.admit(self.claim, name, 0, {}, DOOR)
        return said if isinstance(said, Closed) else name

    async def hear(self, name: str, error: ModelError | None = None) -> None:
        await self.queue.stores.journal.settle(self.claim, Settlement(name, "released", 0, 0, {}, heard(LANE, error)))

    async def call(self, error: ModelError | None = None) -> None:
        name = await self.ask()
        assert isinstance(name, str), name
        await self.hear(name, error)

    async def fail(self, times: int = 10) -> None:
        for _ in range(times):
            await self.call(ProviderFailed(status=500))

    async def closed(self) -> tuple[float, str] | None:
        """Looked at without asking: for how many seconds, and why."""
        wait = await self.ask()
        if isinstance(wait, Closed):
            return wait.wait.total_seconds(), wait.why
        await self.queue.stores.journal.settle(self.claim, Settlement(wait, "released", 0, 0, {}, unheard(LANE)))
        return None


@pytest.fixture
async def callers(queue: Queue) -> Callers:
    await queue.worker()
    return Callers(queue, await queue.claim(await queue.submit()))


FAILURES = [Overloaded(status=529), ProviderFailed(status=500), ModelTimeout(), Unreachable(), BadAnswer(status=200)]
NO_FAILURES = [
    None,
    LocalFault(),
    BadModelRequest(status=400),
    ContextTooLong(status=400),
    UnknownModel(status=404),
    ContentRefused(status=200),
    BadCredentials("no key is set here", asked=False),
    BadAnswer(status=200, ours=True),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.code)
async def test_a_lane_that_fails_too_often_is_left_alone(callers: Callers, error: ModelError) -> None:
    """From ten failures in a minute on, where half of the calls failed; before that, they say little."""
    for _ in range(10):
        await callers.call()
    for _ in range(9):
        await callers.call(error)
    assert await callers.closed() is None
    await callers.call(error)
    assert await callers.closed() == (10, error.code)


@pytest.mark.parametrize("error", NO_FAILURES, ids=lambda error: (error and error.code) or "answered")
async def test_what_is_no_fault_of_the_lane_does_not_count(callers: Callers, error: ModelError | None) -> None:
    """Our own faults, and requests that no lane would take."""
    for _ in range(30):
        await callers.call(error)
    assert await callers.closed() is None


async def test_few_failures_among_many_calls_are_forgiven(callers: Callers) -> None:
    """And those of more than a minute ago are forgotten."""
    for _ in range(20):
        await callers.call()
    await callers.fail(19)
    assert await callers.closed() is None
    callers.queue.later(61_000)
    await callers.fail(9)
    assert await callers.closed() is None


async def test_one_call_in_the_fleet_tries_a_closed_lane_out(callers: Callers) -> None:
    """When its time is over; the others look again in a second. Answered, it opens the lane for all."""
    await callers.fail()
    callers.queue.later(10_000)
    probe = await callers.ask()
    assert isinstance(probe, str)
    for _ in range(3):
        assert await callers.ask() == Closed(timedelta(seconds=1), "probed")
    assert await callers.ask(probe) == probe, "asked again, it is the same call"
    await callers.hear(probe)
    assert await callers.closed() is None
    callers.queue.later(20_000)
    await callers.fail(9)
    assert await callers.closed() is None, "it begins to count anew"


async def test_a_probe_that_fails_closes_the_lane_for_twice_as_long(callers: Callers) -> None:
    """Up to five minutes."""
    await callers.fail()
    spans = []
    for _ in range(8):
        closed = await callers.closed()
        assert closed is not None
        spans.append(closed[0])
        callers.queue.later(int(closed[0] * 1000))
        await callers.call(ModelTimeout())
    assert spans == [10, 20, 40, 80, 160, 300, 300, 300]


async def test_a_request_at_fault_shows_that_a_lane_is_alive(callers: Callers) -> None:
    """It does not count, and as a probe it opens the lane."""
    await callers.fail()
    callers.queue.later(10_000)
    await callers.call(BadModelRequest(status=400))
    assert await callers.closed() is None


@pytest.mark.parametrize("end", ["local fault", "broken off"])
async def test_a_probe_that_says_nothing_leaves_its_place_to_the_next(callers: Callers, end: str) -> None:
    """Our own fault is neither good nor bad news of the lane."""
    await callers.fail()
    callers.queue.later(10_000)
    probe = await callers.ask()
    assert isinstance(probe, str)
    said = heard(LANE, LocalFault()) if end == "local fault" else unheard(LANE)
    await callers.queue.stores.journal.settle(callers.claim, Settlement(probe, "doubt", 0, 0, {}, said))
    assert isinstance(await callers.ask(), str)


async def test_a_probe_is_a_lease(callers: Callers) -> None:
    """Whoever made it may be dead: after the longest that its call may take, the next one tries. Its late word counts
    no more."""
    await callers.fail()
    callers.queue.later(10_000)
    lost = await callers.ask()
    assert isinstance(lost, str)
    callers.queue.later(int(LEASE.total_seconds() * 1000) - 1)
    assert isinstance(await callers.ask(), Closed)
    callers.queue.later(1)
    assert isinstance(await callers.ask(), str)
    await callers.hear(lost)
    assert isinstance(await callers.ask(), Closed)


@pytest.mark.parametrize("how", ["cancelled", "given back", "given up", "broken off"])
async def test_a_probe_whose_run_is_gone_leaves_its_place_to_the_next(callers: Callers, how: str) -> None:
    """However it went: nothing will be heard of it."""
    queue = callers.queue
    await callers.fail()
    claim = await queue.claim(await queue.submit())
    queue.later(10_000)
    await queue.beat()
    assert isinstance(await queue.stores.journal.admit(claim, "probe", 0, {}, DOOR), Admitted)
    assert isinstance(await callers.ask(), Closed)
    match how:
        case "cancelled":
            await queue.jobs.cancel(claim.id, None)
            await queue.end(claim, state=State.CANCELLED, answer=None)
        case "given back":
            await queue.jobs.give_back(claim)
        case "broken off":
            await queue.jobs.break_off(claim)
        case "given up":
            await queue.worker("w2")
            callers.claim = await queue.claim(await queue.submit(), "w2")
            await queue.given_up("w2")
    assert isinstance(await callers.ask(), str)
    assert queue.redis.hlen("celeriac:probes") == 1


async def test_a_late_refusal_does_not_end_a_probe(callers: Callers) -> None:
    """It is heard; the call that tries the lane out goes on, and is the only one."""
    late = await callers.ask()
    assert isinstance(late, str)
    await callers.fail()
    callers.queue.later(10_000)
    probe = await callers.ask()
    assert isinstance(probe, str)
    await callers.hear(late, RateLimited(status=429, retry_after=3.0))
    callers.queue.later(3000)
    assert isinstance(await callers.ask(), Closed)
    await callers.hear(probe)
    assert await callers.closed() is None


async def test_calls_from_before_a_breaker_closed_do_not_open_it_again(callers: Callers) -> None:
    """They hung for long: what they say is of a time that is over."""
    names = [await callers.ask() for _ in range(20)]
    await callers.fail()
    callers.queue.later(10_000)
    await callers.call()
    callers.queue.later(20_000)
    for name in names:
        assert isinstance(name, str)
        await callers.hear(name, ModelTimeout())
    assert await callers.closed() is None


async def test_a_provider_that_fails_and_asks_for_time_fails(callers: Callers) -> None:
    """It gets its time, and its breaker opens all the same."""
    for _ in range(10):
        await callers.call(Overloaded(status=503, retry_after=3.0))
        callers.queue.later(3000)
    assert callers.queue.redis.hget(KEY, "opened") == "1"
    callers.queue.later(10_000)
    await callers.call(Overloaded(status=503, retry_after=90.0))
    assert await callers.closed() == (90, "overloaded"), "longer than the breaker would stay open"


async def test_a_clock_that_goes_back_keeps_no_probe(callers: Callers) -> None:
    """Whoever made it may be dead: it counts for as long as its call may take."""
    await callers.fail()
    callers.queue.later(10_000)
    await callers.ask()
    callers.queue.later(-900_000)
    callers.queue.redis.hset(KEY, "shut", callers.queue.now)
    assert isinstance(await callers.ask(), Closed)
    callers.queue.later(int(LEASE.total_seconds() * 1000))
    assert isinstance(await callers.ask(), str)


async def test_old_news_does_not_touch_a_breaker_that_is_open(callers: Callers) -> None:
    """Calls that were under way when it opened."""
    names = [await callers.ask() for _ in range(30)]
    await callers.fail()
    callers.queue.later(4000)
    for name, error in zip(names, [None, Unreachable(), BadModelRequest(status=400)] * 10, strict=True):
        assert isinstance(name, str)
        await callers.hear(name, error)
    assert await callers.closed() == (6, "provider_failed")


@pytest.mark.parametrize("error", [QuotaExhausted(status=429), BadCredentials(status=401)], ids=lambda e: e.code)
async def test_no_money_and_no_key_close_a_lane_at_once(callers: Callers, error: ModelError) -> None:
    """For a minute, then one call tries."""
    await callers.call(error)
    assert await callers.closed() == (60, error.code)
    callers.queue.later(60_000)
    await callers.call()
    assert await callers.closed() is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimited(status=429, retry_after=7.0), 7),
        (RateLimited(status=429), 2),
        (RateLimited(status=429, retry_after=0.0), 2),
        (RateLimited(status=429, retry_after=0.02), 1),
        (Overloaded(status=529, retry_after=3.5), 3.5),
        (RateLimited(status=429, retry_after=3600.0), 3600),
    ],
)
async def test_a_lane_that_asks_for_time_gets_it(callers: Callers, error: ModelError, seconds: float) -> None:
    """From the whole fleet, and it is no failure: then it may be asked again."""
    await callers.call(error)
    assert await callers.closed() == (seconds, error.code)
    callers.queue.later(int(seconds * 1000))
    assert isinstance(await callers.ask(), str)


async def test_the_longest_time_that_was_asked_for_counts(callers: Callers) -> None:
    """Calls under way each bring an answer of their own."""
    names = [await callers.ask() for _ in range(3)]
    for name, seconds in zip(names, [3.0, 9.0, 1.0], strict=True):
        assert isinstance(name, str)
        await callers.hear(name, RateLimited(status=429, retry_after=seconds))
    assert await callers.closed() == (9, "rate_limited")


async def test_what_a_call_says_counts_once(callers: Callers) -> None:
    """A settlement whose answer was lost is sent again."""
    for i in range(2):
        name = await callers.ask()
        assert isinstance(name, str)
        for _ in range(9):
            await callers.hear(name, Unreachable())
        assert await callers.closed() is None, i


async def test_a_clock_that_goes_back_closes_no_lane_for_longer(callers: Callers) -> None:
    """The time that is stored is from another clock."""
    await callers.call(RateLimited(status=429, retry_after=7.0))
    callers.queue.later(-900_000)
    assert await callers.closed() == (7, "rate_limited")
    callers.queue.later(7000)
    assert await callers.closed() is None


@pytest.mark.parametrize("what", ["string", "nonsense"])
async def test_a_lane_of_which_nonsense_is_stored_may_be_asked(callers: Callers, what: str) -> None:
    """To leave it alone is a courtesy; no call and no money is lost over it."""
    if what == "string":
        callers.queue.redis.set(KEY, "nonsense")
    else:
        fields = "shut", "opened", "slot0", "probe_until", "requests", "own_tokens", "ramp", "of_input"
        callers.queue.redis.hset(KEY, mapping=dict.fromkeys(fields, "nonsense"))
    for _ in range(3):
        await callers.call()
    await callers.fail(10)
    assert await callers.closed() == (10, "provider_failed")


async def test_how_a_breaker_changes_is_said_once(callers: Callers, capsys: pytest.CaptureFixture[str]) -> None:
    """By the worker whose call changed it; and it is kept for whoever looks at it later."""
    await callers.fail()
    callers.queue.later(10_000)
    await callers.call()
    said = capsys.readouterr().out
    assert [said.count(f"breaker_{how}") for how in ("opened", "half_open", "closed")] == [1, 1, 1]
    kept = [entry for _, entry in callers.queue.redis.xrange("celeriac:lane_changes")]
    assert kept == [
        {"lane": spelt(LANE), "state": "open", "why": "provider_failed", "ms": "10000"},
        {"lane": spelt(LANE), "state": "half_open", "why": "", "ms": "0"},
        {"lane": spelt(LANE), "state": "closed", "why": "", "ms": "0"},
    ]


async def wait_for_lane(queue: Queue, *, only: bool = True, **facts: Any) -> str:
    job = await queue.submit(**facts)
    parked = await queue.jobs.wait_for_lane(await queue.claim(job), spelt(LANE), timedelta(seconds=10), only=only)
    assert isinstance(parked, Parked)
    return job.id


async def test_a_job_waits_for_its_lane_outside_every_slot(callers: Callers) -> None:
    """It says what it waits for and until when, and it is no try of its own."""
    queue = callers.queue
    await callers.fail()
    job = await wait_for_lane(queue)
    found = await queue.job(job)
    assert (found.state, found.reason) == (State.PARKED, "lane_closed")
    assert found.resume_at is not None
    assert found.resume_at.timestamp() == queue.now / 1000 + 10
    assert queue.record(job)["retries"] == "0"
    await queue.pass_time(9, "w1")
    assert await queue.state(job) == State.PARKED
    queue.later(1000)
    await queue.fleet.upkeep()
    assert queue.record(job)["place"] == Place.RUNG
    assert "lane" not in queue.record(job)


async def test_the_oldest_tries_the_lane_out_and_the_others_follow_once_it_is_open(callers: Callers) -> None:
    """In their order, few at first: ten thousand that wait do not rush at it."""
    queue = callers.queue
    await callers.fail()
    jobs = [await wait_for_lane(queue) for _ in range(4)]

    async def ready() -> list[str]:
        return [job for job in jobs if queue.record(job)["place"] == Place.RUNG]

    queue.later(10_000)
    await queue.fleet.upkeep()
    assert await ready() == jobs[:1]
    probe = await queue.claim(jobs[0])
    assert isinstance(await queue.stores.journal.admit(probe, "p", 0, {}, DOOR), Admitted)
    queue.later(1000)
    await queue.fleet.upkeep()
    assert await ready() == [], "while it is tried out, nobody else is woken"
    await queue.end(probe, settlement=Settlement("p", "settled", 0, 0, {}, heard(LANE, None)))
    for seconds, woken in ((0, 1), (1, 2), (1, 3)):
        queue.later(seconds * 1000)
        await queue.fleet.upkeep()
        assert await ready() == jobs[1 : 1 + woken]
    assert not queue.redis.exists("celeriac:lanes")


async def test_a_job_with_other_lanes_looks_around_after_a_while(callers: Callers) -> None:
    """The one that it waits for may stay closed for long, and another one may be free: after 15 s, 30 s, ... it asks
    them. It keeps its place in the line."""
    queue = callers.queue
    await callers.call(RateLimited(status=429, retry_after=3600.0))
    alone, job = await wait_for_lane(queue), await wait_for_lane(queue, only=False)
    for seconds in (15, 30, 60):
        await queue.pass_time(seconds - 5, "w1")
        assert queue.record(job)["place"] == Place.PARKED
        await queue.pass_time(5, "w1")
        assert queue.record(job)["place"] == Place.RUNG
        claim = await queue.claim(job)
        assert claim.waited_for_lanes != 0
        await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=10), only=False)
    assert queue.record(alone)["place"] == Place.PARKED
    assert queue.redis.zrange(f"celeriac:lane_line:{spelt(LANE)}", 0, -1) == [alone, job]


async def test_tenants_take_turns_in_a_lanes_line(callers: Callers) -> None:
    """And who is in a hurry goes before the others of its tenant."""
    queue = callers.queue
    await callers.call(RateLimited(status=429, retry_after=10.0))
    flood = [await wait_for_lane(queue) for _ in range(5)]
    other = [await wait_for_lane(queue, tenant="b") for _ in range(2)]
    urgent = await wait_for_lane(queue, tenant="c", priority="high")
    line = queue.redis.zrange(f"celeriac:lane_line:{spelt(LANE)}", 0, -1)
    assert line.index(urgent) < line.index(flood[1])
    assert line.index(other[0]) < line.index(flood[2])
    assert line.index(other[1]) < line.index(flood[3])


async def test_no_more_are_woken_than_could_call_soon(queue: Queue) -> None:
    """A few times as many as there are slots: ten thousand are not claimed in vain where the lane closes again. Who has
    called makes room, and so does who has not for ten seconds."""
    await queue.worker("w1", slots=1)
    jobs = [await wait_for_lane(queue) for _ in range(30)]

    async def woken() -> int:
        await queue.pass_time(1, "w1")
        return sum(queue.record(job)["place"] != Place.PARKED for job in jobs)

    assert [await woken() for _ in range(3)] == [12] * 3
    claim = await queue.claim(jobs[0])
    assert isinstance(await queue.stores.journal.admit(claim, "c", 0, {}, DOOR), Admitted)
    assert await woken() == 13
    await queue.pass_time(5, "w1")
    assert await woken() > 20


@pytest.mark.parametrize("key", ["lane_line", "lane_turns"])
async def test_a_job_can_wait_in_a_line_of_which_nonsense_is_stored(callers: Callers, key: str) -> None:
    """It has let go of its slot, and must not be nowhere."""
    queue = callers.queue
    queue.redis.set(f"celeriac:{key}:{spelt(LANE)}", "nonsense")
    await callers.call(RateLimited(status=429, retry_after=3.0))
    job = await wait_for_lane(queue)
    assert queue.record(job)["place"] == Place.PARKED
    await queue.pass_time(4, "w1")
    assert queue.record(job)["place"] == Place.RUNG


async def test_a_line_of_which_nonsense_is_stored_keeps_no_other_waiting(callers: Callers) -> None:
    queue = callers.queue
    queue.planted = True
    job = await wait_for_lane(queue)
    for lane in ("openai/a", "openai/z"):
        queue.redis.set(f"celeriac:lane_line:{lane}", "nonsense")
        queue.redis.sadd("celeriac:lanes", lane)
    await queue.fleet.upkeep()
    assert queue.record(job)["place"] == Place.RUNG
    assert queue.redis.smembers("celeriac:lanes") == set()
    assert queue.redis.zrange("celeriac:broken", 0, -1) == ["openai/a in lanes", "openai/z in lanes"]


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_job_that_waits_for_a_lane_can_be_stopped(callers: Callers, how: str) -> None:
    """At once; nothing of it stays in the line."""
    queue = callers.queue
    await callers.call(RateLimited(status=429, retry_after=600.0))
    job = await wait_for_lane(queue, expires_in=timedelta(seconds=20) if how == "expired" else None)
    if how == "cancelled":
        assert await queue.jobs.cancel(job, None) == State.CANCELLED
    else:
        await queue.pass_time(20, "w1")
    assert await queue.state(job) == how
    assert not queue.redis.exists(f"celeriac:lane_line:{spelt(LANE)}")


async def test_a_job_that_waits_for_its_lane_keeps_its_context(callers: Callers) -> None:
    """It is in a line of its own, and nobody takes it for one that went astray: who comes later waits behind it."""
    queue = callers.queue
    await callers.fail()
    first = await wait_for_lane(queue, context_id="trip")
    second = await queue.submit(context_id="trip")
    assert second.waits_for == first
    await queue.pass_time(5, "w1")
    assert (await queue.submit(context_id="trip")).waits_for == first


async def test_a_lane_is_tried_out_however_long_its_line_is(callers: Callers) -> None:
    """The one that tries it out waits for nobody: all the others wait for it."""
    queue = callers.queue
    door = asking(LANE, (0, 0), Caps(requests=60), LEASE.total_seconds())
    await callers.fail()
    jobs = [await wait_for_lane(callers.queue) for _ in range(80)]
    queue.later(10_000)
    await queue.beat()
    await queue.fleet.upkeep()
    claim = await queue.claim(jobs[0])
    assert isinstance(await queue.stores.journal.admit(claim, "p", 0, {}, door), Admitted)


async def test_another_one_tries_a_lane_out_where_the_first_did_not_come(callers: Callers) -> None:
    """After five seconds; until then nobody is woken in vain."""
    queue = callers.queue
    await callers.fail()
    jobs = [await wait_for_lane(callers.queue) for _ in range(3)]
    queue.later(10_000)
    counts = []
    for _ in range(7):
        await queue.beat()
        await queue.fleet.upkeep()
        counts.append(sum(queue.record(job)["place"] != Place.PARKED for job in jobs))
        queue.later(1000)
    assert counts == [1, 1, 1, 1, 1, 2, 2]


async def test_those_who_wait_for_a_lane_are_woken_though_no_slot_is_free(callers: Callers) -> None:
    """While other jobs are ready none ever is. From then on they are ready like any other."""
    queue = callers.queue
    jobs = [await wait_for_lane(callers.queue) for _ in range(20)]
    others = [await queue.submit(agent="other") for _ in range(40)]
    for other in others[:9]:
        await queue.claim(other)
    await queue.pass_time(1, "w1")
    assert [queue.record(job)["place"] for job in jobs] == [Place.READY] * 20


async def test_a_lane_is_woken_for_whatever_the_others_need(callers: Callers) -> None:
    """One with a long line before it keeps it neither from being tried out nor from being asked."""
    queue, lanes = callers.queue, ("anthropic/a", "openai/b")
    for _ in range(200):
        await queue.jobs.wait_for_lane(await queue.claim(await queue.submit()), lanes[0], timedelta(0))
    claim = await queue.claim(await queue.submit())
    await queue.jobs.wait_for_lane(claim, lanes[1], timedelta(0))
    await callers.fail()
    job = await wait_for_lane(callers.queue)
    await queue.pass_time(10, "w1")
    await queue.pass_time(1, "w1")
    assert Place.PARKED not in {queue.record(id)["place"] for id in (claim, job)}


async def test_a_line_is_served_in_its_order(callers: Callers) -> None:
    """However long it is."""
    queue = callers.queue
    jobs = [await wait_for_lane(callers.queue) for _ in range(120)]
    served: list[str] = []
    for _ in range(20):
        await queue.pass_time(1, "w1")
        while rung := [job for job in jobs if queue.record(job)["place"] == Place.RUNG and job not in served]:
            claim = await queue.claim(rung[0])
            await queue.stores.journal.admit(claim, "c", 0, {}, DOOR)
            await queue.finish(claim)
            served.append(rung[0])
    assert len(served) == 120
    assert served == jobs


async def test_each_that_tries_a_lane_out_in_vain_lets_another_one_try_next(callers: Callers) -> None:
    """It is a try of its own, and the first in the line does not pay for all."""
    queue = callers.queue
    await callers.fail()
    jobs = [await wait_for_lane(callers.queue) for _ in range(3)]
    tried = []
    for wait in (10, 20, 40):
        await queue.pass_time(wait, "w1")
        [job] = [job for job in jobs if queue.record(job)["place"] == Place.RUNG]
        claim = await queue.claim(job)
        await queue.stores.journal.admit(claim, f"p{wait}", 0, {}, DOOR)
        said = heard(LANE, ProviderFailed(status=500))
        await queue.stores.journal.settle(claim, Settlement(f"p{wait}", "released", 0, 0, {}, said))
        await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=wait))
        tried.append(job)
    assert tried == jobs


async def test_those_who_cannot_run_do_not_hide_those_behind_them(callers: Callers) -> None:
    """However many they are: nobody serves their queue."""
    queue = callers.queue
    await queue.worker("s1", queues=("slow",), slots=500)
    for _ in range(450):
        await queue.jobs.wait_for_lane(
            await queue.claim(await queue.submit(queue="slow"), "s1"), spelt(LANE), timedelta(0)
        )
    await queue.fleet.leave("s1")
    job = await wait_for_lane(callers.queue)
    await queue.pass_time(1, "w1")
    await queue.pass_time(1, "w1")
    await queue.pass_time(1, "w1")
    assert queue.record(job)["place"] == Place.RUNG


async def test_all_lanes_have_their_turn(callers: Callers) -> None:
    """Also where one round is not long enough for them; each script looks at one of them."""
    queue = callers.queue
    jobs = []
    for number in range(250):
        claim = await queue.claim(await queue.submit())
        await queue.jobs.wait_for_lane(claim, f"openai/m{number}", timedelta(0))
        jobs.append(claim.id)
    left = []
    for _ in range(3):
        await queue.fleet.upkeep()
        left.append(sum(queue.record(job)["place"] == Place.PARKED for job in jobs))
    assert left == [150, 50, 0]


async def test_what_was_taken_for_a_job_is_for_its_own_lane(callers: Callers) -> None:
    """Another one that it asks first uses nothing of it up, nor its place in the line, nor how long it has waited."""
    queue, other = callers.queue, asking(Lane("anthropic", "x"), (0, 0), Caps(), 9.0)
    door = asking(LANE, (0, 0), Caps(requests=60), 9.0)
    for _ in range(60):
        await queue.stores.journal.admit(callers.claim, f"n{_}", 0, {}, door)
    jobs = [await wait_for_lane(callers.queue, only=False) for _ in range(20)]
    await queue.pass_time(1, "w1")
    claim = await queue.claim(jobs[0])
    waited = {name: value for name, value in queue.record(claim).items() if name.startswith("lane_")}
    assert waited
    assert isinstance(await queue.stores.journal.admit(claim, "other", 0, {}, other), Admitted)
    assert queue.record(claim).items() >= waited.items()
    assert isinstance(await queue.stores.journal.admit(claim, "own", 0, {}, door), Admitted)
    await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=1), only=False)
    assert queue.redis.zrank(f"celeriac:lane_line:{spelt(LANE)}", claim.id) == 0


async def test_a_job_has_waited_for_an_answer_until_it_has_one(callers: Callers) -> None:
    """Each step begins anew; so does a job that is started again."""
    queue = callers.queue
    job = await wait_for_lane(callers.queue)
    await queue.pass_time(1, "w1")
    claim = await queue.claim(job)
    await queue.stores.journal.admit(claim, "c", 0, {}, DOOR)
    assert queue.record(job)["lane_since"]
    await queue.stores.journal.commit(claim, 0, {}, Settlement("c", "settled", 0, 0, {}))
    assert not any(name.startswith("lane_") for name in queue.record(job))
    await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(0))
    await queue.pass_time(1, "w1")
    await queue.end(await queue.claim(job), state=State.FAILED, answer=None)
    await queue.jobs.replay(job, "default")
    assert queue.record(job).keys().isdisjoint({"lane_since", "lane_waits", "lane_place", "woken"})


async def test_the_same_call_is_admitted_as_it_was(callers: Callers) -> None:
    """Whatever was learned of its lane since: what it is expected to use is corrected when it is settled."""
    queue, door = callers.queue, asking(LANE, (1000, 1000), Caps(), 9.0)
    first = await queue.stores.journal.admit(callers.claim, "a", 0, {"lane": "x"}, door)
    await queue.stores.journal.admit(callers.claim, "b", 0, {}, door)
    says = heard(LANE, most=(1000, 1000), took=(500, 500), usage=Usage(input=10, output=10))
    await queue.stores.journal.settle(callers.claim, Settlement("b", "settled", 0, 0, {}, says))
    assert first == Admitted((500, 500), 0)
    assert await queue.stores.journal.admit(callers.claim, "a", 0, {"lane": "x"}, door) == first
    assert await queue.stores.journal.admit(callers.claim, "c", 0, {}, door) == Admitted((10, 10))


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        (f"celeriac:lane_turns:{spelt(LANE)}", "default", "abc"),
        ("celeriac:job:{id}", "lane_waits", "abc"),
        ("celeriac:job:{id}", "lane_since", "abc"),
        ("celeriac:job:{id}", "lane_place", f"{spelt(LANE)} 1.2.3"),
        ("celeriac:lanes", "no", "set"),
    ],
)
async def test_a_job_waits_whatever_is_stored_of_its_waiting(
    callers: Callers, key: str, field: str, value: str
) -> None:
    """It lets go of its slot and stands in the line: it is never nowhere."""
    queue = callers.queue
    claim = await queue.claim(await queue.submit())
    queue.redis.hset(key.format(id=claim.id), field, value)
    await callers.call(RateLimited(status=429, retry_after=3.0))
    assert isinstance(await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=3)), Parked)
    await queue.pass_time(5, "w1")
    assert queue.record(claim)["place"] == Place.RUNG


FAR = "9" * 30
SENSELESS: dict[str, dict[str, str]] = {
    "shut without why": {"shut": "1002000", "span": "5000"},
    "shut for ever": {"shut": FAR, "span": FAR},
    "shut until infinity": {"shut": "inf", "span": "nan"},
    "tried out for ever": {"opened": "1", "probe_until": FAR, "probe_ms": FAR},
    "tried out until infinity": {"opened": "1", "probe_until": "inf", "probe_ms": "inf"},
    "no number of openings": {"opened": "nan"},
    "empty for ever": {"requests": "60 60000 -99999999999999 1000000 1000000"},
    "of a rate without bounds": {"requests": f"{FAR} 60000 0.0 1000000 1000000"},
    "a ramp from another time": {"ramp": f"1 1 0 {FAR} {FAR}"},
    "expected to use all there is": {"of_input": "nan", "of_output": "1e300"},
    "counted without bounds": {"slot0": f"100 {FAR} 5"},
    "closed in another time": {"closed": "inf"},
}


@pytest.mark.parametrize("stored", SENSELESS.values(), ids=SENSELESS)
async def test_what_is_stored_of_a_lane_is_believed_within_bounds(callers: Callers, stored: dict[str, str]) -> None:
    """Within an hour it may be asked, and looked at before."""
    queue = callers.queue
    queue.planted = True
    queue.redis.hset(KEY, mapping=stored)
    door = asking(LANE, (1000, 1000), Caps(), LEASE.total_seconds())
    for number in range(75):
        await queue.stores.lanes.look([LANE])
        if isinstance(await queue.stores.journal.admit(callers.claim, f"n{number}", 0, {}, door), Admitted):
            break
        queue.later(60_000)
        await queue.worker("w1")
    else:
        pytest.fail("the lane stayed closed")
    assert len((await queue.job(callers.claim.id)).calls) == 1


@pytest.mark.parametrize("what", ["left alone", "of a slow rate", "tried out"])
async def test_no_lane_stays_closed_for_longer_than_an_hour(callers: Callers, what: str) -> None:
    """Though numbers are stored that make sense, and say ten."""
    queue, hours = callers.queue, 36_000_000
    queue.planted = True
    stored = {
        "left alone": {"shut": queue.now + hours, "span": hours},
        "of a slow rate": {"requests": f"1 {hours} 0.0 {queue.now} {queue.now}"},
        "tried out": {"opened": 1, "probe_until": queue.now + hours, "probe_ms": hours},
    }
    queue.redis.hset(KEY, mapping=stored[what])
    wait = await callers.closed()
    assert wait is not None
    assert wait[0] == (1 if what == "tried out" else 3600), "who tries it out may say so at any moment"
    queue.later(3_600_000)
    await queue.worker("w1")
    assert await callers.closed() is None


async def test_nobody_minds_what_is_stored_of_probes(callers: Callers) -> None:
    """A job ends, whatever it is, and the next one tries the lane out."""
    queue = callers.queue
    queue.planted = True
    queue.redis.set("celeriac:probes", "nonsense")
    await callers.fail()
    queue.later(10_000)
    await queue.beat()
    claim = await queue.claim(await queue.submit())
    await queue.stores.journal.admit(claim, "p", 0, {}, DOOR)
    queue.redis.delete("celeriac:probes")
    queue.redis.set("celeriac:probes", "nonsense")
    assert (await queue.end(claim)).state == State.SUCCEEDED


async def test_a_job_with_one_lane_has_nothing_to_look_for_before_it_opens(callers: Callers) -> None:
    """It does not come by in vain, however long that is."""
    queue = callers.queue
    claim = await queue.claim(await queue.submit())
    await callers.call(RateLimited(status=429, retry_after=3600.0))
    await queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=3600))
    assert queue.redis.zscore("celeriac:parked", claim.id) == queue.now + 3_600_000


async def test_an_end_that_is_written_again_says_nothing_more_of_its_lane(callers: Callers) -> None:
    queue = callers.queue
    claim = await queue.claim(await queue.submit())
    await queue.stores.journal.admit(claim, "c", 0, {}, DOOR)
    said = Settlement("c", "released", 0, 0, {}, heard(LANE, ProviderFailed(status=500)))
    for _ in range(12):
        await queue.end(claim, state=State.FAILED, answer=None, settlement=said)
    assert await callers.closed() is None


async def test_what_a_newer_release_owns_stays_in_its_line(callers: Callers) -> None:
    """Here nobody knows what it waits for."""
    queue = callers.queue
    job = await wait_for_lane(callers.queue)
    queue.planted = True
    queue.redis.hset(f"celeriac:job:{job}", "place", "dreaming")
    await queue.pass_time(2, "w1")
    assert queue.redis.zrange(f"celeriac:lane_line:{spelt(LANE)}", 0, -1) == [job]
    assert not queue.redis.exists("celeriac:broken")


async def test_how_calls_of_a_lane_end_is_counted_by_the_hour(callers: Callers) -> None:
    """Answers with how long they took, failures by their code; each once, and what says nothing not at all."""
    other = Lane("openai", "other")
    for seconds in (0.0, 0.4, 0.4, 2.0):
        name = await callers.ask()
        assert isinstance(name, str)
        said = Settlement(name, "released", 0, 0, {}, heard(LANE, seconds=seconds))
        for _ in range(2):
            await callers.queue.stores.journal.settle(callers.claim, said)
    await callers.call(RateLimited(status=429, retry_after=0.001))
    callers.queue.later(3_600_000)
    await callers.call(BadModelRequest(status=400))
    assert await callers.closed() is None
    [ends, nothing] = await callers.queue.stores.lanes.ends([LANE, other], 2)
    assert (ends.answered, ends.errors) == (4, {"rate_limited": 1, "bad_request": 1})
    median, longest = ends.within(0.5), ends.within(1)
    assert median is not None
    assert longest is not None
    assert 0.4 <= median < 0.5
    assert 2 <= longest < 2.5
    assert (nothing.answered, nothing.errors, nothing.within(0.5)) == (0, {}, None)
    [latest] = await callers.queue.stores.lanes.ends([LANE], 1)
    assert (latest.answered, latest.errors) == (0, {"bad_request": 1})


async def test_counts_of_a_lane_that_make_no_sense_are_begun_anew(callers: Callers) -> None:
    """What is planted there keeps no answer from being settled."""
    callers.queue.redis.rpush(f"celeriac:lane_calls:{spelt(LANE)}:0", "nonsense")
    assert (await callers.queue.stores.lanes.ends([LANE], 1))[0].answered == 0
    await callers.call()
    assert (await callers.queue.stores.lanes.ends([LANE], 1))[0].answered == 1


async def test_a_late_refusal_changes_nothing_of_an_open_breaker(callers: Callers) -> None:
    """It was sent before."""
    late = await callers.ask()
    assert isinstance(late, str)
    await callers.fail()
    await callers.hear(late, BadCredentials(status=401))
    assert await callers.closed() == (10, "provider_failed")


async def test_a_clock_that_goes_back_keeps_no_lane_from_being_tried_out(callers: Callers) -> None:
    """Nor what was promised to those who were woken."""
    queue = callers.queue
    await callers.fail()
    jobs = [await wait_for_lane(callers.queue) for _ in range(3)]
    await queue.pass_time(10, "w1")
    queue.later(-900_000)
    queue.redis.hset(KEY, "shut", queue.now)
    await queue.beat()
    await queue.fleet.upkeep()
    assert sum(queue.record(job)["place"] != Place.PARKED for job in jobs) == 2


async def test_slots_of_a_worker_that_takes_nothing_do_not_count(queue: Queue) -> None:
    """It stops: nobody is woken for what it might have run."""
    await queue.worker("w1", slots=100)
    jobs = [await wait_for_lane(queue) for _ in range(40)]
    await queue.worker("w2", slots=1)
    await queue.beat("w1", taking=False)
    await queue.fleet.upkeep()
    assert sum(queue.record(job)["place"] != Place.PARKED for job in jobs) == 12


async def test_who_waits_again_goes_before_nobody(callers: Callers) -> None:
    """That it was woken before counts no more: it would pass by all who wait."""
    job = await wait_for_lane(callers.queue)
    await callers.queue.pass_time(1, "w1")
    claim = await callers.queue.claim(job)
    assert "woken" in callers.queue.record(job)
    await callers.queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=9))
    assert "woken" not in callers.queue.record(job)


async def over(queue: Queue, claim: Claim, call: str, asked: int, cost: int, *, strict: bool = False) -> int:
    """A call for which so much is asked, and that costs so much. Answers its bound."""
    said = await queue.stores.journal.admit(claim, call, asked, {}, DOOR)
    assert isinstance(said, Admitted)
    says = heard(LANE, over=-(-1000 * cost // asked) if cost > said.bound else 0, strict=strict)
    await queue.stores.journal.settle(claim, Settlement(call, "settled", said.bound, cost, {}, says))
    return said.bound


async def test_a_call_over_its_bound_raises_those_that_follow(callers: Callers) -> None:
    """By the ratio, of this lane alone. Calls that overrun together raise it once; a smaller overrun lowers nothing."""
    queue, claim = callers.queue, callers.claim
    together = [await queue.stores.journal.admit(claim, name, 1000, {}, DOOR) for name in ("a", "b")]
    assert [said.bound for said in together if isinstance(said, Admitted)] == [1000, 1000]
    for name, cost in (("a", 2500), ("b", 1500)):
        says = heard(LANE, over=cost)
        await queue.stores.journal.settle(claim, Settlement(name, "settled", 1000, cost, {}, says))
    assert await over(queue, claim, "c", 2000, 5000) == 5000
    assert await over(queue, claim, "d", 1000, 2600) == 2500
    assert await over(queue, claim, "e", 1000, 100) == 2600
    other = asking(Lane("openai", "other"), (0, 0), Caps(), 9.0)
    said = await queue.stores.journal.admit(claim, "f", 1000, {}, other)
    assert isinstance(said, Admitted)
    assert said.bound == 1000
    again = await queue.stores.journal.admit(claim, "f", 7000, {}, DOOR)
    assert again == said, "the same call gets the same answer"
    [known] = await queue.stores.lanes.look([LANE])
    assert (known.over, known.wait) == (2.6, timedelta(0))


async def test_a_raised_bound_is_what_a_cap_is_compared_with(callers: Callers) -> None:
    """And what is in doubt if the run dies."""
    queue, claim = callers.queue, callers.claim
    await over(queue, claim, "a", 1000, 3000)
    with pytest.raises(CostLimit):
        await queue.stores.journal.admit(claim, "b", 1000, {}, DOOR, cap=5999)
    await queue.stores.journal.admit(claim, "b", 1000, {}, DOOR, cap=6000)
    await queue.jobs.give_back(claim)
    assert [(call.stands, call.nanos) for call in (await queue.job(claim.id)).calls] == [
        ("settled", 3000),
        ("doubt", 3000),
    ]


async def test_a_strict_lane_is_closed_by_an_overrun_until_an_operator_opens_it(callers: Callers) -> None:
    """However long that takes. Its jobs wait in its line meanwhile, and go on when it is open, at bounds of its own."""
    queue = callers.queue
    await over(queue, callers.claim, "a", 1000, 1000, strict=True)
    assert await callers.closed() is None, "to cost as much as its bound is no overrun"
    await over(queue, callers.claim, "b", 1000, 1001, strict=True)
    assert await callers.closed() == (60, "overrun")
    job = await wait_for_lane(queue)
    await queue.pass_time(120, "w1")
    assert await queue.state(job) == State.PARKED
    queue.later(2 * 86_400_000)
    assert await callers.closed() == (60, "overrun")
    [change] = await queue.stores.lanes.changes(9)
    assert (change.state, change.why, change.wait) == ("open", "overrun", timedelta(0))
    assert await queue.stores.lanes.open(LANE) == "closed"
    assert await queue.stores.lanes.open(LANE) == ""
    await queue.pass_time(5, "w1")
    assert queue.record(job)["place"] == Place.RUNG
    assert await over(queue, callers.claim, "c", 1000, 10) == 1000


async def test_that_an_operator_opened_a_lane_is_told(callers: Callers, capsys: pytest.CaptureFixture[str]) -> None:
    """In its changes and the log at once, and by the next call of it in the metrics of a worker: once in the fleet."""
    queue, claim, lanes = callers.queue, callers.claim, callers.queue.stores.lanes
    await over(queue, claim, "a", 1000, 2500, strict=True)
    assert await lanes.overran() == {LANE}
    assert await lanes.open(LANE) == "closed"
    assert await lanes.overran() == set()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "lane_opened" in line]
    assert f"lane={LANE} " in line
    [newest, _] = await lanes.changes(9)
    assert (newest.lane, newest.state, newest.why, newest.wait) == (LANE, "closed", "operator", timedelta(0))
    counted = breaker_changes[str(LANE), "closed"]
    for _ in range(3):
        await callers.call()
    assert breaker_changes[str(LANE), "closed"] == counted + 1
    assert capsys.readouterr().out.count("breaker_closed") == 1
    assert len(await lanes.changes(9)) == 2


async def test_a_lane_that_is_closed_again_is_not_told_of_as_open(callers: Callers) -> None:
    """A call that was under way cost more than its bound too."""
    queue, claim = callers.queue, callers.claim
    under_way = [await callers.ask(name) for name in ("b", "c")]
    await over(queue, claim, "a", 1000, 2500, strict=True)
    await queue.stores.lanes.open(LANE)
    counted = breaker_changes[str(LANE), "closed"]
    says = heard(LANE, over=2500, strict=True)
    await queue.stores.journal.settle(claim, Settlement("b", "settled", 0, 5, {}, says))
    await callers.hear("c")
    assert under_way == ["b", "c"]
    assert breaker_changes[str(LANE), "closed"] == counted
    assert [change.state for change in await queue.stores.lanes.changes(9)] == ["open", "closed", "open"]


async def test_a_lane_whose_breaker_opened_is_not_told_of_as_open(callers: Callers) -> None:
    """Before anybody heard that the operator opened it. It is told once it works again."""
    queue, claim = callers.queue, callers.claim
    late = await callers.ask()
    assert isinstance(late, str)
    await callers.fail(9)
    await over(queue, claim, "a", 1000, 2500, strict=True)
    await queue.stores.lanes.open(LANE)
    counted = breaker_changes[str(LANE), "closed"]
    await callers.fail(1)
    await callers.hear(late)
    assert await callers.closed() == (10, "provider_failed")
    assert breaker_changes[str(LANE), "closed"] == counted
    queue.later(10_000)
    await callers.call()
    await callers.call()
    assert breaker_changes[str(LANE), "closed"] == counted + 1


async def test_an_operator_does_not_open_the_breaker_of_a_lane_that_fails(
    callers: Callers, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that was under way when it opened cost more than its bound: that alone is put right, and told so."""
    queue, lanes = callers.queue, callers.queue.stores.lanes
    under_way = [await callers.ask(name) for name in ("b", "c")]
    await callers.fail()
    says = heard(LANE, over=2500, strict=True)
    await queue.stores.journal.settle(callers.claim, Settlement("b", "settled", 0, 5, {}, says))
    assert await callers.closed() == (60, "overrun")
    assert await lanes.open(LANE) == "closed"
    await callers.hear("c")
    assert under_way == ["b", "c"]
    assert "breaker_closed" not in capsys.readouterr().out
    assert await callers.closed() == (10, "provider_failed")
    assert [change.state for change in await lanes.changes(9)] == ["reset", "open", "open"]


async def test_that_bounds_are_taken_back_is_told(callers: Callers, capsys: pytest.CaptureFixture[str]) -> None:
    """The lane was open, so nothing closed or opened."""
    lanes = callers.queue.stores.lanes
    await over(callers.queue, callers.claim, "a", 1000, 2500)
    counted = breaker_changes[str(LANE), "closed"]
    assert await lanes.open(LANE) == "raised"
    assert await lanes.open(LANE) == ""
    assert capsys.readouterr().out.count("lane_opened") == 1
    [change] = await lanes.changes(9)
    assert (change.state, change.why) == ("reset", "operator")
    await callers.call()
    assert breaker_changes[str(LANE), "closed"] == counted
    assert await over(callers.queue, callers.claim, "b", 1000, 10) == 1000


@pytest.mark.parametrize("what", ["string", "nonsense", "immense"])
async def test_overruns_of_which_nonsense_is_stored_stop_nobody(callers: Callers, what: str) -> None:
    """And raise no bound beyond what a usage is believed."""
    queue, name = callers.queue, "celeriac:overruns"
    if what == "string":
        queue.redis.set(name, "nonsense")
    else:
        queue.redis.hset(name, spelt(LANE), {"nonsense": "nonsense", "immense": "9" * 9 + " raised"}[what])
    assert await over(queue, callers.claim, "a", 1000, 10) == (100_000 if what == "immense" else 1000)
    await over(queue, callers.claim, "b", 1000, 300_000)
    assert await over(queue, callers.claim, "c", 1000, 10) == 100_000
