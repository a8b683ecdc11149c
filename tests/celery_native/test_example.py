"""The example that we give to those who use Celery."""

from __future__ import annotations

import json
import subprocess
import sys

from celery import chain, chord

from tests.celery_native.conftest import Home, Town, get
from tests.processes import ROOT, wait_until


def test_the_example_runs_as_it_stands(home: Home) -> None:
    """With two URLs and no code of ours; the member that was revoked is cancelled, and the others are not."""
    home.always(text="Good.", delay=1.5)
    shim = home.shim()
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples/canvas.py"), home.valkey.url, shim.url],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "'state': 'succeeded'" in lines[0]
    assert [line.partition(" $ ")[0] for line in lines[2:4]] == ["succeeded for"] * 2
    assert lines[4] == "cancelled"
    asked = [json.loads(asked["body"]) for asked in home.asked()]
    assert len(asked) >= 7
    assert sum("In the kitchen" in body["messages"][-1]["content"] for body in asked) == 1


def test_a_canvas_goes_on_though_a_member_waits_and_its_worker_dies(town: Town) -> None:
    """One is parked until its lanes may be asked, and the worker of all is killed meanwhile: nothing is lost."""
    town.always(text="Good.")
    town.scripted({"text": "One."}, *({"status": 429, "headers": {"retry-after": "4"}} for _ in range(2)))
    worker = town.worker()
    town.shop()
    work = chain(
        chord((town.ask("First?"), town.ask("Second?")), town.ask("Both?", previous="input")),
        town.tell("canvas"),
    ).apply_async()
    members = work.parent.parent.results
    wait_until(lambda: "parked" in {town.record(member).get("place") for member in members}, "one to be parked")
    worker.kill()
    town.worker()
    get(work)
    assert len(town.notes("canvas")) == 1
