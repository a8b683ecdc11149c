"""A program that behaves as a test asks: the stand-in for shim, worker and the others.

Writes `start NAME PID` and `stop NAME` to a journal that all stand-ins of a test share, creates `NAME.ready` when it is
ready, and lives until SIGTERM.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("name")
    parser.add_argument("--ready-after", type=float, default=0)
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--fail", action="store_true", help="complain and exit 3")
    parser.add_argument("--grandchild", action="store_true", help="start a deaf process that outlives its parent")
    asked = parser.parse_args()

    def note(line: str) -> None:
        with (asked.directory / "journal").open("a") as journal:
            journal.write(line + "\n")

    def stop(*_: object) -> None:
        note(f"stop {asked.name}")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if asked.deaf else stop)
    note(f"start {asked.name} {os.getpid()}")
    if asked.fail:
        sys.stderr.write("no such luck\n")
        sys.exit(3)
    if asked.grandchild:
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", deaf])
        note(f"start {asked.name}-grandchild {child.pid}")
    time.sleep(asked.ready_after)
    sys.stderr.write(f"{asked.name} says hello\n")
    (asked.directory / f"{asked.name}.ready").touch()
    note(f"ready {asked.name}")
    while True:
        time.sleep(1000)


main()
