"""`celeriac jobs` over a real store, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import redis

from celeriac.jobs.model import Job, NewJob
from celeriac.jobs.store import new_id
from celeriac.settings import load_settings
from celeriac.stores import open_stores
from tests.by_hand import ask, crash, fail, finish, start
from tests.conftest import Valkey


class Terminal:
    """Someone at a terminal, and the store that it looks at."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.env: dict[str, str] = {}

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What `celeriac jobs` printed, once it ended with this status; what went to standard error is in `said`."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CELERIAC_")}
        ended = subprocess.run(
            [sys.executable, "-m", "celeriac.cli", "jobs", *arguments],
            env=clean | {"CELERIAC_REDIS_URL": self.valkey.url} | self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.said = ended.stderr
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    def submit(self, tenant: str = "default", agent: str = "assistant", **facts: Any) -> str:
        async def run() -> str:
            stores = open_stores(load_settings(redis_url=self.valkey.url))
            job = NewJob(new_id(), tenant, agent, "celeriac", (("user", "my-secret-prompt"),), **facts)
            accepted = await stores.jobs.submit(job)
            await stores.close()
            return accepted.id

        return asyncio.run(run())

    def job(self, id: str) -> Job:
        async def run() -> Job:
            stores = open_stores(load_settings(redis_url=self.valkey.url))
            job = await stores.jobs.get(id, None)
            await stores.close()
            assert job is not None
            return job

        return asyncio.run(run())

    def failed(self, steps: int = 0, **facts: Any) -> str:
        id = self.submit(**facts)
        fail(self.valkey, id, steps=steps)
        return id


@pytest.fixture
def jobs(valkey: Valkey) -> Terminal:
    return Terminal(valkey)


def test_jobs_are_listed_without_their_answers(jobs: Terminal) -> None:
    """Newest first, one a line: what it is, and why it stands as it does."""
    done, bad = jobs.submit(), jobs.failed()
    finish(jobs.valkey, done, answer="my-secret-answer")
    head, *rows = jobs("list").splitlines()
    assert head.split() == ["ID", "STATE", "AGENT", "CREATED", "RUNS", "COST", "USD", "WHY"]
    assert [row.split()[:3] for row in rows] == [[bad, "failed", "assistant"], [done, "succeeded", "assistant"]]
    assert rows[0].endswith("overloaded")
    assert "0.000001234" in rows[1]
    assert "secret" not in "".join(rows) + jobs("list", "--json")


def test_jobs_are_listed_by_what_is_asked_for(jobs: Terminal) -> None:
    """State, agent, dead letters, tenant, and how many."""
    waiting, bad, dead = jobs.submit(agent="reviewer"), jobs.failed(), jobs.submit()
    crash(jobs.valkey, dead)
    other = jobs.submit("acme")

    def listed(*options: str) -> list[str]:
        return [json.loads(line)["id"] for line in jobs("list", "--json", *options).splitlines()]

    assert listed() == [dead, bad, waiting]
    assert listed("--state", "failed") == [dead, bad]
    assert listed("--agent", "reviewer") == [waiting]
    assert listed("--dead") == [dead]
    assert listed("--tenant", "acme") == [other]
    assert listed("--limit", "2") == [dead, bad]
    jobs("list", "--dead", "--state", "queued", status=2)


def test_a_list_is_as_long_as_it_is_asked_to_be(jobs: Terminal) -> None:
    """Over more pages than one."""

    async def many() -> None:
        stores = open_stores(load_settings(redis_url=jobs.valkey.url))
        for _ in range(250):
            await stores.jobs.submit(NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),)))
        await stores.close()

    asyncio.run(many())
    assert len(jobs("list", "--json", "--limit", "230").splitlines()) == 230
    assert len(set(jobs("list", "--json", "--limit", "999").splitlines())) == 250


def test_one_job_is_shown_whole(jobs: Terminal) -> None:
    """As JSON, with its answer and its calls, in exact dollars."""
    id = jobs.submit("acme")
    finish(jobs.valkey, id, answer="Grüße")
    job = json.loads(jobs("show", id))
    assert (job["id"], job["tenant"], job["state"], job["answer"]) == (id, "acme", "succeeded", "Grüße")
    assert (job["cost_usd"], job["in_doubt_usd"]) == ("0.000001234", "0.000000000")
    [call] = job["calls"]
    assert (call["stands"], call["lane"], call["cost_usd"]) == ("settled", "openai/x", "0.000001234")
    jobs("show", id, "--tenant", "default", status=1)
    assert jobs.said == f"celeriac: there is no job {id}\n"


def test_jobs_are_cancelled(jobs: Terminal) -> None:
    """A waiting one at once, a running one is asked to; what cannot be is said, and the status shows it."""
    waiting, running, done = jobs.submit(), jobs.submit("acme"), jobs.submit()
    start(jobs.valkey, running)
    finish(jobs.valkey, done)
    assert jobs("cancel", waiting, running) == f"{waiting} cancelled\n{running} stopping\n"
    assert (jobs.job(waiting).state, jobs.job(running).stopping) == ("cancelled", True)
    assert jobs("cancel", done, "nope", waiting, status=1) == f"{waiting} cancelled\n"
    assert jobs.said == f"celeriac: job {done} is succeeded\nceleriac: there is no job nope\n"


