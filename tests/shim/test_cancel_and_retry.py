"""Cancelling jobs and starting them again, over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from tests.by_hand import crash, fail, finish, start
from tests.conftest import Valkey
from tests.processes import Shim, running, wait_until

#: What is answered where there is nothing to be started again.
NOTHING = {"retried": [], "refused": [], "more": False, "cursor": None}


def cancel(shim: Shim, id: str, **headers: str) -> httpx2.Response:
    return shim.http.post(f"/v1/jobs/{id}/cancel", headers=headers)


def retry(shim: Shim, id: str, body: dict[str, Any] | None = None) -> httpx2.Response:
    return shim.http.post(f"/v1/jobs/{id}/retry", json=body)


def retry_many(shim: Shim, **body: Any) -> httpx2.Response:
    return shim.http.post("/v1/jobs/retry", json=body)


def failed(shim: Shim, valkey: Valkey, steps: int = 0, **facts: Any) -> str:
    id: str = shim.submit(**facts)["id"]
    fail(valkey, id, steps=steps)
    return id


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, shim: Shim) -> None:
        """200 with the job; asked again, the same."""
        id = shim.submit()["id"]
        first, second = cancel(shim, id), cancel(shim, id)
        assert (first.status_code, first.json()["state"]) == (200, "cancelled")
        assert first.json()["error"] == {"code": "cancelled", "message": "the job was cancelled"}
        assert (second.status_code, second.json()) == (200, first.json())
        assert shim.job(id) == first.json()

    def test_a_scheduled_job_is_cancelled_at_once(self, shim: Shim) -> None:
        """It waits for its time no longer."""
        id = shim.submit(run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())["id"]
        job = cancel(shim, id).json()
        assert (job["state"], job["reason"], job["resume_at"]) == ("cancelled", None, None)

    def test_a_running_job_is_asked_to_stop(self, shim: Shim, valkey: Valkey) -> None:
        """202: it runs still, and stops when its worker hears of it."""
        id = shim.submit()["id"]
        start(valkey, id)
        for _ in range(2):
            answer = cancel(shim, id)
            assert answer.status_code == 202
            assert (answer.json()["state"], answer.json()["stopping"]) == ("running", True)

    def test_a_job_that_ended_otherwise_stays_as_it_is(self, shim: Shim, valkey: Valkey) -> None:
        """409 names the state."""
        done, bad = shim.submit()["id"], failed(shim, valkey)
        finish(valkey, done)
        for id, state in ((done, "succeeded"), (bad, "failed")):
            answer = cancel(shim, id)
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
            assert f"is {state}" in answer.json()["detail"]
            assert shim.job(id)["state"] == state


class TestRetry:
    def test_a_failed_job_goes_on_after_its_stored_steps(self, shim: Shim, valkey: Valkey) -> None:
        """202 with the job under its old id: waiting again, its error gone, its steps and their price kept."""
        id = failed(shim, valkey, steps=2)
        answer = retry(shim, id)
        job = answer.json()
        assert (answer.status_code, job["id"], job["state"], job["fresh"]) == (202, id, "queued", False)
        assert (job["steps"], job["replays"], job["error"], job["ended_at"]) == (2, 1, None, None)
        assert (job["cost_usd"], job["attempts"]) == ("0.000002468", 1)
        finish(valkey, id)
        assert (shim.job(id)["state"], shim.job(id)["attempts"]) == ("succeeded", 2)

    def test_it_may_begin_afresh(self, shim: Shim, valkey: Valkey) -> None:
        """Its steps are thrown away; what they cost is not."""
        job = retry(shim, failed(shim, valkey, steps=2), {"fresh": True}).json()
        assert (job["fresh"], job["steps"], job["cost_usd"]) == (True, 0, "0.000002468")

    def test_it_begins_afresh_where_its_conversation_has_changed(self, shim: Shim, valkey: Valkey) -> None:
        """And the answer says so, though nobody asked for it."""
        id = failed(shim, valkey, steps=1, context_id="c")
        finish(valkey, shim.submit(context_id="c")["id"], context=True)
        assert retry(shim, id).json()["fresh"] is True

    def test_it_waits_behind_its_conversation(self, shim: Shim, valkey: Valkey) -> None:
        """It comes in by the door that every job comes in by."""
        id = failed(shim, valkey, context_id="c")
        holder = shim.submit(context_id="c")["id"]
        assert retry(shim, id).json()["waits_for"] == holder

    def test_its_old_deadline_is_gone_and_a_new_one_may_be_given(self, shim: Shim, valkey: Valkey) -> None:
        """In seconds from now."""
        old = failed(shim, valkey, expires_in=600)
        assert retry(shim, old).json()["deadline"] is None
        began = datetime.now(UTC)
        job = retry(shim, failed(shim, valkey), {"expires_in": 60}).json()
        left = datetime.fromisoformat(job["deadline"]) - began
        assert timedelta(seconds=59) < left < timedelta(seconds=65)

    def test_a_cancelled_job_can_be_started_again(self, shim: Shim) -> None:
        """Cancel was no end for ever."""
        id = shim.submit()["id"]
        cancel(shim, id)
        assert retry(shim, id).json()["state"] == "queued"

    def test_a_dead_letter_can_be_started_again(self, shim: Shim, valkey: Valkey) -> None:
        """It is a suspect no longer."""
        id = shim.submit()["id"]
        crash(valkey, id)
        assert (shim.job(id)["dead"], shim.job(id)["error"]["code"]) == (True, "dead_letter")
        job = retry(shim, id).json()
        assert (job["state"], job["dead"], job["crashes"]) == ("queued", False, 0)

    @pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
    def test_only_a_job_that_ended_badly_is_started_again(self, shim: Shim, valkey: Valkey, state: str) -> None:
        """409 names the state."""
        id = shim.submit()["id"]
        if state != "queued":
            (start if state == "running" else finish)(valkey, id)
        answer = retry(shim, id)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert f"is {state}" in answer.json()["detail"]

    @pytest.mark.parametrize(("body", "field"), [({"fresh": "yes"}, "fresh"), ({"expires_in": 0}, "expires_in")])
    def test_a_wrong_wish_is_refused(self, shim: Shim, valkey: Valkey, body: dict[str, Any], field: str) -> None:
        """422 names the field, and the job stays as it is."""
        id = failed(shim, valkey)
        answer = retry(shim, id, body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
        assert shim.job(id)["state"] == "failed"


def test_what_is_not_there_is_neither_cancelled_nor_retried(valkey: Valkey) -> None:
    """404; another tenant's job does not exist either, and is not touched."""
    keys = {"acme": "key-of-acme-1234567", "globex": "key-of-globex-1234567"}
    with running(Shim(valkey.url, CELERIAC_SHIM__API_KEYS=json.dumps(keys))) as shim:
        shim.http.headers["X-API-Key"] = keys["acme"]
        id = shim.submit()["id"]
        shim.http.headers["X-API-Key"] = keys["globex"]
        for answer in (cancel(shim, "nope"), retry(shim, "nope"), cancel(shim, id), retry(shim, id)):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert retry_many(shim, state="cancelled").json() == NOTHING
        shim.http.headers["X-API-Key"] = keys["acme"]
        assert shim.job(id)["state"] == "queued"


