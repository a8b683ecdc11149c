"""`celeriac drill` as an operator runs it, and the parts that break things."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from celeriac import keys
from celeriac.connections import open_redis
from celeriac.drill.leftovers import orphans, read_settled
from celeriac.drill.slow_disk import SlowDisk
from celeriac.drill.stock import stock
from tests.conftest import Valkey
from tests.processes import Shim, Worker, running, wait_until

CELERIAC = [sys.executable, "-m", "celeriac.cli"]


def drill(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CELERIAC, "drill", *arguments], capture_output=True, text=True, timeout=120, env=os.environ | env, check=False
    )


def test_the_scenarios_are_listed() -> None:
    """By name, each with what it breaks."""
    listed = drill("--list")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert len(names) == len(set(names)) > 15
    assert {"kill-workers", "swallowed-pops", "redis-rewound", "poisoned-job"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenario", "earthquake"], "there is no scenario earthquake"),
        (["--url", "http://127.0.0.1:1"], "--url and --redis belong together"),
        (
            ["--url", "http://127.0.0.1:1", "--redis", "redis://127.0.0.1:1", "--scenario", "kill-workers"],
            "kill-workers: needs processes of its own",
        ),
    ],
)
def test_what_cannot_be_drilled_is_refused(arguments: list[str], said: str) -> None:
    """In a line that says why, before anything is started."""
    refused = drill(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_scenario_runs_from_end_to_end() -> None:
    """Bells are deleted and nothing is lost; what the operator has set, keys included, reaches no process of ours."""
    ran = drill(
        *("--short", "--scenario", "bells-deleted", "--jobs", "20", "--json"),
        OPENAI_API_KEY="a-key-that-costs-money",
        CELERIAC_ENV="prod",
        REDIS_URL="redis://127.0.0.1:1",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [scenario] = json.loads(ran.stdout)["scenarios"]
    assert (scenario["jobs"], scenario["lost"], scenario["violations"]) == (20, 0, [])
    assert scenario["states"] == {"succeeded": 20}
    assert scenario["provider_calls"] == 20
    assert scenario["affected"] > 0
    assert scenario["recovery_seconds"]["max"] < 15


@pytest.mark.parametrize(
    ("without", "scenario", "found"), [("upkeep", "kill-workers", "lost"), ("fencing", "zombies", "twice")]
)
def test_the_drill_can_fail(without: str, scenario: str, found: str) -> None:
    """With upkeep or fencing switched off, it reports what is lost or ended twice, and exits non-zero."""
    for _ in range(3):  # on a busy machine a zombie may wake when nobody runs what it ran any more
        ran = drill("--short", "--scenario", scenario, "--jobs", "30", f"--without-{without}", "--json")
        if ran.returncode:
            break
    assert ran.returncode == 1, ran.stdout + ran.stderr
    [made] = json.loads(ran.stdout)["scenarios"]
    assert made[found] > 0, made["violations"]


def test_a_stack_that_is_up_is_drilled_from_outside(valkey: Valkey) -> None:
    """Its jobs are asked for over HTTP with the tenant's key; nobody's processes and no key of another are touched."""
    foreign = valkey.client()
    foreign.set("second", "of somebody else")
    key = "a-key-of-the-tenant"
    with (
        running(Worker(valkey.url, CELERIAC_SCRIPTED="1")),
        running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS__ACME=key)) as shim,
    ):
        arguments = ("--url", shim.url, "--redis", valkey.url, "--short", "--jobs", "20", "--json")
        ran = drill(*arguments, CELERIAC_DRILL_KEY=key)
        assert drill(*arguments, "--scenario", "calm").returncode == 1, "without a key nothing is accepted"
    assert ran.returncode == 0, ran.stdout + ran.stderr
    scenarios = json.loads(ran.stdout)["scenarios"]
    assert [(one["scenario"], one["jobs"], one["lost"]) for one in scenarios] == [
        ("calm", 20, 0),
        ("bells-deleted", 20, 0),
    ]
    assert foreign.get("second") == "of somebody else"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_drill_that_is_stopped_leaves_no_process_behind(number: signal.Signals) -> None:
    """Whatever it had started has ended when it has."""
    process = subprocess.Popen(
        [*CELERIAC, "drill", "--short", "--scenario", "calm"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever runs the tests in the background has them ignore it, and a child does as they do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children: list[psutil.Process] = []
    try:

        def workers() -> list[psutil.Process]:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return [child for child in children if "worker.app" in _command(child)]

        wait_until(lambda: len(workers()) == 3, "the workers to be started")
        process.send_signal(number)
        assert process.wait(60) != 0
        left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert left == []
    finally:
        process.kill()
        process.wait()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_only_what_stays_is_a_leftover(valkey: Valkey) -> None:
    """A worker that comes or goes while the keys are read is in some of them only; one that stays so is a fault."""
    async with aclosing(open_redis(valkey.url, connections=2, name="test")) as redis:
        half = keys.spell("worker", worker="half")
        await redis.hset(half, "running", "0")
        reading = asyncio.create_task(read_settled(redis, 60))
        await asyncio.sleep(0.2)
        assert not reading.done()
        await redis.delete(half)
        assert list(orphans(await reading, settled=True)) == []
        await redis.hset(half, "running", "0")
        assert [key for key, _ in orphans(await read_settled(redis, 0.1), settled=True)] == [half]


async def test_a_slow_disk_loses_what_redis_has_answered(own_valkey: Valkey) -> None:
    """The server answers on; what it answered since is not in its file when it is killed."""
    assert own_valkey.process is not None
    client = own_valkey.client()
    client.set("before", "kept")
    await asyncio.sleep(1.5)
    answered = 0
    async with SlowDisk(own_valkey.process.pid):
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            answered = client.incr("counted")
            await asyncio.sleep(0.001)
        own_valkey.process.kill()
    own_valkey.stop()
    own_valkey.start()
    kept = int(own_valkey.client().get("counted") or 0)
    assert own_valkey.client().get("before") == "kept"
    assert kept < answered


async def test_a_disk_is_as_fast_as_before_when_it_is_no_longer_slow(own_valkey: Valkey) -> None:
    """Nothing is lost if nobody is killed."""
    assert own_valkey.process is not None
    client = own_valkey.client()
    async with SlowDisk(own_valkey.process.pid):
        client.incr("counted")
    client.incr("counted")
    for _ in range(50):
        if client.info("persistence")["aof_pending_bio_fsync"] == 0:
            break
        await asyncio.sleep(0.1)
    own_valkey.stop(kill=True)
    own_valkey.start()
    assert own_valkey.client().get("counted") == "2"


async def test_stock_celery_loses_what_a_swallowed_pop_took() -> None:
    """Even with `acks_late` and `reject_on_worker_lost`: the message is nowhere any more. We compare with it."""
    assert await stock(4, quiet=7) == (3, 3)


def test_the_blocking_module_is_for_the_drill_only() -> None:
    """No part of the product imports it: a worker blocks its loop only where it was started to do so."""
    root = Path(__file__).parent.parent.parent
    sources = [
        file for folder in ("celeriac", "tasks", "worker", "api_shim", "ops") for file in (root / folder).rglob("*.py")
    ]
    users = [
        file.name for file in sources if "blocking" in file.read_text() and "drill import blocking" in file.read_text()
    ]
    assert users == ["scenarios.py"]
