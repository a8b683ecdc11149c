"""`celeriac up` and `celeriac demo`: check, start, run one job, and stay up or go."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from celeriac.errors import Misconfigured, NotStarted
from celeriac.local import model, ports, stack
from celeriac.local.first_job import Job, first_job, told
from celeriac.local.output import Output
from celeriac.local.stack import Embedded, Stack
from celeriac.local.supervisor import ME, Supervisor, run
from celeriac.settings import Settings

Print = Callable[[str], None]


def up(settings: Settings, say: Print) -> None:
    """Start everything, run one job, stay up until a signal.

    say: prints to standard output; what the processes print goes to standard error. Raises `Misconfigured` before
    anything is started, `NotStarted` once everything that was started has stopped again.
    """
    settings = stack.with_free_ports(settings)
    ours = stack.embedded(settings, model.missing)
    if mistakes := list(ports.mistakes(stack.ports_of(settings, ours))):
        raise Misconfigured("\n".join(mistakes))
    with _alone_in(settings.local.directory):
        asyncio.run(_up(settings, ours, say))


async def _up(settings: Settings, ours: Embedded, say: Print) -> None:
    if not ours.redis:
        await _reach(settings)
    plan = stack.build(settings, ours)
    supervisor = _supervisor(plan)

    async def work() -> None:
        for line in banner(plan):
            say(line)
        try:
            job = await first_job(plan.shim_url, _first_key(settings))
        except NotStarted as error:
            supervisor.say(str(error))  # the rest runs: leave it to the operator to look at
        else:
            for line in told(job):
                say(f"  {line}")
        say("Ctrl-C stops everything.")
        await asyncio.Event().wait()

    await run(supervisor, work)


def demo(settings: Settings) -> Job | None:
    """Start everything on free ports in a temporary directory, run one job, stop. Returns the job; None: a signal.

    It has its own Valkey whatever is set: a demonstration must not take jobs out of a real queue.
    """
    with tempfile.TemporaryDirectory(prefix="celeriac-demo-") as directory:
        local = settings.local.model_copy(update={"directory": Path(directory)})
        settings = settings.model_copy(update={"local": local, "broker_url": None})
        settings = stack.with_free_ports(settings, every=True)
        plan = stack.build(settings, replace(stack.embedded(settings, model.missing), redis=True))
        return asyncio.run(_demo(plan, _first_key(settings)))


async def _demo(plan: Stack, key: str | None) -> Job | None:
    return await run(_supervisor(plan), lambda: first_job(plan.shim_url, key))


def banner(plan: Stack) -> Iterator[str]:
    yield "Celeriac is up:"
    yield f"  shim    {plan.shim_url}  (try {plan.shim_url}/docs)"
    yield f"  flower  {plan.flower_url}"
    yield f"  redis   {plan.redis}"
    yield f"  models  {plan.models}"


def _supervisor(plan: Stack) -> Supervisor:
    output = Output(sys.stderr, (ME, *plan.names))
    supervisor = Supervisor(plan.groups, output)
    if plan.note:
        supervisor.say(plan.note)
    return supervisor


def _first_key(settings: Settings) -> str | None:
    return next((key.get_secret_value() for key in settings.shim.api_keys.values()), None)


async def _reach(settings: Settings) -> None:
    """Raises `Misconfigured` if the Redis that the operator named does not answer."""
    # Imported here: with a Valkey of our own nothing in this process needs the client.
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    url = settings.redis_url.get_secret_value()
    client = Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5)
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        raise Misconfigured(
            f"CELERIAC_REDIS_URL: {stack.without_password(url)} does not answer ({error}); "
            "start it, or unset CELERIAC_REDIS_URL and REDIS_URL to have a Valkey embedded"
        ) from error
    finally:
        await client.aclose()


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Two servers on one append-only file would ruin it. The lock ends with us, however we end."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Misconfigured(f"CELERIAC_LOCAL__DIRECTORY: {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(lock, 32).decode() or "unknown"
        raise Misconfigured(
            f"{directory} belongs to a `celeriac up` that is running (pid {owner}); "
            "stop it, or choose another directory by --directory or CELERIAC_LOCAL__DIRECTORY"
        ) from error
    else:
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)
