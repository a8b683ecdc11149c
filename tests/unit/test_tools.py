"""A typed function becomes a tool: what a model is told of it, what is made of what the model sends, what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import threading
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field

from celeriac.agents.tools import LONGEST, Result, Tool, ToolFailed, find_tool, tool
from celeriac.errors import Misconfigured


class Place(BaseModel):
    town: str
    country: str = "France"


@tool(idempotent=True)
async def weather(
    place: Place,
    day: date,
    unit: Annotated[Literal["C", "F"], Field(description="Celsius or Fahrenheit.")] = "C",
    hours: list[int] = [],  # noqa: B006  # it becomes a default of the schema
) -> dict[str, Any]:
    """The weather in a town, on a day.

    As the model is told.
    """
    return {"town": place.town, "day": day, "unit": unit, "hours": hours}


@tool
def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


@tool(name="now", timeout=timedelta(seconds=0.1))
async def slow() -> str:
    """Takes its time."""
    await asyncio.sleep(30)
    return "late"


@tool
async def angry(how: str) -> str:
    """Fails."""
    if how == "politely":
        raise ToolFailed("the shop is closed on Sundays")
    raise RuntimeError("password=hunter2")


def made(function: Any) -> Tool:
    marked: Tool = function.__celeriac_tool__
    return marked


def of(function: Any) -> Tool:
    return find_tool(f"{__name__}:{function.__name__}")


def test_name_description_and_schema_are_the_functions_own() -> None:
    """Defaults, nested models and descriptions included; no argument beyond them is taken."""
    spec = of(weather).spec
    assert spec.name == "weather"
    assert spec.description == "The weather in a town, on a day.\n\nAs the model is told."
    properties = spec.schema["properties"]
    assert properties["day"] == {"type": "string", "format": "date"}
    assert properties["unit"] == {
        "type": "string", "enum": ["C", "F"], "default": "C", "description": "Celsius or Fahrenheit.",
    }  # fmt: skip
    assert spec.schema["required"] == ["place", "day"]
    assert spec.schema["additionalProperties"] is False
    assert spec.schema["$defs"]["Place"]["required"] == ["town"]
    assert (of(slow).spec.name, of(weather).idempotent, of(double).idempotent) == ("now", True, False)


async def test_a_tool_is_called_with_what_its_types_say() -> None:
    """The function stays one that may be called by hand."""
    sent = json.dumps({"place": {"town": "Lyon"}, "day": "2026-11-26", "hours": ["7", 8]})
    result = await of(weather).call(sent)
    assert json.loads(result.text) == {"town": "Lyon", "day": "2026-11-26", "unit": "C", "hours": [7, 8]}
    assert not result.failed
    assert double(4) == 8


async def test_a_plain_function_runs_beside_the_event_loop() -> None:
    """It may block: thousands of other calls go on."""
    let_go = threading.Event()

    @tool
    def blocks() -> str:
        """Blocks."""
        return "done" if let_go.wait(10) else "nobody went on"

    call = asyncio.create_task(blocks.__celeriac_tool__.call("{}"))  # type: ignore[attr-defined]
    for _ in range(6):
        await asyncio.sleep(0.01)
    assert not call.done()
    let_go.set()
    assert (await call).text == "done"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("", "place: Field required; day: Field required"),
        ("not json", "arguments: Invalid JSON"),
        ("[]", "arguments: Input should be an object"),
        ('{"place": {}, "day": "2026-11-26"}', "place.town: Field required"),
        ('{"place": {"town": "x"}, "day": "soon"}', "day: Input should be a valid date"),
        ('{"place": {"town": "x"}, "day": "2026-11-26", "colour": 1}', "colour: Extra inputs are not permitted"),
    ],
)
async def test_wrong_arguments_go_back_to_the_model(sent: str, said: str) -> None:
    """It is told which and why, and the function is not called."""
    result = await of(weather).call(sent)
    assert result.failed
    assert said in result.text


BREAKS = {
    error.__name__: error for error in (RuntimeError, KeyError, RecursionError, SystemExit, asyncio.CancelledError)
}


def breaks(how: str) -> str:
    raise BREAKS[how]("password=hunter2")


@tool
async def fragile(how: Annotated[str, AfterValidator(breaks)]) -> str:
    """Is never called."""
    return "called"


@pytest.mark.parametrize("how", BREAKS)
async def test_arguments_whose_own_check_breaks_down_end_nothing(how: str) -> None:
    """A type's validator may raise anything: the model hears which, and the function is not called."""
    said = await of(fragile).call(json.dumps({"how": how}))
    assert said == Result(f"the arguments could not be looked at: {how}", failed=True)


