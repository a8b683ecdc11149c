"""`celeriac lanes` over a real store, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from celeriac.errors import ModelError, ProviderFailed, RateLimited
from celeriac.gate.lanes import Caps, asking, heard, spelt
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Claim, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.limits import Limit
from celeriac.llm.model import Lane
from celeriac.settings import load_settings
from celeriac.stores import open_fleet, open_stores
from tests.conftest import Valkey

AGENTS = """
[agents.one]
description = "One."
lanes = ["openai/gpt-5-mini", "anthropic/claude-haiku-5-5", "openai/gpt-5.4"]
"""


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    file = tmp_path / "agents.toml"
    file.write_text(AGENTS)
    return file


def lanes(valkey: Valkey, agents: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "celeriac.cli", "lanes", *arguments],
        env=os.environ | {"CELERIAC_REDIS_URL": valkey.url, "CELERIAC_AGENTS_FILE": str(agents)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def row(said: str, begins: str) -> str:
    [line] = [line for line in said.splitlines() if line.startswith(begins)]
    return line


def overrun(valkey: Valkey, model: str, *, strict: bool) -> None:
    """A call of this model of OpenAI's costs two and a half times its bound."""
    meet(valkey, model, None, over=2500, strict=strict)


def meet(
    valkey: Valkey,
    model: str,
    *errors: ModelError | None,
    limits: tuple[Limit, ...] = (),
    parked: bool = False,
    over: int = 0,
    strict: bool = False,
) -> None:
    """Calls of this model of OpenAI's end so, in a run of their own; None: they are answered."""

    async def run() -> None:
        settings, lane = load_settings(redis_url=valkey.url), Lane("openai", model)
        stores = open_stores(settings)
        fleet, line = open_fleet(settings, stores, name="line")
        await fleet.register(model, ["celeriac"], 9, (), {"celeriac": ""})
        job = await stores.jobs.submit(NewJob(new_id(), "default", "one", "celeriac", (("user", "hi"),)))
        claim = await stores.jobs.claim(job.id, model, new_nonce())
        assert isinstance(claim, Claim)
        if parked:
            await stores.jobs.wait_for_lane(claim, spelt(lane), timedelta(seconds=30))
        for number, error in enumerate(errors):
            await stores.journal.admit(claim, f"c{number}", 0, {}, asking(lane, (0, 0), Caps(), 9.0))
            says = heard(lane, error, limits=limits, over=over, strict=strict)
            await stores.journal.settle(claim, Settlement(f"c{number}", "released", 0, 0, {}, says))
        await stores.close()
        await line.aclose()

    asyncio.run(run())


def test_lanes_that_nothing_is_known_of_may_be_asked(valkey: Valkey, agents: Path) -> None:
    """Those of all agents."""
    head, *rows = lanes(valkey, agents).splitlines()
    assert head.split("  ")[0] == "LANE"
    assert [row.split() for row in rows] == [
        ["anthropic/claude-haiku-5-5", "yes"], ["openai/gpt-5-mini", "yes"], ["openai/gpt-5.4", "yes"],
    ]  # fmt: skip


def test_a_lane_that_may_not_be_asked_says_why_and_for_how_long(valkey: Valkey, agents: Path) -> None:
    """Its rates too, and what its breaker did."""
    limit = Limit("requests", most=500, left=0)
    meet(valkey, "gpt-5-mini", RateLimited(status=429, retry_after=600.0), limits=(limit,))
    meet(valkey, "gpt-5.4", *[ProviderFailed(status=500)] * 10)
    said = lanes(valkey, agents)
    assert "openai/gpt-5-mini           in 59" in said
    assert ": rate_limited" in said
    assert "requests 0 of 500 a minute" in said
    assert "openai/gpt-5.4  opened for 10 s: provider_failed" in said
    facts = [json.loads(line) for line in lanes(valkey, agents, "--json").splitlines()]
    by_lane = {fact["lane"]: fact for fact in facts[:3]}
    assert 590 < by_lane["openai/gpt-5-mini"]["wait"] <= 600
    assert (by_lane["openai/gpt-5.4"]["trial"], by_lane["openai/gpt-5-mini"]["trial"]) == (True, False)
    assert by_lane["openai/gpt-5-mini"]["rates"]["requests"]["most"] == 500
    assert (facts[3]["state"], facts[3]["why"], facts[3]["wait"]) == ("open", "provider_failed", 10.0)


def test_lanes_that_no_agent_names_are_shown_while_jobs_wait_for_them(valkey: Valkey, agents: Path) -> None:
    """A job may name any model."""
    meet(valkey, "gpt-9", parked=True)
    [line] = [line for line in lanes(valkey, agents).splitlines() if line.startswith("openai/gpt-9 ")]
    assert line.split() == ["openai/gpt-9", "yes", "1"]


def test_lanes_whose_calls_cost_more_than_their_bounds_are_shown(valkey: Valkey, agents: Path) -> None:
    """Whoever names them, until an operator opens them; who did is said then, and why nobody waits for it any more."""
    for model, strict in ("gpt-8", False), ("gpt-9", True):
        overrun(valkey, model, strict=strict)
    raised, closed = [row(lanes(valkey, agents), f"openai/{model} ") for model in ("gpt-8", "gpt-9")]
    assert "yes, at bounds times 2.5" in raised
    assert "when an operator opens it: a call cost more than its bound, at bounds times 2.5" in closed
    for model in ("gpt-8", "gpt-9"):
        assert "is asked again" in lanes(valkey, agents, "--open", f"openai/{model}")
    assert "had no call that cost more" in lanes(valkey, agents, "--open", "openai/gpt-9")
    newest, second, first = lanes(valkey, agents, "--changes", "3").splitlines()[-3:]
    assert newest.endswith("openai/gpt-9  closed by an operator")
    assert second.endswith("openai/gpt-8  its bounds were taken back by an operator")
    assert first.endswith("openai/gpt-9  opened until `celeriac lanes --open` is said: overrun")
    facts = [json.loads(line) for line in lanes(valkey, agents, "--json", "--changes", "1").splitlines()]
    assert (facts[-1]["lane"], facts[-1]["state"], facts[-1]["why"]) == ("openai/gpt-9", "closed", "operator")


def test_the_period_of_a_rate_is_said(valkey: Valkey, agents: Path) -> None:
    """A minute, a day, or what lies between."""
    meet(
        valkey,
        "gpt-5-mini",
        ProviderFailed(),
        limits=(Limit("requests", 60, 40, 600.0), Limit("tokens", 9, 5, 86_400.0)),
    )
    [line] = [line for line in lanes(valkey, agents).splitlines() if line.startswith("openai/gpt-5-mini ")]
    assert "requests 40 of 60 in 10 minutes, tokens 5 of 9 a day" in line
