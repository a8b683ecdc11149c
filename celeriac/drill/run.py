"""Runs scenarios one after the other and checks what each leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from celeriac import settings
from celeriac.connections import open_redis
from celeriac.drill.caller import Caller
from celeriac.drill.history import History, billed_of
from celeriac.drill.house import House, Plan, many_files
from celeriac.drill.leftovers import read_settled
from celeriac.drill.report import Result, result_of
from celeriac.drill.scenarios import DELAY, JITTER, SCENARIOS, Scenario
from celeriac.drill.stage import Size, Stage
from celeriac.errors import Misconfigured

FULL: Final = Size(jobs=550, over=40, lease=15, patience=150)
SHORT: Final = Size(jobs=60, over=7, lease=2, patience=20, short=True)
#: Tells a worker to do without upkeep or fencing, so that the drill can be seen to fail. Refused in prod.
WITHOUT: Final = "CELERIAC_DRILL_WITHOUT"
#: The log event of a worker that sees that the store has lost history.
HISTORY_LOST: Final = "store_lost_history"
#: A line of a worker's log: when it had ended which job.
ENDED: Final = re.compile(r"^\S+ \| (\S+) \[info\s*\] job_ended .*?\bjob_id=(\S+)", re.MULTILINE)
#: Seconds, besides the patience, after which a scenario is given up.
LIMIT: Final = 240.0


@dataclass(frozen=True)
class Elsewhere:
    """A stack that is up: its shim, its store, a tenant's key ("" for none), and an agent that is cheap to ask."""

    url: str
    redis_url: str
    key: str = ""
    agent: str = "assistant"


@dataclass(frozen=True)
class Options:
    """scenarios: names, empty for all that fit. without: "upkeep", "fencing"."""

    scenarios: tuple[str, ...] = ()
    jobs: int | None = None
    short: bool = False
    seed: int = 0
    without: tuple[str, ...] = ()
    elsewhere: Elsewhere | None = None

    @property
    def size(self) -> Size:
        size = SHORT if self.short else FULL
        return replace(size, jobs=self.jobs) if self.jobs else size


def chosen(options: Options) -> list[Scenario]:
    """Raises Misconfigured for names that do not exist, or that need processes where there are none of ours."""
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        raise Misconfigured(f"there is no scenario {', '.join(unknown)}; `celeriac drill --list` names them")
    if options.scenarios:
        some = [SCENARIOS[name] for name in options.scenarios]
        if options.elsewhere and (bound := [one.name for one in some if not one.anywhere]):
            raise Misconfigured(f"{', '.join(bound)}: needs processes of its own: leave out --url")
        return some
    if options.elsewhere:
        return [one for one in SCENARIOS.values() if one.anywhere]
    return [one for one in SCENARIOS.values() if one.short or not options.short]


def drill(options: Options, say: Callable[[str], None]) -> list[Result]:
    """say: told of each scenario as it begins. Raises Misconfigured, NotStarted, and on a signal KeyboardInterrupt.

    Whatever happens, each process that was started has ended when this returns or raises.
    """
    some = chosen(options)
    if options.without and WITHOUT not in settings.variables():
        raise Misconfigured(f"these workers know no {WITHOUT}: they cannot be told to do without {options.without[0]}")
    with many_files():
        try:
            return asyncio.run(_drill(some, options, say))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _drill(some: Iterable[Scenario], options: Options, say: Callable[[str], None]) -> list[Result]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine that runs has one
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with AsyncExitStack() as open_:
        lodging = await open_.enter_async_context(Lodging(options))
        results = []
        for scenario in some:
            say(f"{scenario.name}: {scenario.about}")
            result = await lodging.run(scenario)
            say(f"    {result.in_short}")
            results.append(result)
        return results


