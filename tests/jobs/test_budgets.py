"""Money of scopes: no admission raises what is used above a cap; who does not fit waits, and goes on by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from redis.exceptions import ResponseError

from celeriac.costs.books import COLUMNS, Account, counts, spelt, unspelt
from celeriac.costs.budgets import Cap
from celeriac.costs.ledger import as_json
from celeriac.costs.usage import Totals, moment
from celeriac.jobs.journal import Admitted, Full, Settlement
from celeriac.jobs.model import Claim, Parent, Parked, Place, State
from celeriac.llm.model import Lane, Usage
from tests.jobs.conftest import Queue

LANE = Lane("openai", "gpt-5.4-mini")
HOUR = 3_600_000


class Buyers:
    """Jobs that make calls under budgets."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.calls = queue, 0

    async def caps(self, scope: str, **caps: int) -> None:
        await self.queue.stores.budgets.put(
            scope,
            [Cap(window, nanos, (50, 80, 100)) for window, nanos in caps.items()],  # type: ignore[arg-type]
            "test",
        )

    async def job(self, tenant: str = "acme", agent: str = "assistant") -> Claim:
        return await self.queue.claim(await self.queue.submit(tenant=tenant, agent=agent))

    async def ask(
        self,
        claim: Claim,
        bound: int,
        lane: Lane = LANE,
        labels: tuple[tuple[str, str], ...] = (),
        name: str = "",
        zone: str = "UTC",
    ) -> Admitted | Full:
        self.calls += 1
        self.name = name or f"c{self.calls}"
        account = Account(claim.tenant, claim.agent, labels, zone)
        said = await self.queue.stores.journal.admit(claim, self.name, bound, {}, books=partial(account.books, lane))
        assert isinstance(said, Admitted | Full)
        return said

    async def settle(self, claim: Claim, name: str, stands: Any, nanos: int = 0, bound: int = 0) -> None:
        made = Settlement(name, stands, bound, nanos, {}, None, "", counts(Usage(input=1), nanos))
        await self.queue.stores.journal.settle(claim, made)

    async def buy(self, claim: Claim, bound: int, nanos: int, **facts: Any) -> None:
        said = await self.ask(claim, bound, **facts)
        assert isinstance(said, Admitted), said
        await self.settle(claim, self.name, "settled", nanos)

    async def used(self, scope: str, window: str = "ever") -> tuple[int, int, int]:
        """Settled, in doubt, reserved."""
        [use] = [use for use in await self.queue.stores.budgets.get(scope) if use.cap.window == window]
        return use.settled, use.in_doubt, use.reserved

    async def waits(self, claim: Claim, full: Full) -> None:
        """The job lets go, as a worker that was told so lets go."""
        lane, wait = f"${full.scope}", None
        if full.ends:
            wait = timedelta(seconds=max(1.0, full.ends.timestamp() - self.queue.now / 1000))
        parked = await self.queue.jobs.wait_for_lane(claim, lane, wait, most=(full.bound, 0))
        assert isinstance(parked, Parked)

    async def held_up(self, claim: Claim, bound: int) -> Full:
        """A call that does not fit, and the job waits."""
        full = await self.ask(claim, bound)
        assert isinstance(full, Full)
        await self.waits(claim, full)
        return full

    async def place(self, claim: Claim) -> str:
        return str(self.queue.record(claim)["place"])


@pytest.fixture
async def buyers(queue: Queue) -> Buyers:
    queue.later(1_800_000_000_000)
    await queue.worker(slots=50)
    return Buyers(queue)


def why(said: Admitted | Full) -> tuple[str, str]:
    assert isinstance(said, Full)
    return said.why, unspelt(said.scope)


SCOPES = ["all", "tenant:acme", "agent:assistant", "provider:openai", f"model:{LANE}", "label:team=red"]


@pytest.mark.parametrize("window", ["hour", "day", "week", "month", "ever"])
@pytest.mark.parametrize("scope", SCOPES)
async def test_a_cap_holds_in_each_scope_and_window(buyers: Buyers, scope: str, window: str) -> None:
    """Settled, in doubt and reserved count alike; what others hold is waited for, what is spent is not."""
    await buyers.caps(scope, **{window: 100})
    job = await buyers.job()
    ask = partial(buyers.ask, job, labels=(("team", "red"),))
    assert why(await ask(101)) == ("never", scope)
    assert isinstance(await ask(60, name="a"), Admitted)
    assert why(await ask(41)) == ("held", scope)
    await buyers.settle(job, "a", "settled", 30)
    assert isinstance(await ask(70, name="b"), Admitted)
    await buyers.settle(job, "b", "doubt")
    assert why(await ask(1)) == ("spent", scope)
    assert await buyers.used(scope, window) == (30, 70, 0)
    await buyers.settle(job, "b", "settled", 69)
    assert await buyers.used(scope, window) == (99, 0, 0)
    assert isinstance(await ask(1), Admitted)


