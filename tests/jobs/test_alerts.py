"""Alerts: found once in a window of a cap, and kept until each sink was told of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from celeriac.alerting import Alerting
from celeriac.costs.alerts import Alert, Alerts
from tests.jobs.conftest import Queue
from tests.jobs.explained import faults
from tests.jobs.test_budgets import HOUR, Buyers

MINUTE = 60_000
LEASE = timedelta(seconds=30)
ASKED = ("eval", "evalsha")


class Watchers(Buyers):
    @property
    def alerts(self) -> Alerts:
        return self.queue.stores.alerts

    async def spend(self, *, percent: int) -> None:
        """Of a cap of a thousand on everything, by the hour."""
        await self.buy(await self.job(), 10 * percent, 10 * percent)

    async def percents(self, sink: str = "log", since: datetime | None = None) -> list[int | None]:
        return [alert.percent for alert in (await self.alerts.take(sink, LEASE, since=since)).alerts]

    async def forecast(self) -> list[Alert]:
        """All that was found so far."""
        await self.queue.fleet.upkeep()
        return [alert for alert in await self.alerts.list() if alert.kind == "rate"]

    async def wait(self, ms: int) -> None:
        self.queue.later(ms)
        await self.queue.fleet.heartbeat("w1", 50, taking=True)


@pytest.fixture
async def watchers(queue: Queue) -> Watchers:
    # An hour begins.
    queue.later(1_800_000_000_000 // HOUR * HOUR - queue.now)
    await queue.worker(slots=50)
    return Watchers(queue)


async def test_one_at_a_time_tells_a_sink(watchers: Watchers) -> None:
    """Until the last of what was taken: else others would tell it again meanwhile, and out of order."""
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=80)
    taken = await watchers.alerts.take("log", LEASE)
    assert [alert.percent for alert in taken.alerts] == [50, 80]
    assert await watchers.percents() == []
    await watchers.wait(LEASE // timedelta(milliseconds=1) - 1)
    assert await watchers.alerts.told(taken, taken.alerts[0])
    await watchers.wait(LEASE // timedelta(milliseconds=1) - 1)
    assert await watchers.percents() == [], "it goes on with the second"
    assert await watchers.alerts.told(taken, taken.alerts[1])
    await watchers.spend(percent=20)
    assert await watchers.percents() == [100]


async def test_who_died_or_was_too_slow_is_followed_by_another(watchers: Watchers) -> None:
    """From the first that nobody said was told. What the slow one says after that changes nothing."""
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=100)
    slow = await watchers.alerts.take("log", LEASE)
    assert await watchers.alerts.told(slow, slow.alerts[0])
    await watchers.wait(LEASE // timedelta(milliseconds=1) + 1)
    other = await watchers.alerts.take("log", LEASE)
    assert [alert.percent for alert in other.alerts] == [80, 100]
    assert await watchers.alerts.told(other, other.alerts[0])
    assert not await watchers.alerts.told(slow, slow.alerts[0])
    await watchers.alerts.failed(slow, timedelta(minutes=5))
    assert await watchers.alerts.told(other, other.alerts[1])
    assert await watchers.percents() == []
    await watchers.caps("all", hour=2000)
    assert await watchers.percents() == [50], "nobody waits, and nothing is told again"


async def test_a_sink_that_could_not_be_told_is_tried_again(watchers: Watchers) -> None:
    """After a while, from the first that it did not take; nobody else waits for it."""
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=80)
    taken = await watchers.alerts.take("webhook", LEASE)
    await watchers.alerts.told(taken, taken.alerts[0])
    await watchers.alerts.failed(taken, timedelta(seconds=60))
    assert await watchers.percents("webhook") == []
    assert await watchers.percents("log") == [50, 80]
    await watchers.wait(MINUTE + 1)
    again = await watchers.alerts.take("webhook", LEASE)
    assert (again.tries, [alert.percent for alert in again.alerts]) == (1, [80])
    await watchers.alerts.told(again, again.alerts[0])
    await watchers.spend(percent=20)
    fresh = await watchers.alerts.take("webhook", LEASE)
    assert (fresh.tries, [alert.percent for alert in fresh.alerts]) == (0, [100])


@pytest.mark.parametrize("strange", [{"kind": "x"}, {"kind": "threshold", "at": "1e999"}])
async def test_an_alert_that_makes_no_sense_hides_no_other(
    watchers: Watchers, strange: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is passed over, and said once in the log, however many are told and however often."""
    await watchers.caps("all", hour=1000)
    redis = watchers.queue.redis
    watchers.queue.planted = True
    redis.xadd("celeriac:alerts", strange)
    assert await watchers.percents("slack") == []
    await watchers.spend(percent=50)
    redis.xadd("celeriac:alerts", strange)
    taken = await watchers.alerts.take("log", LEASE)
    assert [alert.percent for alert in taken.alerts] == [50]
    assert await watchers.alerts.told(taken, taken.alerts[0])
    assert await watchers.percents("slack") == [50]
    assert len(await watchers.alerts.list()) == 1
    assert redis.hget("celeriac:told_alerts", "log.after") == redis.xrevrange("celeriac:alerts", count=1)[0][0]
    assert capsys.readouterr().out.count("alert_not_readable") == 2


