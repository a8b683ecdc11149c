"""Tools of MCP servers: what a model is told of them and of its calls, and what a server cannot do to a worker."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import psutil
import pytest
import pytest_asyncio

from celeriac.agents import judge
from celeriac.agents.agent import McpServer
from celeriac.agents.mcp import McpTool, open_servers
from celeriac.agents.registry import Registry, read_agents
from celeriac.agents.tools import LONGEST, Result, tool
from celeriac.assembly import open_toolboxes
from celeriac.errors import Misconfigured
from celeriac.llm.model import ToolCall
from tests.processes import ROOT, Process, free_port, held, running, until, wait_until

SERVER = (sys.executable, str(ROOT / "tests/mcp_server.py"))
in_one_loop = pytest.mark.asyncio(loop_scope="module")
BROKE_OFF = Result(
    "the MCP server shop broke off in the middle of this call: nobody knows what became of it", failed=True
)
LATE = Result("the tool did not answer within 0.3 s", failed=True)
AWAY = Result("the MCP server shop cannot be reached: nothing was called", failed=True)


def server(*options: str, **facts: Any) -> McpServer:
    return McpServer("shop", **{"command": (*SERVER, *options)} | facts)


@asynccontextmanager
async def opened(*servers: McpServer) -> AsyncIterator[Mapping[str, McpTool]]:
    """Tools by their server's names for them."""
    async with open_servers(servers) as found:
        yield {tool.of: tool for tools in found.values() for tool in tools}


async def refused(*servers: McpServer) -> str:
    with pytest.raises(Misconfigured) as caught:
        async with open_servers(servers):
            pass
    return str(caught.value)


def waits(tools: Mapping[str, McpTool], seconds: float) -> None:
    """So long for each of the calls that follow."""
    connection = tools["hang"].connection
    connection.server = replace(connection.server, timeout=timedelta(seconds=seconds))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Shop:
    """A server that several tests share."""

    def __init__(self, tools: Mapping[str, McpTool], log: Path) -> None:
        self.tools = tools
        self.log = log

    async def call(self, tool: str, **arguments: Any) -> Result:
        return await self.tools[tool].call(json.dumps(arguments))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    log = tmp_path_factory.mktemp("shop") / "log"
    log.touch()
    os.environ |= {"SHOP_REGION": "north", "CELERIAC_REDIS_URL": "redis://secret", "OPENAI_API_KEY": "sk-secret"}
    one = server(
        *("--log", str(log), "--broken", "--heavy", "--page", "3", "--noise", "password=hunter2"),
        environment=("SHOP_REGION",),
        idempotent=frozenset({"say"}),
        approval=frozenset({"die"}),
        timeout=timedelta(seconds=60),
    )
    async with opened(one) as tools:
        for name in ("SHOP_REGION", "CELERIAC_REDIS_URL", "OPENAI_API_KEY"):
            del os.environ[name]
        yield Shop(tools, log)


@in_one_loop
async def test_a_tool_is_called_after_its_server(shop: Shop) -> None:
    """Description and schema are the server's."""
    spec = shop.tools["add"].spec
    assert (spec.name, spec.description) == ("shop_add", "Does add.")
    assert spec.schema == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }


@in_one_loop
async def test_what_may_be_done_twice_the_operator_says(shop: Shop) -> None:
    """The server's own hints count for nothing: it says that `add` may be."""
    assert [name for name, tool in shop.tools.items() if tool.idempotent] == ["say"]
    assert [name for name, tool in shop.tools.items() if tool.approval] == ["die"]


@in_one_loop
async def test_a_schema_is_told_as_providers_take_it(shop: Shop) -> None:
    """They want properties, and nothing that combines schemas at the top. What they are not told is checked all the
    same."""
    assert shop.tools["who"].spec.schema["properties"] == {}
    assert "oneOf" not in shop.tools["either"].spec.schema
    assert (await shop.call("either", c=1)).text.startswith("the arguments are not valid: the whole: ")
    assert await shop.call("either", a=1) == Result("done")