@dataclass
class Lodging:
    """Gives each scenario a house: the one before, if it was left in order and is of the right plan, else a new one."""

    options: Options
    _house: House | None = None
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Lodging:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave(keep=False)

    async def run(self, scenario: Scenario) -> Result:
        if reason := self._why_not(scenario):
            return Result(scenario.name, not_run=reason)
        size, elsewhere = self.options.size, self.options.elsewhere
        began, history = time.monotonic(), History(echoes=elsewhere is None)
        house = None if elsewhere else await self._house_for(self._told(scenario.plan(size)))
        rng = random.Random(f"{self.options.seed} {scenario.name}")  # noqa: S311  # a drill repeats itself
        async with AsyncExitStack() as open_:
            if house is not None:
                url, redis = house.shim_url, house.direct
                caller = Caller(url, history)
            else:
                assert elsewhere is not None  # noqa: S101  # it is one or the other
                caller = Caller(elsewhere.url, history, key=elsewhere.key, agent=elsewhere.agent)
                redis = open_redis(elsewhere.redis_url, connections=4, name="drill")
                open_.push_async_callback(redis.aclose)
            await open_.enter_async_context(caller)
            stage = Stage(scenario.name, size, caller, history, redis, rng, house)
            await _play(scenario, stage, house)
        result = result_of(
            scenario.name, history, time.monotonic() - began, kept=str(house.directory) if house is not None else ""
        )
        if result.violations:
            await self._leave(keep=True)
        return result

    def _why_not(self, scenario: Scenario) -> str:
        missing = [name for name in scenario.settings if name not in settings.variables()]
        return f"this release has no {', '.join(missing)}" if missing else scenario.why_not()

    def _told(self, plan: Plan) -> Plan:
        env: Mapping[str, str] = {}
        if self.options.short:
            env = {"CELERIAC_JOBS__LEASE": f"{SHORT.lease:g}"}
        if self.options.without:
            env = {**env, WITHOUT: ",".join(self.options.without)}
        return replace(plan, env={**plan.env, **env})

    async def _house_for(self, plan: Plan) -> House:
        if self._house is not None and self._house.plan == plan and await _in_order(self._house):
            return self._house
        await self._leave(keep=False)
        directory = Path(tempfile.mkdtemp(prefix="celeriac-drill-"))
        try:
            self._house = await self._open.enter_async_context(House(plan, directory))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return self._house

    async def _leave(self, *, keep: bool) -> None:
        house, self._house = self._house, None
        await self._open.aclose()
        if house is not None and not keep:
            await asyncio.to_thread(shutil.rmtree, house.directory, ignore_errors=True)


async def _in_order(house: House) -> bool:
    """Whether all that it was built with runs, and nothing more."""
    return len(house.workers) == house.plan.workers and all(worker.pid for worker in house.workers)


async def _play(scenario: Scenario, stage: Stage, house: House | None) -> None:
    """The scenario, and then what it left behind, all written into the history."""
    history, size = stage.history, stage.size
    noticed = _noticed(house)
    if house is not None:
        await house.provider.reset()
        await house.provider.default(delay=DELAY, jitter=JITTER)
    try:
        async with asyncio.timeout(LIMIT + 3 * size.patience):
            await scenario.play(stage)
            stage.expect(bool(history.accepted), f"no job was accepted: {history.outcomes()}")
            if house is not None:
                _mend(house)
            await stage.caller.all_ended(size.patience)
            await stage.caller.read_everything()
    except Exception as error:  # whatever a scenario or its house raises is a finding, and the next one is to run
        history.unexpected.append(f"{type(error).__name__}: {error}")
    if house is None:
        return
    _mend(house)
    with contextlib.suppress(Exception):  # what cannot be read was said above
        history.keys = await read_settled(stage.redis, 2 * size.lease + 5)
        history.billed = [billed_of(line) for line in (await house.provider.bill(lines=True))["lines"]]
    history.noticed = _noticed(house) > noticed
    history.said = _said(house, history.known)


def _mend(house: House) -> None:
    house.shim_line.mend()
    house.worker_line.mend()
    for worker in house.workers:
        worker.signal(signal.SIGCONT)


def _noticed(house: House | None) -> int:
    return sum(worker.log.count(HISTORY_LOST) for worker in house.workers) if house is not None else 0


def _said(house: House, jobs: Collection[str]) -> dict[str, list[float]]:
    """When workers said that they had ended one of these jobs."""
    said: dict[str, list[float]] = {}
    for worker in house.workers:
        for at, job in ENDED.findall(worker.log):
            if job in jobs:
                said.setdefault(job, []).append(datetime.fromisoformat(at).timestamp())
    return said
