"""What an answer has to be, over HTTP: as a caller says it, and as a caller reads it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.by_hand import finish
from tests.conftest import Valkey
from tests.processes import Shim

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def refusal(shim: Shim, schema: Any) -> dict[str, str]:
    answer = shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", "output_schema": schema})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    [error] = answer.json()["errors"]
    found: dict[str, str] = error
    return found


@pytest.mark.parametrize(
    ("schema", "message", "remedy"),
    [
        ("{}", "Input should be a valid dictionary", "send an object"),
        ({}, "is no schema of an object", 'begin with "type": "object"'),
        (
            {"type": "object", "description": "x" * 65_536},
            "has 65570 bytes",
            "send at most 65536, it goes to the model with each call and is paid for",
        ),
        (
            {"type": "object", "properties": {"a": {"minLength": "3"}}},
            'at /properties/a/minLength: it is not of type "integer"',
            "write it as JSON Schema 2020-12 has it",
        ),
        (
            {"type": "object", "items": {"pattern": "(a{100}){1000}"}},
            'at /items/pattern: it is not a "regex"',
            "write a shorter one, or one as Rust's regex crate reads it, that looks neither ahead nor behind",
        ),
    ],
)
def test_what_is_no_schema_is_refused(shim: Shim, valkey: Valkey, schema: Any, message: str, remedy: str) -> None:
    """With field, problem and remedy; nothing is stored."""
    assert refusal(shim, schema) == {"field": "output_schema", "message": message, "remedy": remedy}
    assert valkey.client().dbsize() == 0


def test_a_keyword_that_is_not_checked_is_refused_by_name(shim: Shim) -> None:
    """And those that are, are named."""
    error = refusal(shim, SCHEMA | {"contentEncoding": "base64"})
    assert error["message"] == "at its top: contentEncoding is not checked here"
    assert error["remedy"].startswith("use type, enum, const")


def test_nothing_is_fetched_for_a_schema(shim: Shim) -> None:
    """Who could have that done would reach what only we can."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        error = refusal(shim, SCHEMA | {"$defs": {"a": {"$ref": url}}})
        assert error["message"] == "at /$defs/a: $ref leads to no schema in here, and none is fetched"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_answer_of_a_shape_is_shown_as_json_too(shim: Shim, valkey: Valkey) -> None:
    """Exactly as the model wrote it, beside the text. A job in a list shows neither."""
    job = shim.submit(output_schema=SCHEMA)
    assert job["output"] is None
    text = '{"age": 7, "exact": 0.10000000000000000001, "name": "Zoë"}'
    finish(valkey, job["id"], text, checked=True)
    raw = shim.http.get(f"/v1/jobs/{job['id']}").text
    assert f'"output":{text},' in raw
    job = shim.job(job["id"])
    assert (job["answer"], job["output"]["name"]) == (text, "Zoë")
    [listed] = shim.http.get("/v1/jobs").json()["jobs"]
    assert (listed["answer"], listed["output"]) == (None, None)


def test_an_answer_of_any_shape_is_a_text_alone(shim: Shim, valkey: Valkey) -> None:
    """Also where it happens to be JSON."""
    job = shim.submit()
    finish(valkey, job["id"], '{"age": 7}')
    job = shim.job(job["id"])
    assert (job["answer"], job["output"]) == ('{"age": 7}', None)


def test_the_same_key_with_another_shape_is_another_request(shim: Shim) -> None:
    """And with the same one, in whatever order, the same."""
    key = {"Idempotency-Key": "k"}
    body = {"agent": "assistant", "input": "hi", "output_schema": SCHEMA}
    first = shim.http.post("/v1/jobs", json=body, headers=key).json()
    again = shim.http.post("/v1/jobs", json=body | {"output_schema": dict(reversed(SCHEMA.items()))}, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    other = shim.http.post("/v1/jobs", json=body | {"output_schema": {"type": "object"}}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_the_openapi_document_says_so(shim: Shim) -> None:
    """Of what is sent and of what is read."""
    schemas = shim.http.get("/openapi.json").json()["components"]["schemas"]
    assert "2020-12" in schemas["JobRequest"]["properties"]["output_schema"]["description"]
    assert "JSON" in schemas["JobOut"]["properties"]["output"]["description"]
