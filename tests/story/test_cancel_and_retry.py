"""Jobs that somebody stops, starts again, or hands over twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from celeriac.jobs.lease import HEARTBEAT
from tests.processes import wait_until
from tests.story.conftest import Home


def cancel(home: Home, id: str) -> Any:
    return home.the_shim.http.post(f"/v1/jobs/{id}/cancel")


def retry(home: Home, id: str, **body: Any) -> Any:
    return home.the_shim.http.post(f"/v1/jobs/{id}/retry", json=body or None)


def in_its_second_step(home: Home) -> str:
    """A job whose first step is stored and whose second call hangs."""
    home.scripted({"text": "Paris"}, {"hang": True}, {"text": "Yes, Paris."})
    id: str = home.the_shim.submit(agent="thorough", input="The capital of France?")["id"]
    wait_until(lambda: home.in_flight() == 1 and home.the_shim.job(id)["steps"] == 1, "the second call")
    return id


def runs_when(home: Home, id: str) -> tuple[bool, int]:
    """Whether the job runs, and at which heartbeat of its worker."""
    with home.valkey.client().pipeline() as redis:
        place, beats = redis.hget(f"celeriac:job:{id}", "place").get("celeriac:beats").execute()
    return place == "running", int(beats)


def price(home: Home, *calls: int) -> Decimal:
    """Of these calls on the provider's bill; gpt-5-mini: $0.25 in, $2 out a million tokens."""
    lines = home.bill()["lines"]
    return Decimal(sum(lines[i]["input"] * 250 + lines[i]["output"] * 2000 for i in calls)) / 10**9


def test_a_queued_job_that_is_cancelled_is_never_run(home: Home) -> None:
    """It waited behind another of its conversation; the one behind it goes on."""
    with home.held():
        first, second, third = (home.the_shim.submit(context_id="stopped")["id"] for _ in range(3))
        answer = cancel(home, second)
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert {home.the_shim.job(id, wait=60)["state"] for id in (first, third)} == {"succeeded"}
    job = home.the_shim.job(second)
    assert (job["state"], job["attempts"], job["calls"]) == ("cancelled", 0, None)
    assert home.bill()["calls"] == 2


def test_a_parked_job_that_is_cancelled_is_never_run(home: Home) -> None:
    """Its time comes, and nothing happens."""
    at = datetime.now(UTC) + timedelta(hours=1)
    id, later = (home.the_shim.submit(run_at=at.isoformat())["id"] for _ in range(2))
    answer = cancel(home, id)
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    home.due(id, later)
    assert home.the_shim.job(later, wait=60)["state"] == "succeeded"
    assert home.the_shim.job(id)["attempts"] == 0
    assert home.bill()["calls"] == 1


def test_a_running_job_that_is_cancelled_stops_within_a_second(home: Home) -> None:
    """The provider's request is aborted. What was spent is kept, and what may have been spent is in doubt."""
    id = in_its_second_step(home)
    answer = cancel(home, id)
    assert (answer.status_code, answer.json()["stopping"]) == (202, True)
    _, asked = runs_when(home, id)

    def stopped() -> bool:
        runs, beats = runs_when(home, id)
        # The next heartbeat tells the worker; by the one after it, a second later, nothing runs any more.
        assert not runs or beats < asked + 2
        return not runs

    assert timedelta(seconds=1) >= HEARTBEAT
    wait_until(stopped, "it to stop")
    job = home.the_shim.job(id)
    assert (job["state"], job["error"]["code"], job["stopping"]) == ("cancelled", "cancelled", False)
    assert [call["stands"] for call in job["calls"]] == ["settled", "doubt"]
    assert Decimal(job["cost_usd"]) == price(home, 0)
    assert Decimal(job["in_doubt_usd"]) >= price(home, 1)
    wait_until(lambda: home.in_flight() == 0, "the request to be aborted")
    assert cancel(home, id).status_code == 200


