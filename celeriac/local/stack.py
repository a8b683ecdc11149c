"""What runs on one machine: which processes, in which order, told what, and where to reach them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import celeriac
from celeriac.errors import Misconfigured
from celeriac.local import ports, probes
from celeriac.local.ports import Port
from celeriac.local.processes import Process
from celeriac.local.valkey import HOST, url, valkey
from celeriac.settings import Settings

# Together below ten seconds: shim, worker and Flower stop at the same time, then the model, then Valkey.
DOORS_STOP = timedelta(seconds=5)
MODEL_STOP = timedelta(seconds=1)
#: What a worker may spend on its jobs once it is told to stop; the rest of DOORS_STOP is for leaving.
GRACE = timedelta(seconds=3)

#: Beside our package wherever it is installed; by its path, because the room imports no door.
FLOWER_CONF = Path(celeriac.__file__).parent.parent / "ops" / "flower" / "flowerconfig.py"

INSTEAD = "jobs are answered by the scripted model; set OPENAI_API_KEY or ANTHROPIC_API_KEY to use a real one"


@dataclass(frozen=True)
class Stack:
    """groups: as the supervisor starts them. note: what the operator should know, or ""."""

    groups: tuple[tuple[Process, ...], ...]
    shim_url: str
    flower_url: str
    redis: str
    models: str
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(process.name for group in self.groups for process in group)


@dataclass(frozen=True)
class Embedded:
    """What we bring because the operator named nothing of their own. model and script exclude each other.

    why: the script answers in place of the local model, "" where it does not.
    """

    redis: bool
    model: bool
    script: bool
    why: str = ""


def embedded(settings: Settings, no_model: Callable[[], str]) -> Embedded:
    """no_model: answers why the local model server cannot run here, "" if it can; asked where it would be used.

    Raises Misconfigured in prod, where no script answers in its place.
    """
    named = (
        settings.openai_api_key,
        settings.anthropic_api_key,
        settings.openai_base_url,
        settings.anthropic_base_url,
    )
    free = not settings.scripted and not any(named)
    why = no_model() if free else ""
    if why and settings.env == "prod":
        raise Misconfigured(f"{why}, and no script answers in prod; set OPENAI_API_KEY or ANTHROPIC_API_KEY")
    return Embedded(
        redis="redis_url" not in settings.model_fields_set,
        model=free and not why,
        script=settings.scripted or bool(why),
        why=why,
    )


def ports_of(settings: Settings, ours: Embedded) -> Iterator[Port]:
    """Every port that this stack listens on."""
    yield Port("CELERIAC_SHIM__PORT", settings.shim.host, settings.shim.port)
    yield Port("CELERIAC_FLOWER__PORT", settings.flower.host, settings.flower.port)
    if settings.worker.health_port:
        yield Port("CELERIAC_WORKER__HEALTH_PORT", settings.worker.health_host, settings.worker.health_port)
    if ours.redis:
        yield Port("CELERIAC_LOCAL__REDIS_PORT", HOST, settings.local.redis_port)
    if ours.model:
        yield Port("CELERIAC_LOCAL__MODEL_PORT", HOST, settings.local.model_port)


def with_free_ports(settings: Settings, *, every: bool = False) -> Settings:
    """Ports set to 0 replaced by free ones; all of them if `every`."""
    spare = iter(ports.free(HOST, 5))

    def choose(wanted: int | None) -> int:
        return next(spare) if every or not wanted else wanted

    shim, worker, flower, local = settings.shim, settings.worker, settings.flower, settings.local
    return settings.model_copy(
        update={
            "shim": shim.model_copy(update={"port": choose(shim.port)}),
            "worker": worker.model_copy(update={"health_port": choose(worker.health_port)}),
            "flower": flower.model_copy(update={"port": choose(flower.port)}),
            "local": local.model_copy(
                update={"redis_port": choose(local.redis_port), "model_port": choose(local.model_port)}
            ),
        }
    )


def build(settings: Settings, ours: Embedded) -> Stack:
    """Raises `Misconfigured` if Valkey is to be embedded and cannot be."""
    local = settings.local
    redis_url = url(local.redis_port) if ours.redis else settings.redis_url.get_secret_value()
    broker_url = settings.broker_url.get_secret_value() if settings.broker_url else redis_url
    env = {
        "CELERIAC_REDIS_URL": redis_url,
        "CELERIAC_BROKER_URL": broker_url,
        "CELERIAC_SHIM__PORT": str(settings.shim.port),
        "CELERIAC_FLOWER__PORT": str(settings.flower.port),
        "CELERIAC_WORKER__GRACE": f"{min(settings.worker.grace, GRACE).total_seconds():g}",
    }
    groups: list[tuple[Process, ...]] = []
    if ours.redis:
        groups.append((valkey(local.directory.absolute() / "valkey", local.redis_port),))
    if ours.model:
        groups.append((_model(local.model_port),))
        env["CELERIAC_OPENAI_BASE_URL"] = f"http://{HOST}:{local.model_port}/v1"
        env["CELERIAC_ANTHROPIC_BASE_URL"] = f"http://{HOST}:{local.model_port}"
    if ours.script:
        env["CELERIAC_SCRIPTED"] = "1"
    shim_url = _url(settings.shim.host, settings.shim.port)
    flower_url = _url(settings.flower.host, settings.flower.port)
    groups.append((_shim(env, shim_url), _worker(env, settings), _flower(env, settings, flower_url)))
    return Stack(
        tuple(groups),
        shim_url=shim_url,
        flower_url=flower_url,
        redis=without_password(redis_url),
        models=_answering(settings, ours),
        note=f"{ours.why}: {INSTEAD}" if ours.why else "",
    )


def _answering(settings: Settings, ours: Embedded) -> str:
    if ours.model:
        return f"the local model at http://{HOST}:{settings.local.model_port}"
    if ours.script:
        return "none: answers come from a script"
    asked = {
        settings.openai_base_url or "OpenAI": settings.openai_api_key or settings.openai_base_url,
        settings.anthropic_base_url or "Anthropic": settings.anthropic_api_key or settings.anthropic_base_url,
    }
    return " and ".join(name for name, whether in asked.items() if whether)


def _model(port: int) -> Process:
    return Process(
        "model",
        (sys.executable, "-m", "celeriac.local.model", "--port", str(port)),
        ready=probes.http(f"http://{HOST}:{port}/health"),
        stop_within=MODEL_STOP,
    )


def _shim(env: dict[str, str], shim_url: str) -> Process:
    return Process(
        "shim",
        (sys.executable, "-m", "api_shim"),
        env,
        ready=probes.http(f"{shim_url}/readyz"),
        stop_within=DOORS_STOP,
    )


def _worker(env: dict[str, str], settings: Settings) -> Process:
    host = settings.worker.health_host
    port = settings.worker.health_port
    assert port is not None  # noqa: S101  # `with_free_ports` has chosen one
    return Process(
        "worker",
        (sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        env | {"CELERIAC_WORKER__HEALTH_PORT": str(port)},
        # Asked itself: for the length of a lease the store still knows the one that died before it.
        ready=probes.http(f"{_url(host, port)}/readyz"),
        stop_within=DOORS_STOP,
    )


def _flower(env: dict[str, str], settings: Settings, flower_url: str) -> Process:
    options = (f"--conf={FLOWER_CONF}", f"--address={settings.flower.host}", f"--port={settings.flower.port}")
    return Process(
        "flower",
        (sys.executable, "-m", "celery", "-A", "worker.app", "flower", *options),
        env,
        # It may ask for a password, or send elsewhere: it answers.
        ready=probes.http(flower_url, lambda status: status < 500),
        stop_within=DOORS_STOP,
    )


def _url(host: str, port: int) -> str:
    """Where a browser on this machine finds what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def without_password(redis_url: str) -> str:
    """The URL without its user, its password and its options, however badly it is written."""
    return re.sub(r"//.*@", "//", redis_url.partition("?")[0])
