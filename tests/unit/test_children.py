"""Agents that ask one another, run by run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, field_validator

from celeriac.agents.agent import Agent
from celeriac.agents.check import Checker
from celeriac.agents.children import AgentTool
from celeriac.agents.registry import Registry
from celeriac.agents.runner import Runner, Summary
from celeriac.agents.toolbox import Toolbox
from celeriac.assembly import open_outputs
from celeriac.costs.prices import Prices
from celeriac.errors import StoreUnavailable
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import Job, NewJob, State
from celeriac.jobs.store import new_id
from celeriac.llm.images import Image
from celeriac.llm.model import Answer, Lane, Message, ToolCall, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey

LANE = Lane("openai", "gpt-5-mini")
#: Not the one that a job has of which nobody says it: who asks pays for those that it asks.
TENANT = "acme"


def agent(name: str, **facts: object) -> Agent:
    return Agent(name, f"Knows about {name}.", "", (LANE,), **facts)  # type: ignore[arg-type]


def wants(*calls: tuple[str, dict[str, str]]) -> Answer:
    made = tuple(ToolCall(f"c{n}", name, orjson.dumps(facts).decode()) for n, (name, facts) in enumerate(calls))
    return Answer("", Usage(input=10, output=1), LANE, LANE.model, "tool", calls=made)


class Office:
    """Agents that ask one another, and a worker that runs their jobs. asked: what each call to the model was shown."""

    def __init__(self, stores: Stores, url: str, *agents: Agent) -> None:
        self.stores, self.url = stores, url
        self.registry = Registry({one.name: one for one in agents})
        self.shown: list[tuple[Message, ...]] = []

    async def run(self, id: str, *lines: Line) -> Summary:
        model = Scripted(*lines)
        boxes = {
            one.name: Toolbox(
                {},
                {
                    tool.name: tool
                    for tool in (
                        *(AgentTool(self.registry[name]) for name in one.asks),
                        *(AgentTool(self.registry[name], hands_over=True) for name in one.hands_over_to),
                    )
                },
            )
            for one in self.registry
        }
        async with Checker() as checker:
            outputs = open_outputs(self.registry, checker)
            runner = Runner(
                self.stores, self.registry, model, Prices(), toolboxes=boxes, outputs=outputs, checker=checker
            )
            runner.worker = "w1"
            runner.lease.renewed()
            summary = await runner.run(id)
        assert summary is not None
        self.shown = [request.messages for request in model.requests]
        return summary

    async def submit(self, agent: str = "chief", **facts: object) -> str:
        job = NewJob(new_id(), TENANT, agent, "celeriac", (("user", "What is a leek?"),), **facts)  # type: ignore[arg-type]
        return (await self.stores.jobs.submit(job)).id

    async def job(self, id: str) -> Job:
        job = await self.stores.jobs.get(id, None)
        assert job is not None
        return job


@pytest.fixture
async def office(stores: Stores, valkey: Valkey) -> AsyncIterator[Office]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    await fleet.register("w1", ["celeriac"], 20, (), {"celeriac": ""})
    chief = agent("chief", asks=("cook", "botanist"), hands_over_to=("cook",))
    yield Office(stores, valkey.url, chief, agent("cook"), agent("botanist", asks=("chief",)))
    await line.aclose()


ASK_BOTH = wants(("ask_cook", {"question": "How is it cooked?"}), ("ask_botanist", {"question": "What is it?"}))


async def test_an_agent_asks_others_and_goes_on_with_what_they_say(office: Office) -> None:
    """Each is a job of its own, in a tenant's line like any other; the asking one waits in no slot meanwhile."""
    id = await office.submit(metadata={"team": "kitchen"}, priority="high", request_id="r-1")
    assert (await office.run(id, ASK_BOTH)).state == State.PARKED
    children = [await office.job(child) for child in (await office.job(id)).children]
    assert sorted(child.agent for child in children) == ["botanist", "cook"]
    for child in children:
        assert (child.tenant, child.parent_id, child.metadata) == (TENANT, id, {"team": "kitchen"})
        assert (child.priority, child.request_id) == ("high", "r-1")
        said = "In butter." if child.agent == "cook" else "A plant."
        assert (await office.run(child.id, said)).state == State.SUCCEEDED
        asked = "How is it cooked?" if child.agent == "cook" else "What is it?"
        assert [message.text for message in office.shown[0]] == [asked]
    assert (await office.run(id, "A plant, cooked in butter.")).state == State.SUCCEEDED
    assert [message.text for message in office.shown[0][2:]] == ["In butter.", "A plant."]
    job = await office.job(id)
    assert job.answer == "A plant, cooked in butter."
    assert job.children_cost_nanos == sum([(await office.job(child.id)).cost_nanos or 0 for child in children]) > 0
    assert len(job.calls) == 2


