"""A call in doubt of an agent whose answers may be stored is looked up before it is bought again."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from celeriac import keys
from tests.fleet.test_pay_once import dollars_of
from tests.processes import Worker, wait_until
from tests.story.conftest import House

Api = Literal["chat", "responses"]
AGENTS: Final = """
[agents.clerk]
description = "Answers."
instructions = "{instructions}"
lanes = {lanes}
api = "{api}"
stored = {stored}
timeout_seconds = {timeout}
tries_per_lane = 2
max_retries = 0
"""


class Fleet:
    """Workers of one agent, which may be stored unless a test says otherwise."""

    def __init__(self, house: House, folder: Path, api: Api, **facts: Any) -> None:
        self.house = house
        self.file = folder / "agents.toml"
        self.facts = {
            "api": api,
            "stored": "true",
            "timeout": 60,
            "instructions": "Answer.",
            "lanes": ["openai/gpt-5-mini"],
        }
        self.describe(**facts)
        self.env = {"CELERIAC_AGENTS_FILE": str(self.file), "CELERIAC_JOBS__LEASE": "2"}
        self.shim = house.shim(**self.env)

    def describe(self, **facts: Any) -> None:
        self.facts |= facts
        self.file.write_text(AGENTS.format(**self.facts))

    def worker(self) -> Worker:
        return self.house.worker(**self.env)

    def ask(self, **facts: Any) -> str:
        id: str = self.shim.submit(agent="clerk", input="What is the capital of France?", **facts)["id"]
        return id

    def noted(self, id: str) -> bool:
        """Whether a call of the job has the name under which its answer is kept."""
        return any('"response":"resp_' in call for call in self.house.valkey.client().hvals(keys.spell("calls", id=id)))

    def state(self, name: str) -> int:
        return asyncio.run(self.house.provider.state())[name]

    def lost_in_the_middle(self, **facts: Any) -> str:
        """The worker is killed while its model answers: the provider has the question, and makes the answer."""
        worker = self.worker()
        id = self.ask(**facts)
        is_asked = (lambda: self.noted(id)) if self.facts == self.facts | STORED_RESPONSE else self.house.in_flight
        wait_until(is_asked, "the model to be asked")
        worker.kill()
        return id

    def ends_well(self, id: str, *, billed: int, doubts: int) -> dict[str, Any]:
        job = self.shim.job(id, wait=60)
        assert (job["state"], job["answer"]) == ("succeeded", "It is Paris.")
        lines = self.house.bill()["lines"]
        assert len(lines) == billed
        settled = [call for call in job["calls"] if call["stands"] == "settled"]
        assert len(settled) == 1
        assert len([call for call in job["calls"] if call["stands"] == "doubt"]) == doubts
        used = [(line["input"], line["output"]) for line in lines]
        assert (settled[0]["usage"]["input_tokens"], settled[0]["usage"]["output_tokens"]) in used
        cost, in_doubt = Decimal(job["cost_usd"]), Decimal(job["in_doubt_usd"])
        assert cost <= dollars_of(lines) <= cost + in_doubt
        assert bool(in_doubt) == bool(doubts)
        return job


STORED_RESPONSE: Final = {"api": "responses", "stored": "true"}
PARIS: Final = {"text": "It is Paris."}


@pytest.mark.parametrize("stream", [False, True], ids=["", "read along"])
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_an_answer_that_was_made_after_its_worker_died_is_not_bought_again(
    house: House, tmp_path: Path, api: Api, stream: bool
) -> None:
    """The bill has one call, and nothing is in doubt."""
    fleet = Fleet(house, tmp_path, api)
    house.scripted(PARIS | {"delay": 3.0}, {"text": "It is Rome."})
    id = fleet.lost_in_the_middle(stream=stream)
    wait_until(lambda: fleet.state("kept") == 1, "the answer")
    looks = fleet.state("looks")
    fleet.worker()
    job = fleet.ends_well(id, billed=1, doubts=0)
    (call,) = job["calls"]
    assert (call["late"], call["error"]) == (True, None)
    assert fleet.state("looks") == looks + 1


def test_a_response_that_is_still_made_is_waited_for(house: House, tmp_path: Path) -> None:
    """By whoever goes on with the job; its worker died in the middle."""
    fleet = Fleet(house, tmp_path, "responses")
    house.scripted(PARIS | {"delay": 12.0}, {"text": "It is Rome."})
    workers = house.workers(("-n", "one@%h"), ("-n", "two@%h"), **fleet.env)
    id = fleet.ask()
    wait_until(lambda: fleet.noted(id), "the model to be asked")
    whose = house.valkey.client().hget(keys.spell("job", id=id), "worker")
    [worker] = [worker for worker in workers if f".{worker.pid}." in whose]
    worker.kill()
    looks = fleet.state("looks")
    wait_until(lambda: fleet.state("looks") > looks, "a look")
    assert fleet.state("kept") == 0
    fleet.ends_well(id, billed=1, doubts=0)


def test_what_may_not_be_stored_is_bought_again(house: House, tmp_path: Path) -> None:
    """As by default: nobody is asked for it, and the first call stays in doubt."""
    fleet = Fleet(house, tmp_path, "chat", stored="false")
    house.scripted(PARIS | {"delay": 3.0}, PARIS)
    id = fleet.lost_in_the_middle()
    fleet.worker()
    fleet.ends_well(id, billed=2, doubts=1)
    assert (fleet.state("looks"), fleet.state("kept")) == (0, 0)


@pytest.mark.parametrize(("api", "lost"), [("chat", {"reset": "after"}), ("responses", {"delay": 3.2})])
def test_an_answer_that_got_lost_in_a_run_is_looked_up_before_any_lane_is_asked_again(
    house: House, tmp_path: Path, api: Api, lost: dict[str, Any]
) -> None:
    """A broken connection, a timeout: neither the same lane nor the next one is asked."""
    fleet = Fleet(house, tmp_path, api, timeout=3, lanes=["openai/gpt-5-mini", "openai/gpt-5-nano"])
    house.scripted(PARIS | lost, {"text": "It is Rome."})
    fleet.worker()
    job = fleet.ends_well(fleet.ask(), billed=1, doubts=0)
    assert (job["state"], [call["lane"] for call in job["calls"]]) == ("succeeded", ["openai/gpt-5-mini"])
    assert len(house.asked()) == 1


@pytest.mark.parametrize(
    ("api", "kept"),
    [("responses", {"hang": True}), ("responses", {"looked_up": 404}), ("chat", {"usage": "missing"})],
    ids=["never made", "gone", "no usage"],
)
def test_an_answer_that_is_not_found_is_bought_again(
    house: House, tmp_path: Path, api: Api, kept: dict[str, Any]
) -> None:
    """That the look fails is no error of the job; the first call stays in doubt."""
    fleet = Fleet(house, tmp_path, api, timeout=2)
    house.scripted({"text": "It is Rome.", "reset": "after" if api == "chat" else None} | kept, PARIS)
    fleet.worker()
    fleet.ends_well(fleet.ask(), billed=2, doubts=1)
    assert fleet.state("looks") > 0


def test_the_answer_to_another_question_is_none(house: House, tmp_path: Path) -> None:
    """The agent's instructions changed with a deploy, while its job waited: what answers the old ones is not used."""
    fleet = Fleet(house, tmp_path, "chat")
    house.scripted({"text": "It is Rome.", "delay": 2.0}, PARIS)
    id = fleet.lost_in_the_middle()
    wait_until(lambda: fleet.state("kept") == 1, "the answer")
    fleet.describe(instructions="Answer in French.")
    fleet.worker()
    fleet.ends_well(id, billed=2, doubts=1)
    assert fleet.state("looks") == 0


def test_a_refusal_that_got_lost_is_paid_and_ends_the_job(house: House, tmp_path: Path) -> None:
    """As one that came at once: asking again would not help."""
    fleet = Fleet(house, tmp_path, "chat")
    house.scripted({"finish": "refusal", "reset": "after"}, PARIS)
    fleet.worker()
    job = fleet.shim.job(fleet.ask(), wait=60)
    assert (job["state"], job["error"]["code"]) == ("failed", "content_refused")
    (call,) = job["calls"]
    assert (call["stands"], call["late"]) == ("settled", True)
    lines = house.bill()["lines"]
    assert len(lines) == 1
    assert Decimal(job["cost_usd"]) == dollars_of(lines)
