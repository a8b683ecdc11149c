"""What we hand out: the wheel, the locks, the Procfile and the hooks."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
PACKAGES = ("celeriac", "tasks", "worker", "api_shim", "ops")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built here and now, from nothing but what is installed."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [built] = directory.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.parametrize("pattern", ["*.py", "*.lua", "*.toml", "py.typed", "*.html", "*.css", "*.js"])
def test_the_wheel_holds_what_the_code_reads(wheel: zipfile.ZipFile, pattern: str) -> None:
    """Every module, script, table and marker of the packages; a missing one shows only when it is needed."""
    held = set(wheel.namelist())
    wanted = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob(pattern)}
    assert wanted
    assert wanted - held == set()


def test_the_wheel_holds_nothing_for_deployment(wheel: zipfile.ZipFile) -> None:
    """No tests, documents, container or cluster files: they belong to the repository."""
    info = re.compile(r"celeriac-[^/]+\.dist-info/")
    strangers = [name for name in wheel.namelist() if not name.startswith(tuple(f"{p}/" for p in PACKAGES))]
    assert [name for name in strangers if not info.match(name)] == []
    kinds = {Path(name).suffix for name in wheel.namelist() if name.startswith("ops/")}
    assert kinds <= {".py", ".html", ".css", ".js", ".svg", ".txt"}


def test_the_wheel_cannot_be_uploaded_by_mistake(wheel: zipfile.ZipFile) -> None:
    """`tasks` and `worker` are names that others use too; the index refuses this classifier."""
    [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    assert "Classifier: Private :: Do Not Upload" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_there_are_locks() -> None:
    """The tests below are about something."""
    assert len(LOCKS) == 6


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_host(lock: Path) -> None:
    """Where packages come from is for whoever installs them to say."""
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links|--trusted-host", lock.read_text()) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_one_version_and_a_hash(lock: Path) -> None:
    """Else `--require-hashes` would refuse it, on somebody else's machine."""
    joined = re.sub(r"\\\n\s*", "", lock.read_text())
    for line in filter(None, joined.splitlines()):
        if not line.lstrip().startswith("#"):
            assert re.match(r"[a-z0-9.-]+(\[[a-z0-9,-]+\])?==\S+( ; .+?)?\s*(--hash=sha256:[0-9a-f]{64}\s*)+$", line)


def test_what_one_lock_fixes_the_next_keeps() -> None:
    """Production, the local parts and the tools agree on every version they share."""

    def versions(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9.-]+(?:\[.*?\])?==\S+", (ROOT / name).read_text(), re.MULTILINE))

    assert versions("requirements.lock") <= versions("requirements-local.lock") <= versions("requirements-dev.lock")


def test_the_procfile_is_one() -> None:
    """For honcho and Heroku; only `web` is reachable there."""
    ended = subprocess.run(
        [sys.executable, "-m", "honcho", "check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert "(web, worker, flower)" in ended.stderr


def test_hooks_need_no_network() -> None:
    """They are the tools of the lock."""
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", config) == ["local"]
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def test_help_answers_at_once() -> None:
    """What a command needs is imported when it runs."""
    program = "import sys, celeriac.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"pydantic", "aiohttp", "redis", "celery", "openai", "asyncio"} & set(ended.stdout.split())


def test_the_command_knows_its_version() -> None:
    """The installed one."""
    command = [sys.executable, "-m", "celeriac.cli", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(r" \d+\.\d+\.\d+$", ended.stdout.strip())