async def test_nobody_says_when_a_budget_without_a_window_has_money_again(buyers: Buyers) -> None:
    """Neither then, nor later, nor after a jump of the clock; nor when a job of it starts."""
    await buyers.caps("all", ever=10)
    job = await buyers.job()
    await buyers.buy(job, 10, 10)
    await buyers.held_up(job, 10)
    for ms in (1000, HOUR // 20, -HOUR):
        buyers.queue.later(ms)
        await buyers.queue.fleet.upkeep()
        told = await buyers.queue.jobs.get(job.id, "acme")
        assert told is not None
        assert (told.reason, told.resume_at) == ("waiting_budget", None)
    await buyers.caps("all", ever=20)
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(job) in {Place.READY, Place.RUNG}


async def test_others_are_not_in_a_scope(buyers: Buyers) -> None:
    """Another tenant, agent, provider, model or label pays for itself; everybody is in `all`."""
    for scope in SCOPES[1:]:
        await buyers.caps(scope, ever=10)
    await buyers.caps("all", ever=1000)
    other = await buyers.job("other", "reviewer")
    await buyers.buy(other, 500, 500, lane=Lane("anthropic", "claude"), labels=(("team", "blue"),))
    for scope in SCOPES[1:]:
        assert await buyers.used(scope) == (0, 0, 0)
    assert await buyers.used("all") == (500, 0, 0)


async def test_what_was_used_before_there_was_a_budget_counts(buyers: Buyers) -> None:
    """And taking a budget away and setting it again resets nothing. One below use says by how much."""
    job = await buyers.job()
    await buyers.buy(job, 100, 80)
    await buyers.caps("tenant:acme", day=100)
    assert await buyers.used("tenant:acme", "day") == (80, 0, 0)
    assert why(await buyers.ask(job, 21)) == ("spent", "tenant:acme")
    await buyers.queue.stores.budgets.delete("tenant:acme", "test")
    await buyers.buy(job, 21, 21)
    await buyers.caps("tenant:acme", day=50)
    [use] = await buyers.queue.stores.budgets.get("tenant:acme")
    assert (use.settled, use.left) == (101, 0)
    assert why(await buyers.ask(job, 1)) == ("spent", "tenant:acme")


async def test_a_call_belongs_to_the_window_in_which_it_was_admitted(buyers: Buyers) -> None:
    """However late its outcome. The next window begins with nothing."""
    await buyers.caps("all", hour=100)
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 100, name="a"), Admitted)
    full = await buyers.ask(job, 1)
    assert isinstance(full, Full)
    assert full.ends is not None
    buyers.queue.later(int(full.ends.timestamp() * 1000) - buyers.queue.now)
    await buyers.queue.fleet.heartbeat("w1", 50, taking=True)
    assert isinstance(await buyers.ask(job, 100, name="b"), Admitted)
    await buyers.settle(job, "a", "settled", 70)
    assert why(await buyers.ask(job, 1)) == ("held", "all")
    await buyers.settle(job, "b", "settled", 60)
    assert why(await buyers.ask(job, 41)) == ("spent", "all")
    assert isinstance(await buyers.ask(job, 40), Admitted)


async def test_who_waits_is_woken_by_the_next_settlement_in_turn(buyers: Buyers) -> None:
    """As many as there is room for, in their order, and whoever comes meanwhile goes behind them."""
    await buyers.caps("all", day=100)
    first = await buyers.job()
    assert isinstance(await buyers.ask(first, 100, name="a"), Admitted)
    newcomer, *waiting = [await buyers.job() for _ in range(5)]
    for job in waiting:
        full = await buyers.ask(job, 30)
        assert isinstance(full, Full)
        assert full.why == "held"
        await buyers.waits(job, full)
    assert await buyers.place(waiting[0]) == Place.PARKED
    assert buyers.queue.record(waiting[0])["reason"] == "waiting_budget"
    await buyers.settle(first, "a", "settled", 10)
    places = [await buyers.place(job) for job in waiting]
    assert places == [*[Place.READY] * 3, Place.PARKED]
    assert why(await buyers.ask(newcomer, 30)) == ("held", "all")
    assert why(await buyers.ask(newcomer, 1)) == ("held", "all"), "the one in line goes first"
    await buyers.queue.fleet.upkeep()
    for job in waiting[:3]:
        again = await buyers.queue.claim(job.id)
        await buyers.buy(again, 30, 1)
        await buyers.queue.finish(again)
    assert await buyers.place(waiting[3]) in {Place.READY, Place.RUNG}


async def test_room_is_kept_for_five_seconds_for_who_was_woken(buyers: Buyers) -> None:
    """Without a slot until then it may be another's; whoever finds it taken waits again, in its old place."""
    await buyers.caps("all", day=100)
    first = await buyers.job()
    assert isinstance(await buyers.ask(first, 100, name="a"), Admitted)
    waiting = [await buyers.job() for _ in range(3)]
    for job in waiting:
        full = await buyers.ask(job, 60)
        assert isinstance(full, Full)
        await buyers.waits(job, full)
    line = buyers.queue.redis.zrange("celeriac:lane_line:$all", 0, -1)
    assert line == [job.id for job in waiting]
    await buyers.settle(first, "a", "settled", 10)
    await buyers.queue.pass_time(1, "w1")
    assert [await buyers.place(job) for job in waiting[1:]] == [Place.PARKED] * 2, "the room is kept for the first"
    # Redis keeps the time for which it is.
    assert 0 < buyers.queue.redis.pttl("celeriac:promised:all") <= 5000
    buyers.queue.redis.delete("celeriac:promised:all")
    await buyers.queue.pass_time(1, "w1")
    assert [await buyers.place(job) for job in waiting] == [Place.RUNG, Place.RUNG, Place.PARKED]
    again = await buyers.queue.claim(waiting[1].id)
    assert isinstance(await buyers.ask(again, 60), Admitted)
    late = await buyers.queue.claim(waiting[0].id)
    full = await buyers.ask(late, 60)
    assert isinstance(full, Full)
    await buyers.waits(late, full)
    assert buyers.queue.redis.zrange("celeriac:lane_line:$all", 0, -1) == [waiting[0].id, waiting[2].id]


async def test_a_job_that_does_not_fit_any_more_waits_for_the_next_window(buyers: Buyers) -> None:
    """It says until when, and is woken as there is room: never all at once."""
    await buyers.caps("all", hour=100)
    spender = await buyers.job()
    await buyers.buy(spender, 100, 95)
    waiting = [await buyers.job() for _ in range(8)]
    for job in waiting:
        full = await buyers.ask(job, 40)
        assert isinstance(full, Full)
        assert full.why == "spent"
        await buyers.waits(job, full)
    found = await buyers.queue.jobs.get(waiting[0].id, "acme")
    assert found is not None
    assert full.ends is not None
    assert (found.reason, found.resume_at) == ("waiting_budget", full.ends)
    small = await buyers.job()
    await buyers.buy(small, 5, 5)
    await buyers.queue.fleet.upkeep()
    assert [await buyers.place(job) for job in waiting] == [Place.PARKED] * 8
    buyers.queue.later(int(full.ends.timestamp() * 1000) - buyers.queue.now)
    await buyers.queue.fleet.heartbeat("w1", 50, taking=True)
    await buyers.queue.fleet.upkeep()
    places = [await buyers.place(job) for job in waiting]
    assert places == [Place.RUNG, *[Place.PARKED] * 7], "one finds out that a new window has begun"
    await buyers.buy(await buyers.queue.claim(waiting[0].id), 40, 1)
    await buyers.queue.fleet.upkeep()
    places = [await buyers.place(job) for job in waiting[1:]]
    assert places == [*[Place.RUNG] * 2, *[Place.PARKED] * 5], "99 are left, and each may cost 40"
    assert await buyers.queue.stores.lanes.waited_for() == set(), "a scope is no lane"