@pytest.mark.parametrize("result", [object(), {"of": {1, object()}}, [float, print], b"\xff\xfe"], ids=range(4))
async def test_what_was_done_is_not_told_as_failed(result: object) -> None:
    """Though nobody can show what it returned: a model that hears of a failure pays back once more."""
    refunds = []

    @tool
    async def refund(number: int) -> Any:
        """Pays back."""
        refunds.append(number)
        return result

    said = await made(refund).call('{"number": 7}')
    assert said == Result("the call was made, but what it returned cannot be shown. Do not repeat it for that.")
    assert refunds == [7]


@pytest.mark.parametrize(("result", "text"), [(2**70, str(2**70)), ({"half": "\ud800"}, '{"half": "\\ud800"}')])
async def test_what_json_has_few_words_for_is_told(result: object, text: str) -> None:
    """A number of more than 64 bits, and half a character."""

    @tool
    def find() -> Any:
        """Finds."""
        return result

    assert await made(find).call("{}") == Result(text)


async def test_what_a_function_returns_is_awaited() -> None:
    """An async function may stand behind a plain decorator. It has the time of any."""

    def plainly(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    @tool(timeout=timedelta(seconds=0.2))
    @plainly
    async def price(what: str) -> str:
        """What something costs."""
        if what == "nothing":
            raise ToolFailed("it has no price")
        await asyncio.sleep(0 if what == "lamp" else 30)
        return "$5"

    assert await made(price).call('{"what": "lamp"}') == Result("$5")
    assert await made(price).call('{"what": "nothing"}') == Result("it has no price", failed=True)
    assert await made(price).call('{"what": "house"}') == Result("the tool did not answer within 0.2 s", failed=True)


async def test_what_fails_is_told_to_the_model_without_what_it_must_not_hear(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The words of ToolFailed are meant for it; any other error's may hold anything, and are in the log."""
    assert await of(angry).call('{"how": "politely"}') == Result("the shop is closed on Sundays", failed=True)
    assert await of(angry).call('{"how": "badly"}') == Result("the tool failed: RuntimeError", failed=True)
    assert "tool_failed" in capsys.readouterr().out
    assert await of(slow).call("") == Result("the tool did not answer within 0.1 s", failed=True)


async def test_a_long_result_is_cut() -> None:
    """The model pays for each word of it, in every call that follows."""

    @tool
    async def chatty() -> str:
        """Talks."""
        return "x" * (LONGEST + 5)

    result = await chatty.__celeriac_tool__.call("{}")  # type: ignore[attr-defined]
    assert result.text == "x" * LONGEST + f"\n[cut: the result has {LONGEST + 5} characters]"


async def test_results_are_told_as_json() -> None:
    """Models, dataclasses and dates too; a text as it is."""

    @dataclass
    class Found:
        on: date

    @tool
    async def find() -> list[Any]:
        """Finds."""
        return [Place(town="Lyon"), Found(date(2026, 11, 26))]

    result = await find.__celeriac_tool__.call("{}")  # type: ignore[attr-defined]
    assert json.loads(result.text) == [{"town": "Lyon", "country": "France"}, {"on": "2026-11-26"}]


def test_what_cannot_be_described_is_no_tool() -> None:
    """It is said where the function is written."""
    with pytest.raises(TypeError, match="argument town has no type"):

        @tool
        def untyped(town) -> str:  # type: ignore[no-untyped-def]
            """No type."""

    with pytest.raises(TypeError, match="name each argument"):

        @tool
        def many(*towns: str) -> str:
            """Many."""
            return ""


def test_a_docstring_that_is_longer_than_providers_take_is_no_tools() -> None:
    """It is said where the function is written, with what would do."""

    def weather(town: str) -> str:
        return "sunny"

    weather.__doc__ = "x" * 1024
    tool(weather)
    weather.__doc__ += "x"
    with pytest.raises(TypeError, match=r"^tool weather: its docstring has 1025 characters, .* 1024; say less there"):
        tool(weather)


@pytest.mark.parametrize("name", ["find order!", "x" * 65, "prüfe", "a.b", "weather\n"])
def test_a_name_that_no_provider_takes_is_no_tools(name: str) -> None:
    """It is said where the function is written, with what would do: each call of the model would be refused."""
    with pytest.raises(TypeError, match=rf"^tool {re.escape(name)}: .*give it another by @tool\(name="):

        @tool(name=name)
        def weather(town: str) -> str:
            """The weather."""
            return "sunny"

    with pytest.raises(TypeError, match=r"^tool prüfe: "):

        @tool
        def prüfe(town: str) -> str:
            """The weather."""
            return "sunny"

    @tool(name="x" * 64)
    def as_long_as_may_be(town: str) -> str:
        """The weather."""
        return "sunny"


@pytest.mark.parametrize("path", ["no.such.module:weather", f"{__name__}:no_such_function", f"{__name__}:Place"])
def test_a_tool_that_is_not_there_is_an_operators_mistake(path: str) -> None:
    with pytest.raises(Misconfigured, match=path.replace(".", r"\.")):
        find_tool(path)


def test_a_tool_that_is_refused_is_an_operators_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like one that is not there: it is told with the agent that names it."""
    (tmp_path / "own_long_tools.py").write_text(
        f'from celeriac.agents.tools import tool\n\n@tool\ndef weather() -> str:\n    """{"x" * 1025}"""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Misconfigured, match=r"own_long_tools:weather: tool weather: "):
        find_tool("own_long_tools:weather")


class Odd(BaseException):
    pass


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, Odd, StopIteration, GeneratorExit, TimeoutError])
async def test_a_tool_may_end_by_anything_and_ends_nothing_else(error: type[BaseException], plain: bool) -> None:
    """Not the job, as where it cancels something of its own, and not its worker."""

    @tool
    async def awaited() -> None:
        """Ends so."""
        raise error

    @tool
    def called() -> None:
        """Ends so."""
        raise error

    said = await made(called if plain else awaited).call("{}")
    assert said.failed
    assert said.text.startswith("the tool failed: ")


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_tool_that_does_not_heed_its_time_is_not_waited_for(plain: bool) -> None:
    """Nor when the job is stopped; and however many hang, those of others are called."""
    door, open_ = asyncio.Event(), threading.Event()

    @tool(timeout=timedelta(seconds=0.2))
    async def stubborn() -> None:
        """Waits, whatever it is told."""
        while not door.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await door.wait()

    @tool(timeout=timedelta(seconds=0.2))
    def deaf() -> None:
        """Waits, whatever it is told."""
        open_.wait(20)

    @tool
    def quick() -> str:
        """Answers."""
        return "yes"

    hangs = made(deaf if plain else stubborn)
    told = await asyncio.gather(*(hangs.call("{}") for _ in range(50)))
    assert {said.text for said in told} == {"the tool did not answer within 0.2 s"}
    assert (await made(quick).call("{}")).text == "yes"
    call = asyncio.create_task(hangs.call("{}"))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 1)
    door.set()
    open_.set()


async def test_what_a_tool_says_can_be_stored_and_sent() -> None:
    """Half a character is none; and an error is cut like a result."""

    @tool
    async def odd(fail: bool) -> str:
        """Says odd things."""
        if fail:
            raise ToolFailed("x" * 300_000)
        return "a file named \udcff"

    assert (await made(odd).call('{"fail": false}')).text == "a file named ?"
    assert len((await made(odd).call('{"fail": true}')).text) < 51_000
