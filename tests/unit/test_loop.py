"""The agent loop with tools: from a conversation to an outcome, step by step, also across the death of a worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import redis

from celeriac.agents.agent import Agent
from celeriac.agents.loop import AT_ONCE
from celeriac.agents.registry import Registry
from celeriac.agents.runner import Runner, Summary
from celeriac.agents.toolbox import Toolbox
from celeriac.agents.tools import Tool, tool
from celeriac.connections import pack, unpack
from celeriac.costs.prices import Prices
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import Job, NewJob, State
from celeriac.jobs.store import new_id
from celeriac.llm.model import Answer, Lane, ToolCall, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey
from tests.processes import until

LANE = Lane("openai", "gpt-5-mini")


def wants(*calls: tuple[str, str], text: str = "", tokens: int = 10) -> Answer:
    """An answer that wants these tools called, with these arguments."""
    made = tuple(ToolCall(f"c{number}", name, arguments) for number, (name, arguments) in enumerate(calls))
    return Answer(text, Usage(input=tokens, output=1), LANE, LANE.model, "tool", calls=made)


class Shop:
    """What tools did, in order. inside: how many are at work; peak: how many were at once."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.inside = self.peak = 0
        self.door = asyncio.Event()
        self.door.set()

    def tools(self) -> Toolbox:
        @tool
        async def order(what: str) -> str:
            """Order something: once."""
            self.done.append(f"order {what}")
            await self.door.wait()
            return f"{what} is on its way"

        @tool(idempotent=True)
        async def price(what: str) -> str:
            """What something costs."""
            self.done.append(f"price {what}")
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            await self.door.wait()
            await asyncio.sleep(0)
            self.inside -= 1
            return f"{what} costs $5"

        @tool(idempotent=True, approval=True)
        async def sell(what: str) -> str:
            """Sell something: somebody has to allow it."""
            self.done.append(f"sell {what}")
            return f"{what} is sold"

        made: list[Tool] = [function.__celeriac_tool__ for function in (order, price, sell)]  # type: ignore[attr-defined]
        return Toolbox({tool.spec.name: tool for tool in made})


@pytest.fixture
async def workers(stores: Stores, valkey: Valkey) -> AsyncIterator[Stores]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    for name in ("w1", "w2"):
        await fleet.register(name, ["celeriac"], 4, (), {"celeriac": ""})
    yield stores
    await line.aclose()


class House:
    def __init__(self, stores: Stores, shop: Shop, url: str, **facts: object) -> None:
        agent = Agent("clerk", "", "", (LANE,), **facts)  # type: ignore[arg-type]
        self.url = url
        self.stores, self.shop, self.registry = stores, shop, Registry({"clerk": agent})

    def runner(self, *lines: Line, worker: str = "w1") -> tuple[Runner, Scripted]:
        model = Scripted(*lines)
        made = Runner(self.stores, self.registry, model, Prices(), toolboxes={"clerk": self.shop.tools()})
        made.worker = worker
        made.lease.renewed()
        return made, model

    async def submit(self, **facts: Any) -> str:
        asked = (("user", "A lamp, please."),)
        job = NewJob(new_id(), "default", "clerk", "celeriac", asked, context_id="c", **facts)
        return (await self.stores.jobs.submit(job)).id

    async def job(self, id: str) -> Job:
        job = await self.stores.jobs.get(id, None)
        assert job is not None
        return job


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def house(workers: Stores, shop: Shop, valkey: Valkey) -> House:
    return House(workers, shop, valkey.url)


def roles(model: Scripted) -> list[str]:
    """What the model was shown last."""
    return [message.role for message in model.requests[-1].messages]


