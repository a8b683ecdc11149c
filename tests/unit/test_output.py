"""Answers that have to be of a shape: checked, asked for once more where they are not, and paid for once."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel, RootModel, field_validator

from celeriac.agents import loop
from celeriac.agents.agent import Agent
from celeriac.agents.check import Checker, Wrong
from celeriac.agents.choice import shortened
from celeriac.agents.output import PATIENCE, Model, Output, bare, find_output, judge
from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.runner import Runner
from celeriac.agents.toolbox import Toolbox
from celeriac.agents.tools import tool
from celeriac.assembly import open_outputs
from celeriac.costs.prices import Prices, most_input
from celeriac.errors import ContextTooLong, Invalid, Misconfigured
from celeriac.jobs.model import Job, NewJob, State
from celeriac.jobs.request import read_submission
from celeriac.jobs.store import new_id
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, ToolCall, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey
from tests.processes import ROOT

LANE = Lane("openai", "gpt-5-mini")
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
GOOD, BAD = '{"age": 7}', '{"age": "Quackenbush"}'


class Person(BaseModel):
    age: int

    @field_validator("age")
    @classmethod
    def _is_grown(cls, age: int) -> int:
        return {"7": age, "8": age}[str(age)]


class Node(BaseModel):
    then: Node | None = None


class Calls(BaseModel):
    back: Callable[[], int]


class Ages(RootModel[list[int]]):
    pass


def says(text: str, *calls: ToolCall, tokens: int = 10, **facts: Any) -> Answer:
    return Answer(text, Usage(input=tokens, output=1), LANE, LANE.model, calls=calls, **facts)


@tool(idempotent=True)
async def look() -> str:
    """Look."""
    return "seven"


class Held:
    """An output of which nobody knows for a while whether it will do."""

    schema: Mapping[str, Any] = SCHEMA
    checkable: Mapping[str, Any] | None = None

    def __init__(self, wrong: Wrong | None = None) -> None:
        self.begun, self.door, self._wrong = asyncio.Event(), asyncio.Event(), wrong

    async def wrong(self, text: str) -> Wrong | None:
        self.begun.set()
        await self.door.wait()
        return self._wrong


class House:
    """Workers w1 and w2, one agent and its jobs."""

    def __init__(self, stores: Stores, checker: Checker, url: str) -> None:
        self.stores, self.checker, self.url = stores, checker, url
        self.agent = Agent("clerk", "", "", (LANE,), output_schema=SCHEMA)
        self.output: Output | None = None

    def runner(self, *lines: Line, worker: str = "w1", stopping: bool = False) -> tuple[Runner, Scripted]:
        model, registry = Scripted(*lines), Registry({"clerk": self.agent})
        tools = {"clerk": Toolbox({"look": look.__celeriac_tool__})}  # type: ignore[attr-defined]
        outputs = {"clerk": self.output} if self.output else open_outputs(registry, self.checker)
        made = Runner(self.stores, registry, model, Prices(), toolboxes=tools, outputs=outputs, checker=self.checker)
        made.worker, made.stopping = worker, stopping
        made.lease.renewed()
        return made, model

    async def submit(self, **facts: Any) -> str:
        job = NewJob(new_id(), "default", "clerk", "celeriac", (("user", "How old?"),), context_id="c", **facts)
        return (await self.stores.jobs.submit(job)).id

    async def job(self, id: str) -> Job:
        job = await self.stores.jobs.get(id, None)
        assert job is not None
        return job

    async def done(self, *lines: Line, **facts: Any) -> tuple[Job, Scripted]:
        """A job and what became of it."""
        id = await self.submit(**facts)
        runner, model = self.runner(*lines)
        await runner.run(id)
        return await self.job(id), model

    async def conversation(self) -> list[str]:
        context = await self.stores.contexts.get("default", "c")
        return [message.text for message in context.messages] if context else []


@pytest.fixture
async def house(stores: Stores, valkey: Valkey) -> AsyncIterator[House]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    for name in ("w1", "w2"):
        await fleet.register(name, ["celeriac"], 4, (), {"celeriac": ""})
    async with Checker() as checker:
        await checker.wrong("{}", "1")  # it starts
        yield House(stores, checker, valkey.url)
    await line.aclose()


@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```", f" \n```\n{GOOD}```\n", f"{GOOD}\n"])
async def test_an_answer_of_the_right_shape_is_the_bare_json(house: House, text: str) -> None:
    """As the model wrote it, without what it put around it; that is what the conversation keeps too."""
    job, model = await house.done(text)
    assert (job.state, job.answer, job.is_checked) == (State.SUCCEEDED, GOOD, True)
    assert model.requests[0].schema == SCHEMA
    assert await house.conversation() == ["How old?", GOOD]


async def test_an_answer_that_will_not_do_is_asked_for_once_more(house: House) -> None:
    """The model is told what is wrong. Both answers are paid for; the conversation keeps the good one."""
    job, model = await house.done(says(BAD), says(GOOD, tokens=30))
    assert (job.state, job.answer, job.is_checked, job.steps) == (State.SUCCEEDED, GOOD, True, 1)
    question, answer, repair = model.requests[1].messages
    assert (question.text, answer.text, repair.role) == ("How old?", BAD, "user")
    assert 'age: it is not of type "integer"' in repair.text
    assert await house.conversation() == ["How old?", GOOD]
    assert job.usage is not None
    assert (job.usage["input_tokens"], [call.stands for call in job.calls]) == (40, ["settled"] * 2)
    assert job.cost_nanos == sum(call.nanos for call in job.calls)


async def test_an_answer_that_will_not_do_twice_ends_the_job(house: House) -> None:
    """With an error of its own, which holds nothing of the answer, and with the answer. All of it is paid for."""
    job, _ = await house.done(says('{"age": 7.5}'), says(BAD))
    assert job.error is not None
    assert (job.state, job.error.code, job.answer, job.is_checked) == (State.FAILED, "output_invalid", BAD, False)
    assert job.error.message.endswith(": /properties/age/type")
    assert [call.stands for call in job.calls] == ["settled"] * 2
    assert (job.in_doubt_nanos, job.cost_nanos) == (0, sum(call.nanos for call in job.calls))
    assert await house.conversation() == []


async def test_who_is_cut_off_hears_why(house: House) -> None:
    """It is the limit of the output; what is whole all the same will do."""
    cut = says('{"age": ', stop_reason="length")
    job, model = await house.done(cut, cut)
    assert "(max_output_tokens): be briefer" in model.requests[1].messages[-1].text
    assert job.error is not None
    assert job.error.message.endswith("no JSON (max_output_tokens was reached)")
    job, model = await house.done(says(GOOD, stop_reason="length"))
    assert (job.state, len(model.requests)) == (State.SUCCEEDED, 1)


async def test_who_nests_too_deep_hears_so(house: House) -> None:
    """It is JSON, and nobody reads it."""
    _, model = await house.done("[" * 1_025 + "]" * 1_025, GOOD)
    assert "it is nested more than 1,024 deep" in model.requests[1].messages[-1].text


async def test_a_silent_model_is_quoted_in_words(house: House) -> None:
    """Providers take no empty message back."""
    _, model = await house.done("", GOOD)
    assert [message.text for message in model.requests[1].messages[:2]] == ["How old?", "(no answer)"]


@pytest.mark.parametrize(("line", "state"), [(GOOD, State.SUCCEEDED), (BAD, State.FAILED)])
async def test_whoever_goes_on_asks_for_the_second_answer_and_for_no_third(
    house: House, line: str, state: State
) -> None:
    """The first answer is a step: it is not bought again, and what was wrong with it is known."""
    id = await house.submit()
    one, first = house.runner(BAD, stopping=True)
    assert await one.run(id) is None
    two, second = house.runner(line, worker="w2")
    await two.run(id)
    assert ((await house.job(id)).state, len(first.requests), len(second.requests)) == (state, 1, 1)
    [repair] = second.requests[0].messages[2:]
    assert 'age: it is not of type "integer"' in repair.text


async def test_the_last_answer_alone_has_a_shape(house: House) -> None:
    """What is said before the follow-ups is free, and the model is not told of a schema then."""
    house.agent = replace(house.agent, follow_ups=("As JSON.",))
    job, model = await house.done("Seven.", "Seven!", GOOD)
    assert (job.state, job.answer) == (State.SUCCEEDED, GOOD)
    assert [request.schema for request in model.requests] == [None, SCHEMA, SCHEMA]
    assert [message.text for message in model.requests[1].messages] == ["How old?", "Seven.", "As JSON."]


async def test_limits_hold_for_the_second_answer_too(house: House) -> None:
    """The job ends with the first one."""
    house.agent = replace(house.agent, max_steps=1)
    job, model = await house.done(BAD)
    assert job.error is not None
    assert (job.error.code, job.answer, len(model.requests)) == ("step_limit", BAD, 1)


async def test_tools_may_be_called_before_the_second_answer(house: House) -> None:
    """There is no third all the same."""
    job, model = await house.done(says(BAD), says("", ToolCall("c", "look", "{}"), stop_reason="tool"), says(BAD))
    assert job.error is not None
    assert (job.error.code, len(model.requests)) == ("output_invalid", 3)
    assert [message.role for message in model.requests[2].messages] == [
        "user", "assistant", "user", "assistant", "tool",
    ]  # fmt: skip


async def test_a_job_says_itself_what_its_answer_has_to_be(house: House) -> None:
    """Whatever its agent says."""
    schema = {"type": "object", "required": ["name"]}
    job, model = await house.done(GOOD, '{"name": "Ada"}', output_schema=schema)
    assert (job.state, job.answer) == (State.SUCCEEDED, '{"name": "Ada"}')
    assert [request.schema for request in model.requests] == [schema] * 2


async def test_without_a_schema_any_text_will_do(house: House) -> None:
    """And is left as it is."""
    house.agent = replace(house.agent, output_schema=None)
    job, model = await house.done(f"```json\n{GOOD}\n```")
    assert (job.answer, job.is_checked, model.requests[0].schema) == (f"```json\n{GOOD}\n```", False, None)


async def test_a_retried_job_asks_for_the_second_answer_anew(house: House) -> None:
    """The first is kept."""
    job, _ = await house.done(BAD, BAD)
    assert await house.stores.jobs.replay(job.id, "default") is not None
    again, model = house.runner(GOOD)
    await again.run(job.id)
    job = await house.job(job.id)
    assert (job.state, job.answer, len(model.requests), len(job.calls)) == (State.SUCCEEDED, GOOD, 1, 3)


async def test_an_answer_that_takes_a_while_to_judge_is_kept(house: House, stores: Stores) -> None:
    """It is a step then: whoever goes on judges it, and buys nothing."""
    house.output = held = Held()
    id = await house.submit()
    one, first = house.runner(f"```\n{GOOD}\n```")
    run = asyncio.create_task(one.run(id))
    async with asyncio.timeout(20):
        while (await house.job(id)).steps == 0:  # noqa: ASYNC110  # the store has no event for it
            await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    held.door.set()
    two, second = house.runner(worker="w2")
    await two.run(id)
    job = await house.job(id)
    assert (job.state, job.answer, job.is_checked) == (State.SUCCEEDED, GOOD, True)
    assert (len(first.requests), len(second.requests), [call.stands for call in job.calls]) == (1, 0, ["settled"])
    assert await house.conversation() == ["How old?", GOOD]
    assert job.cost_nanos == sum(call.nanos for call in job.calls)


async def test_an_answer_is_kept_where_the_run_is_cut_off_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has stored it."""
    monkeypatch.setattr(loop, "MOMENT", 60)
    house.output = held = Held()
    id = await house.submit()
    one, _ = house.runner(GOOD)
    run = asyncio.create_task(one.run(id))
    await held.begun.wait()
    assert (await house.job(id)).steps == 0
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    held.door.set()
    two, second = house.runner(worker="w2")
    await two.run(id)
    job = await house.job(id)
    assert (job.state, job.answer, len(second.requests), len(job.calls)) == (State.SUCCEEDED, GOOD, 0, 1)