async def test_ten_thousand_that_wait_for_midnight_come_one_by_one(buyers: Buyers) -> None:
    """As many as the new day has room for are woken, almost none of them in vain, and no script looks at them all."""
    await buyers.caps("all", day=200)
    await buyers.buy(await buyers.job(), 200, 195)
    for number in range(10_000):
        job = await buyers.job(tenant=f"t{number % 100}")
        full = await buyers.ask(job, 10)
        assert isinstance(full, Full)
        await buyers.waits(job, full)
    assert full.ends is not None
    buyers.queue.later(int(full.ends.timestamp() * 1000) - buyers.queue.now)
    buyers.queue.redis.config_resetstat()
    bought, in_vain = 0, 0
    while woken := await rung_anew(buyers.queue):
        assert len(woken) <= 20, "no more than the day has room for"
        for claim in woken:
            said = await buyers.ask(claim, 10)
            if isinstance(said, Admitted):
                bought += 1
                await buyers.settle(claim, buyers.name, "settled", 5)
                await buyers.queue.finish(claim)
            else:
                in_vain += 1
                await buyers.waits(claim, said)
    assert await buyers.used("all", "day") == (195, 0, 0), "one of 10 does not fit any more"
    assert (bought, buyers.queue.redis.zcard("celeriac:parked")) == (39, 10_000 - 39)
    assert in_vain <= 3
    assert buyers.queue.redis.info("commandstats")["cmdstat_hset"]["calls"] < 39 * 50


async def rung_anew(queue: Queue) -> list[Claim]:
    """Runs of the jobs for which upkeep rings now."""
    await queue.fleet.heartbeat("w1", 50, taking=True)
    await queue.fleet.upkeep()
    bells = queue.rung()
    queue.redis.delete("celeriac")
    return [claim for id in bells if (claim := await queue.try_claim(id))]


async def test_a_higher_cap_lets_them_go_on(buyers: Buyers) -> None:
    """Without anybody submitting them again; and so does taking the budget away."""
    await buyers.caps("tenant:acme", ever=10)
    first, second = await buyers.job(), await buyers.job()
    await buyers.buy(first, 10, 10)
    for job, bound in ((first, 10), (second, 500)):
        full = await buyers.ask(job, bound)
        assert isinstance(full, Full)
        assert full.ends is None
        if full.why == "spent":
            await buyers.waits(job, full)
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(first) == Place.PARKED
    await buyers.caps("tenant:acme", ever=20)
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(first) == Place.RUNG
    again = await buyers.queue.claim(first.id)
    await buyers.buy(again, 10, 10)
    await buyers.held_up(again, 10)
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(again) == Place.PARKED
    await buyers.queue.stores.budgets.delete("tenant:acme", "test")
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(again) == Place.RUNG


async def test_who_would_not_wait_hears_that_what_was_held_is_spent(buyers: Buyers) -> None:
    """`"on_budget": "fail"`: it goes on, asks and is told so. Others wait for the next window."""
    await buyers.caps("all", hour=100)
    first = await buyers.job()
    patient = await buyers.job()
    impatient = await buyers.queue.claim(await buyers.queue.submit(tenant="acme", on_budget="fail"))
    assert isinstance(await buyers.ask(first, 60, name="a"), Admitted)
    for job in (patient, impatient):
        full = await buyers.ask(job, 50)
        assert isinstance(full, Full)
        assert full.why == "held"
        await buyers.waits(job, full)
    await buyers.settle(first, "a", "settled", 60)
    await buyers.queue.fleet.upkeep()
    assert (await buyers.place(patient), await buyers.place(impatient)) == (Place.PARKED, Place.RUNG)
    assert why(await buyers.ask(await buyers.queue.claim(impatient.id), 50)) == ("spent", "all")


@pytest.mark.parametrize("scopes", [("all", "tenant:acme"), ("tenant:acme", "all")])
async def test_of_several_spent_caps_the_one_is_named_that_is_so_for_longest(
    buyers: Buyers, scopes: tuple[str, str]
) -> None:
    """Until then there is nothing to wait for."""
    await buyers.caps(scopes[0], hour=10, month=10)
    await buyers.caps(scopes[1], day=10)
    job = await buyers.job()
    await buyers.buy(job, 10, 10)
    full = await buyers.ask(job, 1)
    assert isinstance(full, Full)
    assert (full.window, unspelt(full.scope)) == ("month", scopes[0])
    await buyers.caps(scopes[1], ever=10)
    full = await buyers.ask(job, 1)
    assert isinstance(full, Full)
    assert (full.window, full.ends) == ("ever", None)


async def test_a_model_that_nobody_knows_is_not_remembered(buyers: Buyers) -> None:
    """Its provider refuses it; a caller could fill the store with names. What was paid for stays, in each window."""
    job = await buyers.job()
    invented, known = Lane("openai", "gpt-invented"), LANE
    for lane, stands in (
        (invented, "released"),
        (known, "settled"),
        (known, "released"),
        (Lane("openai", "x"), "free"),
    ):
        assert isinstance(await buyers.ask(job, 10, lane, name="x" + str(buyers.calls)), Admitted)
        nanos, stands = 10 if stands == "settled" else 0, "settled" if stands == "free" else stands
        await buyers.settle(job, buyers.name, stands, nanos)
    names = {
        unspelt(name.split(":")[2]) for name in buyers.queue.redis.scan_iter("celeriac:use*:*") if ":usage:" not in name
    }
    assert names == {"all", "tenant:acme", "agent:assistant", "provider:openai", f"model:{known}"}
    assert len(list(buyers.queue.redis.scan_iter("celeriac:use:all:*"))) == 4