async def test_what_became_of_one_that_did_not_answer_is_told(office: Office) -> None:
    """The asking one does what it can without."""
    id = await office.submit()
    await office.run(id, ASK_BOTH)
    one, two = (await office.job(id)).children
    await office.stores.jobs.cancel(one, None)
    await office.stores.jobs.cancel(two, None)
    await office.run(id, "I do not know.")
    assert all(message.failed and "did not answer: cancelled" in message.text for message in office.shown[0][2:])


async def test_an_agent_hands_over_and_the_others_answer_is_its_own(office: Office) -> None:
    """The other one sees the conversation, and the note."""
    id = await office.submit(context_id="leeks")
    await office.run(id, wants(("hand_over_to_cook", {"note": "be brief"})))
    [child] = (await office.job(id)).children
    answer = "In butter." * 6000
    await office.run(child, Answer(answer, Usage(input=10, output=1), LANE, LANE.model))
    assert [message.text for message in office.shown[0]] == [
        "What is a leek?",
        "[This conversation is handed over to you. be brief]",
    ]
    summary = await office.run(id)
    assert (summary.state, (await office.job(id)).answer) == (State.SUCCEEDED, answer)
    context = await office.stores.contexts.get(TENANT, "leeks")
    assert context is not None
    assert [message.text for message in context.messages] == ["What is a leek?", answer]


async def test_who_is_handed_over_to_sees_the_images_too(office: Office) -> None:
    """Where they stood. An agent that is asked sees its question alone."""
    shown = Message(
        "user", "What is it?", images=(Image("https://x/leek.png", 5), Image("data:image/png;base64,AAAA", 8))
    )
    job = NewJob(new_id(), TENANT, "chief", "celeriac", (shown.said(),), context_id="leeks")
    id = (await office.stores.jobs.submit(job)).id
    await office.run(id, wants(("hand_over_to_cook", {}), ("ask_botanist", {"question": "What is green?"})))
    for child in [await office.job(child) for child in (await office.job(id)).children]:
        await office.run(child.id, "A leek.")
        assert (office.shown[0][0] == shown) is (child.agent == "cook")
    await office.run(id)
    context = await office.stores.contexts.get(TENANT, "leeks")
    assert context is not None
    assert context.messages == (shown, Message("assistant", "A leek."))


SCHEMA = {"type": "object", "properties": {"plant": {"type": "string"}}, "required": ["plant"]}


class Plant(BaseModel):
    plant: str

    @field_validator("plant")
    @classmethod
    def _is_known(cls, plant: str) -> str:
        if plant != "leek":
            raise ValueError("we do not sell it")
        return plant


async def handed_over(office: Office, *lines: Line, **facts: object) -> tuple[Job, Job]:
    """A job that hands over, and the one that it hands over to."""
    id = await office.submit(**facts)
    await office.run(id, wants(("hand_over_to_cook", {})))
    [child] = (await office.job(id)).children
    await office.run(child, *lines)
    await office.run(id)
    return await office.job(id), await office.job(child)


