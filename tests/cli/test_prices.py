"""`celeriac prices`, as an operator types it: no store, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = """
[[openai."ours-*"]]
from = 2099-01-01
input = "3"
output = "4"
[[openai."ours-*"]]
date = 2026-10-31
input = "0.25"
output = "2"
[openai.other]
input = "1"
output = "2"
[openai.other.tiers.flex]
input = "0.5"
output = "1"
"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    file = tmp_path / "ours.toml"
    file.write_text(OURS)
    return file


def prices(*arguments: str, status: int = 0, **environment: str) -> str:
    # Whoever opens a connection says so: there is nothing at that address.
    unreachable = {"CELERIAC_REDIS_URL": "redis://127.0.0.1:9/0"}
    ended = subprocess.run(
        [sys.executable, "-m", "celeriac.cli", "prices", *arguments],
        env=os.environ | unreachable | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout + ended.stderr


def test_a_lane_is_shown_with_its_tiers_and_steps() -> None:
    """What a million tokens cost, by whose word, and since when."""
    rows = [json.loads(line) for line in prices("--json", "openai/gpt-5.4", "--at", "2026-11-01").splitlines()]
    by = {(row["tier"], row["above"]): row for row in rows}
    assert {"standard", "flex", "priority", "batch"} <= {tier for tier, _ in by}
    assert (by["standard", 0]["input"], by["standard", 272_000]["input"]) == ("2.5", "5")
    assert by["flex", 0]["cache_read"] == "0.13"
    assert (by["flex", 0]["date"], by["flex", 0]["row"], by["flex", 0]["known"]) == (
        "2026-10-12",
        "openai/gpt-5.4",
        "own",
    )
    assert by["flex", 0]["source"].startswith("genai-prices ")


def test_an_estimate_is_said_to_be_one() -> None:
    """The dearest known, by its name."""
    said = prices("openai/no-such-model")
    assert "genai-prices" in said
    assert "openai/o1-pro, an estimate: the dearest known" in said


def test_all_overrides_are_shown_where_no_lane_is(ours: Path) -> None:
    """Those to come too, and ours."""
    said = prices(CELERIAC_PRICES_FILE=str(ours))
    lines = [line.split() for line in said.splitlines()]
    assert ["openai/ours-*", "standard", "0.25", "0.25", "0.25", "0.25", "2", "2", "2026-10-31"] in [
        line[:9] for line in lines
    ]
    assert any(line[:3] == ["openai/ours-*", "standard", "3"] and "2099-01-01" in line for line in lines)
    assert any(line[:3] == ["openai/other", "flex", "0.5"] for line in lines)
    assert any(line[0] == "scripted/*" for line in lines)


def test_the_price_of_a_day_is_shown(ours: Path) -> None:
    """A change that is entered beforehand can be looked at beforehand."""
    for day, dollars in (("2098-12-31", "0.25"), ("2099-01-01", "3")):
        (line,) = prices("--json", "--at", day, "openai/ours-7", CELERIAC_PRICES_FILE=str(ours)).splitlines()
        row = json.loads(line)
        assert (row["input"], row["row"], row["known"]) == (dollars, "openai/ours-*", "own")


def test_a_file_is_checked_before_it_is_used(ours: Path, tmp_path: Path) -> None:
    """Both kinds; exit status 2 and the remedy for one that cannot be."""
    assert "prices of 2 models, 1 of their rows not in force yet; CELERIAC_PRICES_FILE takes it" in prices(
        "check", str(ours)
    )
    table = tmp_path / "data.json"
    models = [{"id": "gpt-9", "match": {"equals": "gpt-9"}, "prices": {"input_mtok": 1, "output_mtok": 2}}]
    table.write_text(json.dumps([{"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": models}]))
    assert "prices of 1 models; CELERIAC_PRICES_DATA_FILE takes it" in prices("check", str(table))
    for file, text in ((ours, '[openai.x]\ninput = "1"'), (table, "[]")):
        file.write_text(text)
        said = prices("check", str(file), status=2)
        assert said.startswith(f"celeriac: {file}: ")
        assert "Traceback" not in said


def test_what_is_no_lane_is_said() -> None:
    """With how one is written."""
    assert "write provider/model, as openai/gpt-5-mini" in prices("gpt-5-mini", status=2)
