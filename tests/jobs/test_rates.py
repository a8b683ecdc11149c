"""What a lane may be asked for in a time: as its provider says it, its operator, and after it had to be left alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac.errors import ModelError, ProviderFailed, RateLimited
from celeriac.gate.lanes import Caps, Tokens, asking, heard, spelt
from celeriac.jobs.journal import Admitted, Closed, Settlement
from celeriac.jobs.model import Claim, Parked, Place
from celeriac.llm.limits import Limit
from celeriac.llm.model import Lane, Usage
from tests.jobs.conftest import Queue

LANE = Lane("openai", "gpt-5-mini")


class Callers:
    """Calls of one run over one lane. most: tokens that each may use."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self.queue, self.claim, self.calls = queue, claim, 0
        self.lane, self.most, self.caps = LANE, (0, 0), Caps()

    async def ask(self, claim: Claim | None = None, most: Tokens | None = None) -> Admitted | Closed:
        self.calls += 1
        door = asking(self.lane, most or self.most, self.caps, 30.0)
        return await self.queue.stores.journal.admit(claim or self.claim, f"c{self.calls}", 0, {}, door)

    async def told(
        self, *limits: Limit, error: ModelError | None = None, usage: Usage | None = None, took: Tokens = (0, 0)
    ) -> None:
        """The last call has brought this."""
        says = heard(self.lane, error, most=self.most, took=took, usage=usage, limits=limits)
        await self.queue.stores.journal.settle(self.claim, Settlement(f"c{self.calls}", "released", 0, 0, {}, says))

    async def admitted(self, tries: int = 100) -> int:
        """How many calls may be made now."""
        for number in range(tries):
            if isinstance(await self.ask(), Closed):
                return number
        return tries


@pytest.fixture
async def callers(queue: Queue) -> Callers:
    await queue.worker()
    return Callers(queue, await queue.claim(await queue.submit()))


async def test_a_lane_of_whose_rates_nothing_is_known_may_be_asked(callers: Callers) -> None:
    assert await callers.admitted() == 100


async def test_calls_take_what_the_provider_says_is_left(callers: Callers) -> None:
    """Then they wait for as long as it takes until one fits. The same call again takes nothing."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=10))
    again = await callers.ask()
    for _ in range(3):
        callers.calls -= 1
        assert await callers.ask() == again
    assert await callers.admitted() == 9
    assert await callers.ask() == Closed(timedelta(seconds=1), "rate_reached")
    callers.queue.later(999)
    assert isinstance(await callers.ask(), Closed)
    callers.queue.later(1)
    assert await callers.admitted() == 1
    callers.queue.later(600_000 - 2000)
    assert await callers.admitted() == 60, "no more than it holds"


async def test_a_limit_of_a_day_is_filled_in_a_day(callers: Callers) -> None:
    await callers.ask()
    await callers.told(Limit("requests", most=86_400, left=0, period=86_400.0))
    callers.queue.later(5000)
    assert await callers.admitted() == 5


async def test_what_others_use_of_a_rate_counts(callers: Callers) -> None:
    """Whoever else calls with the same key: the provider sees all of them. Where we thought that less was left, that
    stands: calls of ours are still on their way to it."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=50))
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=3))
    assert await callers.admitted() == 3
    await callers.told(Limit("requests", most=60, left=40))
    assert await callers.admitted() == 0


async def test_a_limit_that_is_raised_counts_at_once(callers: Callers) -> None:
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=1))
    await callers.ask()
    await callers.told(Limit("requests", most=600, left=500))
    callers.queue.later(1000)
    assert await callers.admitted() == 10


async def test_a_limit_that_no_answer_names_any_more_is_forgotten(callers: Callers) -> None:
    """After ten minutes: the key, or the provider behind the URL, is another."""
    await callers.ask()
    await callers.told(Limit("requests", most=1, left=0))
    callers.queue.later(599_999)
    assert await callers.admitted() == 1
    callers.queue.later(1)
    assert await callers.admitted() == 100


