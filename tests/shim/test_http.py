"""The shim over real HTTP: what it takes, what it refuses and how, what it says when the store is away."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celeriac.jobs.request import NOT_PRICED, UNPRICEABLE, UNPRICEABLE_PARTS
from tests.by_hand import finish
from tests.conftest import Valkey
from tests.processes import ROOT, Shim, running, wait_until


def shows(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    """A request with these behind a text."""
    return {"agent": "assistant", "input": [{"role": role, "content": [{"type": "text", "text": "See:"}, *parts]}]}


def test_a_submitted_job_is_named_and_found(shim: Shim) -> None:
    """202 with the job and where to find it."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", "metadata": {"order": "7"}})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["agent"], job["metadata"]) == ("queued", "assistant", {"order": "7"})
    assert shim.http.get(answer.headers["location"]).json() == job | {"quote": None}


def test_an_ended_job_shows_its_answer_tokens_and_exact_cost(shim: Shim, valkey: Valkey) -> None:
    """Cost is dollars as text, to the nano-dollar."""
    job = shim.submit()
    finish(valkey, job["id"])
    job = shim.job(job["id"])
    assert (job["state"], job["answer"], job["model"], job["cost_usd"]) == ("succeeded", "Paris", "x-1", "0.000001234")
    assert job["usage"]["input_tokens"] == 3
    assert job["calls"][0]["lane"] == "openai/x"


def test_waiting_for_a_job_ends_with_it(shim: Shim, valkey: Valkey) -> None:
    """A long poll is woken by the job's end, not by its time running out."""
    job = shim.submit()
    threading.Timer(0.5, finish, (valkey, job["id"])).start()
    began = time.monotonic()
    assert shim.job(job["id"], wait=60)["state"] == "succeeded"
    assert time.monotonic() - began < 30


def test_waiting_asks_the_store_once_and_not_in_a_loop(shim: Shim, valkey: Valkey) -> None:
    """While nothing happens a long poll costs Redis nothing."""
    job = shim.submit()
    shim.job(job["id"], wait=0.1)  # the scripts are loaded, the subscription stands

    def asked() -> int:
        return int(valkey.client().info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

    before = asked()
    assert shim.job(job["id"], wait=2)["state"] == "queued"
    assert asked() - before <= 3


def test_many_waiters_of_one_job_are_all_woken(shim: Shim, valkey: Valkey) -> None:
    """Each of fifty gets the answer."""
    job = shim.submit()
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(shim.job(job["id"], wait=60)["state"])) for _ in range(50)]
    for thread in threads:
        thread.start()
    finish(valkey, job["id"])
    for thread in threads:
        thread.join(30)
    assert states == ["succeeded"] * 50


def test_jobs_are_listed_by_state_and_page(shim: Shim, valkey: Valkey) -> None:
    """The cursor leads from page to page, newest first."""
    ids = [shim.submit()["id"] for _ in range(5)]
    finish(valkey, ids[0])
    page = shim.http.get("/v1/jobs", params={"state": "queued", "limit": 3}).json()
    assert [job["id"] for job in page["jobs"]] == ids[:1:-1]
    rest = shim.http.get("/v1/jobs", params={"state": "queued", "limit": 3, "cursor": page["cursor"]}).json()
    assert ([job["id"] for job in rest["jobs"]], rest["cursor"]) == ([ids[1]], None)


def test_jobs_are_listed_by_agent_and_page(shim: Shim) -> None:
    """Those of no other, in any state or in one; of an agent without jobs there are none."""
    ids = [shim.submit(agent=agent)["id"] for agent in ("assistant", "summariser", "assistant", "assistant")]

    def listed(**asked: str | int) -> tuple[list[str], str | None]:
        page = shim.http.get("/v1/jobs", params={"agent": "assistant", **asked}).json()
        return [job["id"] for job in page["jobs"]], page["cursor"]

    assert listed() == ([ids[3], ids[2], ids[0]], None)
    first, cursor = listed(limit=2)
    assert first == [ids[3], ids[2]]
    assert cursor is not None
    assert listed(limit=2, cursor=cursor) == ([ids[0]], None)
    shim.http.post(f"/v1/jobs/{ids[2]}/cancel")
    assert listed(state="cancelled") == ([ids[2]], None)
    assert listed(agent="summariser") == ([ids[1]], None)
    assert listed(agent="extractor") == ([], None)


def test_a_conversation_is_read_and_forgotten(shim: Shim, valkey: Valkey) -> None:
    """GET shows its messages, DELETE leaves none."""
    finish(valkey, shim.submit(context_id="c-1")["id"], context=True)
    assert shim.http.get("/v1/contexts/c-1").json() == {
        "id": "c-1", "version": 1, "held_by": None,
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Paris"}],
    }  # fmt: skip
    assert shim.http.delete("/v1/contexts/c-1").status_code == 204
    assert shim.http.get("/v1/contexts/c-1").status_code == 404
    assert shim.http.delete("/v1/contexts/c-1").status_code == 404


