"""`celeriac jobs`: look at jobs and act on them, straight over the stores; settings come from the environment."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.over import over_the_stores, shown, table

if TYPE_CHECKING:
    from celeriac.jobs.model import Job
    from celeriac.settings import Settings
    from celeriac.stores import Stores

STATES = ("queued", "running", "parked", "succeeded", "failed", "cancelled", "expired")
ENDED_BADLY = ("failed", "cancelled", "expired")
COLUMNS = ("ID", "STATE", "AGENT", "CREATED", "RUNS", "COST USD", "WHY")


@click.group()
def jobs() -> None:
    """List jobs, show one, cancel them, start them again."""


@jobs.command("list")
@click.option("--tenant", help="Whose jobs; to be named where several tenants have an API key.")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--agent", default="", help="Only jobs of this agent.")
@click.option("--dead", is_flag=True, help="Only dead letters: failed jobs that killed their workers.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_jobs(tenant: str | None, state: str | None, agent: str, dead: bool, limit: int, as_json: bool) -> None:
    """Newest first, without their answers."""
    _only_failed(state, dead)

    async def work(stores: Stores, settings: Settings) -> list[Job]:
        found: list[Job] = []
        async for job in _all(stores, _tenant(settings, tenant), state, agent, dead):
            found.append(job)
            if len(found) == limit:
                break
        return found

    found = over_the_stores(work)
    for line in (shown(_facts(job)) for job in found) if as_json else table([COLUMNS, *map(_row, found)]):
        click.echo(line)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--tenant", help="Only if it is this tenant's.")
def show(job_id: str, tenant: str | None) -> None:
    """One job as JSON, with its answer and its calls."""

    async def work(stores: Stores, _: Settings) -> Job | None:
        return await stores.jobs.get(job_id, tenant)

    job = over_the_stores(work)
    if job is None:
        _complain(f"there is no job {job_id}")
        sys.exit(1)
    click.echo(shown(_facts(job) | _whole(job), indent=True))


@jobs.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--tenant", help="Only those of this tenant.")
def cancel(ids: tuple[str, ...], tenant: str | None) -> None:
    """Stop jobs. A running one is asked to, and stops within about a second."""

    async def work(stores: Stores, _: Settings) -> int:
        refused = 0
        for id in ids:
            state = await stores.jobs.cancel(id, tenant)
            if state in ("running", "cancelled"):
                click.echo(f"{id} {'stopping' if state == 'running' else 'cancelled'}")
            else:
                _complain(f"job {id} is {state}" if state else f"there is no job {id}")
                refused += 1
        return refused

    sys.exit(1 if over_the_stores(work) else 0)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--tenant", help="Only if it is this tenant's.")
@click.option("--approve/--refuse", default=None, required=True, help="Whether the calls may be made.")
@click.option("--reason", default="", help="The model is told of it where they are refused.")
@click.option("--call", "calls", multiple=True, help="This one of its approvals; may be given again.")
@click.option("--all", "every", is_flag=True, help="All of them, whatever they are when this is read.")
def resume(job_id: str, tenant: str | None, approve: bool, reason: str, calls: tuple[str, ...], every: bool) -> None:
    """Decide about calls of tools that a job waits to be allowed; `show` has them as its approvals."""
    from celeriac.errors import Refused

    if bool(calls) == every:
        raise click.UsageError("name what was looked at, by --call; or say --all")

    async def work(stores: Stores, _: Settings) -> int | str | None:
        job = await stores.jobs.get(job_id, tenant)
        asked = calls or [asked.call for asked in job.approvals] if job is not None else []
        if job is not None and not asked:
            return f"job {job_id} waits for no approval"
        try:
            return await stores.jobs.resume(job_id, tenant, approve=approve, reason=reason, calls=asked)
        except Refused as error:
            return str(error)

    left = over_the_stores(work)
    if not isinstance(left, int):
        _complain(left or f"there is no job {job_id}")
        sys.exit(1)
    click.echo(f"{job_id} " + (f"waits for {left} more" if left else "goes on"))


@jobs.command()
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.option("--tenant", help="Whose jobs; with ids, only those of this tenant.")
@click.option("--state", type=click.Choice(ENDED_BADLY), help="All jobs that ended so.")
@click.option("--dead", is_flag=True, help="All dead letters: failed jobs that killed their workers.")
@click.option("--agent", default="", help="With --state or --dead: only jobs of this agent.")
@click.option("--fresh", is_flag=True, help="From the beginning, and not after the steps that are stored.")
@click.option(
    "--expires-in",
    type=click.FloatRange(min=0.001, max=366 * 86_400),
    metavar="SECONDS",
    help="They expire unless they have ended after so long.",
)
def retry(
    ids: tuple[str, ...],
    tenant: str | None,
    state: str | None,
    dead: bool,
    agent: str,
    fresh: bool,
    expires_in: float | None,
) -> None:
    """Start jobs again that failed, were cancelled or expired: by their ids, or all of --state or --dead."""
    if bool(ids) == bool(state or dead):
        raise click.UsageError("name jobs by their ids, or all of them by --state or --dead")
    if ids and agent:
        raise click.UsageError("--agent goes with --state or --dead")
    _only_failed(state, dead)
    expiry = None if expires_in is None else timedelta(seconds=expires_in)

    async def work(stores: Stores, settings: Settings) -> int:
        from celeriac.jobs.model import as_retried

        if ids:
            wanted: list[Job | str] = [await stores.jobs.get(id, tenant) or id for id in ids]
        else:
            found = _all(stores, _tenant(settings, tenant), state, agent, dead)
            wanted = list(as_retried([job async for job in found]))
        refused = 0
        for job in wanted:
            said = await _retry(stores, job, fresh, expiry)
            refused += not said
        click.echo(f"{len(wanted) - refused} retried" + (f", {refused} refused" if refused else ""), err=True)
        return refused

    sys.exit(1 if over_the_stores(work) else 0)


async def _retry(stores: Stores, job: Job | str, fresh: bool, expires_in: timedelta | None) -> bool:
    """Whether it was started again; says so, or why not. job: an id where there is no such job."""
    from celeriac.errors import Conflict

    if isinstance(job, str):
        _complain(f"there is no job {job}")
        return False
    try:
        replayed = await stores.jobs.replay(job.id, job.tenant, fresh=fresh, expires_in=expires_in)
    except Conflict as error:
        _complain(str(error))
        return False
    if replayed is None:  # it has aged out since
        _complain(f"there is no job {job.id}")
        return False
    done = 0 if replayed.fresh else job.steps
    click.echo(f"{job.id} goes on after step {done}" if done else f"{job.id} starts from the beginning")
    return True


async def _all(stores: Stores, tenant: str, state: str | None, agent: str, dead: bool) -> AsyncIterator[Job]:
    """Page by page, the newest first."""
    from celeriac.jobs.model import State

    cursor: str | None = None
    while True:
        page = await stores.jobs.list(
            tenant, state=State(state) if state else None, agent=agent, dead=dead, cursor=cursor, limit=200
        )
        for job in page.jobs:
            yield job
        if (cursor := page.cursor) is None:
            return


def _tenant(settings: Settings, named: str | None) -> str:
    """Without API keys everybody is one tenant."""
    if named is not None:
        return named
    tenants = sorted(settings.shim.api_keys) or ["default"]
    if len(tenants) > 1:
        raise click.UsageError(f"several tenants have an API key: name one with --tenant ({', '.join(tenants)})")
    return tenants[0]


def _only_failed(state: str | None, dead: bool) -> None:
    if dead and state not in (None, "failed"):
        raise click.UsageError("dead letters are failed jobs: leave --state out")


def _complain(why: str) -> None:
    click.echo(f"celeriac: {why}", err=True)


def _facts(job: Job) -> dict[str, Any]:
    """As the API names them, without the answer."""
    from celeriac.costs.money import usd

    facts = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    del facts["answer"], facts["calls"], facts["approvals"]
    # The receipt has them.
    del facts["reserved_nanos"], facts["children_reserved_nanos"], facts["revision"]
    nanos, in_doubt = facts.pop("cost_nanos"), facts.pop("in_doubt_nanos")
    return facts | {"cost_usd": None if nanos is None else usd(nanos), "in_doubt_usd": usd(in_doubt)}


def _whole(job: Job) -> dict[str, Any]:
    """What only one job at a time is shown with."""
    return {
        "answer": job.answer,
        "calls": [_call(call) for call in job.calls],
        "approvals": [dataclasses.asdict(asked) for asked in job.approvals],
    }


def _call(call: Any) -> dict[str, Any]:
    from celeriac.costs.money import usd

    price = "cost_usd" if call.stands == "settled" else "bound_usd"
    return {"id": call.id, "stands": call.stands, price: usd(call.nanos), "started_at": call.at, **call.facts}


def _row(job: Job) -> tuple[str, ...]:
    from celeriac.costs.money import usd

    why = (
        "dead letter" if job.dead else job.error.code if job.error else "stopping" if job.stopping else job.reason or ""
    )
    if job.resume_at is not None:
        why += f" until {job.resume_at:%Y-%m-%d %H:%M:%S}Z"
    if job.waits_for is not None:
        why = f"behind {job.waits_for}"
    created = f"{job.created_at:%Y-%m-%d %H:%M:%S}Z"
    cost = "" if job.cost_nanos is None else usd(job.cost_nanos)
    return job.id, job.state, job.agent, created, str(job.attempts), cost, why