async def test_a_doubt_that_cost_nothing_leaves_what_was_told_of_it(buyers: Buyers) -> None:
    """What is used again reaches the same threshold, of which somebody heard."""
    await buyers.caps("all", hour=100)
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 60, name="lost"), Admitted)
    await buyers.settle(job, "lost", "doubt")
    await buyers.queue.stores.doubts.resolve(job.id, "lost", "released", "test")
    await buyers.buy(job, 60, 60)
    assert await told(buyers) == [(100, 50)]


async def test_names_that_callers_invent_take_no_tenants_usage_from_it(buyers: Buyers) -> None:
    """Where a day has no room for them, they count under the model `other` of whose they are, those that nobody
    answered first; whoever is known already stays so.
    """
    job, victim = await buyers.job("invents"), await buyers.job("victim")
    usage, start = buyers.queue.stores.usage, noon(buyers)
    buyers.queue.planted = True

    async def call(claim: Claim, model: str, *, fails: bool = False) -> None:
        assert isinstance(await buyers.ask(claim, 10, lane=Lane("openai", model)), Admitted)
        made = counts(None, error=True) if fails else counts(Usage(input=1), 1)
        settlement = Settlement(buyers.name, "released" if fails else "settled", 0, 1 - fails, {}, None, "", made)
        await buyers.queue.stores.journal.settle(claim, settlement)

    async def calls() -> dict[tuple[str, str], int]:
        rows = await usage.report(*usage.day(start), ("tenant", "model"))
        return {(row.group["tenant"], row.group["model"]): row.sums["calls"] for row in rows}

    def plant(most: int) -> None:
        for name in buyers.queue.redis.scan_iter("celeriac:usage:*"):
            few = range(most - buyers.queue.redis.hlen(name))
            buyers.queue.redis.hset(name, mapping={f"invents,assistant,openai,m{most}.{number}": "1" for number in few})

    await call(victim, "known")
    plant(2500)
    await call(job, "invented", fails=True)
    await call(victim, "asked")
    await call(victim, "known", fails=True)
    plant(5000)
    await call(victim, "late")
    found = await calls()
    victims = {model: count for (tenant, model), count in found.items() if tenant == "victim"}
    assert victims == {"openai/known": 2, "openai/asked": 1, "openai/other": 1}
    assert found["invents", "openai/other"] == 1
    assert ("invents", "openai/invented") not in found
    plant(6000)
    await call(await buyers.job("third"), "late")
    await call(victim, "later")
    found = await calls()
    assert (found["other", "other/other"], found["victim", "openai/other"]) == (1, 2)


async def test_a_threshold_is_told_once_in_its_window(buyers: Buyers) -> None:
    """By what is settled and in doubt; what is reserved may yet come back."""
    await buyers.caps("all", hour=100)
    job = await buyers.job()
    alerts = partial(buyers.queue.stores.alerts.list)
    assert isinstance(await buyers.ask(job, 90, name="a"), Admitted)
    assert await alerts() == []
    await buyers.settle(job, "a", "settled", 50)
    assert isinstance(await buyers.ask(job, 40, name="b"), Admitted)
    await buyers.settle(job, "b", "doubt")
    await buyers.buy(job, 5, 1)
    told = await alerts()
    assert [(a.scope, a.window, a.percent, a.use, a.cap) for a in told] == [
        ("all", "hour", 50, 50, 100),
        ("all", "hour", 80, 90, 100),
    ]
    assert await alerts(told[0].id) == told[1:]
    buyers.queue.later(HOUR)
    await buyers.queue.fleet.heartbeat("w1", 50, taking=True)
    await buyers.buy(job, 60, 60)
    assert [a.percent for a in await alerts(told[1].id)] == [50]


async def test_usage_is_exact_whatever_is_counted_after_it(buyers: Buyers) -> None:
    """Lua writes its own numbers with fourteen digits."""
    nanos = 123_456_789_012_345
    job = await buyers.job()
    await buyers.buy(job, nanos, nanos)
    assert isinstance(await buyers.ask(job, 5), Admitted)
    await buyers.queue.given_up()
    [series] = buyers.queue.redis.hvals("celeriac:usage")
    sums = dict(zip(COLUMNS, map(int, series.split()), strict=True))
    assert (sums["calls"], sums["errors"], sums["cost"]) == (2, 1, nanos)


@pytest.mark.parametrize(
    ("before", "nanos"),
    [
        (9_007_199_254_740_993, 1),
        (9_007_199_254_740_993, 9 * 10**15),
        (999_999_999, 1),
        (10**18 - 1, 1),
        (10**9, 0),
        (8_999_999_999_999_999_999, 7),
    ],
)
async def test_usage_is_exact_beyond_what_lua_counts(buyers: Buyers, before: int, nanos: int) -> None:
    """All that was ever spent on a model may be more than nine million dollars."""
    redis, job = buyers.queue.redis, await buyers.job()
    await buyers.buy(job, 10, 10)
    buyers.queue.planted = True
    [series] = redis.hkeys("celeriac:usage")
    redis.hset("celeriac:usage", series, f"3 0 1 0 0 0 0 0 {before} 0")
    await buyers.buy(job, nanos, nanos)
    [row] = await buyers.queue.stores.usage.ever()
    assert (row.sums["calls"], row.sums["cost"]) == (4, before + nanos)


@pytest.mark.parametrize("doubted", ["by its run", "by who took its job away"])
async def test_a_call_whose_answer_comes_late_is_one_call_in_the_usage(buyers: Buyers, doubted: str) -> None:
    """It was counted when it came to be in doubt, as one without an answer; what it used and cost is added then."""
    job = await buyers.job()
    said = await buyers.ask(job, 100)
    assert isinstance(said, Admitted)
    if doubted == "by its run":
        lost = Settlement(buyers.name, "doubt", 100, 0, {}, None, said.books, counts(None, error=True))
        await buyers.queue.stores.journal.settle(job, lost)
    else:
        await buyers.queue.given_up()
    await buyers.settle(job, buyers.name, "settled", 40)
    [series] = buyers.queue.redis.hvals("celeriac:usage")
    sums = dict(zip(COLUMNS, map(int, series.split()), strict=True))
    assert (sums["calls"], sums["errors"], sums["input"], sums["cost"]) == (1, 1, 1, 40)