@in_one_loop
async def test_a_tool_whose_schema_is_none_is_left_out(shop: Shop) -> None:
    """As is one that cannot be sent to a model. The others are there."""
    assert not {"nonsense", "huge", "vast"} & shop.tools.keys()
    assert "add" in shop.tools


@in_one_loop
async def test_a_description_is_cut(shop: Shop) -> None:
    """It goes into each call, and providers refuse long ones."""
    assert shop.tools["wordy"].spec.description == "w" * 1024


@in_one_loop
@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("pattern", "a" * 50_000 + "!", 'the arguments are not valid: a: it does not match "^(a+)+$"'),
        ("unique", [{"a": number} for number in range(2_000)], "done"),
        ("unique", [{"a": 1}, {"a": 1}], "the arguments are not valid: a: it has non-unique elements"),
        ("old", ["1"], 'the arguments are not valid: a[0]: it is not of type "integer"'),
        (
            "doubles",
            1,
            "the arguments are not valid: it is too long, or nested too deep, to be checked",
        ),
        ("unique", ["x" * 300_000], "the arguments are too long"),
    ],
)
async def test_a_check_holds_up_nothing(shop: Shop, name: str, given: object, told: str) -> None:
    """Whatever the schema, the worker goes on meanwhile, and the check has an end."""
    await shop.call("add", a=1, b=1)  # starts what checks
    checked = asyncio.create_task(shop.call(name, a=given))
    gaps, before = [], held()
    while not checked.done():
        await asyncio.sleep(0.01)
        gaps.append(held() - before)
        before = held()
    assert (await checked).text == told
    assert max(gaps) < 0.5


async def test_what_checks_ends_with_the_session() -> None:
    """It is a process."""

    def judges() -> set[psutil.Process]:
        return {child for child in psutil.Process().children() if judge.__name__ in child.cmdline()}

    of_others = judges()
    async with opened(server()) as tools:
        await tools["add"].call('{"a": 1, "b": 1}')
        checks = judges() - of_others
        assert checks
    assert not any(child.is_running() for child in checks)


async def test_a_schema_leads_nowhere_else() -> None:
    """A server cannot have a worker fetch what it likes: such a tool is left out."""
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as inner:
        port = inner.sockets[0].getsockname()[1]
        async with opened(server("--elsewhere", f"http://127.0.0.1:{port}/schema.json")) as tools:
            assert "elsewhere" not in tools
            assert "add" in tools
    assert asked == []


@in_one_loop
@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("texts", Result("one\ntwo\n[image: image/png]\n[resource: file:///plan.txt]")),
        ("image", Result("[image: image/png]")),
        ("structured", Result('{"town":"Lyon","id":1180591620717411303424}')),
        ("wrong", Result("the shop is closed on Sundays", failed=True)),
        ("long", Result("x" * LONGEST + "\n[cut: the result has 60000 characters]")),
        ("refuse", Result("the MCP server shop refused: Internal server error", failed=True)),
    ],
)
async def test_a_result_is_told_as_text(shop: Shop, what: str, told: Result) -> None:
    """Its texts; what is structured as JSON, where there is no text; of anything else what kind it is."""
    result = await shop.call("say", what=what)
    assert (result.text, result.failed) == (told.text, told.failed)


@in_one_loop
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("", 'the whole: "a" is a required property'),
        ("not json", "arguments: Invalid JSON: "),
        ('{"a": NaN, "b": 1}', "arguments: Invalid JSON: "),
        ("[]", "arguments: Input should be an object"),
        ('{"a": "1", "b": 2}', 'a: it is not of type "integer"'),
        ('{"a": 1, "b": 2, "colour": 3}', "the whole: Additional properties are not allowed"),
    ],
)
async def test_wrong_arguments_go_back_to_the_model(shop: Shop, sent: str, said: str) -> None:
    """In the words that it hears of any tool, and the server is not asked."""
    before = shop.log.read_text()
    result = await shop.tools["add"].call(sent)
    assert result.failed
    assert result.text.startswith("the arguments are not valid: ")
    assert said in result.text
    assert shop.log.read_text() == before