class TestMany:
    def test_all_that_ended_so_are_started_again_the_oldest_first(self, shim: Shim, valkey: Valkey) -> None:
        """Those of other states stay as they are."""
        ids = [failed(shim, valkey) for _ in range(3)]
        cancelled = shim.submit()["id"]
        cancel(shim, cancelled)
        answer = retry_many(shim, state="failed")
        assert (answer.status_code, answer.json()) == (200, NOTHING | {"retried": ids})
        assert {shim.job(id)["state"] for id in ids} == {"queued"}
        assert shim.job(cancelled)["state"] == "cancelled"
        assert retry_many(shim, state="failed").json()["retried"] == []
        assert retry_many(shim, state="cancelled").json()["retried"] == [cancelled]

    def test_a_page_at_a_time(self, shim: Shim, valkey: Valkey) -> None:
        """`more` until there is none."""
        ids = [failed(shim, valkey) for _ in range(3)]
        first, second = retry_many(shim, state="failed", limit=2), retry_many(shim, state="failed", limit=2)
        assert (first.json()["retried"], first.json()["more"]) == (ids[1:], True)
        assert (second.json()["retried"], second.json()["more"]) == (ids[:1], False)

    def test_behind_thousands_of_another_agent(self, shim: Shim, valkey: Valkey) -> None:
        """A page looks at so many and no more; its cursor leads on, and comes to an end."""
        wanted = failed(shim, valkey, agent="reviewer")
        with valkey.client() as client, client.pipeline(transaction=False) as pipe:
            for i in range(5200):
                pipe.hset(f"celeriac:job:other-{i}", "agent", "assistant")
                pipe.zadd("celeriac:jobs:default:failed", {f"other-{i}": 1000 + i})
            pipe.execute()
        first = retry_many(shim, state="failed", agent="reviewer").json()
        assert (first["retried"], first["more"]) == ([], True)
        second = retry_many(shim, state="failed", agent="reviewer", cursor=first["cursor"]).json()
        assert second == NOTHING | {"retried": [wanted]}

    def test_of_one_agent(self, shim: Shim, valkey: Valkey) -> None:
        """The others wait for another day."""
        other, wanted = failed(shim, valkey), failed(shim, valkey, agent="reviewer")
        assert retry_many(shim, state="failed", agent="reviewer").json()["retried"] == [wanted]
        assert shim.job(other)["state"] == "failed"

    def test_dead_letters_only(self, shim: Shim, valkey: Valkey) -> None:
        """A job that failed by itself is none."""
        other, dead = failed(shim, valkey), shim.submit()["id"]
        crash(valkey, dead)
        assert retry_many(shim, state="failed", dead=True).json()["retried"] == [dead]
        assert shim.job(other)["state"] == "failed"

    def test_all_afresh(self, shim: Shim, valkey: Valkey) -> None:
        """Their steps are thrown away."""
        id = failed(shim, valkey, steps=2)
        retry_many(shim, state="failed", fresh=True)
        assert shim.job(id)["steps"] == 0

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "state"),
            ({"state": "succeeded"}, "state"),
            ({"state": "failed", "limit": 201}, "limit"),
            ({"state": "failed", "limit": 0}, "limit"),
            ({"state": "cancelled", "dead": True}, "dead"),
            ({"state": "failed", "agents": "x"}, "agents"),
            ({"state": "failed", "cursor": "x"}, "cursor"),
        ],
    )
    def test_a_wrong_wish_is_refused(self, shim: Shim, valkey: Valkey, body: dict[str, Any], field: str) -> None:
        """422 names the field, and nothing is started."""
        id = failed(shim, valkey)
        answer = retry_many(shim, **body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
        assert shim.job(id)["state"] == "failed"


def test_dead_letters_are_listed(shim: Shim, valkey: Valkey) -> None:
    """`?dead=true`; asking for those of another state is a mistake."""
    failed(shim, valkey)
    dead = shim.submit()["id"]
    crash(valkey, dead)

    def listed(**params: Any) -> list[str]:
        return [job["id"] for job in shim.http.get("/v1/jobs", params=params).json()["jobs"]]

    assert listed(dead=True) == listed(dead=True, state="failed") == [dead]
    assert len(listed(state="failed")) == 2
    answer = shim.http.get("/v1/jobs", params={"dead": True, "state": "cancelled"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "state")


def test_a_cancelled_job_wakes_who_waits_for_it(shim: Shim) -> None:
    """A long poll ends with the cancelling."""
    import threading

    id = shim.submit()["id"]
    states: list[str] = []
    waiter = threading.Thread(target=lambda: states.append(shim.job(id, wait=60)["state"]))
    waiter.start()
    cancel(shim, id)
    waiter.join(30)
    wait_until(lambda: states, "the waiter")
    assert states == ["cancelled"]


def test_the_openapi_document_tells_all_of_it(shim: Shim) -> None:
    """Routes, header, fields, and what each answer means."""
    document = shim.http.get("/openapi.json").json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    submit = paths["/v1/jobs"]["post"]
    assert "Idempotency-Key" in {parameter["name"] for parameter in submit["parameters"]}
    assert "Idempotency-Replayed" in submit["responses"]["202"]["headers"]
    assert {"run_at", "deadline", "expires_in"} <= schemas["JobRequest"]["properties"].keys()
    assert schemas["JobRequest"]["properties"]["run_at"]["anyOf"][0]["format"] == "date-time"
    assert {"200", "202", "404", "409"} <= paths["/v1/jobs/{job_id}/cancel"]["post"]["responses"].keys()
    assert {"202", "404", "409", "422"} <= paths["/v1/jobs/{job_id}/retry"]["post"]["responses"].keys()
    assert "fresh" in schemas["RetriedOut"]["properties"]
    assert {"200", "422", "503"} <= paths["/v1/jobs/retry"]["post"]["responses"].keys()
    assert "dead" in {parameter["name"] for parameter in paths["/v1/jobs"]["get"]["parameters"]}
    for path, methods in paths.items():
        for method, operation in methods.items():
            if path.startswith("/v1/jobs"):
                refused = operation["responses"]["422"]["content"]["application/problem+json"]["schema"]
                assert refused["$ref"].endswith("/Problem"), f"{method} {path}"