@pytest.mark.parametrize(
    ("bucket", "calls"), [("tokens", 10), ("input", 20), ("output", 20)], ids=["tokens", "input", "output"]
)
async def test_tokens_are_taken_as_they_are_expected(callers: Callers, bucket: str, calls: int) -> None:
    """Of a lane that nothing is known of, half of what a call may use."""
    callers.most = (100, 100)
    await callers.ask()
    await callers.told(Limit(bucket, most=6000, left=1000))  # type: ignore[arg-type]
    assert await callers.ask() == Admitted((50, 50))
    assert await callers.admitted() == calls - 1


async def test_what_a_call_used_corrects_what_it_took(callers: Callers) -> None:
    """Both ways: what it did not use is there for others, what it used beyond that has to flow in first."""
    callers.most = (1000, 1000)
    await callers.ask()
    await callers.told(Limit("tokens", most=6000, left=1000))
    assert await callers.ask() == Admitted((500, 500))
    assert await callers.admitted() == 0
    callers.calls -= 1
    await callers.told(usage=Usage(input=20, output=80), took=(500, 500))
    callers.most = (900, 0)
    assert await callers.ask(most=(0, 0)) is not None
    wait = await callers.ask(most=(60_000, 0))
    assert isinstance(wait, Closed)
    # 900 are back. 60,000 are expected to be 1,200 by now: as the first call used 2 in 100 of what it might.
    assert wait.wait == timedelta(seconds=3)
    callers.calls = 2
    await callers.ask(most=(0, 0))


async def test_calls_are_expected_to_use_what_others_used(callers: Callers) -> None:
    """Learned by lane: the newest call counts for a tenth."""
    callers.most = (1000, 1000)
    first = await callers.ask()
    await callers.told(usage=Usage(input=200, output=10))
    second = await callers.ask()
    await callers.told(usage=Usage(input=100, cache_write=50, cache_read=50, output=10))
    third = await callers.ask()
    await callers.told(usage=Usage(input=700, output=510))
    assert (first, second, third, await callers.ask()) == (
        Admitted((500, 500)),
        Admitted((200, 10)),
        Admitted((200, 10)),
        Admitted((250, 60)),
    )


async def test_what_anthropic_reads_from_its_cache_is_not_counted(callers: Callers) -> None:
    callers.lane, callers.most = Lane("anthropic", "claude-haiku-5-5"), (1000, 1000)
    await callers.ask()
    await callers.told(usage=Usage(input=100, cache_write=50, cache_read=800, output=10))
    assert await callers.ask() == Admitted((150, 10))


async def test_a_call_that_is_larger_than_the_rate_goes_when_it_is_full(callers: Callers) -> None:
    """Else it would wait for ever. Those after it wait until the bucket has filled twice, and not for ever either."""
    await callers.ask()
    await callers.told(Limit("tokens", most=600, left=590))
    assert await callers.ask(most=(5000, 0)) == Closed(timedelta(seconds=1), "rate_reached")
    callers.queue.later(1000)
    assert isinstance(await callers.ask(most=(5000, 0)), Admitted)
    assert await callers.ask(most=(1, 0)) == Closed(timedelta(seconds=60.1), "rate_reached")


async def test_what_the_operator_allows_holds_besides(callers: Callers) -> None:
    """For requests and tokens; a change of it holds from the next call on."""
    callers.caps = Caps(requests=60)
    assert await callers.admitted() == 60
    callers.caps = Caps()
    assert await callers.admitted() == 100
    callers.caps, callers.most = Caps(tokens=120), (20, 20)
    assert await callers.admitted() == 6
    callers.queue.later(10_000)
    assert await callers.admitted() == 1
    callers.queue.later(1_200_000)
    assert await callers.admitted() == 6, "an operator's limit is not forgotten"


async def test_the_narrowest_limit_counts(callers: Callers) -> None:
    """And what one refuses is taken from none."""
    callers.caps = Caps(requests=600)
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=60), Limit("tokens", most=60_000, left=4000))
    callers.most = (1000, 1000)
    assert await callers.admitted() == 4
    callers.most = (0, 0)
    assert await callers.admitted() == 56


