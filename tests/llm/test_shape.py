"""Schemas of answers, as Anthropic takes them: what its dialect does not have is a 400 there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celeriac.llm.shape import closed

from .conftest import Case


def of(**keywords: Any) -> dict[str, Any]:
    """A schema of an object with one property."""
    return {"type": "object", "properties": {"a": keywords}}


def said(**keywords: Any) -> Any:
    """The property as the dialect has it; None where the whole cannot be said in it."""
    made = closed(of(**keywords))
    return made and made["properties"]["a"]


@pytest.mark.parametrize(
    ("keywords", "found"),
    [
        ({"type": "integer", "minimum": 1, "multipleOf": 2}, {"type": "integer"}),
        ({"type": "string", "pattern": "a", "format": "uuid"}, {"type": "string", "format": "uuid"}),
        ({"type": "string", "format": "json-pointer", "title": "A"}, {"type": "string", "title": "A"}),
        ({"type": "string", "enum": ["b", None, 3], "description": "x"}, {"enum": ["b", None, 3], "description": "x"}),
        ({"type": ["string", "null"], "maxLength": 3}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"type": "string"}, {"const": 1}]}),
        ({"allOf": [{"type": "string"}], "title": "A"}, {"type": "string", "title": "A"}),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 1, "uniqueItems": True},
            {"type": "array", "items": {"type": "null"}, "minItems": 1},
        ),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2}, {"type": "array", "items": {"type": "null"}}),
        (
            of(type="null") | {"required": ["a"], "propertyNames": {"maxLength": 1}},
            of(type="null") | {"required": ["a"], "additionalProperties": False},
        ),
    ],
)
def test_what_only_narrows_is_left_out(keywords: dict[str, Any], found: Any) -> None:
    """Objects are closed, and unions are of one kind. The answer is checked against the whole."""
    assert said(**keywords) == found


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"minimum": 1},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        of(type="null") | {"additionalProperties": True},
        of(type="null") | {"required": ["b"]},
        {"type": "array"},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "null"}},
        {"type": "array", "items": True},
        {"const": {"b": 1}},
        {"allOf": [of(type="null"), of(type="null")]},
        of(type="null") | {"anyOf": [of(type="null")]},
        {"$ref": "#"},
        {"$ref": "#/properties/b"},
    ],
)
def test_what_would_be_lost_is_not_said(keywords: dict[str, Any]) -> None:
    """Else a model could not say what it is asked for."""
    assert said(**keywords) is None


def test_definitions_are_said_once() -> None:
    """However often they are referred to, and not at all where they hold themselves."""
    two = {"anyOf": [{"$ref": "#/$defs/1"}] * 2}
    defs: dict[str, Any] = {"0": two} | {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(1, 60)}
    made = closed(of(**two) | {"$defs": defs | {"60": {"type": "null"}}})
    assert made is not None
    assert made["$defs"]["60"] == {"type": "null"}
    assert made["properties"]["a"] == two
    assert closed(of(**two) | {"$defs": {"1": of(**two)}}) is None


async def test_a_model_is_told_in_words_what_the_dialect_does_not_have(sdk: Case) -> None:
    """After its instructions. OpenAI's field takes any schema."""
    schema = of(type="object", additionalProperties={"type": "string"})
    await sdk.answer(schema=schema, instructions="Be brief.")
    body = json.loads((await sdk.provider.requests())[-1]["body"])
    if sdk.name == "messages":
        instructions, words = body["system"].split("\n\n")
        assert (instructions, json.loads(words.partition(": ")[2])) == ("Be brief.", schema)
        assert "output_config" not in body
    else:
        form = body["text"]["format"] if sdk.name == "responses" else body["response_format"]["json_schema"]
        assert form["schema"] == schema
