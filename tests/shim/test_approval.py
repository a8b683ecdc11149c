"""Allowing calls of tools over HTTP."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.by_hand import ask
from tests.conftest import Valkey
from tests.processes import Shim

SELL = {"call": "1.c0", "tool": "sell", "arguments": '{"what": "house"}'}
BUY = {"call": "1.c1", "tool": "buy", "arguments": "{}"}


def resume(shim: Shim, id: str, **body: Any) -> httpx2.Response:
    return shim.http.post(f"/v1/jobs/{id}/resume", json=body)


@pytest.fixture
def waiting(shim: Shim, valkey: Valkey) -> str:
    """A job that waits for two calls to be allowed."""
    id: str = shim.submit()["id"]
    ask(valkey, id, SELL, BUY)
    return id


def test_a_job_that_waits_says_for_what(shim: Shim, waiting: str) -> None:
    """Until when, too; not in lists."""
    job = shim.job(waiting)
    assert (job["state"], job["reason"], job["approvals"]) == ("parked", "waiting_approval", [SELL, BUY])
    assert job["resume_at"] is not None
    assert shim.http.get("/v1/jobs").json()["jobs"][0]["approvals"] is None


def test_a_decision_is_taken(shim: Shim, waiting: str) -> None:
    """202 with the job; once all is decided it goes on."""
    first = resume(shim, waiting, approve=False, reason="never", calls=["1.c0"])
    assert (first.status_code, first.json()["state"], first.json()["approvals"]) == (202, "parked", [BUY])
    second = resume(shim, waiting, approve=True, calls=["1.c1"])
    again = resume(shim, waiting, approve=True, calls=["1.c1"])
    assert (again.status_code, again.json()) == (202, second.json())
    assert (second.status_code, second.json()["state"], second.json()["approvals"]) == (202, "queued", None)


def test_what_cannot_be_decided_is_said(shim: Shim, waiting: str) -> None:
    """By its name, with what to do instead."""
    for id, body, status, code, field in (
        (waiting, {"approve": True, "calls": ["9.c9"]}, 422, "invalid", "calls"),
        (waiting, {"approve": True, "calls": []}, 422, "invalid", "calls"),
        (waiting, {"approve": True}, 422, "invalid", "calls"),
        (waiting, {"approve": "yes", "calls": ["1.c0"]}, 422, "invalid", "approve"),
        (waiting, {"calls": ["1.c0"]}, 422, "invalid", "approve"),
        (shim.submit()["id"], {"approve": True, "calls": ["1.c0"]}, 409, "conflict", "job_id"),
        ("no-such-job", {"approve": True, "calls": ["1.c0"]}, 404, "not_found", "job_id"),
    ):
        answer = resume(shim, id, **body)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (status, code), problem
        assert problem["errors"][0]["field"] == field
    assert shim.job(waiting)["approvals"] == [SELL, BUY]
