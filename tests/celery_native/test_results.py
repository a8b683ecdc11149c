"""Jobs from Celery's own callers: a stock client with two URLs, a stock worker for its callbacks."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from celeriac.jobs.dispatch import SUBMIT
from celeriac.jobs.request import NOT_PRICED, UNPRICEABLE
from tests.celery_native.conftest import Home, Town, get
from tests.processes import wait_until


def said(home: Home) -> list[str]:
    """What the model was told last, without its instructions."""
    messages = json.loads(home.asked()[-1]["body"])["messages"]
    return [message["content"] for message in messages if message["role"] != "system"]


def test_the_result_is_a_summary_under_the_id_of_the_submission(home: Home) -> None:
    """State, model, tokens and cost; the answer is in the store, under the same id, and nowhere in Celery."""
    home.always(text="Paris")
    result = home.ask().apply_async()
    summary = get(result)
    assert (summary["job_id"], summary["state"], summary["model"]) == (result.id, "succeeded", "gpt-5.4-mini")
    assert summary["output_tokens"] > 0
    assert "Paris" not in json.dumps(summary)
    assert home.answer(result) == "Paris"
    assert home.record(result)["tenant"] == "default"


def test_a_job_that_fails_raises_its_error(home: Home) -> None:
    """JobFailed with code and message, whether the caller can import it or not."""
    home.scripted({"status": 400})
    with pytest.raises(Exception, match=r"^bad_request: openai does not accept the request") as raised:
        get(home.ask().apply_async())
    assert type(raised.value).__name__ == "JobFailed"


def test_who_wants_no_result_gets_none_and_its_callback_all_the_same(home: Home) -> None:
    """`ignore_result` is the caller's to choose."""
    result = home.ask().apply_async(ignore_result=True, link=home.tell("ignored"))
    [summary] = home.notes("ignored")
    assert summary["job_id"] == result.id
    assert home.state(result) == "PENDING"
    wait_until(lambda: not home.untold(), "the end to be told")


def test_link_is_called_with_the_summary_and_link_error_with_the_id(home: Home) -> None:
    """As Celery calls them: the one at success, the other at failure."""
    home.scripted({"text": "Paris"}, {"status": 400})
    linked = home.ask().apply_async(link=home.tell("link"), link_error=home.tell("no-error"))
    assert [note["job_id"] for note in home.notes("link")] == [linked.id]
    failing = home.ask().apply_async(link=home.tell("no-link"), link_error=home.tell("error"))
    assert home.notes("error") == [failing.id]
    assert home.valkey.client().keys("shop:notes:no-*") == []


def test_a_chain_goes_from_job_to_job(home: Home) -> None:
    """The next task is given the summary; a job that asks for it, the answer."""
    home.scripted({"text": "Paris"}, {"text": "Lyon"}, {"text": "Nice"})
    steps = [
        home.ask("The capital?"),
        home.ask("And another?", previous="input"),
        home.ask("Which?"),
        home.tell("chain"),
    ]
    last = chain(*steps, app=home.client).apply_async()
    assert get(last)["state"] == "succeeded"
    assert [note["job_id"] for note in home.notes("chain")] == [last.parent.id]
    bodies = [json.loads(asked["body"])["messages"][1:] for asked in home.asked()[-3:]]
    assert [[message["content"] for message in body] for body in bodies] == [
        ["The capital?"],
        ["Paris", "And another?"],
        ["Which?"],
    ]


def test_a_job_may_be_given_what_any_task_said(home: Home) -> None:
    """A text as it is, other results as JSON."""
    fetch = home.client.signature("shop.fetch", args=["A long text."])
    get(chain(fetch, home.ask("Sum it up.", previous="input"), app=home.client).apply_async())
    assert said(home) == ["A long text.", "Sum it up."]
    note = home.client.signature("shop.note", args=[{"rows": [1, 2]}], kwargs={"about": "rows"})
    get(chain(note, home.ask("Sum it up.", previous="input"), app=home.client).apply_async())
    assert said(home) == ['{"rows":[1,2]}', "Sum it up."]


