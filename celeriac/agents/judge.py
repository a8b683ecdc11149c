"""The process that judges answers: `python -m celeriac.agents.judge`. `celeriac.agents.check` starts and ends it.

It reads a line per answer: a list of the schema and of the answer, both as texts of JSON. It answers with a line: null,
or what is wrong in general, and then another with what is wrong in particular; a list of `told` and `place` each, as
`Wrong` has them. It dies where one of them takes too much time or memory; its argument is how many seconds of the
processor the first may take.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson
from jsonschema_rs import ValidationError, ValidationErrorKind, Validator

from celeriac.jobs.schema import LONGEST, compiled, cut, pointer, shown

READY: Final = b"ready\n"
#: Seconds of the processor in which to find out what is wrong in particular.
EXPLAINING: Final = 0.05
MEMORY: Final = 512 * 1024**2
#: Schemas that are kept compiled.
KEPT: Final = 64

Said = tuple[str, str]
WRONG: Final[Said] = ("it is not what the schema asks for", "it could not be found out where")


@lru_cache(KEPT)
def _validator(schema: str) -> Validator:
    return compiled(orjson.loads(schema))


def judged(schema: str, value: Any) -> Iterator[Said | None]:
    """What is wrong with a value, in general and in particular; None for nothing."""
    validator = _validator(schema)
    if validator.is_valid(value):
        yield None
        return
    # What follows finds all that is wrong with each form of a value: it may take a thousand times as long.
    yield WRONG
    try:
        validator.validate(value)
    except ValidationError as error:
        wrong = _meant(error)
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:LONGEST]}" for part in wrong.instance_path)
        yield cut(f"{shown(path.lstrip('.')) or 'the whole'}: {wrong.message}"), shown(pointer(wrong.schema_path))


def _meant(error: ValidationError) -> ValidationError:
    """Of the forms that a value may have, the one that it was to have is wrong in the deepest place."""
    while isinstance(error.kind, ValidationErrorKind.AnyOf | ValidationErrorKind.OneOfNotValid):
        forms = [wrong[0] for wrong in error.kind.context if wrong]
        meant = max(forms, key=lambda wrong: len(wrong.instance_path))
        if len(meant.instance_path) == len(error.instance_path) and len(forms) > 1:
            break
        error = meant
    return error


def main() -> None:
    # It ends with its input, and so with whoever started it. A dump would hold the answer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not every system has such a limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, rather this than the worker
    said, seconds = sys.stdout.buffer, float(sys.argv[1])
    said.write(READY)
    said.flush()
    for line in sys.stdin.buffer:
        schema, answer = orjson.loads(line)
        # Unheard, its signal ends the process, whatever the library is at.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        for wrong in judged(schema, orjson.loads(answer)):
            said.write(orjson.dumps(wrong) + b"\n")
            said.flush()
            signal.setitimer(signal.ITIMER_PROF, EXPLAINING)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
