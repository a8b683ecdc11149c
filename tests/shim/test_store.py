"""What the shim says of a store that is not as it should be."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Valkey
from tests.processes import Shim, running, wait_until

PROD = {"CELERIAC_ENV": "prod", "CELERIAC_SHIM__API_KEYS__ACME": "a-long-enough-key-of-acme"}


@pytest.mark.parametrize(
    ("option", "said"),
    [(("maxmemory-policy", "allkeys-lru"), "set noeviction"), (("appendonly", "no"), "appendonly is off")],
    ids=["evicting", "without a file"],
)
def test_in_prod_an_unsafe_store_is_refused(own_valkey: Valkey, option: tuple[str, str], said: str) -> None:
    """In one line, before the first request."""
    own_valkey.client().config_set(*option)
    shim = Shim(own_valkey.url, **PROD)
    try:
        assert shim.wait(30) == 2
        assert said in shim.output()
        assert "Traceback" not in shim.output()
    finally:
        shim.stop()


def test_an_unsafe_store_that_comes_up_later_stops_the_shim(own_valkey: Valkey) -> None:
    """Away at the start is no way round the check."""
    own_valkey.stop()
    with running(Shim(own_valkey.url, **PROD)) as shim:
        assert shim.http.get("/readyz").status_code == 503
        own_valkey.options = ("--maxmemory-policy", "allkeys-lru")
        own_valkey.start()
        wait_until(lambda: not shim.running(), "the shim to stop")
        assert "store_is_unsafe" in shim.output()


def test_in_dev_it_is_a_warning(own_valkey: Valkey) -> None:
    """Somebody tries something on a laptop."""
    own_valkey.client().config_set("maxmemory-policy", "allkeys-lru")
    with running(Shim(own_valkey.url)) as shim:
        assert "redis_is_risky" in shim.output()
        shim.submit()


def test_a_store_that_refuses_writes_for_now_is_away(own_valkey: Valkey) -> None:
    """Too few replicas, a full disk: 503, come again, and nothing was written."""
    with running(Shim(own_valkey.url)) as shim:
        own_valkey.client().config_set("min-replicas-to-write", 1)
        answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert "too few replicas" in answer.json()["detail"]
        own_valkey.client().config_set("min-replicas-to-write", 0)
        shim.submit()
        assert len(shim.http.get("/v1/jobs").json()["jobs"]) == 1


def test_a_dsn_that_is_none_stops_the_start_and_is_not_repeated(valkey: Valkey) -> None:
    """It may be a key that was pasted into the wrong place."""
    shim = Shim(valkey.url, SENTRY_DSN="garbage-secret")
    try:
        assert shim.wait(30) == 2
        assert "SENTRY_DSN: does not begin with http://, https://" in shim.output()
        assert "garbage" not in shim.output()
    finally:
        shim.stop()


def test_a_store_that_is_silent_is_away_within_seconds(own_valkey: Valkey) -> None:
    """Every route answers 503 though nothing closes the connections, and who waits for one of the pool's does too; a
    submission says that it may have been accepted. Nobody gets another's answer once the store is back."""
    with running(Shim(own_valkey.url)) as shim:
        jobs = [shim.submit()["id"] for _ in range(20)]
        shim.job(jobs[0], wait=0.1)  # it listens for ends
        asks = [
            ("POST", "/v1/jobs", {"json": {"agent": "assistant", "input": "hi"}}),
            ("GET", "/v1/jobs", {}),
            ("GET", f"/v1/jobs/{jobs[0]}", {}),
            ("GET", f"/v1/jobs/{jobs[0]}", {"params": {"wait": 30}}),
            ("POST", f"/v1/jobs/{jobs[0]}/cancel", {}),
            ("POST", f"/v1/jobs/{jobs[0]}/retry", {}),
            ("POST", "/v1/jobs/retry", {"json": {"state": "failed"}}),
            ("GET", "/v1/contexts/c", {}),
            ("DELETE", "/v1/contexts/c", {}),
            ("POST", "/v1/jobs", {"json": {"agent": "assistant", "input": "hi", "context_id": "c"}}),
        ] * 2
        assert own_valkey.process is not None
        for _ in range(3):  # the later rounds meet connections that were cut off
            own_valkey.process.send_signal(signal.SIGSTOP)
            try:
                with ThreadPoolExecutor(len(asks)) as pool:
                    answers = list(pool.map(lambda ask: shim.http.request(ask[0], ask[1], **ask[2]), asks))
            finally:
                own_valkey.process.send_signal(signal.SIGCONT)
            for (method, path, _), answer in zip(asks, answers, strict=True):
                assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "2"), answer.text
                assert answer.elapsed.total_seconds() < 6, (method, path)
                told = answer.json()
                unsure = method == "POST" and path in ("/v1/jobs", f"/v1/jobs/{jobs[0]}/retry")
                assert (told.get("maybe_accepted", False), "job_id" in told) == (unsure, unsure), (method, path)
            wait_until(lambda: shim.http.get("/readyz").status_code == 200, "the store to be found again")
        with ThreadPoolExecutor(len(jobs)) as pool:
            assert [job["id"] for job in pool.map(shim.job, jobs)] == jobs
        shim.submit()
