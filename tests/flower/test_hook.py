"""How our pages get into Flower; and what is said where they cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import flower
import pytest
from flower import urls

from celeriac.errors import Misconfigured
from ops.flower.pages import check_flower, with_tabs
from tests.conftest import Valkey
from tests.flower.conftest import Flower

THEIRS = Path(flower.__file__).parent / "templates"
NOT_FOUND: list[Any] = [(r".*", object)]


def changed(folder: Path, file: str, was: str, becomes: str) -> Path:
    """Flower's templates, but for this."""
    templates = folder / "templates"
    shutil.copytree(THEIRS, templates)
    text = (templates / file).read_text()
    assert was in text
    (templates / file).write_text(text.replace(was, becomes))
    return templates


def test_the_flower_that_is_installed_has_a_place_for_our_pages() -> None:
    """Its templates and its handlers are as the hook knows them."""
    check_flower(THEIRS, NOT_FOUND)
    assert urls.handlers[-1][0] == ".*"
    tabs = with_tabs((THEIRS / "navbar.html").read_text())
    places = [tabs.index(f"reverse_url('{name}')") for name in ("broker", "costs", "jobs", "providers")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("file", "was", "becomes", "said"),
    [
        ("navbar.html", "reverse_url('broker')", "reverse_url('queues')", "no tab in its navbar"),
        ("base.html", "{% block extra_scripts %}", "{% block scripts %}", "no block extra_scripts in its base.html"),
    ],
)
def test_another_flower_is_refused_with_what_it_lacks(
    tmp_path: Path, file: str, was: str, becomes: str, said: str
) -> None:
    """At the start, and not as a page that is missing; with what to do."""
    with pytest.raises(Misconfigured, match=rf"Flower [\d.]+ has {said}.*; install the release of requirements.lock"):
        check_flower(changed(tmp_path, file, was, becomes), NOT_FOUND)


def test_a_flower_that_answers_404_elsewhere_is_refused() -> None:
    """Our pages would stand behind what answers for all that is not found."""
    with pytest.raises(Misconfigured, match="does not end its handlers"):
        check_flower(THEIRS, [(r"/tasks", object)])


def test_a_flower_that_cannot_have_our_pages_does_not_start(valkey: Valkey, tmp_path: Path) -> None:
    """It ends with 2, and its last line says why."""
    process = Flower(valkey.url, tmp_path, CELERIAC_AGENTS_FILE=str(tmp_path / "missing.toml"))
    try:
        assert process.wait() == 2, process.output()
        last = process.output().strip().splitlines()[-1]
        assert last.startswith("celeriac: ")
        assert "missing.toml" in last
    finally:
        process.kill()
