"""The `celeriac` command. What a command needs is imported when it runs: `celeriac --help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from celeriac.cli.budgets import budgets, ledger
from celeriac.cli.doubt import doubt
from celeriac.cli.jobs import jobs
from celeriac.cli.lanes import lanes
from celeriac.cli.prices import prices
from celeriac.cli.receipts import receipts
from celeriac.cli.reconcile import reconcile
from celeriac.errors import Misconfigured, NotStarted, StoreUnavailable


class Commands(click.Group):
    """An operator's mistake is a line for each on standard error and exit status 2, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Misconfigured as error:
            for line in str(error).splitlines():
                click.echo(f"celeriac: {line}", err=True)
            sys.exit(2)
        except StoreUnavailable as error:
            click.echo(f"celeriac: {error}; CELERIAC_REDIS_URL names it", err=True)
            sys.exit(1)
        except NotStarted as error:
            said = "; its last words:" if error.last_words else ""
            click.echo(f"celeriac: {error}{said}", err=True)
            for line in error.last_words:
                click.echo(f"    {line}", err=True)
            sys.exit(1)


@click.group(cls=Commands)
@click.version_option(package_name="celeriac", message="%(prog)s %(version)s")
def main() -> None:
    """An agent-job queue on Celery and Redis: never lost, never paid twice."""


main.add_command(jobs)
main.add_command(lanes)
main.add_command(budgets)
main.add_command(ledger)
main.add_command(doubt)
main.add_command(receipts)
main.add_command(prices)
main.add_command(reconcile)


@main.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the embedded parts keep their state. Default: CELERIAC_LOCAL__DIRECTORY, or .celeriac",
)
@click.option("--free-ports", is_flag=True, help="Listen on whatever ports are free, and print them.")
def up(directory: Path | None, free_ports: bool) -> None:
    """Start everything on this machine, run one job, stay up until Ctrl-C."""
    from celeriac.local.stack import with_free_ports
    from celeriac.local.up import up as run_up
    from celeriac.settings import load_settings

    settings = load_settings(**({"local": {"directory": directory}} if directory else {}))
    run_up(with_free_ports(settings, every=True) if free_ports else settings, click.echo)


@main.command()
def demo() -> None:
    """Run one job end to end on free ports in a temporary directory and print it as JSON."""
    from celeriac.local.up import demo as run_demo
    from celeriac.settings import load_settings

    job = run_demo(load_settings())
    if job is None:
        sys.exit(130)
    click.echo(json.dumps(job, indent=2, ensure_ascii=False))
    sys.exit(0 if job["state"] == "succeeded" else 1)


@main.command()
@click.option("--list", "show", is_flag=True, help="Name the scenarios and say what each breaks.")
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Run this one only; may be repeated.")
@click.option("--jobs", type=click.IntRange(min=1, max=100_000), help="Jobs of each scenario. Default: 550, short 60.")
@click.option("--short", is_flag=True, help="The scenarios that count most, with few jobs and short leases.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed, the same choices.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON; the progress goes to standard error.")
@click.option("--url", help="Drill a stack that is up, at its shim's URL: real jobs, which cost what its models cost.")
@click.option("--redis", "redis_url", help="Its store, with --url.")
@click.option("--key", envvar="CELERIAC_DRILL_KEY", default="", help="A tenant's API key, with --url.")
@click.option("--agent", default="assistant", show_default=True, help="The agent to ask, with --url.")
@click.option("--stock", is_flag=True, help="Swallow pops of stock Celery with acks_late too, to compare.")
@click.option("--without-upkeep", "without", flag_value="upkeep", hidden=True)
@click.option("--without-fencing", "without", flag_value="fencing", hidden=True)
def drill(
    show: bool,
    scenarios: tuple[str, ...],
    jobs: int | None,
    short: bool,
    seed: int,
    as_json: bool,
    url: str | None,
    redis_url: str | None,
    key: str,
    agent: str,
    stock: bool,
    without: str | None,
) -> None:
    """Break things while jobs run, and check that nothing was lost, ended twice or left behind.

    Starts its own Valkey, provider, shim and workers on free ports. Exit status 1: a promise was broken.
    """
    from celeriac.drill.report import table
    from celeriac.drill.run import Elsewhere, Options
    from celeriac.drill.run import drill as run_drill
    from celeriac.drill.scenarios import SCENARIOS

    if show:
        for scenario in SCENARIOS.values():
            click.echo(f"{scenario.name:<22} {scenario.about}")
        return
    if bool(url) != bool(redis_url):
        raise click.UsageError("--url and --redis belong together: the shim and the store of one stack")
    options = Options(
        scenarios=scenarios,
        jobs=jobs,
        short=short,
        seed=seed,
        without=(without,) if without else (),
        elsewhere=Elsewhere(url, redis_url, key, agent) if url and redis_url else None,
    )

    def say(line: str) -> None:
        click.echo(line, err=True)

    compared = None
    try:
        results = run_drill(options, say)
        if stock:
            from celeriac.drill.stock import compare

            compared = compare(jobs or 20, say)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        said = {"scenarios": [result.as_json() for result in results], "stock": compared and compared.as_json()}
        click.echo(json.dumps(said, indent=2))
    else:
        for line in table(results):
            click.echo(line)
        if compared is not None:
            click.echo(str(compared))
    sys.exit(1 if any(result.violations for result in results) else 0)


@main.command()
def settings() -> None:
    """Print every setting with its default, ready to be a .env file."""
    from celeriac.settings import example

    click.echo(example(), nl=False)
