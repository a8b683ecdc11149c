"""The `celeriac` command. What a command needs is imported when it runs: `celeriac --help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from celeriac.cli.jobs import jobs
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
    """An agent-job queue on Celery and Redis: never lost, never paid twice, never over budget."""


main.add_command(jobs)


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
def settings() -> None:
    """Print every setting with its default, ready to be a .env file."""
    from celeriac.settings import example

    click.echo(example(), nl=False)
