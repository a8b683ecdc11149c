"""Quotes: told with each job and, with `dry_run`, without one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from celeriac.settings import MAX_JOB_USD
from tests.conftest import Valkey
from tests.processes import Shim, running

AGENTS = """
[agents.plain]
description = "No cap of its own."
instructions = "Be brief."
lanes = ["openai/gpt-5-mini"]
max_output_tokens = 1000

[agents.cheap]
description = "A cap of its own."
instructions = "Be brief."
lanes = ["openai/gpt-5-mini"]
max_cost_usd = "0.25"

[agents.warm]
description = "Says what comes to its mind."
lanes = ["openai/gpt-5-mini"]
temperature = 1.5
"""


@pytest.fixture(scope="module")
def one_shim(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    agents = tmp_path_factory.mktemp("quotes") / "agents.toml"
    agents.write_text(AGENTS)
    with running(Shim(valkey_server.url, CELERIAC_AGENTS_FILE=str(agents))) as opened:
        yield opened


def ask(shim: Shim, agent: str = "plain", dry_run: bool = True, status: int = 200, **facts: Any) -> dict[str, Any]:
    body = {"agent": agent, "input": "x" * 4000} | facts
    answer = shim.http.post("/v1/jobs", params={"dry_run": dry_run}, json=body)
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = answer.json()
    return said


def test_a_dry_run_stores_nothing(shim: Shim, valkey: Valkey) -> None:
    """It says what the job would cost, and when it would start."""
    before = sorted(valkey.client().keys("celeriac:*"))
    said = ask(shim)
    assert said.keys() == {
        "max_cost_usd", "expected_cost_usd", "expected_from", "budget_left_usd", "position", "expected_start_at",
    }  # fmt: skip
    assert sorted(valkey.client().keys("celeriac:*")) == before
    assert shim.http.get("/v1/jobs").json()["jobs"] == []


def test_the_quote_comes_with_the_job(shim: Shim) -> None:
    """The same as before it was submitted; and its cap stays in its record."""
    before = ask(shim)
    job = ask(shim, dry_run=False, status=202)
    assert job["quote"] == before
    assert job["max_cost_usd"] == before["max_cost_usd"]
    known = shim.http.get(f"/v1/jobs/{job['id']}").json()
    assert (known["max_cost_usd"], known["quote"]) == (job["max_cost_usd"], None)
    assert ask(shim)["position"] == before["position"] + 1 == 1


@pytest.mark.parametrize(
    ("agent", "own", "most"),
    [
        ("plain", None, MAX_JOB_USD),
        ("plain", "2", Decimal(2)),
        ("plain", "50", MAX_JOB_USD),
        ("cheap", None, Decimal("0.25")),
        ("cheap", "0.1", Decimal("0.1")),
        ("cheap", "2", Decimal("0.25")),
        ("cheap", "0.000000001", Decimal("0.000000001")),
    ],
)
def test_the_smallest_cap_counts(shim: Shim, agent: str, own: str | None, most: Decimal) -> None:
    """The job's own, its agent's, or the deployment's: there is always one."""
    said = ask(shim, agent, **({} if own is None else {"max_cost_usd": own}))
    assert Decimal(said["max_cost_usd"]) == most
    assert Decimal(said["expected_cost_usd"]) <= most


def test_before_the_first_job_of_an_agent_the_price_list_says_what_one_costs(shim: Shim) -> None:
    """gpt-5-mini: $0.25 and $2 a million tokens. A thousand tokens of question, and half of what it may answer."""
    said = ask(shim)
    assert said["expected_from"] == "prices"
    assert Decimal(said["expected_cost_usd"]) == pytest.approx(Decimal("0.00125"), rel=Decimal("0.01"))
    dearer = ask(shim, model="openai/gpt-5.4", max_output_tokens=2000)
    assert Decimal(dearer["expected_cost_usd"]) > 5 * Decimal(said["expected_cost_usd"])


def test_the_quote_says_what_the_budget_leaves(shim: Shim) -> None:
    assert ask(shim)["budget_left_usd"] is None
    put = {"caps": [{"window": "day", "cap_usd": "3"}]}
    assert shim.http.put("/v1/budgets/tenant:default", json=put).status_code == 200
    assert ask(shim)["budget_left_usd"] == "3.000000000"


def test_a_quote_is_of_the_budgets_of_its_label_and_its_model(valkey: Valkey) -> None:
    """Of those that its first call is in, and of no other."""
    with running(Shim(valkey.url, CELERIAC_COSTS__LABELS='{"team": ["red", "blue"]}')) as shim:
        for scope, usd in ("label:team=red", "2"), ("model:openai/gpt-5-nano", "1"):
            put = {"caps": [{"window": "day", "cap_usd": usd}]}
            assert shim.http.put(f"/v1/budgets/{scope}", json=put).status_code == 200

        def left(**facts: Any) -> str | None:
            said: str | None = ask(shim, "assistant", **facts)["budget_left_usd"]
            return said

        assert left() is None
        assert left(metadata={"team": "red"}) == "2.000000000"
        assert left(metadata={"team": "blue"}) is None
        assert left(model="openai/gpt-5-nano") == "1.000000000"