def test_a_busy_context_refuses_who_would_not_wait(shim: Shim) -> None:
    """409 names the job that holds it."""
    holder = shim.submit(context_id="c")["id"]
    assert shim.submit(context_id="c")["waits_for"] == holder
    answer = shim.http.post(
        "/v1/jobs", json={"agent": "assistant", "input": "hi", "context_id": "c", "if_busy": "reject"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert holder in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"input": "hi"}, 422, "agent"),
        ({"agent": "assistant"}, 422, "input"),
        ({"agent": "nobody", "input": "hi"}, 422, "agent"),
        ({"agent": "assistant", "input": ""}, 422, "input"),
        ({"agent": "assistant", "input": 7}, 422, "input"),
        ({"agent": "assistant", "input": []}, 422, "input"),
        ({"agent": "assistant", "input": [{"role": "system", "content": "x"}]}, 422, "input[0].role"),
        ({"agent": "assistant", "input": [{"role": "assistant", "content": "x"}]}, 422, "input"),
        ({"agent": "assistant", "input": [{"role": "user", "content": "x", "name": "y"}]}, 422, "input[0].name"),
        ({"agent": "assistant", "input": [{"role": "user", "content": []}]}, 422, "input[0].content"),
        ({"agent": "assistant", "input": [{"role": "user", "content": ["x"]}]}, 422, "input[0].content[0]"),
        (shows({"type": "image_url", "image_url": {"url": "https://x"}}), 422, "input[0].content[1]"),
        (shows({"type": "image"}), 422, "input[0].content[1].url"),
        (shows({"type": "image", "url": "http://x/leek.png"}), 422, "input[0].content[1].url"),
        (shows({"type": "image", "url": "https://me:secret@x/leek.png"}), 422, "input[0].content[1].url"),
        (shows({"type": "image", "url": "data:image/tiff;base64,AAAA"}), 422, "input[0].content[1].url"),
        (shows({"type": "image", "url": "data:image/png;base64,A"}), 422, "input[0].content[1].url"),
        (shows({"type": "image", "url": "https://x/leek.png", "detail": "low"}), 422, "input[0].content[1].detail"),
        (shows(*[{"type": "image", "url": "https://x/leek.png"}] * 21), 422, "input"),
        (shows({"type": "image", "url": "https://x/leek.png"}, role="assistant"), 422, "input[0]"),
        ({"agent": "assistant", "input": "\ud800"}, 422, "input"),
        ({"agent": "assistant", "input": "hi", "temprature": 1}, 422, "temprature"),
        ({"agent": "assistant", "input": "hi", "max_output_tokens": 0}, 422, "max_output_tokens"),
        ({"agent": "assistant", "input": "hi", "max_output_tokens": 1.5}, 422, "max_output_tokens"),
        ({"agent": "assistant", "input": "hi", "max_output_tokens": "12"}, 422, "max_output_tokens"),
        ({"agent": "assistant", "input": "hi", "max_output_tokens": True}, 422, "max_output_tokens"),
        ({"agent": "assistant", "input": "hi", "model": "gpt"}, 422, "model"),
        ({"agent": "assistant", "input": "hi", "model": "openai/g\x01t"}, 422, "model"),
        ({"agent": "assistant", "input": "hi", "model": "openai/gpt\n"}, 422, "model"),
        ({"agent": "assistant", "input": "hi", "model": "openai/g t"}, 422, "model"),
        ({"agent": "assistant", "input": "hi", "model": "openai/gp\u0442"}, 422, "model"),
        ({"agent": "assistant", "input": "hi", "context_id": "a:b"}, 422, "context_id"),
        ({"agent": "assistant", "input": "hi", "priority": "urgent"}, 422, "priority"),
        ({"agent": "assistant", "input": "hi", "metadata": {"a": 1}}, 422, "metadata.a"),
        ({"agent": "assistant", "input": "hi", "metadata": {str(i): "" for i in range(17)}}, 422, "metadata"),
        ([], 422, ""),
        (None, 422, ""),
    ],
)
def test_a_wrong_request_is_told_which_field_and_what_to_do(
    shim: Shim, valkey: Valkey, body: Any, status: int, field: str
) -> None:
    """problem+json names the field, the value's problem and the remedy; nothing is stored."""
    answer = shim.http.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    error = next(e for e in problem["errors"] if e["field"] == field)
    assert error["message"]
    assert error["remedy"]
    assert valkey.client().dbsize() == 0