async def test_what_was_kept_and_will_not_do_is_asked_for_once_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not twice; retried, the job asks for the second answer anew. All that is paid for is booked."""
    monkeypatch.setattr(loop, "MOMENT", 0)
    job, model = await house.done(says(BAD, stop_reason="length"), BAD)
    assert job.error is not None
    assert (job.error.code, job.answer, len(model.requests)) == ("output_invalid", BAD, 2)
    assert "(max_output_tokens): be briefer" in model.requests[1].messages[-1].text
    assert await house.stores.jobs.replay(job.id, "default") is not None
    again, asked = house.runner(GOOD)
    await again.run(job.id)
    assert asked.requests[0].messages == model.requests[1].messages
    job = await house.job(job.id)
    assert (job.state, job.answer, [call.stands for call in job.calls]) == (State.SUCCEEDED, GOOD, ["settled"] * 3)


async def test_where_no_judge_starts_the_job_waits_and_keeps_its_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault of ours: it is tried again later, whatever the agent's tries are, and nothing is bought again."""
    house.agent = replace(house.agent, max_retries=0)
    await house.checker.__aexit__()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        job, _ = await house.done(GOOD)
    assert (job.state, job.reason, [call.stands for call in job.calls]) == (State.PARKED, "retry", ["settled"])
    await house.stores.redis.zadd("celeriac:parked", {job.id: 1})
    fleet, line = open_fleet(load_settings(redis_url=house.url), house.stores, name="upkeep")
    await fleet.upkeep()
    await line.aclose()
    two, second = house.runner(worker="w2")
    await two.run(job.id)
    job = await house.job(job.id)
    assert (job.state, job.answer, len(second.requests)) == (State.SUCCEEDED, GOOD, 0)