def test_a_chord_of_jobs_calls_its_body_with_all_summaries(home: Home) -> None:
    """In the order of its header, whoever was first."""
    header = [home.ask(str(i)) for i in range(5)]
    body = chord(header, home.tell("chord"), app=home.client).apply_async()
    summaries = get(body)
    assert [summary["job_id"] for summary in summaries] == [result.id for result in body.parent.results]
    assert home.notes("chord") == [summaries]


def test_the_body_of_a_chord_may_be_a_job_that_is_given_all_answers(home: Home) -> None:
    """Map and reduce: one message for each member, then the question."""
    home.scripted(*({"text": "a city"} for _ in range(3)), {"text": "three cities"})
    body = home.ask("What do these have in common?", previous="input")
    result = chord([home.ask(str(i)) for i in range(3)], body, app=home.client).apply_async()
    assert get(result)["state"] == "succeeded"
    assert said(home) == ["a city"] * 3 + ["What do these have in common?"]


def test_a_group_is_waited_for_as_a_whole(home: Home) -> None:
    """`get` answers the summaries of all."""
    result = group([home.ask(str(i)) for i in range(3)], app=home.client).apply_async()
    assert {summary["state"] for summary in result.get(timeout=60)} == {"succeeded"}


def shows(kind: str, **facts: str) -> dict[str, Any]:
    return {"agent": "assistant", "input": [{"role": "user", "content": [{"type": kind, **facts}]}]}


def test_an_image_comes_through_celery_as_over_http(home: Home) -> None:
    """And nothing of it is in what Celery keeps."""
    url = "https://pictures.example/leek.png?signature=signed-secret"
    result = home.ask(shows("image", url=url)["input"]).apply_async()
    assert get(result)["state"] == "succeeded"
    [message] = json.loads(home.asked()[-1]["body"])["messages"][1:]
    assert message["content"] == [{"type": "image_url", "image_url": {"url": url, "detail": "high"}}]
    assert "signed-secret" not in home.valkey.client().get(f"celery-task-meta-{result.id}") + home.the_worker.output()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"agent": "assistant"}, "input: Field required"),
        ({"agent": "assistant", "input": "hi", "colour": "red"}, "colour: there is no such field"),
        ({"agent": "nobody", "input": "hi"}, "agent: there is no agent 'nobody'; use one of: assistant"),
        (
            {"agent": "assistant", "input": "hi", "model": "groq/x"},
            "model: there is no such provider; write provider/model",
        ),
        ({"agent": "assistant", "input": "hi", "tenant": "a:b"}, "tenant: String should match"),
        ({"agent": "assistant", "input": [{"role": "user", "content": ""}]}, "input.0.content: String should have"),
        (
            shows("image", url="http://x/leek.png"),
            "input.0.content.0.url: is no https address; send one that the provider",
        ),
        (shows("input_audio", data="AAAA"), "input.0.content.0: input_audio: what a call costs with it"),
        ({"agent": "assistant", "input": [{"role": "assistant", "content": "hi"}]}, "input: the last message is not"),
        ({"agent": "assistant", "input": "hi", "run_at": "tomorrow"}, "run_at: Input should be a valid datetime"),
        ("What is the capital of France?", "Input should be a valid dictionary"),
    ],
    ids=["missing", "extra", "agent", "model", "tenant", "empty", "image", "audio", "role", "time", "text"],
)
def test_a_bad_submission_fails_and_names_the_field(home: Home, request_: Any, message: str) -> None:
    """Its errbacks are called and nothing is stored."""
    submission = home.client.signature(SUBMIT, args=[request_], queue=SUBMIT)
    result = submission.apply_async(link_error=home.tell(f"refused: {message}"))
    with pytest.raises(Exception, match=message.replace("(", r"\(")) as raised:
        get(result)
    assert "capital" not in str(raised.value)
    assert home.notes(f"refused: {message}") == [result.id]
    assert home.record(result) == {}


