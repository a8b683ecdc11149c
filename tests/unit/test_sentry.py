"""What Sentry is told, by the real SDK over real HTTP: what happened and where, and nothing that anybody said."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import Valkey
from tests.processes import Shim, Worker, running, wait_until


class Sentry:
    """Takes envelopes, as Sentry's own endpoint does."""

    def __init__(self) -> None:
        received = self.received = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append(body.decode())
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://publickey@127.0.0.1:{self.server.server_port}/1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def events(self) -> list[dict[str, object]]:
        items = (line for envelope in self.received for line in envelope.splitlines()[2::2])
        return [event for line in items if "event_id" in (event := json.loads(line)) and "level" in event]


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    endpoint = Sentry()
    yield endpoint
    endpoint.server.shutdown()


@pytest.mark.parametrize("env", ["dev", "prod"])
def test_a_fault_of_the_shim_reaches_sentry_without_what_the_caller_said(
    valkey: Valkey, sentry: Sentry, env: str
) -> None:
    """An error nobody foresaw is reported with its stack and ids; no variable, no body, no message that is not ours."""
    keys = json.dumps({"acme": "secret-key-of-acme-1"})
    with running(Shim(valkey.url, SENTRY_DSN=sentry.dsn, CELERIAC_ENV=env, CELERIAC_SHIM__API_KEYS=keys)) as shim:
        shim.http.headers["Authorization"] = "Bearer secret-key-of-acme-1"
        job = shim.submit(input="secret-prompt", metadata={"k": "secret-metadata"})
        valkey.client().hset(f"celeriac:job:{job['id']}", "created", "secret-prompt")  # makes no sense: int() fails
        answer = shim.http.get(f"/v1/jobs/{job['id']}")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        events = wait_until(sentry.events, "the event")
        text = json.dumps(events)
        [fault] = events[0]["exception"]["values"]
        assert (fault["type"], fault["value"]) == ("ValueError", "")
        frames = fault["stacktrace"]["frames"]
        assert "api_shim.routers.jobs" in {frame["module"] for frame in frames}
        assert not any("vars" in frame for frame in frames)
        assert events[0]["tags"]["request_id"] == answer.json()["request_id"]
        assert events[0]["tags"]["service"] == "shim"
        assert events[0]["environment"] == env
        assert "secret" not in text
        assert not (events[0].get("breadcrumbs") or {}).get("values"), (
            "a line that was logged before says what it likes"
        )
        if env == "prod":
            assert "secret" not in shim.output()


def test_a_fault_of_the_worker_reaches_sentry_and_ends_the_job(valkey: Valkey, sentry: Sentry) -> None:
    """A record that makes no sense: the job fails instead of running for ever, and the report names it."""
    env = {"SENTRY_DSN": sentry.dsn, "CELERIAC_SCRIPTED": "1", "CELERIAC_LOG_LEVEL": "WARNING"}
    with running(Shim(valkey.url)) as shim:
        job = shim.submit(input="secret-prompt")
        valkey.client().hset(f"celeriac:job:{job['id']}", "spec", 'j{"input": "secret-prompt"}')
        worker = Worker(valkey.url, **env)
        try:
            ended = shim.job(job["id"], wait=60)
            assert (ended["state"], ended["error"]["code"]) == ("failed", "internal")
            events = wait_until(sentry.events, "the event")
        finally:
            worker.stop()
    tags = events[0]["tags"]
    assert (tags["service"], tags["job_id"], tags["task"]) == ("worker", job["id"], "celeriac.run_job")
    assert "secret" not in json.dumps(events)


def test_what_is_no_fault_is_not_reported(valkey: Valkey, sentry: Sentry) -> None:
    """A caller's mistake or a missing job is not worth waking anybody."""
    with running(Shim(valkey.url, SENTRY_DSN=sentry.dsn)) as shim:
        shim.http.get("/v1/jobs/none")
        shim.http.post("/v1/jobs", json={})
        shim.http.post("/v1/jobs", json={"agent": "none", "input": "hi"})
    assert sentry.events() == []


def test_an_alert_about_a_budget_says_which_and_is_an_issue_of_its_own(valkey: Valkey, sentry: Sentry) -> None:
    """For each scope and threshold, and not for each window: the next one's is the same issue again."""

    def lower(scope: str) -> None:
        caps = [{"window": "ever", "cap_usd": "10", "alert_at": [50, 80]}]
        assert shim.http.put(f"/v1/budgets/{scope}", json={"caps": caps}).status_code == 200

    with running(Shim(valkey.url)) as shim:
        valkey.client().hset("celeriac:used:all", "cost", 9 * 10**9)
        valkey.client().hset("celeriac:used:tenant%3Aacme", "cost", 5 * 10**9)
        lower("all")
        lower("tenant:acme")
        worker = Worker(valkey.url, SENTRY_DSN=sentry.dsn, CELERIAC_SCRIPTED="1", CELERIAC_LOG_LEVEL="WARNING")
        try:
            wait_until(lambda: len(sentry.events()) >= 3, "three alerts", 60)
        finally:
            worker.stop()
    events = sentry.events()
    facts = ("scope", "window", "percent", "use_usd", "cap_usd")
    assert [tuple(event["tags"][fact] for fact in facts) for event in events] == [
        ("all", "ever", "50", "9.000000000", "10.000000000"),
        ("all", "ever", "80", "9.000000000", "10.000000000"),
        ("tenant:acme", "ever", "50", "5.000000000", "10.000000000"),
    ]
    assert [event["fingerprint"] for event in events] == [
        ["budget_threshold_reached", "all", "ever", "50"],
        ["budget_threshold_reached", "all", "ever", "80"],
        ["budget_threshold_reached", "tenant:acme", "ever", "50"],
    ]