async def test_a_model_gets_what_it_wants_called_and_goes_on(house: House) -> None:
    """Step by step, until it wants nothing more; the conversation keeps question and answer."""
    one, model = house.runner(
        wants(("price", '{"what": "lamp"}'), text="I look."), wants(("order", '{"what": "lamp"}')), "It comes tomorrow."
    )
    id = await house.submit()
    summary = await one.run(id)
    assert isinstance(summary, Summary)
    assert summary.state == State.SUCCEEDED
    assert roles(model) == ["user", "assistant", "tool", "assistant", "tool"]
    assert [message.text for message in model.requests[-1].messages[2::2]] == ["lamp costs $5", "lamp is on its way"]
    assert {tool.name for tool in model.requests[0].tools} == {"order", "price", "sell"}
    job = await house.job(id)
    assert (job.answer, len(job.calls), job.steps) == ("It comes tomorrow.", 3, 5)
    assert job.usage is not None
    assert job.usage["input_tokens"] > 20
    context = await house.stores.contexts.get("default", "c")
    assert context is not None
    assert [message.text for message in context.messages] == ["A lamp, please.", "It comes tomorrow."]


async def test_who_reads_along_hears_of_tools_and_not_what_they_say(house: House) -> None:
    """Nor what they were asked."""
    one, _ = house.runner(wants(("price", '{"what": "lamp"}'), ("order", '{"what": "lamp"}'), text="I look."), "Done.")
    id = await house.submit(stream=True)
    await one.run(id)
    events = await house.stores.events.after(id, "")
    steps = [json.loads(event.data) for event in events if event.kind == "step"]
    assert [(step["kind"], step.get("tools")) for step in steps[:2]] == [
        ("answer", ["price", "order"]),
        ("started", None),
    ]
    results = [(step["kind"], step["tool"], step["failed"]) for step in steps[2:]]
    assert sorted(results) == [("result", "order", False), ("result", "price", False)]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert "lamp" not in "".join(event.data for event in events)


async def test_what_goes_wrong_with_a_tool_is_told_to_the_model(house: House) -> None:
    """It may do better: a tool that there is not, and arguments that are none."""
    one, model = house.runner(wants(("lend", "{}"), ("order", "nonsense")), "Sorry.")
    await one.run(await house.submit())
    results = model.requests[-1].messages[2:]
    assert all(message.failed for message in results)
    assert {message.text.partition(";")[0].partition(":")[0] for message in results} == {
        "there is no tool lend",
        "the arguments are not valid",
    }


async def test_tools_are_called_side_by_side(house: House) -> None:
    """And their results are stored as they come."""
    house.shop.door.clear()
    one, model = house.runner(wants(*[("price", f'{{"what": "{n}"}}') for n in range(3)]), "Done.")
    run = asyncio.create_task(one.run(await house.submit()))
    await until(lambda: len(house.shop.done) == 3)
    house.shop.door.set()
    await run
    assert roles(model) == ["user", "assistant", "tool", "tool", "tool"]


async def test_of_one_job_a_few_tools_are_called_at_once(house: House) -> None:
    """However many its model wants: others need the worker too. The next one is called as soon as one is done."""
    house.shop.door.clear()
    one, model = house.runner(wants(*[("price", f'{{"what": "{n}"}}') for n in range(3 * AT_ONCE)]), "Done.")
    run = asyncio.create_task(one.run(await house.submit()))
    await until(lambda: house.shop.inside == AT_ONCE)
    house.shop.door.set()
    await run
    assert (house.shop.peak, len(house.shop.done)) == (AT_ONCE, 3 * AT_ONCE)
    assert roles(model).count("tool") == 3 * AT_ONCE


