"""The import rule holds, and each of its contracts refuses what it is there to refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

# contract, module to plant, what it holds
PLANTED = [
    ("doors", "celeriac/agents/planted.py", "import worker"),
    ("doors", "celeriac/planted.py", "from api_shim import app"),
    ("doors", "tasks/planted.py", "import ops.flower"),
    ("doors", "worker/planted.py", "import api_shim"),
    ("doors", "ops/flower/planted.py", "import worker"),
    ("by-name", "api_shim/planted.py", "import tasks"),
    ("by-name", "ops/flower/planted.py", "def late():\n    import tasks"),
    ("room", "celeriac/jobs/planted.py", "from celeriac import agents"),
    ("room", "celeriac/jobs/planted.py", "import celeriac.costs"),
    ("room", "celeriac/llm/planted.py", "import celeriac.stores"),
    ("room", "celeriac/local/planted.py", "import celeriac.drill"),
    ("room", "celeriac/planted.py", ""),
    ("concrete", "api_shim/planted.py", "import celeriac.assembly"),
    ("concrete", "api_shim/planted.py", "import openai"),
    ("concrete", "api_shim/planted.py", "from celeriac.llm import client"),
    ("concrete", "api_shim/planted.py", "import celeriac.agents.mcp"),
    ("concrete", "ops/flower/planted.py", "import celeriac.assembly"),
    ("concrete", "ops/flower/planted.py", "import anthropic"),
    ("concrete", "tasks/planted.py", "def late():\n    import celeriac.assembly"),
    ("concrete", "tasks/planted.py", "from celeriac.llm import client"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything the rule is about."""
    copy = tmp_path_factory.mktemp("tree")
    for package in RULES["root_packages"]:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(tree: Path, *contracts: str) -> tuple[bool, str]:
    """Whether the contracts are kept, and what was said."""
    limits = [part for contract in contracts for part in ("--contract", contract)]
    ended = subprocess.run(
        [sys.executable, "-c", LINT, *limits],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture
def planted(tree: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path, text = request.param
    module = tree / path
    module.write_text(text + "\n")
    yield tree
    module.unlink()


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    """As it is now."""
    kept, said = lint(tree)
    assert kept, said


@pytest.mark.parametrize(("contract", "planted"), [(c, (p, t)) for c, p, t in PLANTED], indirect=["planted"])
def test_a_module_that_breaks_a_contract_is_refused(contract: str, planted: Path) -> None:
    """The contract is named, and so is the module."""
    kept, said = lint(planted, contract)
    assert not kept
    assert "BROKEN" in said
    assert "planted" in said


def test_no_contract_goes_untried() -> None:
    """A new contract needs a module that breaks it, above."""
    assert {contract for contract, _, _ in PLANTED} == {contract["id"] for contract in RULES["contracts"]}
