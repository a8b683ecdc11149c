"""`celeriac up` in small, as a program of its own: a supervisor over the stand-ins that a test describes as JSON."""

import asyncio
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path

from celeriac.errors import NotStarted
from celeriac.local.output import Output
from celeriac.local.processes import Process
from celeriac.local.supervisor import ME, Supervisor, run

STAND_IN = Path(__file__).parent / "stand_in.py"


def stand_in(directory: Path, name: str, options: list[str], stop_seconds: float = 3) -> Process:
    async def ready() -> bool:
        return (directory / f"{name}.ready").exists()

    return Process(
        name,
        (sys.executable, str(STAND_IN), str(directory), name, *options),
        ready=ready,
        stop_within=timedelta(seconds=stop_seconds),
    )


# As from a terminal, whoever runs the tests: under `nohup` a hang-up would be ignored, as it should be.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def main(directory: Path, plan: list[dict[str, list[str]]]) -> None:
    groups = [[stand_in(directory, name, options) for name, options in group.items()] for group in plan]
    names = tuple(process.name for group in groups for process in group)
    supervisor = Supervisor(groups, Output(sys.stderr, (ME, *names)))

    async def work() -> None:
        (directory / "up").touch()
        await asyncio.Event().wait()

    await run(supervisor, work)


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
    except NotStarted as error:
        sys.exit(f"not started: {error}: {error.last_words}")