@in_one_loop
async def test_a_call_that_hangs_holds_up_no_other(shop: Shop) -> None:
    """Many go side by side over the one session."""
    hanging = asyncio.create_task(shop.call("hang", note="to the end"))
    await until(lambda: "to the end" in shop.log.read_text())
    sums = await asyncio.gather(*(shop.call("add", a=number, b=1) for number in range(100)))
    assert [result.text for result in sums] == [str(number + 1) for number in range(100)]
    assert not hanging.done()
    hanging.cancel()


@in_one_loop
async def test_a_call_is_cancelled_as_any_tool_is(shop: Shop) -> None:
    """The server is told; the session goes on."""
    call = asyncio.create_task(shop.call("hang", note="to be cancelled"))
    await until(lambda: "to be cancelled" in shop.log.read_text())
    before = shop.log.read_text().count("hang was cancelled")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: shop.log.read_text().count("hang was cancelled") > before)
    assert await shop.call("add", a=1, b=1) == Result("2")


@in_one_loop
async def test_a_server_is_given_what_it_is_to_have(shop: Shop) -> None:
    """Of the worker's environment what the operator names, and what any program needs."""
    given = json.loads((await shop.call("environment")).text)
    assert given["SHOP_REGION"] == "north"
    assert {"HOME", "PATH"} <= given.keys()
    assert given.keys() <= {"SHOP_REGION", "HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE"}