def test_a_repetition_is_quoted_too(shim: Shim) -> None:
    """As it stands now: another job may have come before."""
    body, key = {"agent": "plain", "input": "hi"}, {"Idempotency-Key": "k"}
    ask(shim, dry_run=False, status=202)
    first = shim.http.post("/v1/jobs", json=body, headers=key)
    again = shim.http.post("/v1/jobs", json=body, headers=key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["quote"] == first.json()["quote"]
    assert again.json()["quote"]["position"] == 1


def test_a_repetition_is_quoted_with_the_cap_that_its_job_has(valkey: Valkey, tmp_path: Path) -> None:
    """However the agent's own was changed since."""
    agents, body, key = tmp_path / "agents.toml", {"agent": "cheap", "input": "hi"}, {"Idempotency-Key": "k"}
    said = []
    for most in ("0.25", "0.50"):
        agents.write_text(AGENTS.replace("0.25", most))
        with running(Shim(valkey.url, CELERIAC_AGENTS_FILE=str(agents))) as shim:
            said.append(shim.http.post("/v1/jobs", json=body, headers=key).json())
    assert said[0]["id"] == said[1]["id"]
    for job in said:
        assert job["quote"]["max_cost_usd"] == job["max_cost_usd"] == "0.250000000"


def ahead(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


@pytest.mark.parametrize(
    ("facts", "status", "said"),
    [
        ({"agent": "nobody"}, 422, "there is no agent"),
        ({"model": "nowhere/gpt"}, 422, "there is no such provider"),
        ({"agent": "warm", "model": "anthropic/claude-haiku-5-5"}, 422, "takes a temperature of at most 1"),
        ({"max_cost_usd": "much"}, 422, "max_cost_usd"),
        ({"tools": []}, 422, "unpriceable_feature"),
        ({"deadline": ahead(-1)}, 422, "over already"),
        ({"deadline": ahead(400 * 24)}, 422, "more than a year"),
        ({"run_at": ahead(400 * 24)}, 422, "more than a year"),
        ({"run_at": ahead(2), "deadline": ahead(1)}, 422, "expire before it starts"),
        ({"run_at": ahead(2), "expires_in": 3600}, 422, "expire before it starts"),
        ({"context_id": "held", "if_busy": "reject"}, 409, "context held is held by job"),
        ({"input": "something else"}, 422, "this key stands for another request"),
    ],
)
def test_a_dry_run_is_checked_as_a_job_is(shim: Shim, facts: dict[str, Any], status: int, said: str) -> None:
    body = {"agent": "plain", "input": "hi"}
    key = {"Idempotency-Key": "used" if "input" in facts else "new"}
    assert shim.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "used"}).status_code == 202
    assert shim.http.post("/v1/jobs", json=body | {"context_id": "held"}).status_code == 202
    dry, wet = (
        shim.http.post("/v1/jobs", params={"dry_run": dry_run}, json=body | facts, headers=key)
        for dry_run in (True, False)
    )
    assert dry.status_code == wet.status_code == status
    assert said in dry.text
    assert dry.json()["errors"] == wet.json()["errors"]


@pytest.mark.parametrize("facts", [{"run_at": ahead(48)}, {"context_id": "held"}])
def test_a_dry_run_knows_what_a_job_would_wait_for(shim: Shim, facts: dict[str, Any]) -> None:
    """Its time, or the job that holds its context: how many jobs go before it does not say when it starts."""
    ask(shim, dry_run=False, status=202, context_id="held")
    said = ask(shim, **facts)
    assert said["position"] is None
    assert (said["expected_start_at"] is not None) == ("run_at" in facts)
    assert ask(shim, dry_run=False, status=202, **facts)["quote"] == said


def test_a_dry_run_of_a_job_that_is_known_is_of_that_one(shim: Shim) -> None:
    """As the POST would be: its key was used before."""
    body, key = {"agent": "plain", "input": "hi"}, {"Idempotency-Key": "k"}
    shim.http.post("/v1/jobs", json=body, headers=key)
    ask(shim, dry_run=False, status=202)
    known = shim.http.post("/v1/jobs", params={"dry_run": True}, json=body, headers=key)
    assert (known.status_code, known.json()["position"]) == (200, 0)


def test_the_deployment_says_what_a_job_may_cost(valkey: Valkey) -> None:
    with running(Shim(valkey.url, CELERIAC_COSTS__MAX_JOB_USD="0.5")) as shim:
        assert ask(shim, "assistant")["max_cost_usd"] == "0.500000000"


def test_a_tenant_is_told_what_its_own_budget_leaves(valkey: Valkey) -> None:
    """What any other leaves would tell it what others spend."""
    keys = {
        "CELERIAC_SHIM__API_KEYS__ACME": "key-of-acme-1234567",
        "CELERIAC_SHIM__API_KEYS__OPS": "key-of-ops-12345678",
        "CELERIAC_SHIM__OPERATORS": "ops",
    }
    ops, acme = {"X-API-Key": "key-of-ops-12345678"}, {"X-API-Key": "key-of-acme-1234567"}
    with running(Shim(valkey.url, **keys)) as shim:

        def cap(scope: str, usd: str) -> None:
            put = {"caps": [{"window": "hour", "cap_usd": usd}]}
            assert shim.http.put(f"/v1/budgets/{scope}", json=put, headers=ops).status_code == 200

        def left(headers: dict[str, str], dry_run: bool = True) -> str | None:
            body = {"agent": "assistant", "input": "hi"}
            said = shim.http.post("/v1/jobs", params={"dry_run": dry_run}, json=body, headers=headers).json()
            quote: dict[str, Any] = said if dry_run else said["quote"]
            found: str | None = quote["budget_left_usd"]
            return found

        for scope in ("all", "agent:assistant", "provider:openai"):
            cap(scope, "3")
        assert (left(ops), left(acme), left(acme, dry_run=False)) == ("3.000000000", None, None)
        cap("tenant:acme", "5")
        assert (left(ops), left(acme), left(acme, dry_run=False)) == ("3.000000000", "5.000000000", "5.000000000")