async def test_the_log_says_over_which_job_a_judge_was_lost(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """And the job has its answer all the same."""
    for child in psutil.Process().children():
        if "celeriac.agents.judge" in child.cmdline():
            child.suspend()
    job, _ = await house.done(GOOD)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "output_check_lost" in line]
    assert (job.state, job.id in line) == (State.SUCCEEDED, True)


async def test_another_schema_has_a_second_answer_of_its_own(house: House) -> None:
    """What was asked for once more was asked for under the old one."""
    job, _ = await house.done(BAD, BAD)
    house.agent = replace(house.agent, output_schema=SCHEMA | {"additionalProperties": False})
    assert await house.stores.jobs.replay(job.id, "default") is not None
    again, model = house.runner('{"age": 7, "name": "Ada"}', GOOD)
    await again.run(job.id)
    job = await house.job(job.id)
    assert (job.state, job.answer, len(model.requests)) == (State.SUCCEEDED, GOOD, 2)


def test_a_model_that_blocks_holds_up_nothing() -> None:
    """Neither other answers nor the end of the process; its own will not do."""
    program = """
import asyncio, threading
from pydantic import BaseModel, field_validator
from celeriac.agents import output

class Blocks(BaseModel):
    age: int
    @field_validator("age")
    @classmethod
    def _block(cls, age):
        threading.Event().wait(None if age else 0)
        return age

async def main():
    blocks, output.PATIENCE = output.Model(Blocks), 0.5
    first = asyncio.create_task(output.judge(blocks, '{"age": 7}', "end"))
    await asyncio.sleep(0)
    assert [await output.judge(blocks, '{"age": 0}', "end") for _ in range(9)] == [None] * 9
    assert not first.done()
    print((await first).place)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "the check failed: TimeoutError"), ended.stderr


async def test_a_process_that_is_held_up_refuses_no_answer() -> None:
    """A validator that was done in time is believed, however late that is heard."""

    class Slow(BaseModel):
        age: int

        @field_validator("age")
        @classmethod
        def _takes_a_moment(cls, age: int) -> int:
            time.sleep(0.1)
            return age

    judging = asyncio.create_task(judge(Model(Slow), '{"age": 7}', "end"))
    await asyncio.sleep(0.05)
    time.sleep(PATIENCE + 0.5)  # noqa: ASYNC251  # nothing goes on meanwhile
    assert await judging is None


async def test_a_death_before_the_end_is_written_buys_no_third_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That an answer will not do is known once it is stored; whoever goes on ends the job with it."""
    monkeypatch.setattr(loop, "MOMENT", 0)
    id = await house.submit()
    one, first = house.runner(BAD, BAD)

    class Died(Exception):
        pass

    async def finish(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(house.stores.jobs, "finish", finish)
        patch.setattr(house.stores.jobs, "break_off", finish)
        with pytest.raises(Died):
            await one.run(id)
    fleet, line = open_fleet(load_settings(redis_url=house.url), house.stores, name="upkeep")
    await house.stores.redis.zadd("celeriac:workers", {"w1": 1})
    await fleet.upkeep()
    await line.aclose()
    two, second = house.runner(GOOD, worker="w2")
    await two.run(id)
    job = await house.job(id)
    assert (job.state, job.error and job.error.code, job.answer) == (State.FAILED, "output_invalid", BAD)
    assert (len(first.requests), len(second.requests)) == (2, 0)
    # Who retries it asks anew.
    assert await house.stores.jobs.replay(id, "default") is not None
    again, third = house.runner(GOOD, worker="w2")
    await again.run(id)
    assert ((await house.job(id)).state, len(third.requests)) == (State.SUCCEEDED, 1)


async def test_a_pydantic_model_says_what_an_answer_has_to_be(house: House) -> None:
    """Its validation counts, and a fault in it is told by its type alone."""
    house.agent = replace(house.agent, output_schema=None, output_type=f"{__name__}:Person")
    job, model = await house.done(BAD, GOOD)
    assert (job.state, job.answer, job.is_checked) == (State.SUCCEEDED, GOOD, True)
    assert model.requests[0].schema == Person.model_json_schema()
    assert "age: Input should be a valid integer" in model.requests[1].messages[-1].text
    job, model = await house.done('{"age": 9}', "[]")
    assert "its check failed: KeyError" in model.requests[1].messages[-1].text
    assert job.error is not None
    assert job.error.message.endswith(": model_type")


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, Odd, RuntimeError]
)
async def test_a_validator_may_end_by_anything_and_ends_nothing_else(error: type[BaseException]) -> None:
    """Not the job, whose answer would be bought again, and not its worker."""

    class Ends(BaseModel):
        age: int

        @field_validator("age")
        @classmethod
        def _ends(cls, age: int) -> int:
            raise error

    wrong = await judge(Model(Ends), '{"age": 7}', "end")
    assert wrong is not None
    assert wrong.place == f"the check failed: {error.__name__}"


