"""Reading along: what the model says, as it says it, whatever happens to who asks it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from httpx2 import ServerSentEvent

from tests.processes import Shim, wait_until
from tests.story.conftest import Home, House

#: Comes in pieces of a few characters.
TEXT = "Leeks are planted in spring and earthed up in summer; whoever is in a hurry eats them in autumn. " * 3


def told(events: Iterable[ServerSentEvent]) -> list[tuple[str, dict[str, Any]]]:
    return [(event.event, json.loads(event.data)) for event in events]


def read(shim: Shim, **job: Any) -> list[tuple[str, dict[str, Any]]]:
    """All that a reader of the job is told, from its first event to its end."""
    return told(shim.events(shim.submit(stream=True, **job)["id"]))


def of(kind: str, events: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [facts for name, facts in events if name == kind]


def texts(events: list[tuple[str, dict[str, Any]]]) -> dict[int, str]:
    """As a reader puts them together: a start takes back what came of its step, and of later ones."""
    found: dict[int, str] = {}
    for kind, facts in events:
        if kind == "start":
            found = {step: text for step, text in found.items() if step < facts["step"]} | {facts["step"]: ""}
        elif kind == "delta":
            assert facts["from"] == len(found[facts["step"]])
            found[facts["step"]] += facts["text"]
    return found


def as_json(request: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request["body"])
    return body


def test_an_answer_is_read_as_it_comes(home: Home) -> None:
    """In pieces of a fifth of a second, not of a token, that are the answer in the end."""
    home.always(text=TEXT * 3, pace=0.02)
    began = time.monotonic()
    events = read(home.the_shim, input="Tell me of leeks.")
    seconds = time.monotonic() - began
    deltas = of("delta", events)
    assert texts(events) == {1: TEXT * 3} == {1: events[-1][1]["answer"]}
    assert 3 <= len(deltas) <= seconds / 0.2 + 2
    assert len(of("start", events)) == 1
    assert [facts["state"] for facts in of("state", events)] == ["queued", "running", "succeeded"]
    assert events[-1][0] == "end"


def test_a_stream_costs_what_its_answer_costs(home: Home) -> None:
    """To the nano-dollar, as the provider bills it."""
    home.always(text=TEXT, usage={"input": 20})
    plain, streamed = home.ask("At once."), read(home.the_shim, input="As it comes.")[-1][1]
    assert (plain["cost_usd"], plain["in_doubt_usd"]) == (streamed["cost_usd"], streamed["in_doubt_usd"])
    assert plain["usage"] == streamed["usage"]
    asked = {body["messages"][-1]["content"]: body.get("stream") for body in map(as_json, home.asked())}
    assert (asked["At once."], asked["As it comes."]) == (None, True)


def test_each_step_is_told(home: Home) -> None:
    """When it is stored; the text of the next one is its own."""
    home.always(turns=[{"text": "Leeks."}, {"text": "I am sure."}])
    events = read(home.the_shim, agent="thorough")
    assert texts(events) == {1: "Leeks.", 2: "I am sure."}
    (step,) = of("step", events)
    assert (step["step"], step["kind"], step["tools"]) == (1, "answer", [])
    assert step["call"] == of("start", events)[0]["call"]
    kinds = [kind for kind, _ in events]
    assert kinds.index("step") < len(kinds) - 1 - kinds[::-1].index("start")


def test_a_lane_that_fails_in_the_middle_is_a_start_anew(home: Home) -> None:
    """What the first one said is not joined to what the next one says."""
    home.scripted({"model": "gpt-5.4-mini", "text": "Never mind. " * 9, "error_in_stream": 529, "times": 9})
    home.always(text=TEXT)
    events = read(home.the_shim)
    starts = of("start", events)
    assert len(starts) >= 2
    assert {facts["step"] for facts in starts} == {1}
    assert len({facts["call"] for facts in starts}) == len(starts)
    assert texts(events) == {1: TEXT}
    assert events[-1][1]["answer"] == TEXT


def test_a_lane_that_says_nothing_takes_back_what_the_one_before_it_said(home: Home) -> None:
    """Also without a word of its own."""
    home.scripted({"model": "gpt-5.4-mini", "text": "Never mind. " * 9, "error_in_stream": 529, "times": 9})
    home.always(text="")
    events = read(home.the_shim)
    assert texts(events) == {1: ""}
    assert events[-1][1]["answer"] == ""


def test_a_killed_worker_is_a_start_anew(house: House) -> None:
    """Another run makes the step again from its beginning, and says so."""
    house.always(text=TEXT, pace=0.1)
    shim, worker = house.shim(), house.worker(CELERIAC_JOBS__LEASE="2")
    id = shim.submit(stream=True)["id"]
    events = shim.events(id)
    seen = []
    for event in events:
        seen.append(event)
        if event.event == "delta":
            break
    worker.kill()
    house.always(text=TEXT)
    house.worker(CELERIAC_JOBS__LEASE="2")
    everything = told([*seen, *events])
    starts = of("start", everything)
    assert [(facts["step"], facts["attempt"]) for facts in starts] == [(1, 1), (1, 2)]
    assert texts(everything) == {1: TEXT}
    states = [facts["state"] for facts in of("state", everything)]
    assert states == ["queued", "running", "queued", "running", "succeeded"]
    # Who was away meanwhile reads the same.
    assert told(shim.events(id, seen[1].id)) == everything[2:]


def cancelled_in_the_middle(home: Home) -> dict[str, Any]:
    """A job that was, once its model had begun to answer."""
    id = home.the_shim.submit(stream=True)["id"]
    for event in home.the_shim.events(id):
        if event.event == "delta":
            home.the_shim.http.post(f"/v1/jobs/{id}/cancel")
        last = event
    job: dict[str, Any] = json.loads(last.data)
    return job


def cancelled_before_its_end(home: Home) -> dict[str, Any]:
    """The same, while the rest of the answer is held back until the worker knows."""
    id = home.the_shim.submit(stream=True)["id"]

    def knows() -> bool:
        said = [line for line in home.the_worker.output().splitlines() if id in line]
        return any("job_stopping" in line or "job_ended" in line for line in said)

    for event in home.the_shim.events(id):
        if event.event == "delta":
            break
    with home.held():
        home.the_shim.http.post(f"/v1/jobs/{id}/cancel")
        wait_until(knows, "the worker to hear of it")
    return home.the_shim.job(id, wait=30)


def test_a_cancelled_stream_is_drained_for_its_usage(home: Home) -> None:
    """For two seconds: a stream that ends by then is paid and not in doubt."""
    home.always(text=TEXT, pace=0.01)
    # One that was at its end before it could be held has succeeded, and says nothing of this.
    jobs = (cancelled_before_its_end(home) for _ in range(9))
    job = next(job for job in jobs if job["state"] != "succeeded")
    (call,) = job["calls"]
    assert (job["state"], job["answer"], call["stands"], job["in_doubt_usd"]) == (
        "cancelled",
        None,
        "settled",
        "0.000000000",
    )
    assert job["cost_usd"] == call["cost_usd"] > "0.000000000"
    assert home.bill()["lines"][-1]["output"] == call["usage"]["output_tokens"]


def test_a_cancelled_stream_that_goes_on_is_cut(home: Home) -> None:
    """Nobody waits for its end; what it may cost is in doubt."""
    home.always(text=TEXT * 9, pace=1)
    job = cancelled_in_the_middle(home)
    (call,) = job["calls"]
    assert (job["state"], call["stands"], job["cost_usd"]) == ("cancelled", "doubt", None)
    assert job["in_doubt_usd"] == call["bound_usd"]
    wait_until(lambda: home.in_flight() == 0, "the call to be cut")


def test_a_lost_store_does_not_end_a_reader(house: House) -> None:
    """It connects again, and goes on where it was."""
    house.always(text=TEXT, pace=0.1)
    shim = house.shim()
    house.worker()
    id = shim.submit(stream=True)["id"]
    seen: list[ServerSentEvent] = []
    for event in shim.events(id):
        seen.append(event)
        if event.event == "delta" and house.valkey.process is not None:
            house.valkey.stop()
            house.valkey.start()
    while seen[-1].event != "end":
        seen += shim.events(id, seen[-1].id)
    assert texts(told(seen)) == {1: TEXT}
    # What the end follows has none, and a new connection knows no former one.
    ids = [tuple(map(int, event.id.split("-"))) for event in seen if event.id]
    assert ids == sorted(ids)
