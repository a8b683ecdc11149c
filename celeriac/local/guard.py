"""Kills what is left of a supervisor's children when the supervisor itself is gone, however it went.

Run as a program of its own, in a session of its own, with the read end of a pipe as standard input. A line `+7` names a
process group to look after, `-7` one that has ended. The pipe closes when its last writer ends, and `kill -9` of the
supervisor is enough for that; then every group still named is killed, grandchildren included. A signal on the parent's
death (Linux has one) would reach only the children, and no other system has it.
"""

import os
import signal
import sys


def main() -> None:
    # Whoever signals us means the supervisor: we go when it has gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line.startswith("+") else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


if __name__ == "__main__":
    main()
