"""docker-compose.yml as Compose understands it, without starting anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.containers.stack import COMPOSE, environment, run

LOCAL = {"CELERIAC_OPENAI_BASE_URL": "http://model:8081/v1", "CELERIAC_ANTHROPIC_BASE_URL": "http://model:8081"}
CONTAINED = {"init": True, "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


def config(**env: str) -> dict[str, Any]:
    argv = (COMPOSE, "--env-file", "/dev/null", "config", "--format", "json")
    services: dict[str, Any] = json.loads(run(*argv, env=environment(**env)))["services"]
    return services


def test_without_a_key_the_local_model_answers() -> None:
    """For both providers, so that every agent works."""
    assert LOCAL.items() <= config()["worker"]["environment"].items()


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "CELERIAC_OPENAI_API_KEY", "CELERIAC_OPENAI_BASE_URL"),
        *("ANTHROPIC_API_KEY", "CELERIAC_ANTHROPIC_API_KEY", "CELERIAC_ANTHROPIC_BASE_URL"),
    ],
)
def test_whoever_names_a_provider_gets_no_answer_of_the_local_model(name: str) -> None:
    """Never a small model's answer in place of the one that is paid for. What the shell names reaches the worker."""
    worker = config(**{name: "https://mine.example"})["worker"]["environment"]
    assert worker[name] == "https://mine.example"
    assert "http://model:8081" not in str(worker)


def test_the_usual_names_of_the_shell_reach_the_containers() -> None:
    """As on this machine without containers."""
    worker = config(OPENAI_API_KEY="a", ANTHROPIC_API_KEY="b", SENTRY_DSN="c", CELERIAC_ENV="prod")["worker"][
        "environment"
    ]
    given = {"OPENAI_API_KEY": "a", "ANTHROPIC_API_KEY": "b", "SENTRY_DSN": "c", "CELERIAC_ENV": "prod"}
    assert given.items() <= worker.items()


def test_docker_waits_longer_than_the_worker_does_for_its_jobs() -> None:
    """Else it would be killed while it hands them back."""
    worker = config()["worker"]
    assert worker["stop_grace_period"] == "40s"
    assert float(worker["environment"]["CELERIAC_WORKER__GRACE"]) == 30


def test_an_image_is_built_by_one_service() -> None:
    """Two would build it twice."""
    images = [service["image"] for service in config().values() if "build" in service]
    assert sorted(images) == ["celeriac-local-model:local", "celeriac:local"]


def test_every_service_is_contained_limited_and_asked_for_its_health() -> None:
    """None is forgotten."""
    services = config()
    assert set(services) == {"valkey", "model", "shim", "worker", "flower"}
    for name, service in services.items():
        assert CONTAINED.items() <= service.items(), name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
