"""`celeriac receipts`: show a job's receipt, straight over the stores, and verify one that somebody hands in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import click

from celeriac.cli.over import over_the_stores, table

if TYPE_CHECKING:
    from celeriac.errors import Invalid
    from celeriac.settings import Settings
    from celeriac.stores import Stores

LINES = ("CALL", "RUN", "STEP", "LANE", "STANDS", "ERROR", "TOKENS", "COST USD", "AT MOST USD")
CHILDREN = ("ASKED FOR", "AGENT", "STATE", "COST USD", "IN DOUBT USD", "ITS OWN CHILDREN USD")


@click.group()
def receipts() -> None:
    """Show what a job cost, call by call; verify a receipt."""


@receipts.command()
@click.argument("job_id", metavar="JOB")
@click.option("--tenant", help="Only if it is this tenant's.")
def show(job_id: str, tenant: str | None) -> None:
    """The job's receipt as a table. It is signed by the shim alone: GET /v1/jobs/{id}/receipt."""

    async def work(stores: Stores, settings: Settings) -> dict[str, Any] | None:
        from celeriac.accounts import receipt
        from celeriac.costs.prices import Prices

        account = await stores.jobs.account(job_id, tenant)
        return receipt(account, Prices.of(settings)) if account is not None else None

    made = over_the_stores(work)
    if made is None:
        click.echo(f"celeriac: there is no job {job_id}", err=True)
        sys.exit(1)
    until = "final" if made["final"] else "not final"
    click.echo(f"{made['job_id']}  {made['agent']}  {made['state']}  revision {made['revision']}, {until}")
    for line in table([LINES, *map(_line, made["lines"])]):
        click.echo(line)
    if made["children"]["jobs"]:
        for line in table([CHILDREN, *map(_child, made["children"]["jobs"])]):
            click.echo(line)
    sums = [_sums(name, made[of]) for name, of in (("itself", "own"), ("those that work for it", "children"))]
    for line in table([("", "COST USD", "IN DOUBT USD", "UNDER WAY USD"), *sums]):
        click.echo(line)


@receipts.command()
@click.argument("file", type=click.File("rb"))
def verify(file: IO[bytes]) -> None:
    """Whether one of our keys signed the receipt in FILE (- for standard input), and whether it adds up.

    The keys are those of CELERIAC_COSTS__RECEIPT_KEYS. Exit status 1: do not believe it.
    """
    from celeriac.costs.receipts import Signing, check_sums, read
    from celeriac.errors import Invalid
    from celeriac.settings import load_settings

    costs = load_settings().costs
    try:
        found = read(file.read())
    except Invalid as error:
        _complain(error)
        sys.exit(1)
    signing = Signing(costs.receipt_keys, costs.signs_with)
    # Both are said, where both are wrong.
    if not all([_holds(signing.verify, found), _holds(check_sums, found)]):
        sys.exit(1)
    until, cost = "final" if found["final"] else "not final", found["own"]["cost_usd"]
    click.echo(f"signed with the key {found['signature']['key']}, and it adds up")
    click.echo(f"job {found['job_id']} cost {cost} USD itself; revision {found['revision']}, {until}")


def _holds(check: Callable[[dict[str, Any]], object], receipt: dict[str, Any]) -> bool:
    from celeriac.errors import Invalid

    try:
        check(receipt)
    except Invalid as error:
        _complain(error)
        return False
    return True


def _complain(error: Invalid) -> None:
    click.echo(f"celeriac: {error}" + (f"; {error.remedy}" if error.remedy else ""), err=True)


def _line(line: dict[str, Any]) -> tuple[str, ...]:
    usage = line["usage"] or {}
    tokens = "" if not usage else f"{sum(usage.get(name, 0) for name in READ)} in, {usage.get('output_tokens', 0)} out"
    return (
        line["call_id"],
        str(line["attempt"] or ""),
        str(line["step"]),
        line["lane"],
        line["stands"] + (", late" if line["late"] else "") + (", overrun" if line["overrun"] else ""),
        line["error"] or "",
        tokens,
        (line["cost_usd"] or "") + (", estimated" if line["estimated"] else ""),
        line["bound_usd"],
    )


#: The classes of a prompt's tokens.
READ = ("input_tokens", "cache_read_tokens", "cache_write_tokens")


def _child(job: dict[str, Any]) -> tuple[str, ...]:
    facts = ("agent", "state", "cost_usd", "in_doubt_usd", "children_cost_usd")
    return job["job_id"], *(job[fact] or "forgotten" for fact in facts)


def _sums(name: str, sums: dict[str, Any]) -> tuple[str, ...]:
    return name, sums["cost_usd"], sums["in_doubt_usd"], sums["reserved_usd"]