async def test_a_lane_that_had_to_be_left_alone_is_asked_by_few_at_first(callers: Callers) -> None:
    """One at once, one a second, and twice as many every two seconds: whoever waited for it does not run it over. After
    twenty seconds there is no such limit."""
    await callers.ask()
    await callers.told(error=RateLimited(status=429, retry_after=7.0))
    callers.queue.later(7000)
    asked = [await callers.admitted(1000)]
    for _ in range(10):
        callers.queue.later(1000)
        asked.append(await callers.admitted(1000))
    assert asked == [1, 1, 1, 3, 3, 5, 7, 9, 14, 19, 27]
    callers.queue.later(10_000)
    assert await callers.admitted(2000) == 2000


async def test_a_busy_lane_is_asked_by_half_of_its_calls_at_first(callers: Callers) -> None:
    """One a second would be too careful where twenty were answered. Those that failed do not count."""
    for number in range(300):
        await callers.ask()
        await callers.told(error=ProviderFailed(status=500) if number % 3 == 0 else None)
    await callers.ask()
    await callers.told(error=RateLimited(status=429, retry_after=1.0))
    callers.queue.later(1000)
    asked = [await callers.admitted(1000)]
    for _ in range(4):
        callers.queue.later(1000)
        asked.append(await callers.admitted(1000))
    assert asked == [1, 11, 17, 24, 34]


async def test_a_lane_whose_breaker_closes_is_asked_by_few_at_first(callers: Callers) -> None:
    for _ in range(10):
        await callers.ask()
        await callers.told(error=ProviderFailed(status=500))
    callers.queue.later(10_000)
    await callers.ask()
    await callers.told()
    assert await callers.admitted() == 1


async def test_what_is_known_of_the_rates_is_empty_after_a_cool_off(callers: Callers) -> None:
    """The provider has just said that it was too much, whatever we thought was left. It fills from then on, and not
    while nobody may ask."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=59), Limit("tokens", most=60_000, left=60_000))
    await callers.ask()
    await callers.told(error=RateLimited(status=429, retry_after=7.0))
    callers.queue.later(7000)
    assert await callers.ask() == Closed(timedelta(seconds=1), "rate_reached")
    callers.queue.later(1000)
    assert await callers.admitted() == 1


async def test_a_clock_that_goes_back_keeps_no_bucket_empty(callers: Callers) -> None:
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    callers.queue.later(-900_000)
    await callers.ask()
    callers.queue.later(5000)
    assert await callers.admitted() == 5


async def wait_in_line(callers: Callers, most: Tokens = (0, 0)) -> str:
    job = await callers.queue.submit()
    claim = await callers.queue.claim(job)
    assert isinstance(await callers.ask(claim, most), Closed)
    parked = await callers.queue.jobs.wait_for_lane(claim, spelt(callers.lane), timedelta(seconds=1), most=most)
    assert isinstance(parked, Parked)
    return job.id


async def woken(callers: Callers, jobs: list[str]) -> list[str]:
    await callers.queue.fleet.upkeep()
    return [job for job in jobs if callers.queue.record(job)["place"] == Place.RUNG]


async def test_a_clock_that_goes_back_lets_nobody_wait_for_longer(callers: Callers) -> None:
    """Also where nobody comes: those who wait are woken at the lane's pace."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    jobs = [await wait_in_line(callers) for _ in range(3)]
    callers.queue.later(-900_000)
    await callers.queue.beat()
    assert await woken(callers, jobs) == []
    callers.queue.later(2000)
    assert await woken(callers, jobs) == jobs[:2]


async def test_no_more_are_woken_than_the_rates_let_through(callers: Callers) -> None:
    """In the order in which they came; and none of them is woken in vain, whoever else asks."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    jobs = [await wait_in_line(callers) for _ in range(5)]
    callers.queue.later(2000)
    assert await woken(callers, jobs) == jobs[:2]
    assert await callers.admitted() == 0
    for job in jobs[:2]:
        assert isinstance(await callers.ask(await callers.queue.claim(job)), Admitted)
    assert await callers.admitted() == 0


async def test_who_waits_goes_before_who_comes(callers: Callers) -> None:
    """Else newcomers take what the line waits for."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    jobs = [await wait_in_line(callers) for _ in range(3)]
    callers.queue.later(3000)
    assert await callers.ask() == Closed(timedelta(seconds=1), "rate_reached"), "three come first"
    assert await woken(callers, jobs) == jobs
    assert await callers.admitted() == 0
    callers.queue.later(1000)
    assert await callers.admitted() == 1


