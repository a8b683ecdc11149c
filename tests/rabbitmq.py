"""A real RabbitMQ for tests: one private node as a local process, which may be stopped, killed and started again.

@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from kombu import Connection

from tests.processes import free_port

#: Debian's own program in /usr/sbin would run as another user, on the machine's own files.
PROGRAMS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
HOW_TO_GET_IT = "there is no rabbitmq-server here: run .ci/rabbitmq as root, or install RabbitMQ 3.10 or newer"
HOST = "127.0.0.1"
#: Seconds. A start takes about five.
START = 120.0
STOP = 60.0


def program(names: tuple[str, ...] = PROGRAMS) -> str:
    """The first that is here. Fails the test where none is."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.fail(HOW_TO_GET_IT, pytrace=False)


class RabbitMQ:
    """A node with its own ports, files, cookie and port mapper, all of them the same over its restarts.

    Entering starts it, leaving stops it and removes its files. url: for `CELERIAC_BROKER_URL`.
    """

    def __init__(self) -> None:
        self._program = program()
        self.port, self._distribution, self._mapper_port = (free_port() for _ in range(3))
        self.url = f"amqp://guest:guest@{HOST}:{self.port}//"
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-rabbitmq-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None
        self._environment = self._write()

    def __enter__(self) -> RabbitMQ:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> RabbitMQ:
        """Start it, on the ports and with the files it had, and wait until it takes connections."""
        assert self.process is None, "it runs already"
        with (self.directory / "output").open("ab") as output:
            if self._mapper is None:
                # Nodes start one by themselves if they find none, and would leave it behind.
                self._mapper = subprocess.Popen(
                    ("epmd", "-address", HOST, "-port", str(self._mapper_port)), stdout=output, stderr=output
                )
            self.process = subprocess.Popen(
                (self._program,), env=self._environment, cwd=self.directory, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START
        while not self.ready():
            assert self.process.poll() is None, f"RabbitMQ did not start:\n{self.output()}"
            assert time.monotonic() < deadline, f"RabbitMQ did not start in {START:g} s:\n{self.output()}"
            time.sleep(0.1)
        return self

    def ready(self) -> bool:
        """Whether it takes a connection."""
        try:
            with Connection(self.url, connect_timeout=5) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """In good order: what was published as persistent is there after the next start."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """At once. A queue that was declared in the last seconds may be gone with it."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Stop whatever runs and delete its files."""
        self._end(signal.SIGKILL)
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait(STOP)
            self._mapper = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def output(self) -> str:
        """The last of what it said."""
        files = [self.directory / "output", *sorted((self.directory / "log").glob("*.log"))]
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in files if file.exists())

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(STOP)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP)
            self.process = None

    def _write(self) -> dict[str, str]:
        """Its configuration; returns the environment it runs in."""
        at = self.directory
        (at / "rabbitmq.conf").write_text(
            # The smallest node: no memory or disk alarms on a full test machine.
            f"listeners.tcp.default = {HOST}:{self.port}\ndisk_free_limit.absolute = 1MB\nlog.file.level = warning\n"
        )
        (at / "enabled_plugins").write_text("[].\n")
        (at / "empty").touch()
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(at),  # where the cookie is made
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RUNNING_UNDER_SYSTEMD": "true",  # no shell stays between us and the node
            "RABBITMQ_NODENAME": f"celeriac-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(at / "empty"),
            "RABBITMQ_CONFIG_FILE": str(at / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(at / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(at / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(at / "data"),
            "RABBITMQ_LOG_BASE": str(at / "log"),
            "RABBITMQ_PID_FILE": str(at / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(at / "generated"),
        }
