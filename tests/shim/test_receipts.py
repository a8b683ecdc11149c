"""Receipts over HTTP: signed by the shim, for the job's tenant alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from api_shim.schemas import ReceiptOut
from celeriac.costs.receipts import Signing, check_sums, read
from tests.by_hand import crash, finish, start
from tests.conftest import Valkey
from tests.processes import Shim, running

KEYS = {"2025-07": "the-old-signing-secret-of-this-test", "2026-11": "the-new-signing-secret-of-this-test"}
TENANTS = {"acme": "key-of-acme-1234567", "globex": "key-of-globex-1234567"}
ACME, GLOBEX = ({"X-API-Key": key} for key in TENANTS.values())
SIGNING = Signing({name: SecretStr(key) for name, key in KEYS.items()}, None)


@pytest.fixture(scope="module")
def one_signing_shim(valkey_server: Valkey) -> Iterator[Shim]:
    env = {
        "CELERIAC_COSTS__RECEIPT_KEYS": json.dumps(KEYS),
        "CELERIAC_COSTS__RECEIPT_KEY": "2026-11",
        "CELERIAC_SHIM__API_KEYS": json.dumps(TENANTS),
    }
    with running(Shim(valkey_server.url, **env)) as shim:
        yield shim


@pytest.fixture
def signing_shim(one_signing_shim: Shim, valkey: Valkey) -> Shim:
    return one_signing_shim


def submitted(shim: Shim) -> str:
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi"}, headers=ACME)
    id: str = answer.json()["id"]
    return id


def test_a_receipt_is_signed_with_the_current_key(signing_shim: Shim, valkey: Valkey) -> None:
    """As it is sent, byte for byte: nothing between the store and the wire changes it."""
    id = submitted(signing_shim)
    finish(valkey, id)
    answer = signing_shim.http.get(f"/v1/jobs/{id}/receipt", headers=ACME)
    assert answer.status_code == 200
    made = read(answer.content)
    assert SIGNING.verify(made) == "2026-11"
    check_sums(made)
    assert (made["job_id"], made["tenant"], made["state"], made["revision"], made["final"]) == (
        id, "acme", "succeeded", 2, True,
    )  # fmt: skip
    assert (made["own"]["cost_usd"], made["lines"][0]["bound_usd"]) == ("0.000001234", "0.000005000")
    job = signing_shim.http.get(f"/v1/jobs/{id}", headers=ACME).json()
    assert (made["submitted_at"], made["ended_at"]) == (job["created_at"], job["ended_at"])
    assert "signing-secret" not in signing_shim.output() + answer.text


def test_a_receipt_has_the_shape_that_the_schema_says(signing_shim: Shim, valkey: Valkey) -> None:
    """Not a member more or less, at any depth: clients are generated from it."""
    id = submitted(signing_shim)
    finish(valkey, id)
    made = signing_shim.http.get(f"/v1/jobs/{id}/receipt", headers=ACME).json()
    assert ReceiptOut.model_validate(made).model_dump(mode="json") == made
    assert "/v1/jobs/{job_id}/receipt" in signing_shim.http.get("/openapi.json").json()["paths"]


def test_a_receipt_can_be_asked_for_at_any_time(signing_shim: Shim, valkey: Valkey) -> None:
    """Before the first call, while it runs, and of a dead letter: it says that it is not final until it is."""
    waiting, runs, dead = (submitted(signing_shim) for _ in range(3))
    start(valkey, runs)
    crash(valkey, dead)
    for id, state, is_final in ((waiting, "queued", False), (runs, "running", False), (dead, "failed", True)):
        made = signing_shim.http.get(f"/v1/jobs/{id}/receipt", headers=ACME).json()
        assert (made["state"], made["final"], made["lines"], made["own"]["cost_usd"]) == (
            state, is_final, [], "0.000000000",
        )  # fmt: skip


def test_a_receipt_is_its_tenants_alone(signing_shim: Shim, valkey: Valkey) -> None:
    """Others hear what they hear of a job that is not there; nobody without a key hears anything."""
    id = submitted(signing_shim)
    finish(valkey, id)
    path = f"/v1/jobs/{id}/receipt"
    for headers, status, code in ((GLOBEX, 404, "not_found"), ({}, 401, "unauthorized")):
        answer = signing_shim.http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
    assert signing_shim.http.get("/v1/jobs/nobody/receipt", headers=ACME).status_code == 404


def test_without_keys_a_receipt_is_not_signed(shim: Shim, valkey: Valkey) -> None:
    """And says so."""
    job = shim.submit()
    finish(valkey, job["id"])
    made = shim.http.get(f"/v1/jobs/{job['id']}/receipt").json()
    assert (made["signature"], made["own"]["cost_usd"]) == (None, "0.000001234")