def test_what_cannot_be_priced_is_refused_by_name_here_too(home: Home) -> None:
    """Each field, and in a message too: nothing is stored, and no model is asked."""
    whole = {"agent": "assistant", "input": "hi"}
    inside = whole | {"input": [{"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}}]}
    asked = {**{field: whole | {field: 2} for field in UNPRICEABLE}, "input.0.cache_control": inside}
    results = {
        field: home.client.send_task(SUBMIT, args=[request], queue=SUBMIT) for field, request in asked.items()
    }  # fmt: skip
    for field, result in results.items():
        with pytest.raises(Exception, match=re.escape(f"{field}: {NOT_PRICED}")) as raised:
            get(result)
        assert type(raised.value).__name__ == "Unpriceable"
        assert home.record(result) == {}
    assert home.bill()["calls"] == 0


def test_a_submission_has_at_most_a_result_before_its_request(home: Home) -> None:
    """Any other arguments are a mistake, and so is an id that Redis could not hold."""
    request = {"agent": "assistant", "input": "hi"}
    for args in ([], [1, 2, request]):
        with pytest.raises(Exception, match="args: give the request"):
            get(home.client.send_task(SUBMIT, args=args, queue=SUBMIT))
    assert get(home.client.send_task(SUBMIT, kwargs={"request": request}, queue=SUBMIT))["state"] == "succeeded"
    with pytest.raises(Exception, match="task_id: use up to 64"):
        get(home.client.send_task(SUBMIT, args=[request], queue=SUBMIT, task_id='a"b'))


def test_an_answer_that_is_not_there_is_no_input(home: Home) -> None:
    """Of another tenant's job nothing is told, not even that it exists."""
    other = get(home.ask(tenant="rich").apply_async())
    with pytest.raises(Exception, match=f"previous: default has no answer of a job {other['job_id']}"):
        get(home.client.send_task(SUBMIT, args=[other, home.ask(previous="input").args[0]], queue=SUBMIT))


def test_a_refused_member_fails_its_chord(home: Home) -> None:
    """The others may be as good as they like."""
    header = [home.ask(), home.ask(agent="nobody")]
    with pytest.raises(Exception, match="agent: there is no agent"):
        get(chord(header, home.tell("never"), app=home.client).apply_async())


def test_the_same_submission_twice_is_one_job(home: Home) -> None:
    """Who does not know whether it arrived sends it again under the same id."""
    first, second = (home.ask().apply_async(task_id="order-7") for _ in range(2))
    assert get(first) == get(second)
    assert home.bill()["calls"] == 1


def test_celerys_own_countdown_and_expires_are_the_stores(home: Home) -> None:
    """Neither is kept in a worker's memory: the job is parked until then, and expires in the store."""
    later = home.ask().apply_async(countdown=3600)
    record = home.stored(later, "parked")
    due = datetime.fromtimestamp(int(record["resume_at"]) / 1000, UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < due <= timedelta(hours=1)
    home.revoke(later)
    home.scripted({"hang": True})
    expiring = home.ask().apply_async(expires=4)
    with pytest.raises(TaskRevokedError, match="expired"):
        get(expiring)


def test_with_a_setting_jobs_over_http_have_a_celery_result_too(town: Town) -> None:
    """Without it they have none: theirs is in the store."""
    town.worker()
    with_result, without = town.shim(CELERIAC_JOBS__CELERY_RESULTS="true"), town.shim()
    job = with_result.submit()
    assert get(town.client.AsyncResult(job["id"]))["job_id"] == job["id"]
    job = without.submit()
    assert without.job(job["id"], wait=30)["state"] == "succeeded"
    assert town.state(job["id"]) == "PENDING"
    assert job["id"] not in town.untold()
    # The result can be seen a moment before the store is told that it is written.
    wait_until(lambda: town.untold() == [], "the first one's end to be told")