def test_what_a_job_waits_for_is_decided(jobs: Terminal) -> None:
    """`show` says what that is."""
    id = jobs.submit()
    ask(jobs.valkey, id, *({"call": f"1.c{n}", "tool": "sell", "arguments": "{}"} for n in range(2)))
    shown = json.loads(jobs("show", id))
    assert (shown["reason"], [asked["call"] for asked in shown["approvals"]]) == ("waiting_approval", ["1.c0", "1.c1"])
    assert jobs("resume", id, "--refuse", "--reason", "never", "--call", "1.c0") == f"{id} waits for 1 more\n"
    for blind in ((), ("--call", "1.c1", "--all")):
        jobs("resume", id, "--approve", *blind, status=2)
        assert "name what was looked at, by --call" in jobs.said
    assert jobs("resume", id, "--approve", "--all") == f"{id} goes on\n"
    jobs("resume", id, "--approve", "--all", status=1)
    assert "waits for no approval" in jobs.said
    jobs("resume", "no-such-job", "--approve", "--call", "1.c0", status=1)
    assert "there is no job no-such-job" in jobs.said


def test_jobs_are_retried_by_their_ids(jobs: Terminal) -> None:
    """Whoever's they are; each says where it goes on."""
    first, second, waiting = jobs.failed(steps=2), jobs.failed(tenant="acme"), jobs.submit()
    said = jobs("retry", first, second, waiting, "nope", status=1)
    assert said == f"{first} goes on after step 2\n{second} starts from the beginning\n"
    assert jobs.said.splitlines() == [
        f"celeriac: job {waiting} is queued",
        "celeriac: there is no job nope",
        "2 retried, 2 refused",
    ]
    assert (jobs.job(first).state, jobs.job(second).state) == ("queued", "queued")
    jobs("retry", jobs.failed(), "--tenant", "acme", status=1)


def test_all_jobs_that_ended_so_are_retried(jobs: Terminal) -> None:
    """The oldest first, and only those that were asked for."""
    ids = [jobs.failed(steps=1), jobs.failed()]
    other, elsewhere = jobs.failed(agent="reviewer"), jobs.failed(tenant="acme")
    said = jobs("retry", "--state", "failed", "--agent", "assistant", "--fresh", "--expires-in", "600")
    assert said == "".join(f"{id} starts from the beginning\n" for id in ids)
    assert jobs.said == "2 retried\n"
    assert jobs.job(ids[0]).deadline is not None
    assert (jobs.job(other).state, jobs.job(elsewhere).state) == ("failed", "failed")
    jobs("retry", "--state", "failed", "--tenant", "acme")
    assert jobs.job(elsewhere).state == "queued"


def test_whoever_was_asked_is_retried_before_whoever_asked(jobs: Terminal) -> None:
    """It would ask others, where it finds them ended. Below one another, the lowest come first."""
    top, middle, bottom, other = (jobs.failed() for _ in range(4))
    with redis.from_url(jobs.valkey.url) as store:
        for child, parent in ((middle, top), (bottom, middle)):
            store.hset(f"celeriac:job:{child}", "parent", parent)
    retried = [line.split()[0] for line in jobs("retry", "--state", "failed").splitlines()]
    assert retried == [bottom, middle, top, other]


def test_dead_letters_are_retried(jobs: Terminal) -> None:
    """And nothing but them."""
    dead, other = jobs.submit(), jobs.failed()
    crash(jobs.valkey, dead)
    jobs("retry", "--dead")
    assert (jobs.job(dead).state, jobs.job(other).state) == ("queued", "failed")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--state", "failed"],
        ["x", "--agent", "a"],
        ["--dead", "--state", "expired"],
        ["x", "--expires-in", "0"],
    ],
)
def test_a_retry_that_says_too_much_or_too_little_does_nothing(jobs: Terminal, arguments: list[str]) -> None:
    """Status 2 and how it is meant."""
    id = jobs.failed()
    jobs("retry", *arguments, status=2)
    assert "Usage: celeriac jobs retry" in jobs.said.replace("python -m celeriac.cli", "celeriac")
    assert jobs.job(id).state == "failed"


def test_with_several_tenants_one_is_named(jobs: Terminal) -> None:
    """The only one needs no name."""
    id = jobs.submit("acme")
    jobs.env = {"CELERIAC_SHIM__API_KEYS": json.dumps({"acme": "key-of-acme-1234567"})}
    assert id in jobs("list")
    jobs.env = {"CELERIAC_SHIM__API_KEYS": json.dumps({"acme": "key-of-acme-1234567", "globex": "k-of-globex-1234567"})}
    for command in (["list"], ["retry", "--state", "failed"]):
        jobs(*command, status=2)
        assert "acme, globex" in jobs.said
    assert id in jobs("list", "--tenant", "acme")


def test_a_store_that_is_away_is_a_line_and_no_traceback(jobs: Terminal) -> None:
    """And so is a setting that is wrong."""
    jobs.env = {"CELERIAC_REDIS_URL": "redis://127.0.0.1:1/0"}
    jobs("list", status=1)
    assert "CELERIAC_REDIS_URL" in jobs.said
    jobs.env = {"CELERIAC_REDIS_URL": "http://x"}
    jobs("list", status=2)
    assert "CELERIAC_REDIS_URL" in jobs.said