@pytest.mark.parametrize("how", ["order", "price"])
async def test_a_call_that_was_cut_off_is_made_again_only_if_it_may_be(house: House, valkey: Valkey, how: str) -> None:
    """Its worker died: of any other call the model hears that nobody knows. No answer is bought twice."""
    house.shop.door.clear()
    one, first = house.runner(wants((how, '{"what": "lamp"}')))
    id = await house.submit()
    run = asyncio.create_task(one.run(id))
    await until(lambda: house.shop.done == [f"{how} lamp"])
    one.lost(id)
    assert await run is None
    claim_of_w1 = valkey.client().hget(f"celeriac:job:{id}", "nonce")
    assert claim_of_w1
    await give_up(house.stores, valkey, "w1")
    house.shop.door.set()
    two, second = house.runner("Done.", worker="w2")
    summary = await two.run(id)
    assert summary is not None
    assert summary.state == State.SUCCEEDED
    assert (len(first.requests), len(second.requests)) == (1, 1)
    result = second.requests[0].messages[-1]
    if how == "price":
        assert (result.text, house.shop.done) == ("lamp costs $5", ["price lamp"] * 2)
    else:
        assert result.failed
        assert result.text.startswith("nobody knows what became of this call")
        assert house.shop.done == ["order lamp"]


async def give_up(stores: Stores, valkey: Valkey, worker: str) -> None:
    """As upkeep does with a worker whose lease has ended."""
    client = valkey.client()
    client.zadd("celeriac:workers", {worker: 1})
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="upkeep")
    while client.zscore("celeriac:workers", worker) is not None:
        await fleet.upkeep()
    await line.aclose()


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_steps": 2}, "step_limit"),
        ({"max_tokens": 22}, "token_limit"),
        ({"max_cost": Decimal("0.003")}, "cost_limit"),
        ({"max_time": timedelta(seconds=0.05)}, "time_limit"),
    ],
)
async def test_a_job_that_reaches_a_limit_ends_with_what_there_is(
    workers: Stores, shop: Shop, valkey: Valkey, limit: dict[str, object], code: str
) -> None:
    """Its own error says which; nothing more is bought."""
    house = House(workers, shop, valkey.url, **limit)
    tokens = 10_000 if code == "cost_limit" else 10  # $0.0025
    lines = [wants(("price", '{"what": "lamp"}'), text=f"thought {n}", tokens=tokens) for n in range(9)]
    one, model = house.runner(*lines)
    id = await house.submit()
    run = asyncio.create_task(one.run(id))
    if code == "time_limit":
        shop.door.clear()
        await until(lambda: shop.done != [])
        await asyncio.sleep(0.06)  # the tool takes as much
        shop.door.set()
    await run
    job = await house.job(id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, code)
    asked = 2 if code in {"step_limit", "token_limit"} else 1
    assert (len(model.requests), job.answer) == (asked, f"thought {asked - 1}")


async def test_an_answer_without_words_is_said_in_words(house: House) -> None:
    """Providers refuse a message that says nothing; calls need no words."""
    blank = wants(("price", '{"what": "lamp"}'), text=" \n")
    house.registry = Registry({"clerk": replace(house.registry["clerk"], follow_ups=("Are you sure?",))})
    one, model = house.runner(blank, "\n\n", "Yes.")
    await one.run(await house.submit())
    assert [message.text for message in model.requests[-1].messages if message.role == "assistant"] == [
        "",
        "(no answer)",
    ]
    # So is one that an older turn of the conversation ended with.
    house.registry = Registry({"clerk": replace(house.registry["clerk"], follow_ups=())})
    for line in ("", "Yes."):
        one, model = house.runner(line)
        await one.run(await house.submit())
    assert [message.text for message in model.requests[-1].messages if message.role == "assistant"] == [
        "Yes.",
        "(no answer)",
    ]


async def test_a_deploy_does_not_wait_for_an_agent_with_steps_left(house: House) -> None:
    """It goes on elsewhere, where it stands."""
    one, _ = house.runner(wants(("price", '{"what": "lamp"}')))
    one.stopping = True
    id = await house.submit()
    assert await one.run(id) is None
    two, model = house.runner("Done.", worker="w2")
    summary = await two.run(id)
    assert summary is not None
    assert summary.state == State.SUCCEEDED
    assert house.shop.done == ["price lamp"]
    assert roles(model) == ["user", "assistant", "tool"]