def test_a_conversation_is_not_cut_between_a_question_and_its_second_answer() -> None:
    """Else a model would answer nothing, in the right shape."""
    messages = [Message("user", "1"), Message("assistant", "2"), Message("user", "3"), Message("assistant", BAD)]
    repair = Message("user", "Again.")
    assert shortened([*messages, repair], 2) == (*messages[2:], repair)
    assert shortened([*messages[2:], repair], 2) is None


async def test_a_conversation_that_is_too_long_keeps_the_question(house: House) -> None:
    """Where the second answer is asked for. Where nothing else is left to leave out, the job fails."""
    too_long = ContextTooLong("too long", provider="openai", model=LANE.model)
    house.agent = replace(house.agent, too_long="trim")
    job, model = await house.done(BAD, too_long, GOOD)
    assert job.error is not None
    assert (job.error.code, len(model.requests)) == ("context_too_long", 2)
    await house.done(GOOD)
    job, model = await house.done(BAD, too_long, GOOD)
    assert job.state == State.SUCCEEDED
    assert [message.text for message in model.requests[2].messages[:2]] == ["How old?", BAD]
    assert len(model.requests[2].messages) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "{}"),
        ("```json\n{}\n```", "{}"),
        ("``` \n{}\n``` \n", "{}"),
        ("```{}```", "```{}```"),
        ("Here:\n```json\n{}\n```", "Here:\n```json\n{}\n```"),
        ("```", "```"),
    ],
)
def test_a_fence_around_the_whole_is_taken_off(text: str, found: str) -> None:
    """And nothing else."""
    assert bare(text) == found


