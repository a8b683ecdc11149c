"""What a process writes to its log: each test is a small program and reads what it wrote to standard error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

BEGIN = """
import asyncio, logging, warnings
from celeriac import logs
logs.configure({env!r}, {level!r}, service="shim")
log = logs.get_logger("celeriac.test")
theirs = logging.getLogger("somebody.else")
"""


def logged(program: str, *, env: str = "prod", level: str = "INFO") -> str:
    code = BEGIN.format(env=env, level=level) + program
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == ""
    return ended.stderr


def lines(program: str, *, level: str = "INFO") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(program, level=level).splitlines()]


def test_in_prod_each_line_is_one_json_object() -> None:
    """With the event, its facts, its level, its logger and a time; the facts of the process are on it."""
    [line] = lines('log.info("job_finished", job_id="1", seconds=0.5)')
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job_finished",
        "job_id": "1",
        "seconds": 0.5,
        "level": "info",
        "logger": "celeriac.test",
        "service": "shim",
    }


def test_a_fact_that_json_has_no_word_for_loses_no_line() -> None:
    """Half a character, as a hostile input may hold; a number beyond 64 bits; an object."""
    [line] = lines('log.info("odd", half="\\ud800", big=2**70, thing=ValueError)')
    assert (line["half"], line["big"], line["thing"]) == ("\ud800", 2**70, "<class 'ValueError'>")


def test_in_dev_a_line_is_for_reading() -> None:
    """Without colours where nobody looks."""
    text = logged('log.info("job_finished", job_id="1")', env="dev")
    assert "job_finished" in text
    assert "job_id=1" in text
    assert "\x1b" not in text


def test_other_peoples_loggers_write_the_same_lines() -> None:
    """As Celery's and uvicorn's do."""
    [line] = lines('theirs.warning("%s is %s", "it", "late")')
    assert (line["event"], line["logger"], line["level"]) == ("it is late", "somebody.else", "warning")
    assert line["service"] == "shim"


def test_a_line_is_written_once() -> None:
    """Also when logging is configured twice, as by a parent and its child."""
    written = lines('logs.configure("prod"); log.info("mine"); theirs.info("theirs")')
    assert [line["event"] for line in written] == ["mine", "theirs"]


def test_bound_facts_are_on_every_line_inside() -> None:
    """Ours and theirs, and gone afterwards."""
    inside, theirs, after = lines("""
with logs.bound(job_id="7", tenant="acme"):
    log.info("inside")
    theirs.info("inside")
log.info("after")
""")
    assert [(line["job_id"], line["tenant"]) for line in (inside, theirs)] == [("7", "acme")] * 2
    assert "job_id" not in after


def test_tasks_of_one_loop_do_not_see_each_others_facts() -> None:
    """Two jobs take turns; each line names its own."""
    written = lines("""
async def job(name):
    with logs.bound(job_id=name):
        for turn in range(3):
            await asyncio.sleep(0)
            log.info("turn", of=name)
async def main():
    await asyncio.gather(job("1"), job("2"))
asyncio.run(main())
""")
    assert len(written) == 6
    assert all(line["job_id"] == line["of"] for line in written)


FAILURE = """
def ask(prompt):
    raise ValueError("what it " + "was given")
try:
    ask("my " + "secret")
except ValueError:
    {call}
"""


@pytest.mark.parametrize("env", ["dev", "prod"])
@pytest.mark.parametrize("call", ['log.exception("failed")', 'theirs.exception("failed")'])
def test_a_traceback_shows_no_values(env: str, call: str) -> None:
    """Which line failed and how, but never what a variable held: it may be a prompt."""
    text = logged(FAILURE.format(call=call), env=env)
    assert "ValueError" in text
    assert "in ask" in text
    assert "my secret" not in text


def test_in_prod_the_message_of_a_strangers_error_is_withheld() -> None:
    """Libraries put what they were given into their messages; ours hold nothing that anybody said."""
    assert "what it was given" not in logged(FAILURE.format(call='log.exception("failed")'))
    ours = FAILURE.replace("ValueError(", "Fenced(").replace("ValueError", "Fenced")
    [line] = lines("from celeriac.errors import Fenced" + ours.format(call='log.exception("failed")'))
    assert line["exception"].endswith("celeriac.errors.Fenced: what it was given")


LATE = """
from datetime import timedelta
from celeriac.agents.tools import tool
@tool(timeout=timedelta(seconds=0.05))
async def query() -> str:
    "Asks a database."
    try:
        await asyncio.sleep(30)
    finally:
        raise RuntimeError("postgres://shop:hunter2@db")
