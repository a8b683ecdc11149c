"""`celeriac doubt`: calls that may have been billed, straight over the stores; settings come from the environment."""

from __future__ import annotations

import dataclasses
import getpass
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import click

from celeriac.cli.over import over_the_stores, shown, table

if TYPE_CHECKING:
    from celeriac.costs.doubts import InDoubt, Outcome, Resolution, Resolved
    from celeriac.settings import Settings
    from celeriac.stores import Stores

COLUMNS = ("JOB", "CALL", "ADMITTED", "TENANT", "AGENT", "LANE", "AT MOST USD", "WHY", "REQUEST ID")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PAGE = 500


def _age(_: click.Context, __: click.Parameter, text: str | None) -> timedelta | None:
    """Of a whole number of seconds, minutes, hours or days."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})([smhd])", text, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{text!r} is no age: write 90m, 12h or 1d")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


@click.group()
def doubt() -> None:
    """Calls that may have been billed: list them, say what became of one, and who said so."""


@doubt.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option(
    "--older-than", callback=_age, metavar="AGE", help="Only those that were admitted so long ago, as 1d or 12h."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_doubts(tenant: str | None, older_than: timedelta | None, as_json: bool) -> None:
    """The oldest first, with what the provider knows them by."""
    before = datetime.now(UTC) - older_than if older_than is not None else None

    async def work(stores: Stores, _: Settings) -> list[InDoubt]:
        found: list[InDoubt] = []
        while True:
            after = found[-1].cursor if found else ""
            page = await stores.doubts.list(tenant=tenant, before=before, after=after, most=PAGE)
            found += page
            if len(page) < PAGE:
                return found

    found = over_the_stores(work)
    for line in map(_json, found) if as_json else table([COLUMNS, *map(_row, found)]):
        click.echo(line)


@doubt.command()
@click.argument("job")
@click.argument("call")
@click.option("--cost", metavar="DOLLARS", help="It was billed, at so much: 0.0123")
@click.option("--not-billed", is_flag=True, help="It was certainly not billed.")
@click.option("--note", default="", help="How you know: kept with who said so.")
def resolve(job: str, call: str, cost: str | None, not_billed: bool, note: str) -> None:
    """Say what became of a call in doubt. It is booked once, and stays so."""
    if (cost is None) != not_billed:
        raise click.UsageError("say what became of it: either --cost DOLLARS or --not-billed")
    outcome: Outcome = "released" if cost is None else _nanos(cost)

    async def work(stores: Stores, _: Settings) -> Resolution:
        return await stores.doubts.resolve(job, call, outcome, f"cli:{getpass.getuser()}", note)

    from celeriac.errors import Refused

    try:
        resolved = over_the_stores(work)
    except Refused as error:
        click.echo(f"celeriac: {error}" + (f"; {error.remedy}" if error.remedy else ""), err=True)
        sys.exit(1)
    for line in _told(resolved):
        click.echo(line)


@doubt.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
def changes(limit: int) -> None:
    """Who resolved what, the newest first."""

    async def work(stores: Stores, _: Settings) -> Sequence[Resolved]:
        return await stores.doubts.changes(limit)

    from celeriac.costs.doubts import spelt
    from celeriac.costs.money import usd

    for made in over_the_stores(work):
        note = f"  ({made.note})" if made.note else ""
        what = f"in doubt at ${usd(made.bound)} -> {spelt(made.outcome)}"
        click.echo(f"{made.at:%Y-%m-%d %H:%M:%S}Z  {made.job} {made.call}  by {made.by}: {what}{note}")


def _nanos(cost: str) -> int:
    from celeriac.costs.money import nanos

    try:
        amount = Decimal(cost)
        if amount.is_finite() and 0 <= amount <= 9_000_000:
            return nanos(amount)
    except InvalidOperation:
        pass
    raise click.UsageError(f"{cost!r} is no amount: write dollars, as 0.0123, from 0 to 9000000")


def _told(resolved: Resolution) -> Iterator[str]:
    from celeriac.costs.doubts import spelt
    from celeriac.costs.money import usd

    before = "was resolved so before: " if resolved.again else ""
    bound = f"at most ${usd(resolved.bound)} was in doubt"
    yield f"{resolved.job} {resolved.call}  {before}{spelt(resolved.outcome)}; {bound}"
    if resolved.overrun:
        yield "that is more than the call was believed to cost at most: it is booked as an overrun"


def _json(one: InDoubt) -> str:
    from celeriac.costs.money import usd

    return shown(dataclasses.asdict(one) | {"bound_usd": usd(one.bound)})


def _row(one: InDoubt) -> Sequence[str]:
    from celeriac.costs.money import usd

    at, why = f"{one.at:%Y-%m-%d %H:%M:%S}Z", one.error or "broken off"
    return one.job, one.call, at, one.tenant, one.agent, one.lane, usd(one.bound), why, one.request_id
