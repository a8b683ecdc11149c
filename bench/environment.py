"""LiteLLM's environment: `.venv-litellm`, made when the benchmark first needs it, from hashes alone.

Nothing of it is installed where Celeriac is: it brings sixty packages, some in versions of its own.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
HERE: Final = ROOT / ".venv-litellm"
LOCK: Final = ROOT / "requirements-litellm.lock"
WITHOUT: Final = "--without-litellm"


def is_made(here: Path = HERE, lock: Path = LOCK) -> bool:
    stamp = here / ".made"
    return stamp.exists() and stamp.read_text() == _stamp(lock)


def litellm_python(here: Path = HERE, lock: Path = LOCK) -> Path:
    """The Python of the environment, which is made first if it is not there, or is not as the lock has it.

    Ends the program where it cannot be made: a table without LiteLLM is one that somebody asked for.
    """
    python = here / "bin" / "python"
    if is_made(here, lock):
        return python
    print(f"Installing LiteLLM into {here.name}, once: about a minute, 400 MB", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(here))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    _run(*pip, "--require-hashes", "--only-binary", ":all:", "--requirement", str(lock))
    (here / ".made").write_text(_stamp(lock))
    return python


def _stamp(lock: Path) -> str:
    """Of what it was made from: another Python would be measured beside ours."""
    return f"{platform.python_version()} {hashlib.sha256(lock.read_bytes()).hexdigest()}\n"


def _run(*command: str) -> None:
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        said = (made.stderr or made.stdout)[-1500:].strip()
        raise SystemExit(f"LiteLLM cannot be installed here; with {WITHOUT} all else is measured.\n{said}")
