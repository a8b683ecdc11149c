"""`celeriac reconcile`: a provider's report against the ledger, straight over the stores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import IO, TYPE_CHECKING

import click

from celeriac.cli.over import over_the_stores, shown, table

if TYPE_CHECKING:
    from celeriac.costs.reconcile import Comparison, Row
    from celeriac.settings import Settings
    from celeriac.stores import Stores

COSTS = ("DAY", "MODEL", "BILLED USD", "SETTLED", "IN DOUBT", "DIFFERENCE", "VERDICT")
USAGE = ("DAY", "MODEL", "BILLED TOKENS", "SETTLED", "IN DOUBT USD", "CALLS", "DIFFERENCE", "VERDICT")


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Whose calls it bills; may be repeated.")
@click.option("--rounding", metavar="DOLLARS", help="By how much a line may be rounded. Default: 0.0000001")
def reconcile(file: IO[bytes], as_json: bool, providers: tuple[str, ...], rounding: str | None) -> None:
    """Compare a provider's report in FILE (- for standard input) with the ledger, by UTC day and model.

    It is an answer of OpenAI's costs or completions usage API, or of Anthropic's cost or messages usage report. Exit
    status 1: something that was billed is not explained, or something that is settled was not billed. 2: the file
    cannot be read, or nothing in it compared.
    """
    from celeriac.costs.exports import read_export
    from celeriac.errors import Invalid

    most = _dollars(rounding) if rounding is not None else None
    try:
        export = read_export(file.read())
    except Invalid as error:
        click.echo(f"celeriac: {error}; {error.remedy}", err=True)
        sys.exit(2)

    async def work(stores: Stores, settings: Settings) -> Comparison:
        from datetime import UTC, datetime

        from celeriac.costs.reconcile import ROUNDING, reconcile

        return await reconcile(
            export,
            stores.ledger,
            settings.costs.entries_ttl,
            datetime.now(UTC),
            providers=providers,
            rounding=ROUNDING if most is None else most,
        )

    found = over_the_stores(work)
    if as_json:
        click.echo(shown(found.as_dict(), indent=True))
    else:
        for line in _lines(found):
            click.echo(line)
    if len(found.skipped) == len(export.covered):
        click.echo("celeriac: no day of the file could be compared", err=True)
        sys.exit(2)
    sys.exit(1 if found.unexplained else 0)


def _dollars(text: str) -> Fraction:
    try:
        amount = Decimal(text)
        if amount.is_finite() and 0 <= amount <= 1:
            return Fraction(amount)
    except InvalidOperation:
        pass
    raise click.UsageError(f"{text!r} is no amount that a line is rounded by: write it as 0.000001")


def _lines(found: Comparison) -> Iterator[str]:
    from celeriac.costs.reconcile import shown

    head, row = (COSTS, _cost) if found.kind == "costs" else (USAGE, _usage)
    yield from table([head, *map(row, found.rows)])
    if found.apart:
        yield "of no model, and compared with nothing:"
        yield from table([(f"{line.day}", line.item or "(no name)", shown(line.dollars)) for line in found.apart])
    for day, why in found.skipped.items():
        yield f"not compared: {day}, {why}"
    if found.more:
        yield "the report goes on: its last page names a next one"


def _cost(row: Row) -> tuple[str, ...]:
    told = row.as_dict()
    names = ("day", "model", "billed_usd", "settled_usd", "in_doubt_usd", "difference_usd", "verdict")
    return tuple(told[name] for name in names)


def _usage(row: Row) -> tuple[str, ...]:
    told = row.as_dict()
    differs = [f"{name} {count:+}" for name, count in row.differences.items() if count]
    return (
        told["day"],
        row.model,
        str(sum(row.billed.values())),
        str(sum(row.tokens.values())),
        told["in_doubt_usd"] + (f" ({row.untold} calls)" if row.untold else ""),
        f"{row.calls}" if row.requests is None else f"{row.requests} / {row.calls}",
        ", ".join(differs) or "0",
        row.verdict,
    )
