"""The same key and the same request are the same job."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from tests.by_hand import finish
from tests.conftest import Valkey
from tests.processes import Shim, running, wait_until


def post(shim: Shim, key: str | bytes | None, headers: dict[str, str] | None = None, **facts: Any) -> httpx2.Response:
    body = {"agent": "assistant", "input": "hi"} | facts
    return shim.http.post(
        "/v1/jobs", json=body, headers=(headers or {}) | ({"Idempotency-Key": key} if key is not None else {})
    )


def test_the_same_key_and_request_are_the_same_job(shim: Shim, valkey: Valkey) -> None:
    """The second answer is that job as it stands now, and says that it is a repetition."""
    first, second = post(shim, "order-7"), post(shim, "order-7")
    assert (first.status_code, second.status_code) == (202, 202)
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert second.json() == first.json()
    finish(valkey, first.json()["id"])
    third = post(shim, "order-7").json()
    assert (third["id"], third["state"], third["answer"]) == (first.json()["id"], "succeeded", "Paris")
    assert len(shim.http.get("/v1/jobs").json()["jobs"]) == 1


def test_the_same_request_in_other_words_is_the_same(shim: Shim) -> None:
    """Order of fields, defaults that are spelled out, and another zone for the same moment change nothing."""
    at = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    first = post(shim, "k", run_at=at.isoformat(), metadata={"a": "1", "b": "2"})
    body = {"priority": "normal", "metadata": {"b": "2", "a": "1"}, "input": "hi", "agent": "assistant"}
    body["run_at"] = at.isoformat().replace("+00:00", "Z")
    second = shim.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert second.json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    "other",
    [{"input": "ho"}, {"priority": "high"}, {"metadata": {"a": "1"}}, {"expires_in": 60}, {"agent": "reviewer"}],
)
def test_the_same_key_for_another_request_is_refused(shim: Shim, other: dict[str, Any]) -> None:
    """422 with a code of its own, naming the header and the job of that key; no job is made."""
    first = post(shim, "k").json()["id"]
    answer = post(shim, "k", **other)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert first in answer.json()["detail"]
    [error] = answer.json()["errors"]
    assert (error["field"], error["remedy"]) == ("Idempotency-Key", "use a new key for a new request")
    assert len(shim.http.get("/v1/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "ü".encode("latin-1"), "x" * 256, "tab\there"])
def test_a_key_that_is_none_is_refused(shim: Shim, valkey: Valkey, key: str | bytes) -> None:
    """422 names the header and what would do."""
    answer = post(shim, key)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "Idempotency-Key"
    assert "1 to 255 visible ASCII characters" in error["message"]
    assert error["remedy"]
    assert valkey.client().dbsize() == 0


def test_the_longest_key_is_taken(shim: Shim) -> None:
    """255 characters, of every visible kind."""
    key = "".join(map(chr, range(0x21, 0x7F))).ljust(255, "~")
    assert post(shim, key).json()["id"] == post(shim, key).json()["id"]


def test_fifty_at_once_make_one_job(shim: Shim) -> None:
    """Whoever comes first makes it, and all get it."""
    answers: list[httpx2.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(post(shim, "at-once"))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [202] * 50
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(shim.http.get("/v1/jobs").json()["jobs"]) == 1


def test_a_key_belongs_to_its_tenant(valkey: Valkey) -> None:
    """Two tenants may choose the same one."""
    keys = {"acme": "key-of-acme-1234567", "globex": "key-of-globex-1234567"}
    with running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS=json.dumps(keys))) as shim:
        ids = {post(shim, "k", {"X-API-Key": key}).json()["id"] for key in keys.values()}
        assert len(ids) == 2


def test_a_repetition_may_come_after_the_deadline(shim: Shim) -> None:
    """It asks for the job of the first time, and is not told that its time is over."""
    deadline = datetime.now(UTC) + timedelta(seconds=3)
    first = post(shim, "k", deadline=deadline.isoformat())
    assert first.status_code == 202
    wait_until(lambda: datetime.now(UTC) > deadline, "the deadline")
    again = post(shim, "k", deadline=deadline.isoformat())
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert post(shim, "another", deadline=deadline.isoformat()).status_code == 422


def test_who_does_not_know_whether_it_was_accepted_sends_it_again(own_valkey: Valkey) -> None:
    """503 `maybe_accepted`: the job is stored, the disk is not done. The same key gets that job from any shim, but not
    before it is safe."""
    own_valkey.client().config_set("appendfsync", "no")  # a disk that is never done
    env = {"CELERIAC_DURABILITY": "disk"}
    with running(Shim(own_valkey.url, **env)) as shim, running(Shim(own_valkey.url, **env)) as another:
        first = post(shim, "order-7")
        assert (first.status_code, first.json()["maybe_accepted"]) == (503, True)
        assert post(another, "order-7").status_code == 503
        own_valkey.client().config_set("appendfsync", "everysec")
        again = post(another, "order-7")
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert again.json()["id"] == first.json()["job_id"]
        assert len(shim.http.get("/v1/jobs").json()["jobs"]) == 1
