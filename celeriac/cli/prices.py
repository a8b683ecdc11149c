"""`celeriac prices`: what tokens cost, by whose word and since when. It asks no network, and no store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.over import table
from celeriac.llm.model import CLASSES

if TYPE_CHECKING:
    from celeriac.costs.prices import Listed, Prices

HEAD = ("MODEL", "TIER", "ABOVE", "INPUT", "READ", "WRITE", "WRITE 1H", "OUTPUT", "REASONING", "DATE", "SOURCE")
#: How the price of a model is said not to be its own.
ESTIMATES = {"model": ", an estimate: this snapshot is not known", "dearest": ", an estimate: the dearest known"}


class Lanes(click.Group):
    """What is no command of the group is a lane: `celeriac prices openai/gpt-5-mini` shows it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Lanes)
def prices() -> None:
    """Prices in force, of the lanes that are named or of all overrides; `check FILE` looks at a file beforehand."""


@prices.command()
@click.argument("lanes", nargs=-1, metavar="[PROVIDER/MODEL]...")
@click.option("--at", type=click.DateTime(["%Y-%m-%d"]), help="On that day, UTC. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(lanes: Sequence[str], at: datetime | None, as_json: bool) -> None:
    """Dollars a million tokens, by tier and length of the prompt; of all overrides where no lane is named."""
    from celeriac.agents.registry import read_agents
    from celeriac.assembly import open_prices
    from celeriac.settings import load_settings

    settings = load_settings()
    known = open_prices(settings, read_agents(settings.agents_file))
    when = (at or datetime.now(UTC)).replace(tzinfo=UTC)
    found = [_found(known, lane, when) for lane in lanes] if lanes else _overrides(known)
    rows = [line for name, listed in found for line in _lines(name, listed)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    for line in table([HEAD, *map(_texts, rows)]):
        click.echo(line)


@prices.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Whether a file of overrides (.toml) or of genai-prices' data (.json) can be used. Exit status 2: it cannot."""
    from celeriac.costs import overrides
    from celeriac.costs.library import Table

    if file.suffix == ".json":
        click.echo(f"{file}: prices of {Table.read(file).count()} models; CELERIAC_PRICES_DATA_FILE takes it")
        return
    found = overrides.read(file)
    to_come = [override for rows in found.values() for override in rows if _is_to_come(override.since)]
    later = f", {len(to_come)} of their rows not in force yet" if to_come else ""
    click.echo(f"{file}: prices of {len(found)} models{later}; CELERIAC_PRICES_FILE takes it")


def _is_to_come(since: Any) -> bool:
    return since is not None and since > datetime.now(UTC).date()


def _found(known: Prices, lane: str, at: datetime) -> tuple[str, Listed]:
    from celeriac.llm.model import Lane

    provider, _, model = lane.partition("/")
    if not provider or not model:
        raise click.BadParameter(f"{lane!r} is no lane; write provider/model, as openai/gpt-5-mini")
    return lane, known.listed(Lane(provider, model), at)


def _overrides(known: Prices) -> Iterator[tuple[str, Listed]]:
    from celeriac.costs.prices import Listed

    for name, override in known.overrides():
        yield name, Listed(override.row, "own", str(override.since or ""))


def _lines(name: str, listed: Listed) -> Iterator[dict[str, Any]]:
    from celeriac.costs.rows import dollars_of

    row = listed.row
    for tier, prices in row.tiers.items():
        for step in prices.steps:
            yield {
                "model": name,
                "tier": tier or "standard",
                "above": step.above,
                **dict(zip(CLASSES, map(dollars_of, step.rates), strict=True)),
                "regions": {region: str(factor) for region, factor in row.regions.items()},
                "date": prices.date,
                "from": listed.since,
                "source": row.source,
                "row": row.name,
                "known": listed.known,
            }


def _texts(row: dict[str, Any]) -> Sequence[str]:
    since = f"from {row['from']}" if row["from"] else row["date"]
    source = f"{row['source']}: {row['row']}{ESTIMATES.get(row['known'], '')}"
    above = str(row["above"] or "")
    return row["model"], row["tier"], above, *(row[name] for name in CLASSES), since, source