@pytest.mark.parametrize("field", sorted(UNPRICEABLE))
def test_what_cannot_be_priced_is_refused_by_name(shim: Shim, valkey: Valkey, field: str) -> None:
    """Nothing is passed on to a model that might cost more than was booked for it."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", field: 2})
    [error] = answer.json()["errors"]
    assert (answer.status_code, answer.json()["code"], error["field"]) == (422, "unpriceable_feature", field)
    assert (error["message"], error["remedy"]) == (NOT_PRICED, "leave it out, or look for a typing mistake")
    assert valkey.client().dbsize() == 0


@pytest.mark.parametrize("field", ["cache_control", "prompt_cache_breakpoint", "detail"])
@pytest.mark.parametrize("where", ["message", "text", "image"])
def test_nor_is_it_taken_inside_of_a_message(shim: Shim, valkey: Valkey, field: str, where: str) -> None:
    """What is written to a cache has a price of its own."""
    request = shows({"type": "image", "url": "https://files.example/a.png"})
    [message] = request["input"]
    at = {"message": message, "text": message["content"][0], "image": message["content"][1]}
    at[where][field] = {"type": "ephemeral"}
    answer = shim.http.post("/v1/jobs", json=request)
    [error] = answer.json()["errors"]
    assert (answer.status_code, answer.json()["code"], error["message"]) == (422, "unpriceable_feature", NOT_PRICED)
    assert error["field"].endswith(f".{field}")
    assert valkey.client().dbsize() == 0


@pytest.mark.parametrize("kind", sorted(UNPRICEABLE_PARTS))
def test_parts_that_cannot_be_priced_are_refused_by_name_too(shim: Shim, valkey: Valkey, kind: str) -> None:
    """Of what a message holds, text and images alone have a price beforehand."""
    answer = shim.http.post("/v1/jobs", json=shows({"type": kind, kind: {"data": "AAAA"}}))
    [error] = answer.json()["errors"]
    assert (answer.status_code, answer.json()["code"]) == (422, "unpriceable_feature")
    assert (error["field"], error["message"]) == ("input[0].content[1]", f"{kind}: {NOT_PRICED}")
    assert "text and images" in error["remedy"]
    assert valkey.client().dbsize() == 0


def test_a_body_that_is_not_json_says_where(shim: Shim) -> None:
    """400, not a traceback."""
    answer = shim.http.post("/v1/jobs", content=b'{"agent": ', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused(shim: Shim, chunked: bool) -> None:
    """413 by the length that was announced, or by what was read of one that was not."""
    body = json.dumps({"agent": "assistant", "input": "x" * 1_100_000}).encode()
    parts = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    answer = shim.http.post(
        "/v1/jobs", content=iter(parts) if chunked else body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "CELERIAC_SHIM__MAX_BODY_BYTES" in answer.json()["errors"][0]["remedy"]


def test_what_is_not_there_is_a_problem_too(shim: Shim) -> None:
    """Unknown jobs, unknown routes and wrong methods answer in the same words as everything else."""
    for answer in (shim.http.get("/v1/jobs/nope"), shim.http.get("/nope"), shim.http.put("/v1/jobs")):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    assert shim.http.get("/v1/jobs", params={"state": "nope"}).json()["errors"][0]["field"] == "state"
    assert shim.http.get("/v1/jobs", params={"cursor": "nope"}).json()["errors"][0]["field"] == "cursor"


def test_the_agents_are_listed(shim: Shim) -> None:
    """At least those that we ship, with their lanes in order."""
    agents = {agent["name"]: agent for agent in shim.http.get("/v1/agents").json()["agents"]}
    assert {"assistant", "summariser", "extractor"} <= agents.keys()
    assert agents["assistant"]["lanes"][0].startswith("openai/")
    assert (agents["assistant"]["tools"], agents["assistant"]["asks"]) == ([], [])
    split = [(agents[name]["split_over"], agents[name]["split_to"]) for name in ("summariser", "assistant")]
    assert split == [(24_000, "part-summariser"), (None, None)]


@pytest.mark.parametrize("megabytes", [5, 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_all_before_it_listens_hears_that_it_was_too_much(shim: Shim, megabytes: int, chunked: bool) -> None:
    """As the standard library does: it is read on for a while, or it would find the connection broken."""
    url = urlsplit(shim.url)
    body = b" " * megabytes * 1024 * 1024
    line = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    with contextlib.closing(line):
        pieces = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
        line.request("POST", "/v1/jobs", pieces, {"Content-Type": "application/json"})
        answer = line.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (413, "too_large")
        assert answer.getheader("connection") == "close"


@pytest.mark.parametrize(("length", "seconds"), [(20 * 1024 * 1024, 5), (10**12, 0)])
def test_who_announces_too_much_and_sends_nothing_is_let_go(shim: Shim, length: int, seconds: float) -> None:
    """The refusal comes at once, the end of the connection a little later."""
    url = urlsplit(shim.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as line:
        began = time.monotonic()
        line.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        got = b""
        while not got.endswith(b"}"):
            got += line.recv(65536)
        assert got.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 3
        assert line.recv(65536) == b""
        assert seconds - 1 < time.monotonic() - began < seconds + 3


def test_answers_carry_headers_that_browsers_obey(shim: Shim) -> None:
    """On every answer, errors included; the documentation may run its own script."""
    for path in ("/v1/agents", "/nope"):
        headers = shim.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["strict-transport-security"].startswith("max-age=")
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    docs = shim.http.get("/docs")
    assert docs.status_code == 200
    assert "'self'" in docs.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="([^"]+)"', docs.text):
        assert asset.startswith(shim.url), "the documentation loads nothing from elsewhere"
        assert shim.http.get(asset).status_code == 200


def test_the_openapi_document_names_the_routes(shim: Shim) -> None:
    """What callers generate their clients from."""
    document = shim.http.get("/openapi.json").json()
    paths = document["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/contexts/{context_id}", "/v1/agents", "/readyz"} <= paths.keys()
    assert "Problem" in document["components"]["schemas"]
    assert document["components"]["securitySchemes"].keys() == {"HTTPBearer", "APIKeyHeader"}
    for path, operations in paths.items():
        for operation in operations.values():
            refusals = {s: [*r["content"]] for s, r in operation["responses"].items() if s >= "400"}
            assert set(refusals) >= ({"400", "401", "422", "503"} if path.startswith("/v1/") else set())
            assert all(types == ["application/problem+json"] for types in refusals.values())
            keys = [{"HTTPBearer": []}, {"APIKeyHeader": []}] if path.startswith("/v1/") else None
            assert operation.get("security") == keys


def test_a_request_id_is_kept_or_made(shim: Shim) -> None:
    """A caller's own id comes back; one that could not be logged safely is replaced."""
    assert shim.http.get("/v1/agents", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    replaced = shim.http.get("/v1/agents", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", replaced)
    job = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"}, headers={"X-Request-ID": "abc-2"})
    assert job.json()["request_id"] == "abc-2"


def test_the_request_log_names_route_and_job_and_no_prompt(shim: Shim) -> None:
    """One line a request; what the caller said is in none of them."""
    job = shim.submit(input="my-secret-prompt", metadata={"k": "my-secret-metadata"})
    wait_until(lambda: job["id"] in shim.output(), "the request's log line")
    line = next(line for line in shim.output().splitlines() if job["id"] in line)
    assert "route=/v1/jobs" in line
    assert "status=202" in line
    assert "my-secret" not in shim.output()


def test_the_request_log_names_the_conversation(shim: Shim) -> None:
    """Of a job in it, of who reads it, and of who forgets it; a job without one names none."""
    ids = [shim.http.request(method, path, json=body).headers["x-request-id"] for method, path, body in (
        ("POST", "/v1/jobs", {"agent": "assistant", "input": "hi", "context_id": "talk-of-the-log"}),
        ("GET", "/v1/contexts/talk-of-the-log", None),
        ("DELETE", "/v1/contexts/talk-of-the-log", None),
        ("POST", "/v1/jobs", {"agent": "assistant", "input": "hi"}),
    )]  # fmt: skip
    wait_until(lambda: ids[-1] in shim.output(), "the last request's log line")
    lines = [line for id in ids for line in shim.output().splitlines() if id in line and "http_request" in line]
    assert ["context_id=talk-of-the-log" in line for line in lines] == [True, True, True, False]
    assert "context_id" not in lines[-1]


def test_metrics_count_requests_by_route(shim: Shim) -> None:
    """Labels are routes, not paths: they stay few."""
    shim.http.get("/v1/jobs/some-id-of-a-job")
    text = shim.http.get("/metrics").text
    assert 'celeriac_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"}' in text
    assert "celeriac_http_request_duration_seconds_bucket" in text
    assert "some-id-of-a-job" not in text


TELLS_MODULES = """
import pathlib, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: pathlib.Path({path!r}).write_text(" ".join(sys.modules) + " ."))
"""


def test_the_shim_imports_no_provider_sdk_and_no_celery(own_valkey: Valkey, tmp_path: Path) -> None:
    """It starts in half a second and stays small; asked of a running shim that has been asked for everything, and whose
    agents name an MCP server."""
    told = tmp_path / "modules"
    (tmp_path / "sitecustomize.py").write_text(TELLS_MODULES.format(path=str(told)))
    agents = tmp_path / "agents.toml"
    mcp = 'mcp = ["shop"]\n\n[mcp.shop]\nurl = "http://127.0.0.1:9/"\ntoken_env = "NOT_SET_HERE"\n'
    agents.write_text(f'[agents.assistant]\ndescription = "Helps."\nlanes = ["openai/x"]\n{mcp}')
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "CELERIAC_AGENTS_FILE": str(agents)}
    with running(Shim(own_valkey.url, **env)) as shim:
        id = shim.submit(context_id="talk")["id"]
        for path in (f"/v1/jobs/{id}?wait=0.1", "/v1/jobs", "/v1/agents", "/v1/contexts/talk", "/readyz", "/metrics"):
            shim.http.get(path)
        shim.http.post(f"/v1/jobs/{id}/cancel")
        assert shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
        shim.signal(signal.SIGUSR2)
        wait_until(lambda: told.exists() and told.read_text().endswith(" ."), "the shim to tell its modules")
    loaded = {name.partition(".")[0] for name in told.read_text().split()}
    heavy = {"openai", "anthropic", "aiohttp", "celery", "kombu", "billiard", "mcp", "jsonschema", "tasks", "worker"}
    assert loaded & heavy == set()
    assert {"fastapi", "celeriac"} <= loaded


def test_readiness_names_what_is_missing(own_valkey: Valkey, tmp_path: Path) -> None:
    """Without workers, or without those of a queue that an agent uses, jobs are taken and wait: that is said, and is no
    reason to take the shim out of service. Without the store nothing is taken."""
    agents = tmp_path / "agents.toml"
    agents.write_text('[agents.a]\ndescription = "A"\nlanes = ["openai/gpt-5-mini"]\nqueue = "slow"\n')
    redis = own_valkey.client()
    with running(Shim(own_valkey.url, CELERIAC_AGENTS_FILE=str(agents))) as shim:
        answer = shim.http.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {"status": "degraded", "missing": ["workers"], "store": "ok", "workers": 0}
        redis.zadd("celeriac:workers", {"somebody": (time.time() + 60) * 1000})
        redis.hset("celeriac:worker:somebody", "queues", "celeriac,fast")
        some = {"status": "degraded", "missing": ["workers:slow"], "store": "ok", "workers": 1}
        assert (shim.http.get("/readyz").status_code, shim.http.get("/readyz").json()) == (200, some)
        redis.delete("celeriac:worker:somebody")
        redis.set("celeriac:worker:somebody", "nonsense")
        assert (shim.http.get("/readyz").status_code, shim.http.get("/readyz").json()) == (200, some)
        redis.delete("celeriac:worker:somebody")
        redis.hset("celeriac:worker:somebody", "queues", "celeriac,slow")
        assert shim.http.get("/readyz").json() == {"status": "ok", "missing": [], "store": "ok", "workers": 1}
        own_valkey.stop()
        answer = shim.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"status": "unavailable", "missing": ["store"], "store": "away"}


