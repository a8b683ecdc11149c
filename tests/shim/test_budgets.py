"""Budgets over HTTP: who may change them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Valkey
from tests.processes import Shim, running

KEYS = {
    "CELERIAC_SHIM__API_KEYS__ACME": "key-of-acme-1234567",
    "CELERIAC_SHIM__API_KEYS__OPS": "key-of-ops-12345678",
    "CELERIAC_SHIM__OPERATORS": "ops",
    "CELERIAC_COSTS__LABELS": '{"team": ["red", "blue"]}',
    "CELERIAC_COSTS__TIME_ZONE": "Europe/Berlin",
}
OPS, ACME = {"X-API-Key": "key-of-ops-12345678"}, {"X-API-Key": "key-of-acme-1234567"}
DAY = {"window": "day", "cap_usd": "12.5", "alert_at": [50, 100]}


def put(shim: Shim, scope: str, *caps: dict[str, Any], headers: dict[str, str] = {}) -> Any:  # noqa: B006  # not changed
    return shim.http.put(f"/v1/budgets/{scope}", json={"caps": list(caps)}, headers=headers)


@pytest.mark.parametrize(
    "scope", ["all", "tenant:acme", "agent:a.b-c", "provider:openai", "model:together/meta-llama/Llama-4:free"]
)
def test_a_budget_is_set_read_and_taken_away(shim: Shim, scope: str) -> None:
    """As it was written, in dollars exact to the nano-dollar, with the window that is open."""
    assert shim.http.get(f"/v1/budgets/{scope}").status_code == 404
    made = put(shim, scope, {"window": "ever", "cap_usd": "1000000"}, DAY)
    assert made.status_code == 200, made.text
    assert made.json() == shim.http.get(f"/v1/budgets/{scope}").json()
    day, ever = made.json()["caps"]
    assert (day["window"], day["cap_usd"], day["alert_at"]) == ("day", "12.500000000", [50, 100])
    assert day["starts_at"].endswith("T00:00:00.000Z")
    assert day["ends_at"] > day["starts_at"]
    assert (ever["cap_usd"], ever["alert_at"], ever["starts_at"]) == ("1000000.000000000", [80, 100], None)
    assert {day[f"{name}_usd"] for name in ("settled", "in_doubt", "reserved")} == {"0.000000000"}
    assert day["left_usd"] == "12.500000000"
    assert [b["scope"] for b in shim.http.get("/v1/budgets").json()["budgets"]] == [scope]
    assert shim.http.delete(f"/v1/budgets/{scope}").status_code == 204
    assert shim.http.delete(f"/v1/budgets/{scope}").status_code == 404


@pytest.mark.parametrize(
    ("scope", "caps", "field"),
    [
        ("everything", [DAY], "scope"),
        ("tenant:", [DAY], "scope"),
        ("tenant:a b", [DAY], "scope"),
        ("model:gpt", [DAY], "scope"),
        ("label:team=red", [DAY], "scope"),
        ("all", [], "caps"),
        ("all", [DAY, DAY], "caps"),
        ("all", [DAY | {"window": "year"}], "window"),
        ("all", [DAY | {"cap_usd": 5}], "cap_usd"),
        ("all", [DAY | {"cap_usd": "-5"}], "cap_usd"),
        ("all", [DAY | {"cap_usd": "0.0000000001"}], "cap_usd"),
        ("all", [DAY | {"cap_usd": "9000000.000000001"}], "cap_usd"),
        ("all", [DAY | {"alert_at": [0]}], "alert_at"),
        ("all", [DAY | {"alert_at": list(range(1, 12))}], "alert_at"),
        ("all", [DAY | {"currency": "EUR"}], "currency"),
    ],
)
def test_what_is_no_budget_is_refused(shim: Shim, scope: str, caps: list[dict[str, Any]], field: str) -> None:
    """By the name of the field, and nothing is stored."""
    refused = put(shim, scope, *caps)
    assert refused.status_code == 422, refused.text
    assert field in refused.text
    assert shim.http.get("/v1/budgets").json() == {"budgets": []}


def test_only_an_operator_changes_budgets_or_sees_everybodys(valkey: Valkey) -> None:
    """A tenant sees its own. Days begin at the deployment's midnight; a label is one that was declared."""
    with running(Shim(valkey.url, **KEYS)) as shim:
        for scope in ("all", "tenant:acme", "label:team=red", "label:team=other"):
            assert put(shim, scope, DAY, headers=OPS).status_code == 200
            refused = put(shim, scope, DAY, headers=ACME)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            assert shim.http.delete(f"/v1/budgets/{scope}", headers=ACME).status_code == 403
            own = 200 if scope == "tenant:acme" else 403
            assert shim.http.get(f"/v1/budgets/{scope}", headers=ACME).status_code == own
        assert put(shim, "label:team=green", DAY, headers=OPS).status_code == 422
        assert put(shim, "all", DAY).status_code == 401
        seen = [
            {budget["scope"] for budget in shim.http.get("/v1/budgets", headers=headers).json()["budgets"]}
            for headers in (OPS, ACME)
        ]
        assert seen == [{"all", "tenant:acme", "label:team=red", "label:team=other"}, {"tenant:acme"}]
        [cap] = shim.http.get("/v1/budgets/all", headers=OPS).json()["caps"]
        assert cap["starts_at"][10:] in {"T23:00:00.000Z", "T22:00:00.000Z"}
