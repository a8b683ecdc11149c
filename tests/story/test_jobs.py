"""What Celeriac does for a backend team, told over HTTP."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from itertools import pairwise
from typing import Any

from tests.processes import ROOT, wait_until
from tests.story.conftest import Home, House


def test_a_job_is_handed_over_and_answered(home: Home) -> None:
    """Submit, wait, read: answer, model, tokens, cost."""
    home.always(text="Paris")
    job = home.ask("What is the capital of France?")
    assert (job["state"], job["answer"], job["error"]) == ("succeeded", "Paris", None)
    assert job["model"] == "gpt-5.4-mini"
    assert job["usage"]["output_tokens"] > 0
    assert Decimal(job["cost_usd"]) > 0
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]


def test_the_agents_instructions_go_before_the_callers_words(home: Home) -> None:
    """The model is told who it is, and asked what the caller asked."""
    home.ask("What is the capital of France?")
    body = json.loads(home.asked()[-1]["body"])
    assert body["messages"][0]["role"] in {"system", "developer"}
    assert "assistant" in body["messages"][0]["content"]
    assert body["messages"][-1] == {"role": "user", "content": "What is the capital of France?"}


def test_a_conversation_is_remembered_from_job_to_job(home: Home) -> None:
    """The second job of a context sees the first one's question and answer."""
    home.scripted({"text": "Paris"}, {"text": "Lyon"})
    home.ask("The capital of France?", context_id="trip")
    home.ask("And the second city?", context_id="trip")
    said = [
        m["content"] for m in json.loads(home.asked()[-1]["body"])["messages"] if m["role"] in {"user", "assistant"}
    ]
    assert said == ["The capital of France?", "Paris", "And the second city?"]
    context = home.the_shim.http.get("/v1/contexts/trip").json()
    assert [m["content"] for m in context["messages"]] == [*said, "Lyon"]


def test_a_conversation_may_be_brought_along(home: Home) -> None:
    """Input may be messages, of which the last is the user's."""
    home.ask(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "and?"},
        ]  # type: ignore[arg-type]
    )
    assert [m["content"] for m in json.loads(home.asked()[-1]["body"])["messages"]][-3:] == ["hi", "hello", "and?"]


def test_jobs_of_one_conversation_run_one_at_a_time(home: Home) -> None:
    """However fast they are submitted, each answers after the one before it, in order."""
    home.always(delay=0.2)
    jobs = [home.the_shim.submit(input=f"question {i}", context_id="ordered") for i in range(5)]
    ended = [home.the_shim.job(job["id"], wait=60) for job in jobs]
    for before, after in pairwise(ended):
        assert before["ended_at"] <= after["started_at"]
    context = home.the_shim.http.get("/v1/contexts/ordered").json()
    assert [m["content"] for m in context["messages"] if m["role"] == "user"] == [f"question {i}" for i in range(5)]


def test_when_openai_fails_anthropic_answers(home: Home) -> None:
    """It is asked again, then the next lane is, and the job shows all calls."""
    home.scripted({"status": 503}, {"status": 503}, {"text": "Paris"})
    job = home.ask()
    assert (job["state"], job["answer"]) == ("succeeded", "Paris")
    assert [(call["lane"].partition("/")[0], call["error"]) for call in job["calls"]] == [
        ("openai", "overloaded"),
        ("openai", "overloaded"),
        ("anthropic", None),
    ]


def test_when_nobody_answers_the_job_fails_with_a_code(home: Home) -> None:
    """A failure is an end too: named, with the calls that were made, and nothing in the conversation."""
    home.always(status=503)
    job = home.ask(agent="impatient", context_id="failing")
    assert (job["state"], job["answer"]) == ("failed", None)
    assert job["error"]["code"] == "overloaded"
    assert [call["error"] for call in job["calls"]] == ["overloaded"] * 4
    assert home.the_shim.http.get("/v1/contexts/failing").status_code == 404


def test_a_job_whose_providers_ask_for_time_waits_and_is_tried_again(home: Home) -> None:
    """Meanwhile it is parked outside every slot, as long as they asked for; then it succeeds."""
    home.scripted(*[{"status": 503, "headers": {"Retry-After": "4"}}] * 2, {"text": "Paris"})
    id = home.the_shim.submit()["id"]

    def parked() -> Any:
        job = home.the_shim.job(id)
        return job if job["state"] == "parked" else None

    job = wait_until(parked, "the job to be parked")
    assert (job["reason"], job["attempts"], job["error"]) == ("lane_closed", 1, None)
    assert [call["error"] for call in job["calls"]] == ["overloaded", "overloaded"]
    ended = home.the_shim.job(id, wait=60)
    assert (ended["state"], ended["answer"], ended["attempts"]) == ("succeeded", "Paris", 2)
    assert (ended["reason"], ended["resume_at"]) == (None, None)
    assert ended["started_at"] > job["calls"][1]["started_at"]
    assert [call["stands"] for call in ended["calls"]] == ["released", "released", "settled"]