async def test_who_is_handed_over_to_answers_in_the_shape_that_was_asked_for(office: Office) -> None:
    """As whoever hands over would have to: it is asked once more, and its answer is checked, whoever answers."""
    job, child = await handed_over(office, "In butter.", '```\n{"plant": "leek"}\n```', output_schema=SCHEMA)
    assert (job.state, job.answer, job.is_checked) == (State.SUCCEEDED, '{"plant": "leek"}', True)
    assert len(child.calls) == 2


async def test_who_only_answers_a_question_is_free_in_its_words(office: Office) -> None:
    """The job's own answer is another one."""
    id = await office.submit(output_schema=SCHEMA)
    await office.run(id, wants(("ask_cook", {"question": "How?"})))
    [child] = (await office.job(id)).children
    assert (await office.run(child, "In butter.")).state == State.SUCCEEDED


async def test_an_answer_that_was_handed_over_is_checked_by_a_model_too(office: Office) -> None:
    """Its validators are this job's alone; what they refuse ends it. Retried, it answers itself."""
    named = {one.name: one for one in office.registry}
    named["chief"] = replace(named["chief"], output_type=f"{__name__}:Plant")
    office.registry = Registry(named)
    job, child = await handed_over(office, '{"plant": "oak"}')
    assert (child.state, child.is_checked) == (State.SUCCEEDED, True)
    assert job.error is not None
    assert (job.state, job.error.code, job.answer) == (State.FAILED, "output_invalid", '{"plant": "oak"}')
    assert ", of the agent that it was handed over to, is not" in job.error.message
    assert "oak" not in job.error.message
    assert await office.stores.jobs.replay(job.id, TENANT) is not None
    await office.run(job.id, '{"plant": "leek"}')
    assert (await office.job(job.id)).answer == '{"plant": "leek"}'


async def test_an_agent_goes_on_itself_where_handing_over_fails(office: Office) -> None:
    id = await office.submit()
    await office.run(id, wants(("hand_over_to_cook", {})))
    [child] = (await office.job(id)).children
    await office.stores.jobs.cancel(child, None)
    await office.run(id, "I had to do it myself.")
    assert (await office.job(id)).answer == "I had to do it myself."


async def test_agents_that_ask_one_another_in_a_circle_end(office: Office) -> None:
    """Four deep they have to answer themselves."""
    id = await office.submit()
    for depth in range(6):
        tool = "ask_botanist" if depth % 2 == 0 else "ask_chief"
        lines = (wants((tool, {"question": "And you?"})), *(["Enough."] if depth == 4 else []))
        if (await office.run(id, *lines)).state == State.SUCCEEDED:
            break
        [id] = (await office.job(id)).children
    assert depth == 4
    assert "at most 4 deep" in office.shown[-1][-1].text


async def test_arguments_that_are_wrong_ask_nobody(office: Office) -> None:
    id = await office.submit()
    assert (await office.run(id, wants(("ask_cook", {"query": "How?"})), "Sorry.")).state == State.SUCCEEDED
    assert "the arguments are not valid: question: Field required" in office.shown[-1][-1].text
    assert (await office.job(id)).children == ()


async def test_a_job_asks_once_however_often_it_is_run(office: Office) -> None:
    """Also where its worker dies between saying that it asks and asking; one that the store lost is asked again."""
    id = await office.submit()
    await office.run(id, ASK_BOTH)
    before = (await office.job(id)).children
    for lost in (False, True):
        if lost:
            redis = office.stores.redis
            await redis.delete(f"celeriac:job:{before[0]}")
            await redis.hdel(f"celeriac:children:{id}", before[0])
            await redis.srem(f"celeriac:awaits:{id}", before[0])
        await office.stores.redis.zadd("celeriac:parked", {id: 1})
        fleet, line = open_fleet(load_settings(redis_url=office.url), office.stores, name="upkeep")
        await fleet.upkeep()
        await line.aclose()
        assert (await office.run(id)).state == State.PARKED
        assert (await office.job(id)).children == before
        assert (await office.job(before[0])).state == State.QUEUED