def test_a_cancelled_job_that_is_retried_succeeds(home: Home) -> None:
    """It goes on after the step that it had finished: nothing that was answered is bought again."""
    id = in_its_second_step(home)
    cancel(home, id)
    assert home.the_shim.job(id, wait=30)["state"] == "cancelled"
    answer = retry(home, id)
    assert (answer.status_code, answer.json()["fresh"], answer.json()["steps"]) == (202, False, 1)
    job = home.the_shim.job(id, wait=30)
    assert (job["state"], job["answer"], job["error"]) == ("succeeded", "Yes, Paris.", None)
    assert (job["attempts"], job["replays"]) == (2, 1)
    assert [call["stands"] for call in job["calls"]] == ["settled", "doubt", "settled"]
    assert home.bill()["calls"] == 3
    assert Decimal(job["cost_usd"]) == price(home, 0, 2)


def test_a_failed_job_that_is_retried_succeeds(home: Home) -> None:
    """After its stored step, in the same conversation, which then holds the whole turn once."""
    home.scripted({"text": "Paris"}, {"status": 400}, {"text": "Yes, Paris."})
    job = home.ask("The capital of France?", agent="thorough", context_id="mended")
    assert (job["state"], job["error"]["code"], job["steps"]) == ("failed", "bad_request", 1)
    assert retry(home, job["id"]).json()["fresh"] is False
    job = home.the_shim.job(job["id"], wait=30)
    assert (job["state"], job["answer"]) == ("succeeded", "Yes, Paris.")
    assert home.bill()["calls"] == 2, "a refused call is not billed, and the first step is not asked again"
    context = home.the_shim.http.get("/v1/contexts/mended").json()
    assert [m["content"] for m in context["messages"]] == ["The capital of France?", "Yes, Paris."]


def test_a_job_that_is_retried_afresh_asks_everything_again(home: Home) -> None:
    """Where the first step was the mistake. What it cost is kept all the same."""
    home.scripted({"text": "Lyon"}, {"status": 400}, {"text": "Paris"}, {"text": "Yes, Paris."})
    job = home.ask("The capital of France?", agent="thorough")
    assert retry(home, job["id"], fresh=True).json()["fresh"] is True
    job = home.the_shim.job(job["id"], wait=30)
    assert (job["state"], job["answer"]) == ("succeeded", "Yes, Paris.")
    assert "Lyon" not in home.asked()[-1]["body"]
    assert Decimal(job["cost_usd"]) == price(home, 0, 1, 2)


def test_many_jobs_are_retried_at_once(home: Home) -> None:
    """A provider was down for a while: all that failed then are started again with one request."""
    home.always(status=503)
    ids = [home.the_shim.submit(agent="impatient")["id"] for _ in range(4)]
    assert {home.the_shim.job(id, wait=30)["state"] for id in ids} == {"failed"}
    home.always(text="Paris")
    answer = home.the_shim.http.post("/v1/jobs/retry", json={"state": "failed", "agent": "impatient"}).json()
    assert set(ids) <= set(answer["retried"])
    # Also those of other tests: what still ran would be answered by the next one's script.
    ended = {id: home.the_shim.job(id, wait=30) for id in answer["retried"]}
    assert {ended[id]["answer"] for id in ids} == {"Paris"}


def test_a_job_that_is_handed_over_twice_runs_once(home: Home) -> None:
    """The same Idempotency-Key: one job, one call, one answer for both."""
    asked = {"agent": "assistant", "input": "The capital of France?"}
    ids = set()
    for _ in range(3):
        answer = home.the_shim.http.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "order-7"})
        ids.add(answer.json()["id"])
    [id] = ids
    assert home.the_shim.job(id, wait=30)["state"] == "succeeded"
    again = home.the_shim.http.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "order-7"})
    assert again.json() | {"quote": None} == home.the_shim.job(id)
    assert home.bill()["calls"] == 1