@pytest.mark.parametrize(
    "planted",
    [
        *("budgets", "windows", "used", "use", "promised", "doubts", "doubt_calls", "ledger", "usage", "usage:hour"),
        *("usage:day", "dearest", "lane", "lane_line", "lanes", "alerts", "mean_costs"),
    ],
)
async def test_a_key_of_the_wrong_type_lets_nothing_through_that_it_guards(buyers: Buyers, planted: str) -> None:
    """Sums that cannot be read let no call through, and none is half booked; the rest is made anew. A scope whose line
    cannot be read has none: the jobs that use it go on and end.
    """
    queue = buyers.queue
    await buyers.caps("all", ever=1000)
    job, waits = await buyers.job(), await buyers.job()
    assert isinstance(await buyers.ask(job, 100, name="a"), Admitted)
    assert isinstance(await buyers.ask(waits, 900, name="other"), Admitted)
    full = await buyers.ask(waits, 50)
    assert isinstance(full, Full)
    await buyers.waits(waits, full)
    await buyers.settle(waits, "other", "released")
    queue.planted = True
    day = queue.now // 86_400_000
    hours, days = (next(queue.redis.scan_iter(f"celeriac:use:all:{span}.*")) for span in ("hour", "day"))
    names = {
        "used": "used:all",
        "use": hours.removeprefix("celeriac:"),
        "promised": "promised:all",
        "ledger": f"ledger:{day}",
        "usage:hour": hours.removeprefix("celeriac:").replace("use:all", "usage"),
        "usage:day": days.removeprefix("celeriac:").replace("use:all", "usage"),
        "dearest": f"dearest:{day}",
        "lane": "lane:$all",
        "lane_line": "lane_line:$all",
    }
    name = f"celeriac:{names.get(planted, planted)}"
    queue.redis.delete(name)
    queue.redis.rpush(name, "nonsense")
    if planted in {"budgets", "used", "use"}:
        with pytest.raises(ResponseError):
            await buyers.ask(job, 100, name="b")
        assert int(queue.record(job)["reserved"]) == 100
        assert int(queue.redis.hget("celeriac:used:tenant%3Aacme", "reserved")) == 100
    else:
        assert isinstance(await buyers.ask(job, 100, name="b"), Admitted)
    await buyers.settle(job, "a", "settled", 70)
    assert int(queue.record(job)["cost"]) == 70, "what was paid is booked, whatever is broken"
    assert (await queue.end(job)).state == State.SUCCEEDED


def noon(buyers: Buyers) -> datetime:
    return datetime.fromtimestamp(buyers.queue.now / 1000, UTC)


async def test_the_dearest_jobs_of_a_day_are_listed_as_they_end(buyers: Buyers) -> None:
    """Those of several days together, each once; what settles after the end counts, and what is free is not listed."""
    queue, dearest = buyers.queue, buyers.queue.stores.dearest
    cheap, dear, free, late = [await buyers.job(tenant) for tenant in ("a", "b", "c", "d")]
    for job, nanos in ((cheap, 10), (dear, 90_000_000_001), (free, 0)):
        await buyers.buy(job, 10**11, nanos)
        assert await dearest.between(noon(buyers), noon(buyers), 9) == [], "it has not ended"
    await buyers.ask(late, 100, name="late")
    for job in (cheap, dear, free, late):
        await queue.finish(job)

    async def listed(most: int = 9) -> list[tuple[str, str, int]]:
        start = noon(buyers) - timedelta(days=2)
        return [(d.job, d.tenant, d.nanos) for d in await dearest.between(start, noon(buyers), most)]

    assert await listed() == [(dear.id, "b", 90_000_000_001), (cheap.id, "a", 10)]
    queue.later(24 * HOUR)
    await buyers.settle(late, "late", "settled", 70)
    assert await listed() == [(dear.id, "b", 90_000_000_001), (late.id, "d", 70), (cheap.id, "a", 10)]
    assert await listed(1) == [(dear.id, "b", 90_000_000_001)]
    assert [d.job for d in await dearest.between(noon(buyers), noon(buyers), 9)] == [late.id], "another day"


async def test_no_more_than_a_hundred_jobs_of_a_day_are_listed(buyers: Buyers) -> None:
    """The cheapest leave; the list ages, and nonsense in its place keeps no job from ending."""
    key = f"celeriac:dearest:{buyers.queue.now // 86_400_000}"
    buyers.queue.planted = True
    buyers.queue.redis.zadd(key, {f"a|b|{n}": n for n in range(10, 110)})
    job, other = await buyers.job(), await buyers.job()
    await buyers.buy(job, 100, 100)
    await buyers.queue.finish(job)
    assert buyers.queue.redis.zcard(key) == 100
    assert buyers.queue.redis.zscore(key, "a|b|10") is None
    assert buyers.queue.redis.zscore(key, f"acme|assistant|{job.id}") == 100
    buyers.queue.redis.delete(key)
    buyers.queue.redis.rpush(key, "nonsense")
    buyers.queue.redis.expire(key, 100)
    await buyers.buy(other, 100, 100)
    await buyers.queue.finish(other)


async def test_what_a_scope_cost_in_a_window_is_known_without_a_budget(buyers: Buyers) -> None:
    """Settled, in doubt and reserved, of this hour and of the one before."""
    job = await buyers.job()
    await buyers.buy(job, 10, 7)
    await buyers.ask(job, 20, name="b")
    await buyers.settle(job, "b", "doubt")
    hour = noon(buyers).replace(minute=0, second=0, microsecond=0)
    buyers.queue.later(HOUR)
    await buyers.ask(job, 30)
    later = hour + timedelta(hours=1)
    asked = [("tenant:acme", "hour", hour), ("tenant:acme", "hour", later), ("tenant:x", "hour", hour)]
    found = await buyers.queue.stores.budgets.sums(asked)  # type: ignore[arg-type]  # windows are text here
    assert [(s.settled, s.in_doubt, s.reserved, s.firm) for s in found] == [(7, 20, 0, 27), (0, 0, 30, 0), (0, 0, 0, 0)]


