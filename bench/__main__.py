"""python -m bench: measure Celeriac beside plain Celery and LiteLLM; twelve minutes, loopback only.

python -m bench             print the table; LiteLLM is installed first, into .venv-litellm, by pip
python -m bench --write     and put it into docs/performance.md
python -m bench --quick     everything in small, to see that it runs; its numbers say nothing
python -m bench scripts     what each script costs the store, with 10 ready jobs and with 1,000,000; 30 s, 0.5 GB
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.environment import WITHOUT, litellm_python
from bench.house import allow_many_files
from bench.rows import FULL, QUICK, Row, rows
from bench.scripts import FEW, MANY, costs

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and short, about a minute")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    parser.add_argument(WITHOUT, action="store_true", help="install no LiteLLM, and leave its cells of the table empty")
    parser.add_argument("what", nargs="?", choices=("celery", "scripts"), default="celery", help="default: celery")
    given = parser.parse_args(arguments)
    if given.what == "scripts":
        print("\n".join(scripts(quick=given.quick)), flush=True)
        return
    size = QUICK if given.quick else FULL
    files = allow_many_files()
    if files < 2 * size.held + 1000:
        parser.error(
            f"{files} open files are too few for {size.held} calls in flight: ulimit -n {2 * size.held + 1000}"
        )
    # Before anything is measured: where it cannot be had, nobody waits to hear it.
    router = None if given.without_litellm else litellm_python()
    lines = head()
    print("\n".join(lines), flush=True)
    for row in rows(size, router):
        lines.append(line(row))
        print(lines[-1], flush=True)
    if given.write:
        flags = ("--quick" if given.quick else "", WITHOUT if given.without_litellm else "")
        command = " ".join(["python -m bench", *filter(None, flags)])
        write(PAGE, "\n".join([facts(command), "", *lines]))


def scripts(*, quick: bool = False) -> list[str]:
    few, many = FEW, (1000, 100) if quick else MANY
    lines = [f"| script | us with {few[0]:,} ready jobs | with {many[0]:,} | |", "|---|---:|---:|---:|"]
    lines += [f"| {c.script} | {c.few:.0f} | {c.many:.0f} | {c.many / c.few:.2f} |" for c in costs(few, many)]
    return lines


def head() -> list[str]:
    return ["| | Celeriac | plain Celery | better by | target | met |", "|---|---:|---:|---:|---|---|"]


def line(row: Row) -> str:
    ratio = f"{row.better:.2f} x" if row.better else ""
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    cells = (row.name, row.note or number(row.ours, row.unit), number(row.plain, row.unit), ratio, row.target, met)
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    shown = f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{shown} {unit}".rstrip()


def facts(command: str) -> str:
    cores, memory = os.cpu_count(), psutil.virtual_memory().total / 1e9
    parts = [f"{name} {version(name)}" for name in ("celery", "openai", "aiohttp", "fastapi", "uvicorn", "redis")]
    return (
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}: {cores} cores ({platform.machine()}), {memory:.0f} GB, "
        f"Python {platform.python_version()}, {', '.join(parts)}."
    )


def write(page: Path, text: str) -> None:
    old = page.read_text()
    new, found = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{text}\n{END}", old, count=1, flags=re.DOTALL
    )
    if not found:
        raise SystemExit(f"{page} has no {BEGIN} ... {END}")
    page.write_text(new)


if __name__ == "__main__":
    main()