async def test_a_window_that_is_over_is_told_of_no_more(watchers: Watchers) -> None:
    """What settles late is held against the cap of then, which nobody knows any more: today's may be lower."""
    await watchers.caps("all", hour=1000)
    late = await watchers.job()
    await watchers.ask(late, 400, name="late")
    await watchers.wait(HOUR)
    await watchers.caps("all", hour=400)
    await watchers.spend(percent=1)
    await watchers.settle(late, "late", "settled", 400)
    assert await watchers.alerts.list() == []
    await watchers.spend(percent=20)
    assert [alert.percent for alert in await watchers.alerts.list()] == [50]


async def test_a_new_sink_hears_of_nothing_that_was_before_it(watchers: Watchers) -> None:
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=50)
    [old] = await watchers.alerts.list()
    since = datetime.fromtimestamp((int(old.id.partition("-")[0]) + 1) / 1000, UTC)
    assert await watchers.percents("slack", since) == []
    while int(datetime.now(UTC).timestamp() * 1000) <= int(since.timestamp() * 1000):
        pass
    await watchers.spend(percent=30)
    assert await watchers.percents("slack", datetime.now(UTC) + timedelta(days=1)) == [80], "it is not new any more"
    assert await watchers.percents("log") == [50, 80]


async def test_clocks_that_go_back_keep_no_sink_waiting(watchers: Watchers) -> None:
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=50)
    await watchers.alerts.take("log", LEASE)
    watchers.queue.later(-2 * HOUR)
    assert await watchers.percents() == [50]


@pytest.mark.parametrize("planted", ["alerts", "told_alerts", "budgets", "windows"])
async def test_a_key_of_the_wrong_type_stops_nobody(watchers: Watchers, planted: str) -> None:
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=50)
    watchers.queue.planted = True
    watchers.queue.redis.delete(f"celeriac:{planted}")
    watchers.queue.redis.lpush(f"celeriac:{planted}", "nonsense")
    assert await watchers.queue.fleet.upkeep() is not None
    assert await watchers.percents() == ([] if planted == "alerts" else [50])
    assert not [fault for fault in faults(watchers.queue.redis) if "told_alerts" in fault]


async def test_where_the_alerts_cannot_be_read_nobody_was_told_of_all(watchers: Watchers) -> None:
    await watchers.caps("all", hour=1000)
    assert (await watchers.alerts.take("log", LEASE)).told_all
    watchers.queue.planted = True
    watchers.queue.redis.lpush("celeriac:alerts", "nonsense")
    assert not (await watchers.alerts.take("log", LEASE)).told_all


async def test_a_sum_of_the_wrong_type_stops_no_upkeep(watchers: Watchers) -> None:
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=50)
    watchers.queue.planted = True
    spoilt = watchers.queue.redis.keys("celeriac:use:all:hour*")
    assert spoilt
    for key in spoilt:
        watchers.queue.redis.delete(key)
        watchers.queue.redis.lpush(key, "nonsense")
    assert await watchers.queue.fleet.upkeep() is not None


async def test_a_cap_that_will_be_reached_is_told_once_in_its_window(watchers: Watchers) -> None:
    """With the time, and what the last hour used."""
    await watchers.caps("all", day=1000)
    await watchers.wait(30 * MINUTE)
    await watchers.spend(percent=20)
    [alert] = await watchers.forecast()
    assert (alert.scope, alert.window, alert.use, alert.cap, alert.rate) == ("all", "day", 200, 1000, 200)
    assert alert.reached_at == datetime.fromtimestamp(watchers.queue.now / 1000, UTC) + timedelta(hours=4)
    await watchers.spend(percent=20)
    assert len(await watchers.forecast()) == 1
    await watchers.caps("all", day=2000)
    assert [alert.cap for alert in await watchers.forecast()] == [1000, 2000]
    await watchers.wait(24 * HOUR)
    await watchers.spend(percent=40)
    assert len(await watchers.forecast()) == 3