async def test_steps_of_an_older_release_are_read(house: House, valkey: Valkey) -> None:
    """They were answers alone."""
    house = replace_agent(house, follow_ups=("Sure?",))
    one, _ = house.runner("Paris")
    one.stopping = True
    id = await house.submit()
    assert await one.run(id) is None
    key, raw = f"celeriac:journal:{id}", redis.Redis(port=valkey.port)
    [step] = raw.lrange(key, 0, -1)
    old = {name: value for name, value in unpack(step).items() if name in {"text", "model", "usage", "call"}}
    raw.lset(key, 0, pack(old))
    two, model = house.runner("Yes, Paris.", worker="w2")
    summary = await two.run(id)
    assert summary is not None
    assert summary.state == State.SUCCEEDED
    assert [message.text for message in model.requests[0].messages] == ["A lamp, please.", "Paris", "Sure?"]


def replace_agent(house: House, **facts: object) -> House:
    [agent] = house.registry
    house.registry = Registry({"clerk": replace(agent, **facts)})  # type: ignore[arg-type]
    return house


class TestApproval:
    """Tools whose calls somebody has to allow."""

    async def test_a_job_waits_for_it_outside_its_slot(self, house: House) -> None:
        """What needs none is done meanwhile; allowed, the call is made, once."""
        id = await self.asks(house, wants(("sell", '{"what": "house"}'), ("price", '{"what": "lamp"}')))
        job = await house.job(id)
        assert (job.state, job.reason, house.shop.done) == (State.PARKED, "waiting_approval", ["price lamp"])
        assert [(asked.call, asked.tool, asked.arguments) for asked in job.approvals] == [
            ("1.c0", "sell", '{"what": "house"}')
        ]
        await house.stores.jobs.resume(id, "default", approve=True, calls=["1.c0"])
        two, model = house.runner("Sold.", worker="w2")
        summary = await two.run(id)
        assert summary is not None
        assert (summary.state, house.shop.done) == (State.SUCCEEDED, ["price lamp", "sell house"])
        assert model.requests[0].messages[-1].text == "house is sold"

    async def test_a_chord_does_not_wait_for_it_longer_than_for_anything_else(self, house: House) -> None:
        """Whatever the agent's own time is."""
        house.registry = Registry({"clerk": replace(house.registry["clerk"], approval_time=timedelta(days=30))})
        for canvas, days in ((None, 30), (Canvas("r", group="g", chord={"task": "shop.note"}), 7)):
            id = await house.submit(canvas=canvas)
            one, _ = house.runner(wants(("sell", '{"what": "house"}')))
            await one.run(id)
            job = await house.job(id)
            assert job.resume_at is not None
            assert job.started_at is not None
            assert abs(job.resume_at - job.started_at - timedelta(days=days)) < timedelta(minutes=1)
            await house.stores.jobs.cancel(id, None)

    async def test_the_model_hears_that_a_call_was_refused(self, house: House) -> None:
        """And why; nothing is done."""
        id = await self.asks(house, wants(("sell", '{"what": "house"}')))
        await house.stores.jobs.resume(id, "default", approve=False, reason="we live in it", calls=["1.c0"])
        two, model = house.runner("Then not.", worker="w2")
        await two.run(id)
        [told] = model.requests[0].messages[2:]
        assert (told.text, told.failed) == ("this call was refused, and not made: we live in it", True)
        assert house.shop.done == []

    async def test_what_was_allowed_once_is_not_allowed_again(self, house: House) -> None:
        """A provider may give a later call the same name."""
        id = await self.asks(house, wants(("sell", '{"what": "house"}')))
        await house.stores.jobs.resume(id, "default", approve=True, calls=["1.c0"])
        two, _ = house.runner(wants(("sell", '{"what": "dog"}')), worker="w2")
        summary = await two.run(id)
        assert summary is not None
        assert (summary.state, house.shop.done) == (State.PARKED, ["sell house"])
        assert [asked.call for asked in (await house.job(id)).approvals] == ["2.c0"]

    async def test_where_nobody_decides_the_model_is_told(self, house: House) -> None:
        """In the agent's time for it; until then a run that comes by lets the job wait on."""
        house = replace_agent(house, approval_time=timedelta(seconds=2))
        id = await self.asks(house, wants(("sell", '{"what": "house"}')))
        until = await house.stores.redis.hget(f"celeriac:job:{id}", "asked_until")
        await self.ring(house, id)
        await house.stores.redis.hdel("celeriac:job:" + id, "asked_over")  # as where the clock went back
        one, _ = house.runner()
        early = await one.run(id)
        assert early is not None
        assert early.state == State.PARKED
        assert await house.stores.redis.hget(f"celeriac:job:{id}", "asked_until") == until
        await self.ring(house, id)
        two, model = house.runner("Then not.", worker="w2")
        await two.run(id)
        assert "nobody has decided" in model.requests[0].messages[-1].text
        assert (house.shop.done, (await house.job(id)).state) == ([], State.SUCCEEDED)

    @staticmethod
    async def asks(house: House, answer: Answer) -> str:
        """A job that waits for an approval."""
        one, _ = house.runner(answer)
        id = await house.submit()
        summary = await one.run(id)
        assert summary is not None
        assert summary.state == State.PARKED
        return id

    @staticmethod
    async def ring(house: House, id: str) -> None:
        """Its time has come."""
        await house.stores.redis.zadd("celeriac:parked", {id: 1})
        fleet, line = open_fleet(load_settings(redis_url=house.url), house.stores, name="upkeep")
        await fleet.upkeep()
        await line.aclose()