def test_readiness_sees_a_broker_of_its_own(valkey: Valkey, own_valkey: Valkey) -> None:
    """Gone, it delays jobs and refuses none. It is found again by itself."""
    with running(Shim(valkey.url, CELERIAC_BROKER_URL=own_valkey.url)) as shim:

        def missing() -> list[str]:
            answer = shim.http.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
            found: list[str] = answer.json()["missing"]
            return found

        assert missing() == ["workers"]
        own_valkey.stop()
        wait_until(lambda: missing() == ["broker", "workers"], "the loss to be seen")
        own_valkey.start()
        wait_until(lambda: missing() == ["workers"], "the broker to be found again")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_hangs_does_not_hang_readiness(valkey: Valkey, scheme: str) -> None:
    """It takes connections and says nothing. Whoever asks waits a second at most, and holds up nobody else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with running(Shim(valkey.url, CELERIAC_BROKER_URL=url)) as shim, ThreadPoolExecutor() as threads:

            def asked(path: str) -> tuple[float, Any]:
                began = time.monotonic()
                answer = shim.http.get(path)
                return time.monotonic() - began, answer.json()

            shim.submit()
            # A busy machine may delay one of three. What hangs delays each.
            for _ in range(3):
                readiness, others = threads.submit(asked, "/readyz"), [0.0]
                while not readiness.done():
                    others.append(asked("/livez")[0])
                    time.sleep(0.02)
                waited, said = readiness.result()
                assert said["broker"] == "away"
                if 0.9 < waited < 1.5 and 0 < max(others) < 0.5:
                    break
                time.sleep(2)  # so that the broker is asked anew
            else:
                pytest.fail(f"/readyz took {waited:.1f} s, and meanwhile /livez {max(others):.1f} s")


@pytest.mark.parametrize("content", [b"", b"[]", b'"hi"', b"3"])
def test_a_body_that_is_no_object_is_told_what_to_send(shim: Shim, content: bytes) -> None:
    """Also where there is none."""
    answer = shim.http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    [error] = answer.json()["errors"]
    assert answer.status_code == 422
    assert (error["message"], error["remedy"]) == (
        "the body is not a JSON object",
        "send one, with Content-Type: application/json",
    )


def test_with_keys_each_tenant_sees_its_own(valkey: Valkey) -> None:
    """No key or a wrong one is 401; a key is its tenant; probes need none."""
    keys = json.dumps({"acme": "key-of-acme-1234567", "globex": "key-of-globex-1234567"})
    with running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS=keys)) as shim:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
            answer = shim.http.get("/v1/jobs", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "`Authorization: Bearer KEY` or `X-API-Key: KEY`" in answer.json()["detail"]
        acme, globex = {"Authorization": "Bearer key-of-acme-1234567"}, {"X-API-Key": "key-of-globex-1234567"}
        job = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"}, headers=acme).json()
        assert shim.http.get(f"/v1/jobs/{job['id']}", headers=acme).status_code == 200
        assert shim.http.get(f"/v1/jobs/{job['id']}", headers=globex).status_code == 404
        assert shim.http.get("/v1/jobs", headers=globex).json()["jobs"] == []
        assert shim.http.get("/readyz").status_code == 200
        assert "tenant=acme" in shim.output()
        assert "key-of-" not in shim.output()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "bearer KEY"}, 200),
        ({"Authorization": "Basic KEY"}, 401),
        ({"Authorization": "Basic x", "X-API-Key": "KEY"}, 200),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer", "X-API-Key": "KEY"}, 200),
    ],
)
def test_a_key_counts_behind_bearer_or_in_a_header_of_its_own(
    valkey: Valkey, headers: dict[str, str], status: int
) -> None:
    """However `Bearer` is written; behind another scheme it is none, and does not hide one that is sent properly."""
    key = "key-of-acme-1234567"
    with running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS__ACME=key)) as shim:
        sent = {name: value.replace("KEY", key) for name, value in headers.items()}
        assert shim.http.get("/v1/jobs", headers=sent).status_code == status


def test_browsers_of_named_origins_only_may_call(valkey: Valkey) -> None:
    """CORS comes from the settings; without them there is none."""
    with running(Shim(valkey.url, CELERIAC_SHIM__CORS_ORIGINS="https://app.example")) as shim:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, idempotency-key, last-event-id",
        }
        allowed = shim.http.options("/v1/jobs", headers={"Origin": "https://app.example", **asked})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = shim.http.options("/v1/jobs", headers={"Origin": "https://evil.example", **asked})
        assert "access-control-allow-origin" not in refused.headers
        got = shim.http.get("/v1/agents", headers={"Origin": "https://app.example"})
        for name in ("Location", "Retry-After", "Idempotency-Replayed"):
            assert name in got.headers["access-control-expose-headers"]


def test_browsers_read_refusals_too(valkey: Valkey) -> None:
    """Without the header they would report an error of CORS in place of the reason: 413; 500 for a broken record."""
    with running(Shim(valkey.url, CELERIAC_SHIM__CORS_ORIGINS="https://app.example")) as shim:
        shim.http.headers["Origin"] = "https://app.example"
        job = shim.submit()["id"]
        valkey.client().hset(f"celeriac:job:{job}", "created", "no number")
        large, broken = shim.http.post("/v1/jobs", content=b" " * 1_100_000), shim.http.get(f"/v1/jobs/{job}")
        assert (large.status_code, broken.status_code) == (413, 500)
        for answer in (large, broken):
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_browsers_may_send_credentials_where_the_operator_says_so(valkey: Valkey) -> None:
    """Only then."""
    env = {"CELERIAC_SHIM__CORS_ORIGINS": "https://app.example", "CELERIAC_SHIM__CORS_CREDENTIALS": "1"}
    with running(Shim(valkey.url, **env)) as shim:
        got = shim.http.get("/v1/agents", headers={"Origin": "https://app.example"})
        assert got.headers["access-control-allow-credentials"] == "true"


def test_the_store_away_is_503_and_nothing_is_half_written(own_valkey: Valkey) -> None:
    """Retry-After says when; a write that may have happened names its job; everything comes back by itself."""
    with running(Shim(own_valkey.url)) as shim:
        before = shim.submit()
        own_valkey.stop()
        answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"})
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["maybe_accepted"] is True
        lost = answer.json()["job_id"]
        assert shim.http.get(f"/v1/jobs/{before['id']}").status_code == 503
        assert shim.http.get("/readyz").json()["store"] == "away"
        assert shim.http.get("/livez").status_code == 200
        own_valkey.start()
        wait_until(lambda: shim.http.get("/readyz").status_code == 200, "the store to be found again")
        assert shim.job(before["id"])["state"] == "queued"
        assert shim.http.get(f"/v1/jobs/{lost}").status_code == 404
        assert [job["id"] for job in shim.http.get("/v1/jobs").json()["jobs"]] == [before["id"]]


def test_an_end_that_nobody_heard_is_found_all_the_same(own_valkey: Valkey) -> None:
    """The line is cut, and the job ends before it is back: who waits is woken by the line, not by the message."""
    with running(Shim(own_valkey.url)) as shim:
        job, answers, client = shim.submit(), [], own_valkey.client()
        asked = lambda: client.info("commandstats")["cmdstat_evalsha"]["calls"]  # noqa: E731
        shim.job(job["id"], wait=0.1)  # it listens from now on
        before = asked()
        waiter = threading.Thread(target=lambda: answers.append(shim.job(job["id"], wait=60)))
        waiter.start()
        wait_until(lambda: asked() > before, "the poll to have looked, and to wait")
        began = time.monotonic()
        shim.signal(signal.SIGSTOP)  # so that it listens again only after the end
        [line] = [each for each in client.client_list() if each["sub"] != "0"]
        assert client.client_kill_filter(_id=line["id"]) == 1
        finish(own_valkey, job["id"])
        shim.signal(signal.SIGCONT)
        waiter.join(30)
        assert [answer["state"] for answer in answers] == ["succeeded"]
        assert time.monotonic() - began < 30


def test_a_stopping_shim_answers_its_waiters(own_valkey: Valkey) -> None:
    """SIGTERM ends long polls with the job as it stands; nobody is cut off."""
    with running(Shim(own_valkey.url)) as shim:
        job = shim.submit()
        answers: list[dict[str, Any]] = []
        waiter = threading.Thread(target=lambda: answers.append(shim.job(job["id"], wait=60)))
        waiter.start()
        wait_until(lambda: own_valkey.client().pubsub_channels("celeriac:ended"), "the poll to wait")
        began = time.monotonic()
        shim.signal(signal.SIGTERM)
        shim.wait(20)
        waiter.join(20)
        assert answers[0]["state"] == "queued"
        assert time.monotonic() - began < 8


def test_a_wrong_setting_or_agents_file_stops_the_start(valkey: Valkey, tmp_path: Path) -> None:
    """One line on stderr, exit status 2, no traceback."""
    file = tmp_path / "agents.toml"
    file.write_text('[agents.a]\ndescription = "x"\nlanes = ["gpt"]\n')
    for env in ({"CELERIAC_SHIM__PORTT": "1"}, {"CELERIAC_AGENTS_FILE": str(file)}, {"CELERIAC_ENV": "prod"}):
        shim = Shim(valkey.url, **env)
        assert shim.wait(20) == 2
        assert "Traceback" not in shim.output()
        assert shim.output().strip()
        shim.stop()


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a": ' * 5000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\xff"}'],
    ids=["list", "nested", "number", "bytes"],
)
def test_a_body_that_no_reader_takes_names_the_remedy(shim: Shim, body: bytes) -> None:
    """Nested without end, numbers without end, bytes that are no text."""
    answer = shim.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "invalid")
    assert problem["errors"][0]["remedy"]


def test_a_cursor_in_other_digits_is_no_cursor(shim: Shim) -> None:
    """Digits for Python, and not for Redis."""
    assert shim.http.get("/v1/jobs", params={"cursor": "\u0663"}).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs?stat=failed&limit=1"),
        ("POST", "/v1/jobs?stat=failed"),
        ("GET", "/v1/jobs/x?stat=failed&wait=0"),
        ("POST", "/v1/jobs/x/cancel?stat=failed"),
        ("POST", "/v1/jobs/x/retry?stat=failed"),
        ("POST", "/v1/jobs/retry?stat=failed"),
        ("GET", "/v1/contexts/x?stat=failed"),
        ("DELETE", "/v1/contexts/x?stat=failed"),
        ("GET", "/v1/agents?stat=failed"),
    ],
)
def test_a_query_parameter_that_is_none_is_refused(shim: Shim, method: str, path: str) -> None:
    """A typing mistake must not ask for everything."""
    body = {"state": "failed"} if path.startswith("/v1/jobs/retry") else {"agent": "assistant", "input": "hi"}
    answer = shim.http.request(method, path, json=body if path.startswith(("/v1/jobs?", "/v1/jobs/retry")) else None)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    [error] = answer.json()["errors"]
    assert (error["field"], error["message"]) == ("stat", "there is no such field")
    assert "leave it out" in error["remedy"]


def test_a_stranger_is_asked_for_a_key_first(valkey: Valkey) -> None:
    """Whatever else is wrong with the query."""
    with running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS__ACME="a-long-enough-key-of-acme")) as shim:
        assert shim.http.get("/v1/jobs?stat=failed").status_code == 401


NAMED = "1 to 64 letters, digits, dots, hyphens or underscores, the first a letter or a digit"
MODEL_NAMED = "a provider, / and one of its models, as openai/gpt-5.4, in at most 128 printable ASCII characters"


@pytest.mark.parametrize(
    ("facts", "field", "remedy"),
    [
        ({"input": 7}, "input", "send a text"),
        ({"agent": 7}, "agent", "send a text"),
        ({"agent": "a b"}, "agent", f"send {NAMED}"),
        ({"max_output_tokens": "12"}, "max_output_tokens", "send a whole number"),
        ({"max_output_tokens": 1.5}, "max_output_tokens", "send a whole number"),
        ({"max_output_tokens": 0}, "max_output_tokens", "send a number above 0"),
        ({"expires_in": "60"}, "expires_in", "send a number"),
        ({"run_at": 7}, "run_at", "write it like 2031-01-31T12:00:00Z"),
        ({"priority": "urgent"}, "priority", "send 'low', 'normal' or 'high'"),
        ({"model": "gpt"}, "model", f"send {MODEL_NAMED}"),
        ({"input": ""}, "input", "send at least 1 character"),
        ({"input": []}, "input", "send at least 1 entry"),
        ({"input": [7]}, "input[0]", "send an object"),
        ({"metadata": []}, "metadata", "send an object"),
        ({"metadata": {"a": 1}}, "metadata.a", "send a text"),
        ({"metadata": {"a b": ""}}, "metadata.a b", f"send {NAMED}"),
        ({"metadata": {"": ""}}, "metadata", f"send {NAMED}"),
        ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 40 + "...", f"send {NAMED}"),
        ({"x" * 1000: 1}, "x" * 40 + "...", "leave it out, or look for a typing mistake"),
    ],
)  # fmt: skip
def test_a_refusal_says_in_words_what_to_send(shim: Shim, facts: dict[str, Any], field: str, remedy: str) -> None:
    """No pattern to decipher, no documentation to look up, and no long name repeated."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"} | facts)
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["field"], error["remedy"]) == (422, field, remedy)
    assert "pattern" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "field", "remedy"),
    [
        ("/v1/jobs?dead=perhaps", None, "dead", "send true or false"),
        ("/v1/jobs?limit=many", None, "limit", "send a whole number"),
        ("/v1/jobs/x/retry", {"fresh": "yes"}, "fresh", "send true or false"),
        ("/v1/contexts/a%20b", None, "context_id", f"send {NAMED}"),
    ],
)
def test_so_does_every_other_route(shim: Shim, path: str, body: Any, field: str, remedy: str) -> None:
    """Queries and paths too."""
    answer = shim.http.post(path, json=body) if body else shim.http.get(path)
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["field"], error["remedy"]) == (422, field, remedy)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"agent": ""}, "is empty"),
        ({"context_id": ""}, "is empty"),
        ({"model": "foo/bar"}, "there is no such provider"),
        ({"context_id": "a b"}, "has characters that are not allowed here, or too many"),
    ],
)
def test_a_name_is_refused_for_what_is_wrong_with_it(shim: Shim, facts: dict[str, str], message: str) -> None:
    """Its remedy says what would be right."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"} | facts)
    [error] = answer.json()["errors"]
    assert (answer.status_code, [error["field"]], error["message"]) == (422, list(facts), message)
    assert error["remedy"]


def test_the_shim_says_what_it_is_and_refuses_what_it_does_not_know() -> None:
    """It is set up by variables alone: an option that were ignored would be a surprise."""
    command = [sys.executable, "-m", "api_shim"]
    asked = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "celeriac settings" in asked.stdout
    refused = subprocess.run([*command, "--port", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "unrecognized arguments: --port 1" in refused.stderr) == (2, True)


@pytest.mark.parametrize("body", [b'{"\\ud800": 1}', b'{"agent": "a", "input": "b", "metadata": {"\\ud800": ""}}'])
def test_a_name_that_is_no_unicode_is_refused_like_any_other(shim: Shim, body: bytes) -> None:
    """And no failure of ours, though the refusal names fields."""
    answer = shim.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


@pytest.mark.parametrize("asked_before", [False, True])
def test_half_a_head_is_not_waited_for_without_end(shim: Shim, asked_before: bool) -> None:
    """The connection ends after ten seconds, however the rest drips in. One that waits for its answer does not."""
    url = urlsplit(shim.url)
    job = shim.submit()["id"]
    with (
        socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as line,
        socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as waiting,
    ):
        # With half of the next one behind it already.
        waiting.sendall(f"GET /v1/jobs/{job}?wait=13 HTTP/1.1\r\nHost: x\r\n\r\nGET /li".encode())
        if asked_before:
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answered = b""
            while not answered.endswith(b'{"status":"ok"}'):
                answered += line.recv(65536)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for piece in [b"GET /livez HTTP/1.1\r\n", *(b"X-A: b\r\n" for _ in range(8))]:
                line.sendall(piece)
                time.sleep(1)
        assert line.recv(65536) == b""
        assert 9 < time.monotonic() - began < 15
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_half_a_body_is_not_waited_for_without_end(shim: Shim, framing: str) -> None:
    """408 after ten seconds, in the words of every refusal, however the rest drips in; then the connection ends."""
    url = urlsplit(shim.url)
    assert url.hostname is not None
    assert url.port is not None
    with socket.create_connection((url.hostname, url.port), timeout=20) as line:
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        piece = b"1\r\n{\r\n" if "chunked" in framing else b"{"
        line.sendall(head.encode() + piece)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(8):  # each piece within the time, all of them not
                time.sleep(1)
                line.sendall(piece)
        got = b""
        while part := line.recv(65536):  # to the end of the connection
            got += part
    assert 9 < time.monotonic() - began < 15
    said, _, body = got.partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"content-type: application/problem+json" in said.lower()
    assert json.loads(body)["code"] == "too_slow"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 10**30),
        ("max_tokens", 10**12 + 1),
        ("max_seconds", 1e308),
        ("max_seconds", 366 * 86_400 + 1),
        ("max_cost_usd", "9000000"),
        ("max_cost_usd", "\u0663"),
        ("max_cost_usd", "1e3"),
        ("max_steps", 1001),
    ],
)
def test_a_limit_is_within_what_can_be_counted(shim: Shim, field: str, value: object) -> None:
    """Else a job would be taken that nobody can run."""
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", field: value})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_a_limit_without_end_is_refused(shim: Shim) -> None:
    """JSON has no word for it, some clients do."""
    body = '{"agent": "assistant", "input": "hi", "max_seconds": Infinity}'
    answer = shim.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