def test_a_job_that_meets_an_error_that_time_may_cure_is_tried_again(home: Home) -> None:
    """Meanwhile it is parked outside every slot; then it succeeds."""
    home.scripted(*[{"status": 503}] * 4, {"text": "Paris"})
    job = home.ask()
    assert (job["state"], job["answer"], job["attempts"]) == ("succeeded", "Paris", 2)
    assert [call["stands"] for call in job["calls"]] == ["released"] * 4 + ["settled"]


def test_a_request_that_is_wrong_is_not_sent_elsewhere(home: Home) -> None:
    """What one provider refuses as malformed, another would refuse too."""
    home.always(status=400)
    job = home.ask()
    assert (job["state"], job["error"]["code"], len(job["calls"])) == ("failed", "bad_request", 1)


def test_a_caller_may_choose_the_model(home: Home) -> None:
    """One provider/model instead of the agent's own lanes."""
    job = home.ask(model="anthropic/claude-sonnet-5-5")
    assert (job["model"], job["calls"][0]["lane"]) == ("claude-sonnet-5-5", "anthropic/claude-sonnet-5-5")


def test_the_cost_is_the_providers_bill_to_the_nano_dollar(home: Home) -> None:
    """gpt-5-mini: $0.25 in, $0.025 cached, $2 out a million tokens."""
    home.always(text="Paris is the capital.", cached=7)
    job = home.ask("What is the capital of France? " * 20, model="openai/gpt-5-mini")
    [line] = home.bill()["lines"]
    nanos = line["input"] * 250 + line["cache_read"] * 25 + line["output"] * 2000
    assert line["cache_read"] == 7
    assert Decimal(job["cost_usd"]) == Decimal(nanos) / 10**9
    assert job["cost_estimated"] is False


def test_five_hundred_jobs_are_in_flight_in_one_process(home: Home) -> None:
    """Jobs that wait for a model cost the worker a connection each, not a process."""
    home.always(delay=5, text="ok")
    with home.held():
        jobs = [home.the_shim.submit()["id"] for _ in range(500)]
    wait_until(lambda: home.peak() >= 400, "400 calls at once", 60)
    for job in jobs:
        assert home.the_shim.job(job, wait=60)["state"] == "succeeded"
    assert home.bill()["calls"] == 500, "no call was made twice"


def test_what_was_said_is_in_no_log_and_in_no_message(home: Home) -> None:
    """Prompts, answers and keys stay in the store and with the provider."""
    home.scripted({"text": "secret-answer"}, {"status": 400}, {"fault": "html"}, {"fault": "html"})
    home.ask("secret-prompt")
    home.ask("secret-prompt")
    home.ask("secret-prompt")
    for text in (home.the_worker.output(), home.the_shim.output()):
        assert "secret" not in text
        assert home.valkey.client().llen("celeriac") == 0


def test_one_request_id_leads_through_shim_and_worker(home: Home) -> None:
    """From the caller's header to the worker's last line about the job."""
    answer = home.the_shim.http.post(
        "/v1/jobs", json={"agent": "assistant", "input": "hi"}, headers={"X-Request-ID": "trace-me-1"}
    )
    home.the_shim.job(answer.json()["id"], wait=60)

    def ended() -> list[str]:
        return [line for line in home.the_worker.output().splitlines() if "trace-me-1" in line and "job_ended" in line]

    [line] = wait_until(ended, "the worker's line")
    for fact in ("agent=assistant", "tenant=default", f"job_id={answer.json()['id']}", "worker="):
        assert fact in line
    assert "request_id=trace-me-1" in home.the_shim.output()


def test_a_worker_runs_as_many_jobs_at_once_as_it_has_slots(house: House) -> None:
    """Two of five, and each that ends lets the next one in."""
    shim = house.shim()
    house.worker("--concurrency", "2")
    house.always(hang=True)
    jobs = [shim.submit()["id"] for _ in range(5)]
    wait_until(lambda: house.in_flight() == 2, "both slots to be taken")
    house.always(delay=0.3, text="Paris")
    for job in jobs[:2]:
        shim.http.post(f"/v1/jobs/{job}/cancel")
    assert [shim.job(job, wait=60)["state"] for job in jobs] == ["cancelled"] * 2 + ["succeeded"] * 3
    assert (house.peak(), house.bill()["calls"]) == (2, 5)


def shape(of: Any) -> Any:
    """Its keys, in their order, all the way down."""
    if isinstance(of, dict):
        return [(key, shape(value)) for key, value in of.items()]
    return [shape(part) for part in of] if isinstance(of, list) else None


def test_the_readmes_job_is_what_a_caller_sees(home: Home) -> None:
    """Key by key, and in the order that `celeriac demo` prints them in."""
    [sample] = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    job = home.ask("In one sentence: what is a job queue good for?", agent="assistant", context_id="first")
    assert job["state"] == "succeeded"
    assert shape(json.loads(sample)) == shape(job)
