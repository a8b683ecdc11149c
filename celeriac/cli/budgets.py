"""`celeriac budgets` and `celeriac ledger`: money, straight over the stores; settings come from the environment."""

from __future__ import annotations

import dataclasses
import getpass
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import click

from celeriac.cli.over import over_the_stores, shown, table

if TYPE_CHECKING:
    from celeriac.costs.budgets import Cap, Change, Use
    from celeriac.settings import Settings
    from celeriac.stores import Stores

COLUMNS = ("SCOPE", "WINDOW", "CAP USD", "SETTLED", "IN DOUBT", "RESERVED", "LEFT", "ENDS")


@click.group()
def budgets() -> None:
    """What scopes may cost: list, set, delete, and who changed what."""


@budgets.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_budgets(as_json: bool) -> None:
    """Each cap, and what is used of it now."""

    async def work(stores: Stores, _: Settings) -> dict[str, tuple[Use, ...]]:
        return await stores.budgets.all()

    rows = [(scope, use) for scope, uses in over_the_stores(work).items() for use in uses]
    if as_json:
        for scope, use in rows:
            click.echo(shown({"scope": scope} | dataclasses.asdict(use) | {"left": use.left}))
        return
    for line in table([COLUMNS, *(_row(scope, use) for scope, use in rows)]):
        click.echo(line)


@budgets.command("set")
@click.argument("scope")
@click.argument("caps", metavar="WINDOW=DOLLARS...", nargs=-1, required=True)
@click.option("--alert-at", default="80,100", show_default=True, help="Percents that are told, once a window.")
def set_budget(scope: str, caps: Sequence[str], alert_at: str) -> None:
    """Set all caps of a scope, as in: celeriac budgets set tenant:acme day=20 month=400"""
    made = [_cap(cap, alert_at) for cap in caps]

    async def work(stores: Stores, settings: Settings) -> None:
        from celeriac.costs.budgets import check_caps, check_scope

        await stores.budgets.put(check_scope(scope, settings.costs.labels), check_caps(made), _who())

    _said(work)


@budgets.command("delete")
@click.argument("scope")
def delete_budget(scope: str) -> None:
    """Take all caps of a scope away. What was used stays known."""

    async def work(stores: Stores, _: Settings) -> None:
        await stores.budgets.delete(scope, _who())

    _said(work)


@budgets.command("changes")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
def changes(limit: int) -> None:
    """Who changed which budget, the newest first."""

    async def work(stores: Stores, _: Settings) -> list[Change]:
        return await stores.budgets.changes(limit)

    for change in over_the_stores(work):
        was, became = (_caps(caps) for caps in (change.was, change.became))
        click.echo(f"{change.at:%Y-%m-%d %H:%M:%S}Z  {change.scope}  by {change.by}: {was} -> {became}")


@click.group()
def ledger() -> None:
    """What every call cost."""


@ledger.command("export")
@click.option("--from", "start", type=click.DateTime(), help="UTC. Default: a day ago.")
@click.option("--to", "end", type=click.DateTime(), help="UTC. Default: now.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--tenant", help="Only this tenant's.")
def export(start: datetime | None, end: datetime | None, form: str, tenant: str | None) -> None:
    """Entries that were written in a time, one a line, as they are read."""
    now = datetime.now(UTC)
    first = start.replace(tzinfo=UTC) if start else now - timedelta(days=1)
    last = end.replace(tzinfo=UTC) if end else now + timedelta(seconds=1)

    async def work(stores: Stores, _: Settings) -> None:
        from celeriac.costs.ledger import as_csv, as_json

        if form == "csv":
            click.echo(as_csv(None), nl=False)
        async for entry in stores.ledger.entries(first, last, tenant=tenant):
            click.echo(as_csv(entry) if form == "csv" else as_json(entry), nl=False)

    over_the_stores(work)


def _said(work: object) -> None:
    from celeriac.errors import Refused

    try:
        over_the_stores(work)  # type: ignore[arg-type]  # a command of this module
    except Refused as error:
        click.echo(f"celeriac: {error}" + (f"; {error.remedy}" if error.remedy else ""), err=True)
        sys.exit(1)


def _who() -> str:
    return f"cli:{getpass.getuser()}"


def _cap(text: str, alert_at: str) -> Cap:
    from celeriac.costs.books import WINDOWS
    from celeriac.costs.budgets import Cap
    from celeriac.costs.money import nanos

    window, _, dollars = text.partition("=")
    try:
        amount = Decimal(dollars)
        percents = tuple(int(percent) for percent in alert_at.split(",") if percent)
        if window in WINDOWS and amount.is_finite() and amount >= 0:
            return Cap(window, nanos(amount), percents)
    except (InvalidOperation, ValueError):
        pass
    raise click.UsageError(f"{text!r} is no cap: write day=20 or month=400.50; windows are {', '.join(WINDOWS)}")


def _row(scope: str, use: Use) -> Sequence[str]:
    from celeriac.costs.money import usd

    amounts = (use.cap.nanos, use.settled, use.in_doubt, use.reserved, use.left)
    ends = f"{use.ends:%Y-%m-%d %H:%M}Z" if use.ends else ""
    return scope, use.cap.window, *(usd(nanos) for nanos in amounts), ends


def _caps(caps: Sequence[Cap] | None) -> str:
    from celeriac.costs.money import usd

    return " ".join(f"{cap.window}={usd(cap.nanos)}" for cap in caps) if caps else "none"