async def main():
    call = asyncio.create_task(query.__celeriac_tool__.call("{}"))
    if STOPPED:
        await asyncio.sleep(0.01)
        call.cancel()
    await asyncio.wait([call])
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["late", "job stopped"])
def test_a_tool_that_fails_when_nobody_waits_is_told_of_by_its_type(stopped: bool) -> None:
    """What it says then may be a connection string with its password."""
    text = logged(f"STOPPED = {stopped}\n{LATE}")
    [line] = [json.loads(line) for line in text.splitlines()]
    assert (line["event"], line["tool"], line["error"]) == ("tool_failed_late", "query", "RuntimeError")
    assert "hunter2" not in text


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_what_a_tool_logs_names_its_job(kind: str) -> None:
    """Also where the tool runs in a thread."""
    [line] = lines(f"""
from celeriac.agents.tools import tool
@tool
{kind} query() -> str:
    "Asks a database."
    log.info("asked")
    return "7"
async def main():
    with logs.bound(job_id="j-7"):
        await query.__celeriac_tool__.call("{{}}")
asyncio.run(main())
""")
    assert (line["event"], line["job_id"]) == ("asked", "j-7")


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_of_what_nobody_asked_for_no_words_are_told(runner: str) -> None:
    """Of tasks, futures and callbacks that failed asyncio writes errors and arguments: they may hold anything."""
    text = logged(f"""
import gc, {runner}
async def ask(prompt):
    raise ValueError(f"it was {{prompt}}")
def fail(prompt):
    raise ValueError(f"it was {{prompt}}")
async def main():
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.create_task(ask("secret"))
    future = loop.create_future()
    future.set_exception(ValueError("secret"))
    loop.call_soon(fail, "secret")
    await asyncio.wait([task])
    loop.call_soon(done.set)
    await done.wait()
    del task, future
    gc.collect()
{runner}.run(main())
""")
    told = [json.loads(line) for line in text.splitlines()]
    assert sorted(line["event"] for line in told) == [
        "Exception in callback: fail",
        "Future exception was never retrieved",
        "Task exception was never retrieved: ask",
    ]
    assert all("ValueError: (withheld)" in line["exception"] for line in told)
    assert "secret" not in text


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_what_holds_up_the_loop_is_told_with_its_time(runner: str) -> None:
    """By the name of the coroutine or the callback; without what it was given, whatever that holds."""
    text = logged(f"""
import time, {runner}
async def ask(prompt):
    time.sleep(0.11)
    raise ValueError(f"it was {{prompt}}")
class Client:
    def close(self, prompt):
        time.sleep(0.11)
async def main():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    [_] = await asyncio.gather(asyncio.create_task(ask("secret > ' <"), name="secret>"), return_exceptions=True)
    done = asyncio.Event()
    loop.call_soon(Client().close, "secret > ' <")
    loop.call_soon(done.set)
    await done.wait()
{runner}.run(main())
""")
    told = [json.loads(line)["event"] for line in text.splitlines()]
    slow = [re.fullmatch(r"Executing (\S+) took (\d+\.\d{3}) seconds", event) for event in told]
    assert {match[1] for match in slow if match} >= {"ask", "Client.close"}
    assert all(float(match[2]) >= 0.1 for match in slow if match)
    assert "secret" not in text