TABLE = '[agents.a]\ndescription = "x"\nlanes = ["openai/x"]\n'


@pytest.mark.parametrize(
    ("more", "line", "said"),
    [
        ('output_schema = { type = "list" }\n', 4, 'output_schema: is no schema of an object; begin with "type"'),
        ('[agents.a.output_schema]\ntype = "object"\nminLenght = 3\n', 4, "minLenght is not checked here"),
        ('output_type = "shop.shapes"\n', 4, "output_type: write module:Class"),
        (
            'output_type = "a:B"\n[agents.a.output_schema]\ntype = "object"\n',
            4,
            "output_type: output_schema says it already; leave one of the two out",
        ),
    ],
)
def test_a_wrong_shape_in_the_file_is_refused(tmp_path: Path, more: str, line: int, said: str) -> None:
    """With the line and the reason."""
    file = tmp_path / "agents.toml"
    file.write_text(TABLE + more)
    with pytest.raises(Misconfigured, match=rf"agents\.toml:{line}: agents\.a\..*{said}"):
        read_agents(file)


def test_what_the_document_writes_into_the_file_is_taken(tmp_path: Path) -> None:
    """Each block as it stands there."""
    file, blocks = (
        tmp_path / "agents.toml",
        re.findall(r"```toml\n(.*?)```", (ROOT / "docs/agents.md").read_text(), re.S),
    )
    file.write_text("".join(blocks))
    [shaped] = [agent for agent in read_agents(file) if agent.output_schema]
    assert shaped.output_schema is not None
    assert shaped.output_schema["properties"]["people"]["type"] == "array"


