"""What a machine lacks is named in one line, before anything is installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT

#: What stands behind the name -> what is said of it.
PYTHONS = {
    "no-such-python": ("", "'{name}' is not on the PATH"),
    "old": ('[ "$1" = -V ] && echo "Python 3.9.2"; exit 1', "'{name}' says 'Python 3.9.2'"),
    "shim": ('echo "pyenv: python: command not found" >&2; echo "The command exists in these versions:" >&2; exit 127',
             "'{name}' says 'pyenv: python: command not found'"),
    "bare": ("[ \"$2\" = 'import venv, ensurepip' ] && exit 1; exit 0", "Celeriac needs Python's venv module"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PYTHONS)
def test_what_is_missing_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    script, said = PYTHONS[kind]
    python = tmp_path / kind
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    command = ["make", "run", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    # Not as a part of the make that may run this test.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode
    line, *rest = ran.stderr.splitlines()
    assert said.format(name=python) in line
    assert all(more.startswith("make: ***") for more in rest)
    assert not (tmp_path / "venv").exists()