async def test_the_ledger_and_the_budget_agree(buyers: Buyers) -> None:
    """Each outcome is an entry, a correction one of its own; their sums are what is settled and in doubt."""
    job = await buyers.job()
    await buyers.caps("all", ever=1000)
    await buyers.buy(job, 10, 7)
    assert isinstance(await buyers.ask(job, 20, name="b"), Admitted)
    await buyers.settle(job, "b", "doubt")
    await buyers.settle(job, "b", "settled", 13)
    assert isinstance(await buyers.ask(job, 30, name="c"), Admitted)
    await buyers.settle(job, "c", "released")
    assert isinstance(await buyers.ask(job, 40, name="d"), Admitted)
    await buyers.queue.finish(job)
    now = datetime.now(UTC)
    day = buyers.queue.now // 86_400_000
    # Entries have Redis's own time, the test's clock another day.
    buyers.queue.planted = True
    buyers.queue.redis.rename(f"celeriac:ledger:{day}", f"celeriac:ledger:{int(now.timestamp()) // 86_400}")
    found = [
        e async for e in buyers.queue.stores.ledger.entries(now - timedelta(minutes=5), now + timedelta(minutes=5))
    ]
    assert [(e.call, e.stands, e.nanos, e.in_doubt) for e in found] == [
        ("c1", "settled", 7, 0),
        ("b", "doubt", 0, 20),
        ("b", "settled", 13, -20),
        ("d", "doubt", 0, 40),
    ]
    assert await buyers.used("all") == (20, 40, 0)
    assert {(e.job, e.tenant, e.agent, e.attempt) for e in found} == {(job.id, "acme", "assistant", 1)}