async def test_a_server_may_take_the_protocol_lightly(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Lines that are none, tools that take no object: what can be used is used. What is no result is not told."""
    caplog.set_level(logging.DEBUG)
    async with opened(server("--loose")) as tools:
        assert tools.keys() == {"add", "odd", "flood"}
        assert await tools["add"].call("{}") == Result("2")
        assert await tools["odd"].call("{}") == Result(
            "the MCP server shop answered with what is no result", failed=True
        )
    said = capsys.readouterr().out + caplog.text
    assert said.count("its schema is not of an object") == 2
    assert "hunter2" not in said


async def test_logs_hold_nothing_that_was_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither ours nor the package's, which would log each line that makes no sense to it."""
    caplog.set_level(logging.DEBUG)
    async with opened(server("--noise", "password=hunter2", "--broken", "--elsewhere", "http://127.0.0.1:9/")) as tools:
        await tools["say"].call('{"what": "wrong"}')
        await tools["add"].call('{"a": 4711, "b": 1}')
        await tools["die"].call("{}")
        await tools["who"].call("{}")
    said = capsys.readouterr().out + caplog.text
    assert "mcp_tool_left_out" in said
    assert "mcp_server_broke_off" in said
    for secret in ("hunter2", "4711", "Sundays"):
        assert secret not in said


async def test_a_server_that_dies_is_opened_anew(tmp_path: Path) -> None:
    """By the next call, and once for all that come; the call that it died under may have been made."""
    starts = tmp_path / "starts"
    async with opened(server("--starts", str(starts))) as tools:
        hanging = asyncio.create_task(tools["hang"].call('{"note": ""}'))
        life = tools["hang"].connection._life
        assert life is not None
        await until(lambda: life._users == 1)
        assert await tools["die"].call("{}") == BROKE_OFF
        assert await hanging == BROKE_OFF
        told = await asyncio.gather(*(tools["who"].call("{}") for _ in range(20)))
        [_, second] = starts.read_text().split()
        assert told == [Result(second)] * 20
    assert gone(int(second))


async def test_a_line_without_end_ends_the_session() -> None:
    """It would fill the memory. So does one in place of the handshake."""
    async with opened(server("--loose")) as tools:
        assert await tools["flood"].call("{}") == BROKE_OFF
        assert await tools["add"].call("{}") == Result("2")
    flood = server(command=("sh", "-c", "head -c 5000000 /dev/zero; cat"))
    assert "mcp.shop: the server ended before it shook hands" in await refused(flood)


async def test_a_server_that_does_not_come_back_is_not_started_without_end(tmp_path: Path) -> None:
    """Calls fail at their time at the latest, and say that nothing was called; starts are ever further apart."""
    starts = tmp_path / "starts"
    once = f'echo $$ >> "{starts}"; [ $(wc -l < "{starts}") = 1 ] && exec "$@"'
    dead = server(command=("sh", "-c", once, "once", *SERVER), timeout=timedelta(seconds=0.1))
    async with opened(dead) as tools:
        await tools["die"].call("{}")
        until_when = time.monotonic() + 2
        while time.monotonic() < until_when:
            assert await tools["who"].call("{}") == AWAY
    # One that lived; one at once, then after 1 s; the next would come 2 s after that.
    assert len(starts.read_text().split()) <= 3


async def test_a_session_that_ends_as_a_call_begins_is_opened_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """As one that ended before: the log says so, its child has ended first, and the call is made."""
    async with opened(server()) as tools:
        pid, connection = int((await tools["who"].call("{}")).text), tools["who"].connection
        call = asyncio.create_task(connection.ask("who", {}))
        await asyncio.sleep(0)
        assert connection._life is not None
        connection._life.over.set()
        [answer] = (await call).content
        assert isinstance(answer, types.TextContent)
        assert int(answer.text) != pid
        assert gone(pid)
    assert capsys.readouterr().out.count("mcp_server_broke_off") == 1


async def test_a_call_has_its_time_once_its_server_is_open(tmp_path: Path) -> None:
    """While it is being opened anew, calls wait for that; then each has all of its time, and none of them was late."""
    starts, gate = tmp_path / "starts", tmp_path / "gate"
    later = f'[ -e "{starts}" ] && until [ -e "{gate}" ]; do sleep 0.05; done; exec "$@"'
    again = (*SERVER, "--names", "nap", "--starts", str(starts))
    async with opened(server(command=("sh", "-c", later, "later", *again), timeout=timedelta(seconds=8))) as tools:
        await tools["die"].call("{}")
        calls = [asyncio.create_task(tools["nap"].call("{}")) for _ in range(3)]
        await asyncio.sleep(2)
        gate.touch()
        assert await asyncio.gather(*calls) == [Result("done")] * 3
        assert len(starts.read_text().split()) == 2


async def test_a_server_that_takes_nothing_in_any_more_is_opened_anew(tmp_path: Path) -> None:
    """Calls time out or are cancelled at once. After three that were late one after the other it is ended, and nothing
    is kept of them.
    """
    starts = tmp_path / "starts"
    async with opened(server("--starts", str(starts), timeout=timedelta(seconds=0.5))) as tools:
        pid = int(starts.read_text())
        os.kill(pid, signal.SIGSTOP)
        much = json.dumps({"note": "x" * 200_000})  # more than a pipe holds
        late = Result("the tool did not answer within 0.5 s", failed=True)
        assert await tools["hang"].call(much) == late
        waits(tools, 60)
        call = asyncio.create_task(tools["hang"].call(much))
        await asyncio.sleep(0.1)
        began = held()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert held() - began < 0.4
        waits(tools, 0.5)
        assert [await tools["hang"].call(much) for _ in range(2)] == [late] * 2
        os.kill(pid, signal.SIGCONT)  # it ends at once then, and need not be killed
        async with asyncio.timeout(15):
            while (told := await tools["who"].call("{}")) in (AWAY, late):
                pass
        assert int(told.text) != pid
        assert gone(pid)
        assert tools["hang"].connection._calls == set()


async def test_a_server_that_is_late_now_and_then_is_kept(tmp_path: Path) -> None:
    """It answers in between. The model hears of a late call as of any tool's, the server too."""
    log = tmp_path / "log"
    async with opened(server("--log", str(log))) as tools:
        pid = await tools["who"].call("{}")
        for _ in range(4):
            waits(tools, 0.3)
            assert await tools["hang"].call('{"note": ""}') == LATE
            waits(tools, 60)
            assert await tools["who"].call("{}") == pid
        await until(lambda: "hang was cancelled" in log.read_text())


async def test_a_child_that_will_not_end_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """Within the time that a worker has for its end, and with a second to spare: else it would live for ever."""
    async with opened(server("--stubborn")) as tools:
        pid = int((await tools["who"].call("{}")).text)
        began = held()
    assert held() - began < 4
    assert gone(pid)
    assert "mcp_server_not_closed" not in capsys.readouterr().out


async def test_an_opening_that_is_broken_off_leaves_no_child(tmp_path: Path) -> None:
    """As where a worker is stopped while it starts."""
    starts = tmp_path / "starts"

    async def open_it() -> None:
        async with open_servers([server("--silent", "--starts", str(starts))]):
            pytest.fail("it never shook hands")

    opening = asyncio.create_task(open_it())
    await until(lambda: starts.exists() and starts.read_text() != "")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert gone(int(starts.read_text()))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            server(command=("no-such-program",)),
            "mcp.shop: the server cannot be started: No such file or directory; correct its command",
        ),
        (server("--leave"), "mcp.shop: the server ended before it shook hands; correct its command, or see what"),
        (
            server(command=("sh", "-c", "cat > /dev/null"), start_timeout=timedelta(seconds=0.5)),
            "mcp.shop: the server did not shake hands within 0.5 s; correct its command",
        ),
        (server(environment=("NOT_SET",)), "mcp.shop.environment: NOT_SET is not set; set it for the worker"),
        (
            server(command=(), url="http://127.0.0.1:9/", token_variable="NOT_SET"),
            "mcp.shop.token_env: NOT_SET is not set; set it for the worker",
        ),
        (
            server(command=(), url="http://127.0.0.1:9/"),
            "mcp.shop: the server cannot be reached; correct its url",
        ),
    ],
)
async def test_a_server_that_cannot_be_used_is_an_operators_mistake(one: McpServer, said: str) -> None:
    """It is said which, what happened and what to do, in its time."""
    async with asyncio.timeout(25):
        assert said in await refused(one)


