"""Redis runs one script at a time: none takes longer because there are more tenants, lanes, budgets or lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

from celeriac.costs.books import Account
from celeriac.costs.budgets import Cap
from celeriac.gate.lanes import Lines
from celeriac.jobs.model import State
from celeriac.llm.model import Lane
from tests.jobs.conftest import Queue

#: Of each of them there are so many, and one script gives no more commands than that.
MANY: Final = 1000
MOST: Final = 900


class Logged:
    """What the server ran, in its order: a script stands after its own commands."""

    def __init__(self, queue: Queue) -> None:
        self._redis = queue.redis

    async def of(self, ask: Callable[[], Awaitable[Any]]) -> tuple[Any, list[str]]:
        try:
            self._redis.config_set("slowlog-max-len", 1_000_000)
            self._redis.config_set("slowlog-log-slower-than", 0)
            self._redis.slowlog_reset()
            said = await ask()
            log = self._redis.slowlog_get(1_000_000)
        finally:
            self._redis.config_set("slowlog-log-slower-than", 10_000)
            self._redis.slowlog_reset()
        return said, [entry["command"].decode() for entry in reversed(log)]

    async def longest(self, ask: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
        """What was answered, and how many commands the longest script gave."""
        said, commands = await self.of(ask)
        longest = own = 0
        for command in commands:
            own += 1
            if command.startswith("EVAL"):
                longest, own = max(longest, own), 0
        return said, longest


async def test_no_script_grows_with_all_that_there_is(queue: Queue) -> None:
    """Each page is complete all the same."""
    stores = queue.stores
    await queue.worker(slots=2)
    for number in range(MANY):
        await stores.budgets.put(f"tenant:t{number}", [Cap("day", 1)], "test")
        # The second one waits behind its context.
        for _ in range(2):
            await queue.submit(tenant=f"t{number}", context_id="talk")
    lanes = [Lane("openai", f"m{number}") for number in range(MANY)]
    asks: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[Any], int], int]] = {
        "budgets": (stores.budgets.all, len, MANY),
        "the count": (lambda: queue.jobs.count(None), lambda counts: sum(counts.states.values()), 2 * MANY),
        "a page": (lambda: queue.jobs.list(None), lambda page: len(page.jobs), 50),
        "a rare agent": (lambda: queue.jobs.list(None, agent="rare"), lambda page: len(page.jobs), 0),
        "the census": (stores.census.count, lambda counted: counted.states[State.QUEUED], 2 * MANY),
        "calls of lanes": (lambda: stores.lanes.ends(lanes, 24), len, MANY),
        "lanes": (lambda: stores.lanes.look(lanes), len, MANY),
    }
    commands = {}
    for name, (ask, count, found) in asks.items():
        said, commands[name] = await Logged(queue).longest(ask)
        assert count(said) == found, name
    assert {name: longest for name, longest in commands.items() if longest > MOST} == {}


async def test_a_tenant_asks_for_its_own_budget_alone(queue: Queue) -> None:
    """Those of others are not even read."""
    for number in range(200):
        await queue.stores.budgets.put(f"tenant:t{number}", [Cap("day", 1)], "test")
    found, commands = await Logged(queue).of(lambda: queue.stores.budgets.of(["tenant:t7", "tenant:nobody"]))
    assert found.keys() == {"tenant:t7"}
    assert not [command for command in commands if command.startswith("HKEYS") or "tenant%3At8" in command]


async def test_upkeep_does_not_look_at_all_budgets_at_once(queue: Queue) -> None:
    """Not where there are some hundreds either, of which Redis answers each scan whole."""
    await queue.worker(slots=2)
    buys = await queue.claim(await queue.submit())
    books = partial(Account("default", "assistant").books, Lane("openai", "m"))
    await queue.stores.journal.admit(buys, "c", 9, {}, books=books)
    for number in range(MANY // 2):
        await queue.stores.budgets.put(f"tenant:t{number}", [Cap("hour", 1), Cap("day", 1)], "test")
    said, commands = await Logged(queue).longest(queue.fleet.upkeep)
    assert said is not None
    assert 100 < commands < MOST


async def test_who_is_woken_is_not_looked_for_among_all_lines(queue: Queue) -> None:
    """A line each for hundreds of lanes: all of them are woken, and nobody reads the set of lines whole."""
    await queue.worker(slots=1000)
    jobs = []
    for number in range(300):
        claim = await queue.claim(await queue.submit())
        await queue.jobs.wait_for_lane(claim, f"openai/m{number}", timedelta(0))
        jobs.append(claim.id)
    rounds = 0
    while any(queue.record(job)["place"] == "parked" for job in jobs):
        _, commands = await Logged(queue).of(queue.fleet.upkeep)
        assert not [command for command in commands if command.startswith("SMEMBERS celeriac:lanes")]
        rounds += 1
    assert rounds == 3


async def test_of_more_lines_than_are_named_the_sums_stay_true(queue: Queue) -> None:
    """Lanes come before scopes, and scopes before what single jobs may cost: of these only the sum is told."""
    queue.planted = True
    for line in ("$all", "$job%3A1", "$job%3A2", "$tenant%3Aa", "$tenant%3Ab", "openai/a", "openai/b", "openai/c"):
        queue.redis.sadd("celeriac:lanes", line)
        queue.redis.zadd(f"celeriac:lane_line:{line}", {f"{line} {n}": n for n in range(len(line))})
    lanes = {Lane("openai", name): 8 for name in "abc"}
    scopes = {"all": 4, "tenant%3Aa": 11, "tenant%3Ab": 11}
    assert await queue.stores.lanes.lines(10) == Lines(lanes, scopes, 16, 0, 0)
    assert await queue.stores.lanes.lines(5) == Lines(lanes, {"all": 4, "tenant%3Aa": 11}, 16, 0, 11)
    assert await queue.stores.lanes.lines(2) == Lines(dict([*lanes.items()][:2]), {}, 16, 8, 26)