OF_LOOPS = {
    "info('%r is serving', Odd())": "Odd is serving",
    "info('%s exited with return code %s', Odd(), 7)": "Odd exited with return code 7",
    "warning('%s took %d', 'secret', 7)": "... took 7",
    "warning('%d times', 'secret')": "%d times",
    "error('<secret> is odd')": "... is odd",
    "error('closing <a secret> went wrong')": "closing ... went wrong",
    "error('closing <a secret>\\ntask: <a secret> secret')": "closing ...",
    "error('closing <a 1>2 secret\\nsecret> secret')": "closing ...",
    "error('closing <a secret')": "closing ...",
    "error('it is \\'a secret\\', it said')": "it is ..., it said",
    "error('')": "...",
}


def test_a_line_of_the_loop_keeps_its_words() -> None:
    """Those that it has itself, and numbers; of an object the kind, where it is known."""
    text = logged(
        "class Odd:\n    def __repr__(self):\n        return 'secret'\n"
        + "".join(f"logging.getLogger('asyncio').{call}\n" for call in OF_LOOPS)
    )
    assert [json.loads(line)["event"] for line in text.splitlines()] == list(OF_LOOPS.values())
    assert "secret" not in text


def test_in_prod_a_traceback_is_part_of_its_line() -> None:
    """A collector reads one object, not twenty lines."""
    [line] = lines(FAILURE.format(call='theirs.exception("failed")'))
    assert line["event"] == "failed"
    assert line["exception"].startswith("Traceback")


def test_warnings_are_lines_too() -> None:
    """Python's own would break the stream of objects."""
    [line] = lines('warnings.warn("old")')
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_the_level_holds_for_all() -> None:
    """What is less severe is not written."""
    written = lines('log.info("quiet"); theirs.info("quiet"); log.warning("loud")', level="WARNING")
    assert [line["event"] for line in written] == ["loud"]


def test_provider_libraries_stay_quiet_at_any_level() -> None:
    """At DEBUG they would log whole requests, prompts included."""
    written = lines('logging.getLogger("openai._base_client").debug("the prompt"); log.debug("mine")', level="DEBUG")
    assert [line["event"] for line in written] == ["mine"]


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_shell_cannot_make_them_talk(sdk: str) -> None:
    """They are imported late, and then set their level by a variable of their own."""
    written = lines(f"""
import os
os.environ["{sdk.upper()}_LOG"] = "debug"
import {sdk}
for name in ("{sdk}._base_client", "httpx2"):
    logging.getLogger(name).debug("the prompt")
log.info("mine", talks=logging.getLogger("{sdk}").level)
""")
    assert [(line["event"], line["talks"]) for line in written] == [("mine", 10)]


CELERY = """
logging.getLogger({logger!r}).{level}("succeeded", extra={{
    "data": {{"name": {name!r}, "id": "job-1", "args": "('prompt',)"}}
}})
"""
TRACE, STRATEGY = "celery.app.trace", "celery.worker.strategy"


def test_celerys_lines_about_a_job_name_it() -> None:
    """By job_id, as ours do; the arguments that Celery hands along stay out."""
    [line] = lines(CELERY.format(logger=TRACE, level="warning", name="celeriac.run_job"))
    assert (line["task"], line["job_id"]) == ("celeriac.run_job", "job-1")
    assert "prompt" not in json.dumps(line)


@pytest.mark.parametrize("logger", [TRACE, STRATEGY])
def test_that_a_job_came_and_how_it_went_is_said_once(logger: str) -> None:
    """By our own lines. Celery's are there at DEBUG, and of every other task."""
    said = CELERY.format(logger=logger, level="info", name="celeriac.run_job")
    assert lines(said) == []
    assert len(lines(said, level="DEBUG")) == 1
    assert len(lines(CELERY.format(logger=logger, level="info", name="celeriac.submit"))) == 1


def test_celerys_lines_about_another_task_do_not_pretend_to_name_a_job() -> None:
    """The id of a webhook's message is no job's."""
    [line] = lines(CELERY.format(logger=TRACE, level="info", name="celeriac.deliver_webhook"))
    assert line["task"] == "celeriac.deliver_webhook"
    assert "job_id" not in line