async def test_every_mistake_is_told_at_once() -> None:
    """Of all servers."""
    told = await refused(server("--none"), server(environment=("NOT_SET",)), server(command=("no-such-program",)))
    assert len(told.splitlines()) == 3


async def test_a_long_list_of_tools_is_read_to_its_end() -> None:
    """Page by page; of a very long one those that are named are used."""
    names = [f"t{number}" for number in range(300)]
    async with opened(server("--page", "40", "--names", *names, tools=frozenset({"add", "t299"}))) as tools:
        assert tools.keys() == {"add", "t299"}
        assert await tools["t299"].call("{}") == Result("done")


async def test_a_worker_without_servers_does_without_the_package() -> None:
    """It costs 0.7 s and 55 MB."""
    program = (
        "import asyncio, sys\n"
        "from celeriac.agents.registry import read_agents\n"
        "from celeriac.assembly import open_toolboxes\n"
        "from celeriac.settings import SHIPPED_AGENTS\n"
        "async def main():\n"
        "    async with open_toolboxes(read_agents(SHIPPED_AGENTS)) as boxes:\n"
        "        print(len(boxes), *{name.partition('.')[0] for name in sys.modules})\n"
        "asyncio.run(main())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    number, *loaded = ended.stdout.split()
    assert int(number) > 0
    assert not {"mcp", "mcp_types", "jsonschema"} & set(loaded)


def agents(tmp_path: Path, text: str, *options: str) -> Registry:
    file = tmp_path / "agents.toml"
    command = json.dumps([*SERVER, *options])
    file.write_text(
        '[agents.clerk]\ndescription = "Sells."\nlanes = ["openai/x"]\n'
        f"{text}\n[mcp.shop]\ncommand = {command}\n[mcp.unused]\ncommand = ['no-such-program']\n"
    )
    return read_agents(file)


@tool(name="shop_add")
async def add() -> str:
    """Adds."""
    return "ours"


async def test_an_agent_has_functions_and_tools_of_servers(tmp_path: Path) -> None:
    """In one box. A server that no agent names is not opened."""
    known = agents(tmp_path, f'mcp = ["shop"]\ntools = ["{__name__}:add"]', "--names", "sell")
    known.mcp["shop"] = replace(known.mcp["shop"], tools=frozenset({"sell"}))
    async with open_toolboxes(known.asking({"openai"})) as boxes:
        assert [spec.name for spec in boxes["clerk"].specs] == ["shop_add", "shop_sell"]
        assert await boxes["clerk"].call(ToolCall("1", "shop_sell", "{}")) == Result("done")


async def test_two_tools_of_one_name_are_an_operators_mistake(tmp_path: Path) -> None:
    """It is told with all others."""
    known = agents(tmp_path, f'mcp = ["shop"]\ntools = ["{__name__}:add", "no.such:thing"]')
    with pytest.raises(Misconfigured) as caught:
        async with open_toolboxes(known):
            pass
    first, second = str(caught.value).splitlines()
    assert first.startswith("agent clerk: no.such:thing: ")
    assert second.startswith("agent clerk: two tools are called shop_add; give the server shop another name")


class HttpServer(Process):
    """The same server, by itself and over HTTP."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        super().__init__(*SERVER, "--http", str(self.port), *options, env={})

    def up(self) -> HttpServer:
        def answers() -> bool:
            assert self.running(), self.output()
            with suppress(httpx2.TransportError):
                return httpx2.get(self.url).status_code >= 400
            return False

        wait_until(answers, "the MCP server to answer")
        return self

    def settings(self, **facts: Any) -> McpServer:
        return server(**{"command": (), "url": self.url} | facts)


@pytest.fixture(params=[(), ("--old",)], ids=["new", "old"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Servers as they are since 2026, and as they were: with a session that they know."""
    given: tuple[str, ...] = request.param
    return given


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the server was asked."""
    log = tmp_path / "log"
    log.touch()
    return log


@pytest.fixture
def http(options: tuple[str, ...], log: Path) -> Iterator[HttpServer]:
    with running(HttpServer("--log", str(log), *options)) as one:
        yield one


async def test_a_server_may_be_far_away(http: HttpServer, log: Path) -> None:
    """Over HTTP, many calls side by side; one that hangs holds up no other, and is told of as any when it is late."""
    async with opened(http.settings(timeout=timedelta(seconds=60))) as tools:
        hanging = asyncio.create_task(tools["hang"].call('{"note": ""}'))
        await until(lambda: "hang" in log.read_text())
        sums = await asyncio.gather(*(tools["add"].call(f'{{"a": {number}, "b": 1}}') for number in range(30)))
        assert [result.text for result in sums] == [str(number + 1) for number in range(30)]
        assert not hanging.done()
        hanging.cancel()
        waits(tools, 0.3)
        assert await tools["hang"].call('{"note": ""}') == LATE


async def test_a_server_that_is_away_for_a_while_is_found_again(
    http: HttpServer, options: tuple[str, ...], log: Path
) -> None:
    """A call under way may have been made, one while it is away was not; then all is as before. A server that has
    forgotten our session is told of a new one, and the call is made."""
    async with opened(http.settings()) as tools:
        assert await tools["add"].call('{"a": 1, "b": 1}') == Result("2")
        hanging = asyncio.create_task(tools["hang"].call('{"note": ""}'))
        await until(lambda: "hang" in log.read_text())
        assert await tools["die"].call("{}") == BROKE_OFF
        assert await hanging == BROKE_OFF
        await until(lambda: not http.running())
        assert await tools["add"].call('{"a": 1, "b": 1}') == AWAY
        with running(HttpServer(*options, port=http.port)):
            told = await asyncio.gather(*(tools["add"].call('{"a": 1, "b": 1}') for _ in range(5)))
            assert told == [Result("2")] * 5


async def test_a_server_that_answers_nothing_any_more_holds_up_no_end(http: HttpServer) -> None:
    """It is told that its session is over, and not waited for."""
    async with opened(http.settings()) as tools:
        assert await tools["add"].call('{"a": 1, "b": 1}') == Result("2")
        http.signal(signal.SIGSTOP)
        waits(tools, 0.3)
        assert await tools["who"].call("{}") == LATE
        began = time.monotonic()
    http.signal(signal.SIGCONT)
    assert time.monotonic() - began < 4


async def test_a_token_is_sent_and_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As a bearer's. Without, or with a wrong one, the worker does not start."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SHOP_TOKEN", "tok-1234")
    with running(HttpServer("--token", "tok-1234")) as http:
        one = http.settings(token_variable="SHOP_TOKEN")
        async with opened(one) as tools:
            assert json.loads((await tools["headers"].call("{}")).text)["authorization"] == "Bearer tok-1234"
            assert "1234" not in repr([one, *tools.values(), tools["add"].connection.__dict__])
        assert "HTTP 401 Unauthorized; correct its url or token_env" in await refused(http.settings())
    assert "1234" not in capsys.readouterr().out + caplog.text


Answers = Callable[[str, Mapping[str, str]], tuple[int, object]]


@asynccontextmanager
async def rude(answers: Answers, packed: str = "") -> AsyncIterator[McpServer]:
    """A server of before 2026, whose answers are what is made of the method and the headers: a result, an error, bytes
    that are sent without end, None for what any server says. packed: a method whose answers are sent so.
    """
    usual: dict[str, object] = {
        "initialize": {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "rude", "version": "1"},
        },
        "tools/list": {"tools": [{"name": "buy", "inputSchema": {"type": "object"}}]},
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))
        }
        asked = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or "{}")
        status, said = answers(asked.get("method", ""), headers)
        if said is None:
            said = usual.get(asked.get("method", ""), {"error": {"code": -32601, "message": "no such method"}})
        pack = asked.get("method") == packed
        more = "content-encoding: gzip\r\n" if pack else ""
        writer.write(f"HTTP/1.1 {status} {headers.get('authorization', 'so')}\r\n{more}connection: close\r\n".encode())
        writer.write(b"content-type: application/json\r\nmcp-session-id: 1\r\n\r\n")
        with suppress(ConnectionError):
            if isinstance(said, bytes):
                for _ in range(100):
                    writer.write(said)
                    await writer.drain()
            else:
                assert isinstance(said, dict)
                body = said if "error" in said else {"result": said}
                text = json.dumps({"jsonrpc": "2.0", "id": asked.get("id"), **body}).encode()
                writer.write(gzip.compress(text) if pack else text)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as inner:
        yield server(command=(), url=f"http://127.0.0.1:{inner.sockets[0].getsockname()[1]}/", token_variable="PATH")


def error(words: str) -> object:
    return {"error": {"code": -32000, "message": words}}


async def test_a_server_that_refuses_a_call_is_asked_once() -> None:
    """Whatever its words: that a session is gone is said by 404 alone. The model hears them."""
    calls = []

    def answers(method: str, _: Mapping[str, str]) -> tuple[int, object]:
        if method != "tools/call":
            return 200, None
        calls.append(method)
        return 400, error("this session may not buy")

    async with rude(answers) as one, opened(one) as tools:
        assert await tools["buy"].call("{}") == Result(
            "the MCP server shop refused: this session may not buy", failed=True
        )
    assert calls == ["tools/call"]


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end_fails_its_call(status: int) -> None:
    """It would fill the memory. Other calls go on."""
    wanted = iter([b"x" * 1_000_000])

    def answers(method: str, _: Mapping[str, str]) -> tuple[int, object]:
        if method != "tools/call":
            return 200, None
        long = next(wanted, None)
        return (status, long) if long is not None else (200, {"content": []})

    async with rude(answers) as one, opened(one) as tools:
        told = await tools["buy"].call("{}")
        assert told.failed
        assert "its answer has more than 4194304 bytes" in told.text
        assert await tools["buy"].call("{}") == Result("")


async def test_an_answer_is_not_unpacked() -> None:
    """A few bytes may be gigabytes then."""

    def answers(method: str, _: Mapping[str, str]) -> tuple[int, object]:
        much = {"content": [{"type": "text", "text": "x" * 5_000_000}]}
        return 200, much if method == "tools/call" else None

    async with rude(answers, packed="tools/call") as one, opened(one) as tools:
        assert (await tools["buy"].call("{}")).failed


@pytest.mark.parametrize("code", [-32001, -32951, -32952, -33401])
async def test_what_a_server_says_of_its_start_is_told_to_nobody(code: int) -> None:
    """It may quote the token. Its code is told, or what that says to us."""

    def answers(_: str, headers: Mapping[str, str]) -> tuple[int, object]:
        return 401, {"error": {"code": code, "message": headers["authorization"]}}

    async with rude(answers) as one:
        told = await refused(one)
    assert told.startswith("mcp.shop: the server ")
    assert os.environ["PATH"] not in told


async def test_a_status_is_told_in_our_words() -> None:
    """Its phrase too may quote the token."""
    async with rude(lambda *_: (401, b"")) as one:
        assert await refused(one) == (
            "mcp.shop: the server refused: HTTP 401 Unauthorized; correct its url or token_env, or start it"
        )


def tools(*names: str, **schema: Any) -> dict[str, Any]:
    """A page of a list."""
    return {"tools": [{"name": name, "inputSchema": {"type": "object"} | schema} for name in names]}


@pytest.mark.parametrize(
    ("page", "facts", "said"),
    [
        (tools(), {}, "mcp.shop: the server has no tools"),
        (tools("add", "die"), {"tools": {"add", "mul"}}, ".tools: the server has no tool 'mul'; it has add, die"),
        (tools("add"), {"idempotent": {"mul"}}, ".idempotent: the server has no tool 'mul'; it has add"),
        (tools("add"), {"approval": {"mul"}}, ".approval: the server has no tool 'mul'; it has add"),
        (
            tools("odd", properties={"a": {"type": "nonsense"}}),
            {"tools": {"odd"}},
            "mcp.shop.tools: 'odd' cannot be used: its schema is not valid: anyOf",
        ),
        (
            tools("vast", title="w" * 70_000),
            {"tools": {"vast"}},
            "mcp.shop.tools: 'vast' cannot be used: its description and schema have more than 65536 bytes",
        ),
        (
            tools("a b", "a.b"),
            {},
            "mcp.shop: 'a b' and 'a.b' would both be called shop_a_b; use one of them, by tools = ",
        ),
        (
            tools("x" * 90 + "1", "x" * 90 + "2"),
            {},
            f"would both be called shop_{'x' * 59}; use one of them",
        ),
        (
            tools(*(f"t{number}" for number in range(201))),
            {},
            "mcp.shop: the server has more than 200 tools; name those that are wanted, by tools = ",
        ),
        (tools("add", "y" * 129), {"tools": {"y" * 129}}, "the server has no tool 'yyy"),
        (
            tools("add", title="w" * 3_000_000) | {"nextCursor": "more"},
            {},
            "mcp.shop: the server has a list of tools of more than 4194304 bytes",
        ),
        (
            tools() | {"nextCursor": "more"},
            {},
            "mcp.shop: the server does not end its list of tools within 200 pages",
        ),
    ],
)
async def test_a_list_of_tools_that_cannot_be_used_is_an_operators_mistake(
    page: object, facts: dict[str, set[str]], said: str
) -> None:
    """It is said which tool, and what to do."""
    async with rude(lambda method, _: (200, page if method == "tools/list" else None)) as one:
        assert said in await refused(replace(one, **{key: frozenset(names) for key, names in facts.items()}))
