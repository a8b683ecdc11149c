"""The Compose stack as a test speaks of it: a project of its own with its own volume, on free ports."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
#: Of the images that the tests build. They are kept: the next run builds in seconds.
TAG = "test"
#: Seconds. Everything is healthy within half a minute on two idle cores.
UP = 300


def run(*argv: str | Path, env: dict[str, str] | None = None, seconds: float = 900) -> str:
    """What the command says on standard output. If it fails, the failure says the rest."""
    __tracebackhide__ = True  # it would show the environment
    ran = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    assert ran.returncode == 0, (
        f"{' '.join(map(str, argv))}: exit {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}"
    )
    return ran.stdout


def environment(**given: str) -> dict[str, str]:
    """Ours, without what would change the stack."""
    ours = ("CELERIAC_", "OPENAI_", "ANTHROPIC_", "COMPOSE_", "SENTRY_", "PUBLISH_ON", "IMAGE_TAG")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | given


class Stack:
    """A running project. Entering builds and starts it; leaving removes all of it but the images."""

    def __init__(self) -> None:
        self.project = f"celeriac-test-{secrets.token_hex(4)}"
        self._env = environment(
            COMPOSE_PROJECT_NAME=self.project, IMAGE_TAG=TAG, CELERIAC_SHIM__PORT="0", CELERIAC_FLOWER__PORT="0"
        )

    def __enter__(self) -> Stack:
        try:
            # One after the other: the second image then finds the layers of the first.
            self.compose("build", "shim")
            self.compose("build", "model")
            self.up()
        except BaseException:
            sys.stderr.write(self.logs())
            self.remove()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            sys.stderr.write(self.logs())
        self.remove()

    def compose(self, *argv: str) -> str:
        files = ("--file", "docker-compose.yml", "--file", "tests/containers/compose.yml", "--env-file", "/dev/null")
        return run(COMPOSE, "--progress", "quiet", *files, *argv, env=self._env)

    def up(self, *options: str) -> None:
        """Start what does not run. Returns once everything is healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", str(UP), *options)

    def inside(self, service: str, *argv: str) -> str:
        """What a command says in the (first) container of the service."""
        return self.compose("exec", "-T", service, *argv).strip()

    def containers(self) -> list[dict[str, Any]]:
        """As `docker inspect` shows them."""
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *self.compose("ps", "--quiet").split()))
        return found

    def url(self, service: str, port: int) -> str:
        """Where it is published."""
        return f"http://{self.compose('port', service, str(port)).strip()}"

    def logs(self) -> str:
        try:
            return self.compose("logs", "--no-color", "--tail", "30")
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            return f"no logs: {error}\n"

    def remove(self) -> None:
        """Containers, network and volume."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")

    def left(self) -> list[str]:
        """What of it is still there."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [name for kind in kinds for name in run("docker", *kind, "--quiet", "--filter", label).split()]

    def submit(self, *texts: str, max_output_tokens: int = 16) -> list[str]:
        """The ids of jobs that were taken, one for each text, in quick succession."""
        ids = []
        with self.http() as http:
            for text in texts:
                job = {"agent": "assistant", "input": text, "max_output_tokens": max_output_tokens}
                answer = http.post("/v1/jobs", json=job)
                assert answer.status_code == 202, answer.text
                ids.append(str(answer.json()["id"]))
        return ids

    def job(self, id: str, wait: float = 0) -> dict[str, Any]:
        with self.http() as http:
            answer = http.get(f"/v1/jobs/{id}", params={"wait": wait})
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def ended(self, id: str) -> dict[str, Any]:
        """The job once it has ended."""
        for _ in range(4):
            if (job := self.job(id, wait=60))["ended_at"] is not None:
                break
        assert job["ended_at"] is not None, job
        return job

    def workers(self) -> int:
        """How many the shim sees."""
        with self.http() as http:
            return int(http.get("/readyz").json()["workers"])

    def http(self) -> httpx2.Client:
        # The port is asked for each time: a container that was replaced is published on another one.
        return httpx2.Client(base_url=self.url("shim", 8000), timeout=90)