def test_an_agent_says_what_its_answers_have_to_be(tmp_path: Path) -> None:
    """By a schema, or by a pydantic model that workers import."""
    file = tmp_path / "agents.toml"
    more = TABLE.replace("agents.a", "agents.b") + f'output_type = "{__name__}:Person"\n'
    file.write_text(TABLE + '[agents.a.output_schema]\ntype = "object"\nrequired = ["b"]\n' + more)
    registry = read_agents(file)
    found = open_outputs(registry, Checker())
    assert registry["a"].output_schema == found["a"].schema == {"type": "object", "required": ["b"]}
    assert found["b"].schema == Person.model_json_schema()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:Person", "No module named 'no_such_module'"),
        ("celeriac.agents.agent:Agent", "there is no such pydantic model; write module:Class"),
        ("celeriac.agents.agent:Nobody", "there is no such pydantic model"),
        (f"{__name__}:Ages", "its JSON is no object"),
        (f"{__name__}:Calls", "it has no JSON schema: Cannot generate a JsonSchema"),
    ],
)
def test_a_model_that_is_none_stops_the_start(path: str, said: str) -> None:
    """All of them at once, with their agents."""
    agents = {name: Agent(name, "", "", (LANE,), output_type=path) for name in ("a", "b")}
    with pytest.raises(Misconfigured, match=said) as refused:
        open_outputs(Registry(agents), Checker())
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == ["agent a", "agent b"]


def test_a_model_that_holds_itself_is_an_object() -> None:
    """Providers want to read that at the top."""
    assert find_output(f"{__name__}:Node").schema["type"] == "object"


def test_a_shop_that_reads_agents_alone_imports_no_model(tmp_path: Path) -> None:
    """The shim does not: the module may be there for workers alone."""
    file = tmp_path / "agents.toml"
    file.write_text(TABLE + 'output_type = "only.workers:Have"\n')
    assert read_agents(file)["a"].output_type == "only.workers:Have"
    assert "only" not in sys.modules


def test_a_submission_through_celery_says_it_too() -> None:
    """And is refused as over HTTP, by field, problem and remedy."""
    asked = {"agent": "clerk", "input": "How old?", "output_schema": SCHEMA}
    assert read_submission(json.loads(json.dumps(asked))).output_schema == SCHEMA
    with pytest.raises(Invalid, match=r"output_schema: is no schema of an object; begin with") as refused:
        read_submission(asked | {"output_schema": {}})
    assert refused.value.field == "output_schema"


def test_a_submission_may_name_a_pydantic_model() -> None:
    """In code: its schema is what the answer has to be."""
    for model in (Person, Node):
        asked = {"agent": "clerk", "input": "How old?", "output_schema": model}
        assert read_submission(asked).output_schema == {"type": "object"} | model.model_json_schema()


def test_a_schema_is_paid_for() -> None:
    """It counts for what a call may cost at most, byte by byte."""
    plain = ModelRequest(LANE, (Message("user", "How old?"),))
    shaped, prices = replace(plain, schema=SCHEMA | {"description": "x" * 50_000}), Prices()
    assert most_input(shaped) > most_input(plain) + 50_000
    assert prices.bound(shaped) > prices.bound(plain)