@pytest.mark.parametrize(
    "strange",
    [
        {"nanos": "much"},
        {"at": "1e999"},
        {"facts": "{"},
        {"facts": "[]"},
        {"facts": '{"usage": {"output_tokens": "x"}}'},
    ],
)
async def test_an_entry_that_makes_no_sense_hides_no_other(
    buyers: Buyers, strange: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is passed over; how many were is said once, at the end."""
    now = datetime.now(UTC)
    entry = {"job": "j", "call": "c", "tenant": "acme", "agent": "a", "attempt": "1", "stands": "settled", "nanos": "7",
             "in_doubt": "0", "at": str(int(now.timestamp() * 1000)), "facts": "{}"}  # fmt: skip
    buyers.queue.planted = True
    for said in (entry, entry | strange, {"job": "j"}, entry):
        buyers.queue.redis.xadd(f"celeriac:ledger:{int(now.timestamp()) // 86_400}", said)
    found = buyers.queue.stores.ledger.entries(now - timedelta(minutes=5), now + timedelta(minutes=5))
    assert [json.loads(as_json(entry))["cost_usd"] async for entry in found] == ["0.000000007"] * 2
    [line] = [line for line in capsys.readouterr().out.splitlines() if "ledger_entries_not_readable" in line]
    assert "count=2" in line


async def test_a_changed_time_zone_hides_no_day(buyers: Buyers) -> None:
    """Each old day and hour counts once, in that of the new zone in which it begins; reports that follow each other
    have all of it, and nothing twice.
    """
    redis, old = buyers.queue.stores.usage._redis, ("UTC", "Asia/Kathmandu", "America/New_York")
    # Records age by Redis's own clock, and the test's goes days ahead.
    buyers.queue.planted = True
    for number in range(40):
        job = await buyers.job()
        assert isinstance(await buyers.ask(job, 10, zone=old[number % 3]), Admitted)
        await buyers.settle(job, buyers.name, "settled", 1)
        await buyers.queue.finish(job)
        await buyers.queue.pass_time(5, "w1")
        buyers.queue.later(7 * HOUR)
        await buyers.queue.worker()
    first, last = datetime(2027, 1, 10, tzinfo=UTC), datetime(2027, 2, 10, tzinfo=UTC)
    stored = {int(key.rsplit(".")[-1]) for key in buyers.queue.redis.keys("celeriac:usage:day.*")}
    for zone in (*old, "Europe/Berlin", "Australia/Lord_Howe"):
        usage = Totals(redis, zone)
        for kind in ("day", "hour"):
            rows = await usage.report(first, last, (kind,))
            assert sum(row.sums["cost"] for row in rows) == 40
        days = [datetime.fromisoformat(row.group["day"]) for row in await usage.report(first, last, ("day",))]
        assert days == sorted({usage.day(datetime.fromtimestamp(at, UTC))[0] for at in stored})
        halves = [await usage.report(*span) for span in ((first, days[5]), (days[5], last))]
        assert [sum(row.sums["cost"] for row in half) for half in halves] != [0, 40]
        assert sum(row.sums["cost"] for half in halves for row in half) == 40


@pytest.mark.parametrize(
    ("zone", "date"),
    [("Europe/Berlin", (2027, 3, 28)), ("Europe/Berlin", (2027, 10, 31)), ("Australia/Lord_Howe", (2026, 10, 4))],
    ids=["23 hours", "25 hours", "23.5 hours"],
)
async def test_a_day_on_which_clocks_change_is_reported_alone(
    buyers: Buyers, zone: str, date: tuple[int, int, int]
) -> None:
    """Also by the hour."""
    start = datetime(*date, tzinfo=ZoneInfo(zone))
    usage = Totals(buyers.queue.stores.usage._redis, zone)
    buyers.queue.later(int(start.timestamp() * 1000) + 9 * HOUR - buyers.queue.now)
    await buyers.queue.worker(slots=50)
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 10, zone=zone), Admitted)
    await buyers.settle(job, buyers.name, "settled", 7)
    for kind in ("day", "hour"):
        [row] = await usage.report(*usage.day(start), (kind,))
        assert row.sums["cost"] == 7


@pytest.mark.parametrize("kind", ["day", "hour"])
async def test_whoever_is_called_as_a_span_is_told_by_that_name(buyers: Buyers, kind: str) -> None:
    """Also where a report is by the span, in whatever order."""
    await buyers.buy(await buyers.job(kind, kind), 10, 7, labels=(("team", kind),))
    begin = datetime(2027, 1, 15, 8 if kind == "hour" else 0, tzinfo=UTC)
    for groups in (("tenant", kind, "agent", "label:team"), (kind, "label:team", "tenant")):
        [row] = await buyers.queue.stores.usage.report(begin, begin + timedelta(hours=1), groups)
        assert row.group == dict.fromkeys(groups, kind) | {kind: moment(begin)}


async def test_sums_of_all_time_only_grow(buyers: Buyers) -> None:
    """A call in doubt costs nothing in them, whatever becomes of it; what its answer cost late is added, and it counts
    as one call and one error. What is in doubt is told apart, and goes down.
    """
    job = await buyers.job()
    usage = buyers.queue.stores.usage
    await buyers.buy(job, 10, 7, labels=(("team", "red"),))
    assert isinstance(await buyers.ask(job, 20, name="late", labels=(("team", "blue"),)), Admitted)
    assert isinstance(await buyers.ask(job, 40, name="lost", lane=Lane("anthropic", "claude")), Admitted)
    seen = []

    async def look() -> tuple[int, dict[str, int]]:
        rows = {row.group["model"]: row.sums for row in await usage.ever()}
        seen.append({(model, name): count for model, sums in rows.items() for name, count in sums.items()})
        return await usage.in_doubt([str(LANE), "anthropic/claude", "openai/none"])

    assert await look() == (0, {str(LANE): 0, "anthropic/claude": 0, "openai/none": 0})
    doubt = Settlement("late", "doubt", 0, 0, {}, None, "", counts(None, error=True))
    await buyers.queue.stores.journal.settle(job, doubt)
    assert await look() == (20, {str(LANE): 20, "anthropic/claude": 0, "openai/none": 0})
    await buyers.settle(job, "late", "settled", 13)
    await buyers.queue.finish(job)
    assert await look() == (40, {str(LANE): 0, "anthropic/claude": 40, "openai/none": 0})
    for before, after in pairwise(seen):
        assert all(after[name] >= count for name, count in before.items())
    last = seen[-1]
    assert [last[str(LANE), name] for name in ("calls", "errors", "cost", "input")] == [2, 1, 20, 2]
    assert [last["anthropic/claude", name] for name in ("calls", "errors", "cost")] == [1, 1, 0]
    assert buyers.queue.redis.hlen("celeriac:usage") == 2, "labels are not told apart"


async def test_the_sums_of_all_time_are_those_of_a_thousand(buyers: Buyers) -> None:
    """Calls of further ones are in `other`; who has a name keeps it. Those that nobody answers for take half of all."""
    job = await buyers.job()
    usage = buyers.queue.stores.usage

    async def call(model: str, nanos: int = 1, *, fails: bool = False) -> None:
        assert isinstance(await buyers.ask(job, 10, lane=Lane("openai", model)), Admitted)
        made = counts(None, error=True) if fails else counts(Usage(input=1), nanos)
        stands: Any = "released" if fails else "settled"
        settlement = Settlement(buyers.name, stands, 0, 0 if fails else nanos, {}, None, "", made)
        await buyers.queue.stores.journal.settle(job, settlement)

    async def costs() -> dict[str, tuple[int, int]]:
        return {row.group["model"]: (row.sums["calls"], row.sums["cost"]) for row in await usage.ever()}

    buyers.queue.planted = True
    planted = {f"acme,assistant,openai,m{number}": "1 0 1 0 0 0 0 0 1 0" for number in range(500)}
    buyers.queue.redis.hset("celeriac:usage", mapping=planted)
    await call("invented", fails=True)
    await call("m7", fails=True)
    await call("real")
    await call("real", fails=True)
    found = await costs()
    assert (found["other/other"], found["openai/m7"], found["openai/real"]) == ((1, 0), (2, 1), (2, 1))
    assert "openai/invented" not in found
    more = {f"acme,assistant,openai,n{number}": "1 0 1 0 0 0 0 0 1 0" for number in range(1000 - len(found))}
    buyers.queue.redis.hset("celeriac:usage", mapping=more)
    await call("one too many", 5)
    await call("real", 5)
    found = await costs()
    assert len(found) == 1000
    assert (found["other/other"], found["openai/real"]) == ((2, 5), (3, 6))


async def test_each_outcome_that_is_booked_is_told_once(buyers: Buyers) -> None:
    """By whichever script it was booked, and not where it arrives again; what the store forgot is booked, and told."""
    job = await buyers.job()
    told: list[tuple[str, str]] = []
    buyers.queue.stores.on_booked(lambda claim, made: told.append((claim.id, made.call)))
    for name in ("a", "b", "c"):
        assert isinstance(await buyers.ask(job, 10, name=name), Admitted)
    made = {name: Settlement(name, "settled", 10, 7, {}, None, "", counts(Usage(input=1), 7)) for name in "abcd"}
    for _ in range(2):
        await buyers.queue.stores.journal.settle(job, made["a"])
        await buyers.queue.stores.journal.commit(job, 0, {"text": "x"}, made["b"])
    await buyers.queue.stores.journal.settle(job, made["d"])
    for _ in range(2):
        await buyers.queue.end(job, settlement=made["c"])
    assert told == [(job.id, "a"), (job.id, "b"), (job.id, "d"), (job.id, "c")]


async def test_settling_makes_no_sum_that_is_gone(buyers: Buyers) -> None:
    """Sums of a window go a while after its end: what settles later than that has none there any more."""
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 10, name="a"), Admitted)
    assert isinstance(await buyers.ask(job, 10, name="b"), Admitted)
    redis = buyers.queue.redis
    gone = list(redis.scan_iter("celeriac:use:all:*"))
    assert len(gone) == 4
    assert all(35 * 86_400 < redis.ttl(name) < 70 * 86_400 for name in gone)
    redis.delete(*gone)
    buyers.queue.planted = True
    await buyers.settle(job, "a", "settled", 7)
    await buyers.settle(job, "b", "doubt")
    await buyers.settle(job, "b", "settled", 0)
    assert not redis.exists(*gone)
    assert redis.hgetall("celeriac:used:all") == {"reserved": "0", "cost": "7", "in_doubt": "0"}


async def test_scopes_are_spelt_so_that_no_name_is_another(buyers: Buyers) -> None:
    """Colons and blanks in a model's name do not make a key of somebody else's."""
    assert spelt("model:openai/llama3:8b") == "model%3Aopenai%2Fllama3%3A8b"
    await buyers.caps("model:openai/llama3:8b", ever=5)
    job = await buyers.job()
    assert why(await buyers.ask(job, 6, lane=Lane("openai", "llama3:8b"))) == ("never", "model:openai/llama3:8b")


async def test_two_lines_do_not_turn_each_others_jobs_away(buyers: Buyers) -> None:
    """Whoever comes out of one has waited, and is measured by the room that there is."""
    for scope in ("all", "tenant:acme"):
        await buyers.caps(scope, ever=100)
    jobs = [await buyers.job() for _ in range(4)]
    for number, job in enumerate(jobs):
        scope = ("all", spelt("tenant:acme"))[number % 2]
        await buyers.queue.jobs.wait_for_lane(job, f"${scope}", timedelta(minutes=5), most=(60, 0))
        buyers.queue.redis.hset(f"celeriac:lane:${scope}", "held", buyers.queue.now + 5000)
    left = {job.id for job in jobs}
    for _ in range(12):
        await buyers.queue.pass_time(1, "w1")
        for id in list(left):
            if buyers.queue.record(id)["place"] == Place.RUNG:
                run = await buyers.queue.claim(id)
                said = await buyers.ask(run, 60)
                if isinstance(said, Full):
                    await buyers.waits(run, said)
                    continue
                await buyers.settle(run, buyers.name, "settled", 1)
                await buyers.queue.finish(run)
                left.remove(id)
    assert not left


async def test_those_behind_many_that_are_spent_have_their_turn(buyers: Buyers) -> None:
    """However many are too dear for what is left."""
    await buyers.caps("all", ever=1000)
    await buyers.buy(await buyers.job(), 950, 950)
    await buyers.queue.worker("w2", slots=400)
    for bound in (*[100] * 210, 40):
        job = await buyers.job()
        full = await buyers.ask(job, bound) if bound > 50 else Full("held", "all", "ever", None, 1000, bound)
        assert isinstance(full, Full)
        await buyers.waits(job, full)
    await buyers.queue.pass_time(12, "w1", "w2")
    assert await buyers.place(job) in {Place.READY, Place.RUNG}


async def test_a_child_hears_that_the_money_of_its_parent_is_spent(buyers: Buyers) -> None:
    """It will not become more: the job ends, and its parent hears of it."""
    queue = buyers.queue
    top = await buyers.job("default")
    family = Parent(top.id, top.worker, top.nonce, 10, ((top.id, 100),))
    first, second = [await queue.claim(await queue.submit(parent=family)) for _ in range(2)]
    assert isinstance(await buyers.ask(first, 60, name="a"), Admitted)
    full = await buyers.ask(second, 60)
    assert why(full) == ("held", f"job:{top.id}")
    assert isinstance(full, Full)
    await buyers.waits(second, full)
    await buyers.settle(first, "a", "settled", 60)
    assert await buyers.place(second) in {Place.READY, Place.RUNG}


async def test_a_raised_cap_has_thresholds_of_its_own(buyers: Buyers) -> None:
    await buyers.caps("all", ever=100)
    job = await buyers.job()
    await buyers.buy(job, 100, 100)
    await buyers.caps("all", ever=1000)
    await buyers.buy(job, 850, 850)
    assert await told(buyers) == [(100, 50), (100, 80), (100, 100), (1000, 50), (1000, 80)]


async def told(buyers: Buyers) -> list[tuple[int, int | None]]:
    """Of which cap, which percent."""
    return [(alert.cap, alert.percent) for alert in await buyers.queue.stores.alerts.list()]


async def test_a_call_that_reaches_several_thresholds_tells_each_once(buyers: Buyers) -> None:
    await buyers.caps("all", hour=100)
    job = await buyers.job()
    await buyers.buy(job, 85, 85)
    await buyers.buy(job, 15, 15)
    assert await told(buyers) == [(100, 50), (100, 80), (100, 100)]


@pytest.mark.parametrize("window", ["hour", "ever"])
async def test_a_cap_that_is_set_below_its_use_tells_so_at_once(buyers: Buyers, window: str) -> None:
    """Nobody may call for hours after that. Set again, or taken away and set again, it tells nothing twice."""
    await buyers.buy(await buyers.job(), 90, 90)
    await buyers.caps("all", **{window: 1000})
    assert await told(buyers) == []
    for _ in range(2):
        await buyers.caps("all", **{window: 100})
    await buyers.queue.stores.budgets.delete("all", "test")
    await buyers.caps("all", **{window: 100})
    assert await told(buyers) == [(100, 50), (100, 80)]
    await buyers.queue.stores.budgets.put("all", [Cap(window, 100, (10, 50, 90))], "test")  # type: ignore[arg-type]
    assert await told(buyers) == [(100, 50), (100, 80), (100, 10), (100, 90)]


async def test_a_cap_of_a_window_in_which_nobody_called_tells_nothing(buyers: Buyers) -> None:
    """What was used before that is another window's. Where only what is free was used, nothing is reached."""
    await buyers.buy(await buyers.job(), 90, 90)
    await buyers.buy(await buyers.job(tenant="free"), 10, 0)
    buyers.queue.later(HOUR)
    await buyers.caps("all", hour=100)
    await buyers.caps("tenant:free", ever=0)
    assert await told(buyers) == []


async def test_a_line_outlives_sums_that_cannot_be_read(buyers: Buyers) -> None:
    """Once they can be, it goes on."""
    await buyers.caps("all", ever=10)
    job = await buyers.job()
    await buyers.buy(job, 10, 10)
    await buyers.held_up(job, 10)
    redis, name = buyers.queue.redis, "celeriac:used:all"
    buyers.queue.planted = True
    redis.rename(name, "test:kept")
    redis.rpush(name, "nonsense")
    await buyers.queue.fleet.upkeep()
    redis.delete(name)
    redis.rename("test:kept", name)
    await buyers.caps("all", ever=20)
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(job) == Place.RUNG
