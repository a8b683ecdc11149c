"""The stack of docker-compose.yml, built and run: one job through it, more workers, and restarts under load."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import httpx2
import pytest

from tests.containers.stack import Stack
from tests.processes import wait_until

QUESTION = "What is the capital of France?"
STORY = "Tell me a long story."
OURS = ("shim", "worker", "flower", "model")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack() as running:
        yield running
    assert running.left() == []


def test_a_job_gets_its_answer_with_tokens_and_cost(stack: Stack) -> None:
    """Over HTTP, from the model in its own container, behind the real SDK."""
    [id] = stack.submit(QUESTION)
    job = stack.ended(id)
    assert job["state"] == "succeeded", job
    assert job["answer"]
    assert job["usage"]["input_tokens"] > 0
    assert 0 < job["usage"]["output_tokens"] <= 16
    assert Decimal(job["cost_usd"]) > 0


def test_flower_is_published_and_alive(stack: Stack) -> None:
    """Its page comes with our settings, or it would not have started: FLOWER_CONF names their file."""
    assert httpx2.get(f"{stack.url('flower', 5555)}/", follow_redirects=True, timeout=30).status_code == 200
    assert stack.inside("flower", "sh", "-c", "ls $FLOWER_CONF").endswith("/ops/flower/flowerconfig.py")


def test_only_loopback_reaches_the_published_ports(stack: Stack) -> None:
    """And neither Valkey nor the model is published: they ask nobody for a password."""
    published = {
        container["Config"]["Labels"]["com.docker.compose.service"]: {
            binding["HostIp"]
            for bindings in container["NetworkSettings"]["Ports"].values()
            for binding in bindings or ()
        }
        for container in stack.containers()
    }
    assert published == {
        "shim": {"127.0.0.1"},
        "flower": {"127.0.0.1"},
        "worker": set(),
        "model": set(),
        "valkey": set(),
    }


@pytest.mark.parametrize("service", [*OURS, "valkey"])
def test_a_container_can_do_no_more_than_it_must(stack: Stack, service: str) -> None:
    """Not root, no capability to become it, and nowhere to write but /tmp and Valkey's volume."""
    status = dict(line.split(":\t") for line in stack.inside(service, "cat", "/proc/self/status").splitlines())
    assert "0" not in status["Uid"].split()
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    writes = "for at in / /app /srv /usr /etc /data /tmp; do touch $at/x 2>/dev/null && echo $at; done; true"
    assert stack.inside(service, "sh", "-c", writes) == ("/data" if service == "valkey" else "/tmp")  # noqa: S108  # in the container


@pytest.mark.parametrize("service", OURS)
def test_what_runs_is_what_was_installed(stack: Stack, service: str) -> None:
    """Nothing lies in the working directory that could be imported instead."""
    assert stack.inside(service, "ls", "-A") == ""
    find = "import importlib.util as i, sys; print(*(i.find_spec(name).origin for name in sys.argv[1:]))"
    packages = ("celeriac", "tasks", "worker", "api_shim", "ops")
    found = stack.inside(service, "python", "-c", find, *packages).split()
    assert found == [f"/app/lib/python3.13/site-packages/{package}/__init__.py" for package in packages]


def test_health_is_about_the_worker_in_this_container(stack: Stack) -> None:
    """Elsewhere there is none, whatever other containers run."""
    assert stack.inside("worker", "python", "-m", "worker.health") == ""
    with pytest.raises(AssertionError, match=r"no worker of [0-9a-f]+ holds a lease"):
        stack.inside("shim", "python", "-m", "worker.health")


def test_a_second_worker_takes_jobs_too(stack: Stack) -> None:
    """Each takes one at a time here: two jobs that ran side by side ran in two workers."""
    stack.up("--scale", "worker=2")
    assert stack.workers() == 2
    first, second = (stack.ended(id) for id in stack.submit(STORY, STORY, max_output_tokens=64))
    assert (first["state"], second["state"]) == ("succeeded", "succeeded")
    assert max(first["started_at"], second["started_at"]) < min(first["ended_at"], second["ended_at"])
    stack.up("--scale", "worker=1")
    assert stack.workers() == 1


def test_a_restart_of_the_worker_loses_no_job(stack: Stack) -> None:
    """Neither the one that runs nor those that wait behind it."""
    jobs = stack.submit(*[STORY] * 6, max_output_tokens=64)
    wait_until(lambda: stack.job(jobs[0])["started_at"], "the first job to be started", 60)
    assert stack.job(jobs[-1])["state"] == "queued"
    stack.compose("restart", "worker")
    assert [stack.ended(id)["state"] for id in jobs] == ["succeeded"] * 6


def test_a_job_that_no_worker_is_there_for_waits_for_one(stack: Stack) -> None:
    """The shim takes it all the same."""
    stack.compose("stop", "worker")
    assert stack.workers() == 0
    [waiting] = stack.submit(QUESTION)
    assert stack.job(waiting, wait=1)["state"] == "queued"
    stack.up()
    assert stack.ended(waiting)["state"] == "succeeded"


def test_another_container_of_valkey_has_the_jobs(stack: Stack) -> None:
    """They are in the volume; shim and worker find the new one by themselves."""
    [id] = stack.submit(QUESTION)
    before = stack.ended(id)
    stack.compose("rm", "--stop", "--force", "valkey")
    stack.up()
    assert stack.job(id)["answer"] == before["answer"]
    [id] = stack.submit(QUESTION)
    assert stack.ended(id)["state"] == "succeeded"