async def test_what_others_cost_counts_for_the_cap_of_the_one_that_asks(office: Office) -> None:
    """It stops before the call that would cross it, in whichever job that is, and says so."""
    [chief] = [one for one in office.registry if one.name == "chief"]
    capped = replace(chief, max_cost=Decimal("0.004"))
    office.registry = Registry({one.name: capped if one is chief else one for one in office.registry})
    id = await office.submit()
    await office.run(id, ASK_BOTH)
    states = []
    for child in (await office.job(id)).children:
        usage = Usage(input=8000, output=1)  # $0.002
        summary = await office.run(child, Answer("A plant.", usage, LANE, LANE.model))
        states.append((summary.state, summary.error and summary.error.code))
    assert states == [(State.SUCCEEDED, None), (State.FAILED, "cost_limit")]
    summary = await office.run(id)
    assert (summary.state, summary.error and summary.error.code) == (State.FAILED, "cost_limit")


async def test_what_a_job_asked_for_is_told_only_when_all_is_there(office: Office) -> None:
    """A run that comes by before stores what there is, and waits on."""
    id = await office.submit()
    await office.run(id, ASK_BOTH)
    one, two = (await office.job(id)).children
    runs = await asyncio.gather(office.run(one, "Yes."))
    assert runs[0].state == State.SUCCEEDED
    assert (await office.job(id)).state == State.PARKED
    await office.run(two, "Yes.")
    assert (await office.job(id)).state == State.QUEUED


async def test_a_job_that_is_asked_for_has_the_deadline_and_the_limits_of_its_agent(office: Office) -> None:
    """It would work on for one that has expired; and an agent runs as often as it may, whoever asks."""
    office.registry = Registry(
        {one.name: replace(one, max_running=3) if one.name == "cook" else one for one in office.registry}
    )
    id = await office.submit(expires_in=timedelta(minutes=5))
    await office.run(id, ASK_BOTH)
    job = await office.job(id)
    for child in job.children:
        found = await office.job(child)
        assert found.deadline is not None
        assert job.deadline is not None
        assert abs(found.deadline - job.deadline) < timedelta(milliseconds=2)
        line = await office.stores.redis.hget(f"celeriac:job:{child}", "line")
        assert line == (b"celeriac/cook" if found.agent == "cook" else b"celeriac")


async def test_a_chord_waits_no_longer_for_those_that_its_member_asks(office: Office) -> None:
    """They expire, and it goes on without them."""
    for canvas, longest in ((Canvas("r", group="g", chord={"task": "shop.note"}), timedelta(days=7)), (None, None)):
        id = await office.submit(canvas=canvas)
        await office.run(id, ASK_BOTH)
        children = [await office.job(child) for child in (await office.job(id)).children]
        assert [child.deadline and child.deadline - child.created_at for child in children] == [longest, longest]


async def test_a_moment_without_the_store_costs_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run looks again at how those stand that it asked for."""
    id = await office.submit()
    await office.run(id, ASK_BOTH)
    for child in (await office.job(id)).children:
        await office.run(child, "Yes.")
    inner, times = office.stores.jobs.findings, []

    async def away(*arguments: Any) -> Any:
        times.append(1)
        if len(times) < 3:
            raise StoreUnavailable("Redis does not answer")
        return await inner(*arguments)

    monkeypatch.setattr(office.stores.jobs, "findings", away)
    assert (await office.run(id, "Done.")).state == State.SUCCEEDED


async def test_an_agent_that_hands_over_waits_for_the_others_that_it_asked(office: Office) -> None:
    """Its other calls have their results first: they are part of its job."""
    id = await office.submit()
    await office.run(id, wants(("hand_over_to_cook", {}), ("ask_botanist", {"question": "What is it?"})))
    children = {child.agent: child.id for child in [await office.job(c) for c in (await office.job(id)).children]}
    await office.run(children["cook"], "In butter.")
    assert (await office.job(id)).state == State.PARKED
    await office.run(children["botanist"], "A plant.")
    assert (await office.run(id)).state == State.SUCCEEDED
    assert (await office.job(id)).answer == "In butter."