async def test_the_hour_before_counts_as_far_as_it_lies_in_the_last_sixty_minutes(watchers: Watchers) -> None:
    await watchers.caps("all", month=100_000)
    await watchers.caps("tenant:acme", month=2000)
    await watchers.spend(percent=40)
    await watchers.wait(HOUR + 45 * MINUTE)
    await watchers.spend(percent=10)
    [alert] = await watchers.forecast()
    assert (alert.scope, alert.rate) == ("tenant:acme", 100 + 400 // 4)


@pytest.mark.parametrize(
    ("caps", "why"),
    [
        ({"hour": 1100}, "the hour ends before"),
        ({"day": 1_000_000}, "hardly any of it is used"),
        ({"ever": 20_000}, "that is days away"),
        ({"day": 500}, "it is reached already"),
    ],
)
async def test_a_cap_that_will_not_be_reached_soon_is_not_told(
    watchers: Watchers, caps: dict[str, int], why: str
) -> None:
    await watchers.caps("all", **caps)
    await watchers.wait(50 * MINUTE)
    job = await watchers.job()
    for _ in range(5):
        await watchers.buy(job, 100, 100)
    await watchers.wait(2 * MINUTE)
    assert await watchers.forecast() == [], why


class Heard:
    """A sink that writes down what it was told."""

    name = "heard"
    hears_old = True

    def __init__(self) -> None:
        self.percents: list[int | None] = []

    async def hears(self, alerting: Alerting, newest: str | None) -> None:
        """What the alerting has for it after one look."""
        alerting.look(newest)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == f"alerts to {self.name}"))

    async def tell(self, alert: Alert) -> None:
        self.percents.append(alert.percent)


async def test_a_sink_that_was_told_of_all_is_not_asked_for_until_there_is_more(watchers: Watchers) -> None:
    """Nothing new costs no command, and what is new is told at the next look."""
    sink, redis = Heard(), watchers.queue.redis
    alerting = Alerting(watchers.alerts, [sink])

    async def look() -> int:
        """The commands that it took."""
        newest = await watchers.queue.fleet.upkeep()
        assert newest is not None
        redis.config_resetstat()
        await sink.hears(alerting, newest)
        return sum(redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ASKED)

    await watchers.caps("all", hour=1000)
    assert [await look() > 0, await look()] == [True, 0]
    await watchers.spend(percent=100)
    assert await look() > 0
    assert sink.percents == [50, 80, 100]
    assert [await look() > 0, await look()] == [True, 0]
    await alerting.close()


async def test_a_sink_that_somebody_else_tells_is_asked_for_again(watchers: Watchers) -> None:
    """Who took the alerts may have died: they are anybody's after its lease, though none is new."""
    sink = Heard()
    alerting = Alerting(watchers.alerts, [sink])
    await watchers.caps("all", hour=1000)
    await watchers.spend(percent=50)
    await watchers.alerts.take(sink.name, LEASE)
    newest = await watchers.queue.fleet.upkeep()
    assert newest
    for _ in range(2):
        await sink.hears(alerting, newest)
        await watchers.wait(LEASE // timedelta(milliseconds=1) + 1)
    assert sink.percents == [50]
    await alerting.close()


async def test_upkeep_that_fails_silences_no_alert(watchers: Watchers) -> None:
    """Which one is the newest is not known then: each sink is asked for."""
    sink = Heard()
    alerting = Alerting(watchers.alerts, [sink])
    watchers.queue.planted = True
    watchers.queue.redis.set("celeriac:broken", "nonsense")
    await watchers.caps("all", hour=1000)
    spent = 0
    for percent in (50, 80):
        await watchers.spend(percent=percent - spent)
        spent = percent
        newest = await watchers.queue.fleet.upkeep()
        assert newest is None
        await sink.hears(alerting, newest)
        assert percent in sink.percents
    await alerting.close()


async def test_one_that_never_ends_is_told_a_day_before(watchers: Watchers) -> None:
    await watchers.caps("all", ever=5000)
    await watchers.spend(percent=50)
    [alert] = await watchers.forecast()
    assert (alert.window, alert.rate) == ("ever", 500)


@pytest.mark.parametrize("others", [300, 700])  # Redis answers a scan of the first whole
async def test_all_budgets_have_their_turn(watchers: Watchers, others: int) -> None:
    """However many there are: each look is at some of them."""
    for number in range(others):
        await watchers.caps(f"agent:a{number}", day=1)
    await watchers.caps("tenant:acme", day=1000)
    await watchers.spend(percent=40)
    for _ in range(20):
        found = await watchers.forecast()
    assert [alert.scope for alert in found] == ["tenant:acme"]