async def test_a_large_job_is_not_passed_by_small_ones_for_ever(callers: Callers) -> None:
    """It is the oldest: what flows in is kept for it."""
    await callers.ask()
    await callers.told(Limit("tokens", most=6000, left=0))
    large = await wait_in_line(callers, (2000, 0))
    small = [await wait_in_line(callers, (20, 0)) for _ in range(3)]
    for _ in range(9):
        callers.queue.later(1000)
        assert await woken(callers, [large, *small]) == []
    callers.queue.later(1000)
    assert await woken(callers, [large, *small]) == [large]


async def test_newcomers_do_not_eat_what_a_large_job_waits_for(callers: Callers) -> None:
    """However small they are, and though they wait in no line."""
    await callers.ask()
    await callers.told(Limit("tokens", most=6000, left=0))
    large = await wait_in_line(callers, (12_000, 0))
    for _ in range(59):
        callers.queue.later(1000)
        await callers.queue.beat()
        assert isinstance(await callers.ask(most=(20, 0)), Closed)
        assert await woken(callers, [large]) == []
    callers.queue.later(1000)
    assert await woken(callers, [large]) == [large]


async def test_who_was_woken_and_does_not_come_is_not_waited_for(callers: Callers) -> None:
    """For ten seconds at most nobody goes before it. Then it takes its chance, and waits again where it stood."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    jobs = [await wait_in_line(callers) for _ in range(2)]
    callers.queue.later(2000)
    assert await woken(callers, jobs) == jobs
    assert await callers.admitted() == 0
    assert isinstance(await callers.ask(await callers.queue.claim(jobs[0])), Admitted)
    assert await callers.admitted() == 0
    callers.queue.later(10_000)
    assert await callers.admitted() == 11
    claim = await callers.queue.claim(jobs[1])
    assert isinstance(await callers.ask(claim), Closed)
    other = await wait_in_line(callers)
    await callers.queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=1))
    assert callers.queue.redis.zrange(f"celeriac:lane_line:{spelt(LANE)}", 0, -1) == [jobs[1], other]


async def test_a_limit_of_a_day_is_not_emptied_by_a_cool_off(callers: Callers) -> None:
    """It would be back in hours."""
    await callers.ask()
    await callers.told(
        Limit("requests", most=1000, left=900, period=86_400.0), error=RateLimited(status=429, retry_after=2.0)
    )
    callers.queue.later(22_000)
    assert await callers.admitted(50) == 50


async def test_a_cap_that_is_set_anew_fills_no_bucket(callers: Callers) -> None:
    """While two files are in use, at each call by turns, it would be none."""
    callers.caps = Caps(requests=60)
    assert await callers.admitted() == 60
    callers.caps = Caps(requests=61)
    assert await callers.admitted() == 0
    callers.caps = Caps(requests=60)
    assert await callers.admitted() == 0


async def test_a_job_that_was_woken_and_finds_its_lane_closed_waits_again(callers: Callers) -> None:
    """What it had taken is gone by then: it takes anew."""
    await callers.ask()
    await callers.told(Limit("requests", most=60, left=0))
    job = await wait_in_line(callers)
    callers.queue.later(1000)
    assert await woken(callers, [job]) == [job]
    callers.calls = 1
    await callers.queue.stores.journal.admit(callers.claim, "late", 0, {})
    says = heard(LANE, RateLimited(status=429, retry_after=30.0))
    await callers.queue.stores.journal.settle(callers.claim, Settlement("late", "released", 0, 0, {}, says))
    claim = await callers.queue.claim(job)
    assert await callers.ask(claim) == Closed(timedelta(seconds=30), "rate_limited")
    await callers.queue.jobs.wait_for_lane(claim, spelt(LANE), timedelta(seconds=30))
    for _ in range(2):
        callers.queue.later(15_000)
        await callers.queue.beat()
    assert await woken(callers, [job]) == []
    callers.queue.later(1000)
    assert await woken(callers, [job]) == [job]
