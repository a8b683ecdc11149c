"""`celeriac up` and `celeriac demo` as commands: real Valkey, Celery and Flower; shim and worker are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.local.programs import PATIENCE, alive, descendants
from tests.processes import free_port, wait_until

DOORS = Path(__file__).parent / "doors"
COMMAND = (sys.executable, "-m", "celeriac.cli")


def environment(**ours: str) -> dict[str, str]:
    """Nothing of this machine's own settings; the stand-ins go before the real doors."""
    usual = ("CELERIAC_", "REDIS_URL", "OPENAI_", "ANTHROPIC_", "SENTRY_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(usual)}
    return {**mine, "PYTHONPATH": str(DOORS), "CELERIAC_SCRIPTED": "1", **ours}


class Up:
    """A running `celeriac up` with ports of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.redis_port, self.shim_port, self.flower_port = (free_port() for _ in range(3))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        ports = {
            "CELERIAC_LOCAL__REDIS_PORT": str(self.redis_port),
            "CELERIAC_SHIM__PORT": str(self.shim_port),
            "CELERIAC_FLOWER__PORT": str(self.flower_port),
        }
        with (self.directory / "out").open("wb") as out, (self.directory / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "up"], cwd=self.directory, env=environment(**ports, **env), stdout=out, stderr=err
            )

    def start_up(self, **env: str) -> None:
        self.start(**env)
        wait_until(lambda: "Ctrl-C" in self.out() or not alive(self.pid), "everything to be up", PATIENCE)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def out(self) -> str:
        return (self.directory / "out").read_text()

    def err(self) -> str:
        return (self.directory / "err").read_text()

    def child(self, word: str) -> int:
        return next(child.pid for child in descendants(self.pid) if any(word in part for part in child.cmdline()))

    def redis(self) -> Redis:
        return Redis(port=self.redis_port, decode_responses=True)

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        assert self.process
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    a_house = Up(tmp_path)
    yield a_house
    if a_house.process:
        everybody = [*descendants(a_house.pid), a_house.process]
        for process in everybody:
            process.kill()
        a_house.process.wait()


def test_up_prints_where_everything_is_and_what_one_job_cost(up: Up) -> None:
    """URLs, answer, tokens and cost, on standard output."""
    up.start_up()
    assert f"http://127.0.0.1:{up.shim_port}" in up.out()
    assert f"http://127.0.0.1:{up.flower_port}" in up.out()
    assert f"redis://127.0.0.1:{up.redis_port}/0" in up.out()
    assert "To wait in peace." in up.out()
    assert "11 in, 7 out" in up.out()
    assert "$0.000042" in up.out()


def test_sigterm_ends_all_of_it_within_ten_seconds(up: Up) -> None:
    """Valkey last, and no process is left."""
    up.start_up()
    everybody = [up.pid, *(child.pid for child in descendants(up.pid))]
    began = time.monotonic()
    assert up.end() == 0
    assert time.monotonic() - began < 10
    assert not list(filter(alive, everybody))
    assert "valkey   | " in up.err().splitlines()[-1]
    assert "bye bye" in up.err().splitlines()[-1]
    assert "did not stop" not in up.err()


def test_state_survives_a_restart(up: Up) -> None:
    """What was written is there again, under .celeriac of the working directory."""
    up.start_up()
    up.redis().set("kept", "yes")
    up.end()
    up.start_up()
    assert up.redis().get("kept") == "yes"
    assert (up.directory / ".celeriac" / "valkey" / "appendonlydir").is_dir()


def test_a_killed_valkey_comes_back_with_its_data(up: Up) -> None:
    """What was answered had been written to the append-only file before."""
    up.start_up()
    up.redis().set("kept", "yes")
    killed = up.child("valkey-server")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: up.err().count("valkey is ready") == 2, "Valkey to be back", PATIENCE)
    assert "valkey was killed by SIGKILL" in up.err()
    assert up.redis().get("kept") == "yes"


def test_the_embedded_valkey_keeps_what_it_is_given(up: Up) -> None:
    """An append-only file, no eviction, and nobody from outside."""
    up.start_up()
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }
    assert {name: up.redis().config_get(name)[name] for name in wanted} == wanted


def test_a_taken_port_is_named_before_anything_is_started(up: Up) -> None:
    """With the setting that changes it, on a line of its own, and exit status 2."""
    with socket.create_server(("127.0.0.1", up.shim_port)):
        up.start()
        assert up.end(None) == 2
    [line] = up.err().splitlines()
    assert (
        line == f"celeriac: port {up.shim_port} (CELERIAC_SHIM__PORT) is taken; set CELERIAC_SHIM__PORT to a free one"
    )


def test_one_directory_is_for_one_up(up: Up) -> None:
    """A second Valkey on the same file would ruin it."""
    up.start_up()
    other = Up(up.directory)
    other_env = {"CELERIAC_LOCAL__REDIS_PORT": "0", "CELERIAC_SHIM__PORT": "0", "CELERIAC_FLOWER__PORT": "0"}
    ended = subprocess.run(
        [*COMMAND, "up"], cwd=other.directory, env=environment(**other_env), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert f".celeriac belongs to a `celeriac up` that is running (pid {up.pid})" in ended.stderr


def test_a_redis_of_the_operators_own_is_used(up: Up) -> None:
    """Then no Valkey is embedded, and its password is not printed."""
    other = Up(up.directory / "other")
    other.directory.mkdir()
    other.start_up()
    up.start_up(REDIS_URL=f"redis://default:@127.0.0.1:{other.redis_port}/3")
    assert f"redis://127.0.0.1:{other.redis_port}/3" in up.out()
    assert "valkey" not in up.err()
    assert Redis(port=other.redis_port, db=3).exists("jobs")
    other.end()


def test_a_redis_that_does_not_answer_is_named_without_its_password(up: Up) -> None:
    """Before anything is started."""
    up.start(REDIS_URL=f"redis://:s3cret@127.0.0.1:{up.redis_port}/0")
    assert up.end(None) == 2
    assert f"redis://127.0.0.1:{up.redis_port}/0 does not answer" in up.err()
    assert "s3cret" not in up.err()


def test_the_first_job_shows_an_api_key_where_one_is_asked_for(up: Up) -> None:
    """The first of those configured."""
    up.start_up(CELERIAC_SHIM__API_KEYS='{"acme": "one", "other": "two"}', STAND_IN_KEY="one")
    assert "To wait in peace." in up.out()


def test_a_refused_first_job_is_reported_and_the_rest_stays_up(up: Up) -> None:
    """There is something to look at."""
    up.start_up(STAND_IN_KEY="one")
    assert "POST /v1/jobs was answered 401" in up.err()
    assert alive(up.child("valkey-server"))


def test_mistakes_in_settings_are_lines_and_no_traceback(up: Up) -> None:
    """One a variable, and exit status 2."""
    up.start(CELERIAC_LOG_LEVEL="loud", CELERIAC_SHIM__MAX_WAIT="a while")
    assert up.end(None) == 2
    assert [line.split(":")[1].strip() for line in up.err().splitlines()] == [
        "CELERIAC_LOG_LEVEL",
        "CELERIAC_SHIM__MAX_WAIT",
    ]


def test_a_directory_that_is_none_is_named(up: Up) -> None:
    """With its setting, and no traceback."""
    (up.directory / "state").write_text("a file")
    up.start(CELERIAC_LOCAL__DIRECTORY="state")
    assert up.end(None) == 2
    assert up.err() == "celeriac: CELERIAC_LOCAL__DIRECTORY: state cannot be used: File exists\n"


def test_a_shim_that_cannot_start_is_told_with_its_last_words(up: Up) -> None:
    """And everything that ran is stopped."""
    up.start(PYTHONPATH=str(up.directory), CELERIAC_LOCAL__DIRECTORY="state")
    (up.directory / "api_shim.py").write_text("raise SystemExit('no such luck')")
    assert up.end(None) == 1
    assert "celeriac: shim ended with exit status 1 before it was ready; its last words:\n    no such luck" in up.err()


def demo(directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    where = {"TMPDIR": str(directory), **env}
    return subprocess.run(
        [*COMMAND, "demo"], cwd=directory, env=environment(**where), capture_output=True, text=True, timeout=120
    )


def test_the_demo_prints_one_job_as_json_and_nothing_else(tmp_path: Path) -> None:
    """On standard output; its temporary directory is gone."""
    ended = demo(tmp_path)
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert (job["state"], job["answer"], job["cost_usd"]) == ("succeeded", "To wait in peace.", "0.000042")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_leaves_the_operators_redis_alone(tmp_path: Path) -> None:
    """It must not take jobs out of a real queue: one that does not even answer does not matter."""
    real = "redis://127.0.0.1:1/0"
    ended = demo(tmp_path, REDIS_URL=real, CELERIAC_BROKER_URL=real)
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert job["redis"] == job["broker"] != real


def test_the_demo_fails_when_its_job_fails(tmp_path: Path) -> None:
    """The job is printed all the same."""
    ended = demo(tmp_path, STAND_IN_STATE="failed")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["state"] == "failed"
