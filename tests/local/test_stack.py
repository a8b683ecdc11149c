"""What is started, and what it is told, for what the operator has set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celeriac.errors import Misconfigured
from celeriac.local import stack, valkey
from celeriac.local.stack import Stack
from celeriac.settings import load_settings


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ("CELERIAC_", "REDIS_URL", "OPENAI_", "ANTHROPIC_", "SENTRY_")
    for name in filter(lambda name: name.startswith(usual), list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def built(*, no_model: str = "", **overrides: object) -> Stack:
    settings = stack.with_free_ports(load_settings(**overrides))
    return stack.build(settings, stack.embedded(settings, lambda: no_model))


def told(plan: Stack, name: str) -> dict[str, str]:
    return next(dict(process.env) for group in plan.groups for process in group if process.name == name)


def test_with_nothing_set_everything_is_embedded() -> None:
    """Valkey first and alone, then the model, then the doors together."""
    groups = [[process.name for process in group] for group in built().groups]
    assert groups == [["valkey"], ["model"], ["shim", "worker", "flower"]]


def test_everybody_is_told_where_the_embedded_parts_are() -> None:
    """Under the names that settings read."""
    plan = built(
        local={"redis_port": 1001, "model_port": 1002},
        shim={"port": 1003},
        flower={"port": 1004},
        worker={"health_port": 1005},
    )
    assert told(plan, "worker") == {
        "CELERIAC_REDIS_URL": "redis://127.0.0.1:1001/0",
        "CELERIAC_BROKER_URL": "redis://127.0.0.1:1001/0",
        "CELERIAC_OPENAI_BASE_URL": "http://127.0.0.1:1002/v1",
        "CELERIAC_ANTHROPIC_BASE_URL": "http://127.0.0.1:1002",
        "CELERIAC_SHIM__PORT": "1003",
        "CELERIAC_FLOWER__PORT": "1004",
        "CELERIAC_WORKER__GRACE": "3",
        "CELERIAC_WORKER__HEALTH_PORT": "1005",
    }


@pytest.mark.parametrize("given", ["openai_api_key", "anthropic_api_key", "openai_base_url", "anthropic_base_url"])
def test_a_provider_of_the_operators_own_is_used(given: str) -> None:
    """Then no model is started and no endpoint is changed."""
    plan = built(**{given: "http://given"})
    assert "model" not in plan.names
    assert not {name for name in told(plan, "worker") if "BASE_URL" in name or "SCRIPTED" in name}
    assert plan.note == ""


def test_where_no_model_runs_a_script_answers_and_it_is_said() -> None:
    """What to set for a real one, too."""
    plan = built(no_model="no local model: a library is missing")
    assert "model" not in plan.names
    assert told(plan, "worker")["CELERIAC_SCRIPTED"] == "1"
    assert plan.note.startswith("no local model: a library is missing: jobs are answered by the scripted model")
    assert "OPENAI_API_KEY" in plan.note


def test_in_prod_no_script_answers_in_place_of_a_model() -> None:
    """It is said before anything is started."""
    with pytest.raises(Misconfigured, match="a library is missing, and no script answers in prod; set OPENAI_API_KEY"):
        built(env="prod", shim={"api_keys": {"acme": "k" * 32}}, no_model="a library is missing")


def test_a_script_that_was_asked_for_is_no_news() -> None:
    """No model is started for it."""
    plan = built(scripted=True, no_model="not asked")
    assert ("model" in plan.names, plan.note) == (False, "")


def test_stopping_everything_takes_less_than_ten_seconds() -> None:
    """The deadlines of the groups add up: they stop one after the other."""
    deadlines = [max(process.stop_within for process in group) for group in built().groups]
    assert sum(deadline.total_seconds() for deadline in deadlines) <= 8


def test_a_longer_grace_of_the_worker_does_not_hold_up_the_stop() -> None:
    """A shorter one is left as it is."""
    assert told(built(worker={"grace": 600}), "worker")["CELERIAC_WORKER__GRACE"] == "3"
    assert told(built(worker={"grace": 0.5}), "worker")["CELERIAC_WORKER__GRACE"] == "0.5"


def test_a_port_of_zero_becomes_a_free_one() -> None:
    """The others stay."""
    settings = stack.with_free_ports(load_settings(shim={"port": 0}, flower={"port": 1004}))
    assert settings.shim.port > 0
    assert settings.flower.port == 1004


def test_free_ports_leave_the_settings_what_they_were() -> None:
    """Whether a Redis was named, above all."""
    settings = stack.with_free_ports(load_settings(), every=True)
    assert stack.embedded(settings, str).redis


def test_every_port_is_free_where_that_was_asked_for() -> None:
    """The worker's own too; and a taken one is found before anything is started."""
    wanted = load_settings(worker={"health_port": 1005})
    settings = stack.with_free_ports(wanted, every=True)
    assert settings.worker.health_port not in {None, 0, 1005}
    ports = {port.setting: port.number for port in stack.ports_of(settings, stack.embedded(settings, str))}
    assert ports["CELERIAC_WORKER__HEALTH_PORT"] == settings.worker.health_port
    assert len(set(ports.values())) == len(ports) == 5


def test_without_a_valkey_for_this_platform_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring a Redis and name it."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(Misconfigured) as caught:
        valkey.binary()
    [line] = str(caught.value).splitlines()
    assert "install Redis" in line
    assert "REDIS_URL=" in line


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("::1", "http://[::1]:80"), ("a", "http://a:80")],  # noqa: S104  # nothing is bound
)
def test_urls_are_for_this_machine(host: str, url: str) -> None:
    """Nobody can open 0.0.0.0."""
    assert built(shim={"host": host, "port": 80}).shim_url == url


@pytest.mark.parametrize(
    "url",
    ["redis://u:s3cret@h:1/0", "redis://:s3/cret@h:1/0", "redis://:s3@cret@h:1/0", "redis://h:1/0?password=s3cret"],
)
def test_a_password_is_never_shown(url: str) -> None:
    """However badly the URL is written."""
    assert stack.without_password(url) == "redis://h:1/0"