async def test_a_call_of_an_answer_that_was_cut_off_is_not_made(house: House) -> None:
    """What is missing of its arguments nobody knows: the model is told, and may ask again."""
    cut = replace(wants(("order", '{"what": "everything"}')), stop_reason="length")
    one, model = house.runner(cut, "Sorry.")
    await one.run(await house.submit())
    assert house.shop.done == []
    [told] = model.requests[-1].messages[2:]
    assert (told.failed, "cut off" in told.text) == (True, True)


async def test_a_run_without_a_lease_calls_no_tool(house: House) -> None:
    """Another one may have said already that nobody knows what became of the call."""
    one, _ = house.runner(wants(("order", '{"what": "lamp"}')), "Done.")
    one.lease.length = timedelta(seconds=5)
    inner = house.stores.journal.commit

    async def late(*arguments: Any, **facts: Any) -> None:
        await inner(*arguments, **facts)
        one.lease.renewed(time.monotonic() - 6)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(house.stores.journal, "commit", late)
        run = asyncio.create_task(one.run(await house.submit()))
        await asyncio.sleep(0.5)
        assert house.shop.done == []
    one.lease.renewed()
    summary = await run
    assert summary is not None
    assert (summary.state, house.shop.done) == (State.SUCCEEDED, ["order lamp"])


@pytest.mark.parametrize(
    ("own", "code"),
    [
        ({"max_steps": 1}, "step_limit"),
        ({"max_tokens": 5}, "token_limit"),
        ({"max_cost_usd": "0.000001"}, "cost_limit"),
        ({"max_steps": 1000, "max_tokens": 10**9, "max_cost_usd": "9", "max_seconds": 99.0}, "step_limit"),
    ],
)
async def test_a_job_may_have_limits_of_its_own(house: House, own: dict[str, Any], code: str) -> None:
    """Where they are smaller than its agent's."""
    house = replace_agent(house, max_steps=2)
    one, _ = house.runner(*[wants(("price", '{"what": "lamp"}'))] * 3)
    job = NewJob(new_id(), "default", "clerk", "celeriac", (("user", "A lamp, please."),), limits=own)
    await house.stores.jobs.submit(job)
    summary = await one.run(job.id)
    assert summary is not None
    assert summary.error is not None
    assert summary.error.code == code
