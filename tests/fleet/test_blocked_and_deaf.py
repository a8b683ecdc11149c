"""A worker whose event loop is blocked, or that takes no messages: what it keeps, and what it says to probes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from celery import Celery

from tests.conftest import Valkey
from tests.processes import ROOT, Process, Worker, free_port, wait_until
from tests.story.conftest import House
from worker.lifecycle import DEAF_AFTER

OWN_TASKS = "tests.fleet.own_tasks"
#: Short, so that the stories are, and long enough for one heartbeat a second on a busy machine.
LEASE = 3.0
#: What a blocking pop of Celery's waits for at most.
A_POP = 1.0


class Probed:
    """A worker and its port."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=5)

    def get(self, page: str) -> tuple[int, dict[str, Any]]:
        answer = self.http.get(page)
        return answer.status_code, answer.json()

    def metric(self, name: str) -> float:
        [line] = [line for line in self.http.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def failing(self, page: str) -> set[str]:
        status, body = self.get(page)
        assert (status == 503) is bool(body["failing"]), body
        assert body["status"] == ("failing" if body["failing"] else "ok")
        return set(body["failing"])

    def becomes(self, page: str, failing: set[str], seconds: float = 30) -> None:
        def as_told() -> bool:
            assert self.process.running(), self.process.output()
            try:
                return self.failing(page) == failing
            except httpx2.TransportError:
                return False

        wait_until(as_told, f"{page} to name {failing or 'nothing'}", seconds)


def probed(house: House, **env: str) -> Probed:
    port = free_port()
    house.env |= {"CELERIAC_WORKER__HEALTH_PORT": str(port)}
    return Probed(house.worker("-c", "20", app=OWN_TASKS, **env), port)


@contextmanager
def asked_all_the_time(ask: Callable[[], Any]) -> Iterator[list[Any]]:
    """What is answered while the block runs."""
    answers: list[Any] = []
    over = threading.Event()

    def ask_again() -> None:
        while not over.is_set():
            answers.append(ask())
            over.wait(0.05)

    asker = threading.Thread(target=ask_again)
    asker.start()
    try:
        yield answers
    finally:
        over.set()
        asker.join()


def tell(house: House, task: str, till: float | Path) -> None:
    """till: for so many seconds, or until there is this file."""
    with Celery(broker=house.valkey.url, set_as_current=False) as client:
        client.send_task(task, (str(till) if isinstance(till, Path) else till,), queue="celeriac", ignore_result=True)


def taking(house: House) -> list[str | None]:
    redis = house.valkey.client()
    return [redis.hget(f"celeriac:worker:{name}", "taking") for name in redis.zrange("celeriac:workers", 0, -1)]


def lease_left(house: House) -> float:
    """Seconds until the first lease ends, or since it did."""
    redis = house.valkey.client()
    seconds, micros = redis.time()
    [(_, ends)] = redis.zrange("celeriac:workers", 0, 0, withscores=True)
    return float(ends) / 1000 - seconds - micros / 1e6


def health(house: House, **env: str) -> tuple[int, str]:
    """`python -m worker.health`: exit status, and the line on standard error."""
    ran = subprocess.run(
        (sys.executable, "-m", "worker.health"),
        env={**os.environ, "CELERIAC_REDIS_URL": house.valkey.url, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode, ran.stderr.strip()


def test_a_loop_that_is_blocked_for_longer_than_a_lease_keeps_its_jobs(house: House) -> None:
    """One extension and one line with the stack of what blocks, not a dozen runs again. No bells meanwhile."""
    shim = house.shim()
    env = {"CELERIAC_JOBS__LEASE": str(LEASE), "CELERIAC_ENV": "prod", "CELERIAC_SHIM__API_KEYS__A": "k" * 16}
    worker = house.worker("-c", "20", app=OWN_TASKS, **env)
    house.always(delay=5, text="Paris")
    jobs = [shim.submit()["id"] for _ in range(12)]
    wait_until(lambda: house.in_flight() == 12, "the calls to be under way")
    # The extension is asked for half a lease after the last heartbeat: what is left of it is least where that is old.
    wait_until(lambda: lease_left(house) > LEASE - 0.1, "a heartbeat")
    with asked_all_the_time(lambda: lease_left(house)) as left:
        tell(house, "blocks_the_loop", LEASE + 0.1)
        wait_until(lambda: taking(house) == ["0"], "the extension")
        wait_until(lambda: taking(house) == ["1"], "the next heartbeat")
    assert min(left) > 0, "the lease ended in between"
    ended = [shim.job(job, wait=30) for job in jobs]
    assert [(job["state"], job["attempts"]) for job in ended] == [("succeeded", 1)] * 12
    assert house.bill()["calls"] == 12
    [line] = [line for line in worker.lines() if line["event"] == "lease_extended"]
    assert line["level"] == "error"
    assert line["seconds"] >= LEASE / 8
    assert "blocks_the_loop" in line["stack"]
    assert "lease_lost" not in worker.output()


def test_a_loop_that_stays_blocked_loses_its_lease(house: House) -> None:
    """Extended once and never again: a worker that says nothing is dead, whatever its other threads say."""
    worker = house.worker("-c", "20", app=OWN_TASKS, CELERIAC_JOBS__LEASE=str(LEASE))
    tell(house, "blocks_the_loop", 4 * LEASE)
    wait_until(lambda: taking(house) == ["0"], "the extension")
    wait_until(lambda: lease_left(house) < 0, "the lease to end", 2 * LEASE)
    wait_until(lambda: lease_left(house) > 0, "the loop to say something again")
    assert worker.output().count("lease_extended") == 1


def test_a_process_that_was_stopped_is_not_taken_for_a_blocked_loop(house: House) -> None:
    """Its watchdog stood still as well: it wakes with the loop, which speaks for itself."""
    worker = house.worker("-c", "20", app=OWN_TASKS, CELERIAC_JOBS__LEASE=str(LEASE))
    for _ in range(3):
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: lease_left(house) < 0.3, "most of the lease to be over")
        os.kill(worker.pid, signal.SIGCONT)
        wait_until(lambda: lease_left(house) > LEASE - 0.5, "the next heartbeat")
    assert "lease_extended" not in worker.output()


def test_a_blocked_loop_is_alive_until_its_jobs_are_lost(house: House, tmp_path: Path) -> None:
    """The port answers all the same. It is not ready at once; a restart would cost nobody anything only later."""
    worker, over = probed(house, CELERIAC_JOBS__LEASE="5"), tmp_path / "over"
    worker.becomes("/readyz", set())
    began = time.monotonic()
    tell(house, "blocks_the_loop", over)
    wait_until(lambda: "loop" in worker.failing("/readyz"), "the loop to be noticed")
    assert worker.failing("/livez") == set()
    failing = wait_until(lambda: worker.failing("/livez"), "the jobs to be lost")
    assert {"loop"} <= failing <= {"loop", "heartbeat"}, "the loop first, and later what it does not do"
    assert time.monotonic() - began > 1.5 * 5
    over.touch()
    worker.becomes("/livez", set())
    worker.becomes("/readyz", set())
    # A machine that lets the whole process wait is another stall, of nobody's.
    stalls = re.findall("The event loop has been blocked for .* by (.*)", worker.process.output())
    assert sum("blocks_the_loop" in who for who in stalls) == 1
    assert worker.metric("celeriac_worker_stalls_total") == len(stalls)


def test_a_worker_that_takes_no_messages_is_not_ready(house: House, tmp_path: Path) -> None:
    """Its heartbeats go on, so it keeps what it runs; it is offered nothing, and a health check of either kind says so.
    Nothing is restarted for a few seconds of it."""
    worker, over = probed(house), tmp_path / "over"
    worker.becomes("/readyz", set())
    assert health(house) == (0, "")
    tell(house, "blocks_the_hub", over)
    with asked_all_the_time(lambda: worker.failing("/livez")) as alive:
        worker.becomes("/readyz", {"consuming"})
        assert worker.get("/readyz")[1]["consuming"] is False
        wait_until(lambda: taking(house) == ["0"], "the heartbeat to say so")
        status, line = health(house)
        assert status == 1
        assert line.endswith(": holds a lease and takes no jobs")
        status, line = health(house, CELERIAC_WORKER__HEALTH_PORT=house.env["CELERIAC_WORKER__HEALTH_PORT"])
        assert status == 1
        assert line.startswith("consuming: no message could be taken for ")
        over.touch()
        worker.becomes("/readyz", set())
    assert not any(alive)


@pytest.mark.parametrize("what", ["loop", "hub"])
def test_no_bell_is_rung_for_a_worker_that_cannot_hear_it(house: House, tmp_path: Path, what: str) -> None:
    """What is submitted meanwhile waits in the store, where others could have it, and is rung when the worker hears."""
    shim, redis, over = house.shim(), house.valkey.client(), tmp_path / "over"
    house.worker("-c", "20", app=OWN_TASKS, CELERIAC_JOBS__LEASE="6")
    tell(house, f"blocks_the_{what}", over)
    wait_until(lambda: taking(house) == ["0"], "the worker to offer nothing")
    jobs = [shim.submit()["id"] for _ in range(5)]
    places = [redis.hget(f"celeriac:job:{job}", "place") for job in jobs]
    assert (taking(house), places, redis.llen("celeriac")) == (["0"], ["ready"] * 5, 0)
    over.touch()
    assert {shim.job(job, wait=60)["state"] for job in jobs} == {"succeeded"}


def test_a_slow_start_is_no_deafness(house: House) -> None:
    """From its first heartbeat on it is rung for, however long it took to come so far. Who has not listened for as long
    since is deaf, and may be on a busy machine.
    """
    redis, heard = house.valkey.client(), dict[float, str]()

    def look() -> None:
        for name in redis.zrange("celeriac:workers", 0, -1):
            with redis.pipeline() as both:
                both.zscore("celeriac:workers", name).hmget(f"celeriac:worker:{name}", "lease", "since", "taking")
                ends, (lease, since, taking) = both.execute()
            heard[(ends - int(lease) - int(since)) / 1000] = taking

    with asked_all_the_time(look):
        house.worker(app=OWN_TASKS, SLOW_START="2.8")
        beats = int(redis.get("celeriac:beats"))
        wait_until(lambda: int(redis.get("celeriac:beats")) >= beats + 2, "two more heartbeats")
    assert len(heard) > 1, "its registration, and heartbeats"
    assert {taking for after, taking in heard.items() if after < DEAF_AFTER} == {"1"}


def test_workers_do_not_ask_each_other_at_their_start(house: House) -> None:
    """It would cost each start a second, and tell nothing of jobs that the store does not know."""
    house.worker("-n", "first@%h")
    second = house.worker("-n", "second@%h")
    assert "mingle" not in second.output().lower()
    # What listens to other workers' events has a queue for it.
    assert not house.valkey.client().exists("_kombu.binding.celeryev")


def test_a_store_that_is_away_gets_no_worker_killed(house: House) -> None:
    """`/livez` holds for longer than a lease: a new process would find no store either, and this one may hold answers
    that were paid for. `/readyz` says what is missing."""
    worker = probed(house, CELERIAC_JOBS__LEASE=str(LEASE))
    worker.becomes("/readyz", set())
    with asked_all_the_time(lambda: worker.failing("/livez")) as alive:
        house.valkey.stop()
        began = time.monotonic()
        worker.becomes("/readyz", {"consuming", "heartbeat"})
        wait_until(lambda: time.monotonic() - began > 3 * LEASE, "the lease to be long over")
        house.valkey.start()
        worker.becomes("/readyz", set(), 60)
    assert alive
    assert not any(alive)


def test_a_worker_that_does_not_hear_from_the_store_takes_no_bells(house: House, own_valkey: Valkey) -> None:
    """It could do nothing with them, and others might: a broker that is another server keeps them."""
    broker = {"CELERIAC_BROKER_URL": own_valkey.url}
    shim = house.shim(**broker)
    house.worker(**broker)
    celery = Celery(broker=own_valkey.url, set_as_current=False)

    def consumed() -> set[str] | None:
        said = celery.control.inspect(timeout=2).active_queues()
        return {queue["name"] for queues in said.values() for queue in queues} if said else None

    wait_until(lambda: consumed() == {"celeriac", "celeriac.submit"}, "the worker to say what it takes")
    house.valkey.stop()
    wait_until(lambda: consumed() == set(), "the worker to take nothing")
    celery.send_task("celeriac.run_job", ("nobody",), task_id="nobody", queue="celeriac")
    time.sleep(2 * A_POP)
    assert own_valkey.client().llen("celeriac") == 1
    house.valkey.start()
    wait_until(lambda: consumed() == {"celeriac", "celeriac.submit"}, "the worker to take bells again")
    assert shim.job(shim.submit()["id"], wait=30)["state"] == "succeeded"
    wait_until(lambda: own_valkey.client().llen("celeriac") == 0, "the bell to be taken")


def test_a_worker_tells_when_it_starts_and_when_it_stops(house: House, tmp_path: Path) -> None:
    """Not ready, each for its own reason, and alive: nobody kills it for either."""
    house.valkey.stop()
    port = free_port()
    env = house.env | {"CELERIAC_WORKER__HEALTH_PORT": str(port)}
    process, over = Worker(house.valkey.url, app=OWN_TASKS, **env), tmp_path / "over"
    try:
        worker = Probed(process, port)
        worker.becomes("/readyz", {"starting"})
        assert worker.failing("/livez") == set()
        house.valkey.start()
        worker.becomes("/readyz", set(), 60)
        house.always(delay=5, text="Paris")
        shim = house.shim()
        tell(house, "holds_a_slot", over)
        wait_until(lambda: worker.metric("celeriac_worker_jobs_in_flight") == 1, "the slot to be held")
        job = shim.submit()
        wait_until(lambda: house.in_flight() == 1, "the call to be under way")
        process.signal(signal.SIGTERM)
        worker.becomes("/readyz", {"draining"})
        assert worker.failing("/livez") == set()
        assert health(house, CELERIAC_WORKER__HEALTH_PORT=str(port)) == (0, "")
        wait_until(lambda: taking(house) == ["0"], "the worker to say so")
        assert health(house) == (0, "")
        over.touch()
        assert process.wait() == 0
        assert shim.job(job["id"])["state"] == "succeeded"
    finally:
        process.stop()


def test_metrics_of_a_worker_are_read_from_its_port(house: House) -> None:
    """The process's and ours; nothing of what anybody asked."""
    worker = probed(house)
    worker.becomes("/readyz", set())
    house.always(delay=5, text="Paris")
    shim = house.shim()
    shim.submit(input="What is the capital of France?")
    wait_until(lambda: worker.metric("celeriac_worker_jobs_in_flight") == 1, "the job to be seen")
    assert worker.metric("celeriac_worker_slots") == 20
    assert 0 <= worker.metric("celeriac_worker_heartbeat_age_seconds") < 15
    assert worker.metric("celeriac_worker_loop_lag_seconds") >= 0
    assert worker.metric("process_cpu_seconds_total") > 0
    assert "France" not in worker.http.get("/metrics").text
    assert worker.http.get("/elsewhere").status_code == 404


def test_a_port_that_is_taken_stops_the_start(house: House) -> None:
    """A worker without its port would be probed by asking another."""
    first = probed(house)
    second = Worker(house.valkey.url, "-n", "second@%h", **house.env)
    assert second.wait(60) == 1
    port = house.env["CELERIAC_WORKER__HEALTH_PORT"]
    assert f"CELERIAC_WORKER__HEALTH_PORT: 127.0.0.1:{port}: Address already in use" in second.output()
    assert "Traceback" not in second.output()
    second.stop()
    first.becomes("/readyz", set())


@pytest.mark.parametrize("env", [{}, {"CELERIAC_WORKER__HEALTH_PORT": ""}], ids=["not set", "empty"])
def test_no_port_is_opened_that_nobody_asked_for(house: House, env: dict[str, str]) -> None:
    """Two workers on one machine could not share it."""
    worker = house.worker(**env)
    import psutil

    assert [c for c in psutil.Process(worker.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN] == []
    assert "probes_listen" not in worker.output()
