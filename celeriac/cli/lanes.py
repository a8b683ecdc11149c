"""`celeriac lanes`: what the fleet knows of the providers, straight over the stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from celeriac.cli.over import over_the_stores, shown, table

if TYPE_CHECKING:
    from celeriac.gate.lanes import Change, Known, Rate
    from celeriac.settings import Settings
    from celeriac.stores import Stores

#: Why a lane is closed that waits for an operator.
OVERRUN = "overrun"
COLUMNS = ("LANE", "MAY BE ASKED", "WAITING", "LEFT OF ITS RATES")


@click.command()
@click.option("--changes", type=click.IntRange(0, 1000), default=5, show_default=True, help="Of breakers, the newest.")
@click.option(
    "--open",
    "opened",
    metavar="LANE",
    help="Ask it again after a call cost more than its bound, and forget how far its bounds were raised for that.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def lanes(changes: int, opened: str | None, as_json: bool) -> None:
    """Lanes of agents, those that jobs wait for, and those whose calls cost more than their bounds: which may be asked,
    their rates; and which breakers changed.
    """

    async def work(stores: Stores, settings: Settings) -> tuple[list[Known], list[Change]]:
        from celeriac.agents.registry import read_agents

        registry = read_agents(settings.agents_file)
        changed = await stores.lanes.changes(changes) if changes else []
        named = {lane for agent in registry for lane in agent.lanes} | registry.caps.keys() | {c.lane for c in changed}
        named |= await stores.lanes.waited_for() | await stores.lanes.overran()
        return await stores.lanes.look(sorted(named, key=str)), changed

    if opened is not None:
        _open(opened)
        return
    known, changed = over_the_stores(work)
    if as_json:
        facts: list[Known | Change] = [*known, *changed]
        for fact in facts:
            click.echo(shown(dataclasses.asdict(fact) | {"lane": str(fact.lane)}))
        return
    for line in table([COLUMNS, *map(_row, known)]):
        click.echo(line)
    for change in changed:
        click.echo(f"{change.at:%Y-%m-%d %H:%M:%S}Z  {change.lane}  {_what(change)}")


def _open(name: str) -> None:
    from celeriac.agents.registry import lane
    from celeriac.errors import Invalid

    if not all(name.partition("/")):
        raise Invalid(f"{name} is no lane", remedy="write PROVIDER/MODEL, as openai/gpt-5.4-mini")

    async def work(stores: Stores, settings: Settings) -> str:
        return await stores.lanes.open(lane(name))

    was = over_the_stores(work)
    click.echo(
        f"{name} is asked again, at its own bounds" if was else f"{name} had no call that cost more than its bound"
    )


def _what(change: Change) -> str:
    if change.state == "open":
        span = f"for {change.wait.total_seconds():g} s" if change.wait else "until `celeriac lanes --open` is said"
        return f"opened {span}: {change.why}"
    by = f" by an {change.why}" if change.why else ""
    became = {"half_open": "tried out by one call", "closed": "closed", "reset": "its bounds were taken back"}
    return became[change.state] + by


def _row(known: Known) -> Sequence[str]:
    return str(known.lane), _may_be_asked(known), str(known.waiting or ""), _rates(known.rates)


def _may_be_asked(known: Known) -> str:
    raised = f", at bounds times {known.over:g}" if known.over > 1 else ""
    if known.why == OVERRUN:
        return "when an operator opens it: a call cost more than its bound" + raised
    if known.wait:
        return f"in {known.wait.total_seconds():.1f} s: {known.why}"
    return ("by one call, to try it out" if known.trial else "yes") + raised


def _period(period: timedelta) -> str:
    """A bucket's, as providers name them."""
    minutes = round(period / timedelta(minutes=1))
    if period > timedelta(hours=1):
        return "a day"
    return "a minute" if minutes <= 1 else f"in {minutes} minutes"


def _rates(rates: Mapping[str, Rate]) -> str:
    return ", ".join(
        f"{name} {rate.left} of {rate.most}" + f" {_period(rate.period)}" for name, rate in sorted(rates.items())
    )
