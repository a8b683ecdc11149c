"""JSON schemas that callers give: which are taken, and what is said of an answer."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import psutil
import pytest
from pydantic import UUID4, BaseModel, Field, SecretStr

from celeriac.agents.check import PATIENCE, QUICK, TOO_MUCH, Checker, Wrong
from celeriac.agents.judge import MEMORY, WRONG, judged
from celeriac.agents.output import JsonSchema, judge
from celeriac.jobs.schema import (
    FORMATS,
    KEYWORDS,
    LONGEST,
    MAX_SCHEMA,
    NOTES,
    PATTERNS,
    UNCHECKED_FORMATS,
    checked_schema,
)
from celeriac.logs import bound
from tests.processes import ROOT, until, wait_until


class Cat(BaseModel):
    kind: Literal["cat"]
    photo: bytes


class Dog(BaseModel):
    kind: Literal["dog"]
    home: Path
    code: SecretStr
    id: UUID4


class Shelter(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def of(**keywords: Any) -> dict[str, Any]:
    """A schema of an object with one property."""
    return {"type": "object", "properties": {"a": keywords}}


def check(schema: dict[str, Any], value: Any) -> Wrong | None:
    """As a judge does it, in here."""
    *_, said = judged(orjson.dumps(checked_schema(schema)).decode(), value)
    return said and Wrong(*said)


async def ask(checker: Checker, schema: dict[str, Any], value: Any) -> Wrong | None:
    return await checker.wrong(orjson.dumps(schema).decode(), orjson.dumps(value).decode())


@pytest.fixture
async def checker() -> AsyncIterator[Checker]:
    async with Checker() as made:
        yield made


def wrong(value: Any, **keywords: Any) -> str:
    """Where in the schema it is that a value is wrong, "" where it is right."""
    found = check(of(**keywords), {"a": value})
    return found.place if found else ""


NO, ONE = {"type": "null"}, {"type": "integer"}
#: By keyword: a schema that has it, a value that is right, and one that is wrong by it.
ASSERTED: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "type": (ONE, 2.0, "x"),
    "enum": ({"enum": ["x", 1]}, 1.0, True),
    "const": ({"const": {"b": [1]}}, {"b": [1.0]}, {"b": [True]}),
    "minimum": ({"minimum": 2}, 2, 1),
    "maximum": ({"maximum": 2}, 2, 3),
    "exclusiveMinimum": ({"exclusiveMinimum": 2}, 3, 2),
    "exclusiveMaximum": ({"exclusiveMaximum": 2}, 1, 2),
    "multipleOf": ({"multipleOf": 0.1}, 0.3, 0.35),
    "minLength": ({"minLength": 2}, "éé", "é"),
    "maxLength": ({"maxLength": 2}, "éé", "ééé"),
    "pattern": ({"pattern": "^a.$"}, "ab", "ba"),
    "format": ({"format": "ipv4"}, "127.0.0.1", "localhost"),
    "minItems": ({"minItems": 1}, [1], []),
    "maxItems": ({"maxItems": 1}, [1], [1, 1]),
    "uniqueItems": ({"uniqueItems": True}, [1, True], [1, 1.0]),
    "contains": ({"contains": ONE}, ["x", 1], ["x"]),
    "minContains": ({"contains": ONE, "minContains": 2}, [1, 1], [1, "x"]),
    "maxContains": ({"contains": ONE, "maxContains": 1}, [1, "x"], [1, 1]),
    "minProperties": ({"minProperties": 1}, {"b": 1}, {}),
    "maxProperties": ({"maxProperties": 1}, {"b": 1}, {"b": 1, "c": 1}),
    "required": ({"required": ["b"]}, {"b": None}, {}),
    "dependentRequired": ({"dependentRequired": {"b": ["c"]}}, {"c": 1}, {"b": 1}),
    "dependentSchemas": ({"dependentSchemas": {"b": {"maxProperties": 1}}}, {"c": 1, "d": 1}, {"b": 1, "c": 1}),
    "$ref": ({"$ref": "#/$defs/c~1d"}, 1, "x"),
    "$defs": ({"$ref": "#/properties/a/$defs/e", "$defs": {"e": ONE}}, 1, "x"),
    "items": ({"items": ONE}, [1], ["x"]),
    "prefixItems": ({"prefixItems": [NO, ONE]}, [None, 1, "x"], [None, "x"]),
    "unevaluatedItems": ({"allOf": [{"prefixItems": [ONE]}], "unevaluatedItems": False}, [1], [1, 1]),
    "properties": ({"properties": {"b": ONE}}, {"b": 1, "c": "x"}, {"b": "x"}),
    "patternProperties": ({"patternProperties": {"^b": ONE}}, {"b": 1, "cb": "x"}, {"bc": "x"}),
    "additionalProperties": ({"properties": {"b": {}}, "additionalProperties": ONE}, {"b": "x"}, {"c": "x"}),
    "unevaluatedProperties": ({"anyOf": [{"properties": {"b": ONE}}], "unevaluatedProperties": NO}, {"b": 1}, {"c": 1}),
    "propertyNames": ({"propertyNames": {"maxLength": 1}}, {"b": 1}, {"bc": 1}),
    "allOf": ({"allOf": [ONE, {"minimum": 2}]}, 2, 1),
    "anyOf": ({"anyOf": [ONE, {"minimum": 2}]}, 2.5, 1.5),
    "oneOf": ({"oneOf": [ONE, {"minimum": 2}]}, 2.5, 2),
    "not": ({"not": ONE}, "x", 1),
    "if": ({"if": ONE, "then": False}, "x", 1),
    "then": ({"if": ONE, "then": {"minimum": 2}}, 2, 1),
    "else": ({"if": ONE, "else": NO}, None, "x"),
}  # fmt: skip


@pytest.mark.parametrize("keyword", ASSERTED)
def test_what_a_keyword_says_is_checked(keyword: str) -> None:
    """As the standard has it, wherever two readings are likely."""
    keywords, right, not_right = ASSERTED[keyword]
    schema = of(**keywords) | {"$defs": {"c/d": ONE}}
    assert check(schema, {"a": right}) is None
    assert check(schema, {"a": not_right}) is not None


def test_no_keyword_is_taken_and_passed_over() -> None:
    """Each is tried above, or says nothing of which answers are right; all of them, and no other, are documented."""
    assert set(KEYWORDS) == {*ASSERTED, *NOTES}
    section = (ROOT / "docs/agents.md").read_text().partition("What a schema says is checked")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    assert set(re.findall(r"`(\S+?)`", " ".join(rows))) == set(KEYWORDS)
    [formats] = re.findall(r"`format` is one of (.*?)\.", section, re.S)
    assert set(re.findall(r"`(\S+?)`", formats)) == set(FORMATS)
    [formats] = re.findall(r"words for the model are\s(.*?)\.", section, re.S)
    assert set(re.findall(r"`(\S+?)`", formats)) == set(UNCHECKED_FORMATS)


def test_what_pydantic_writes_is_taken() -> None:
    """Formats that nobody checks, and the note of what tells forms apart, which `oneOf` says too."""
    schema = checked_schema(Shelter.model_json_schema())
    assert schema["properties"]["pet"]["discriminator"]["propertyName"] == "kind"
    assert check(schema, {"pet": {"kind": "cat", "photo": "x"}}) is None
    assert check(schema, {"pet": {"kind": "dog", "photo": "x"}}) is not None
    for name in UNCHECKED_FORMATS:
        assert not wrong("x", format=name)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({}, 'begin with "type": "object"'),
        ({"type": "array"}, 'begin with "type": "object"'),
        ({"type": ["object", "null"]}, 'begin with "type": "object"'),
        ({"type": "object", "description": "x" * MAX_SCHEMA}, "has 65570 bytes; send at most 65536"),
        ({"type": "object", "const": 1 << 70}, "is no JSON"),
        ({"type": "object", "const": "\ud800"}, "is no JSON"),
        (of(minLenght=3), "at /properties/a: minLenght is not checked here; use type, enum"),
        (of(contentMediaType="text/html"), "contentMediaType is not checked here"),
        (of(patternProperties={"a": {"minLenght": 3}}), "at /properties/a/patternProperties/a: minLenght is not"),
        (of(**{"$dynamicRef": "#a"}), r"\$dynamicRef is not checked here"),
        (of(**{"$id": "http://x/y"}), r"\$id is not checked here"),
        (of(**{"$ref": "http://x/y"}), r"at /properties/a: \$ref leads to no schema in here, and none is fetched"),
        (of(**{"$ref": "file:///etc/passwd"}), "none is fetched"),
        (of(**{"$ref": "#/$defs/x"}), r"\$ref leads to no schema in here"),
        (of(**{"$ref": "#/properties"}), r"\$ref leads to no schema in here"),
        (of(**{"$ref": "#/properties/a/default", "default": {"minLenght": 1}}), "leads to no schema in here"),
        (of(**{"$ref": "#/properties/a"}), r"at /properties/a: \$ref leads back to itself"),
        ({"type": "object", "allOf": [{"anyOf": [{"$ref": "#"}]}]}, r"\$ref leads back to itself"),
        ({"type": "object", "properties": {"a": 3}}, 'at /properties/a: it is not of types "boolean", "object"'),
        (of(type="text"), "at /properties/a/type: .*; write one of null, boolean"),
        (of(minLength=-1), "at /properties/a/minLength: it is less than the minimum of 0; write it as JSON Schema"),
        (of(minimum="1"), 'at /properties/a/minimum: it is not of type "number"'),
        (of(multipleOf=0), "at /properties/a/multipleOf: it is less than or equal to the minimum of 0"),
        (of(required=["a", "a"]), "at /properties/a/required: it has non-unique elements"),
        (of(anyOf=[]), "at /properties/a/anyOf: it has less than 1 item"),
        (of(items=[{}]), 'at /properties/a/items: it is not of types "boolean", "object"'),
        (of(format="credit-card"), "at /properties/a: credit-card is no format that .*; write one of date, time"),
        (of(pattern="("), "at /properties/a/pattern: .*; write a shorter one, or one as Rust's regex crate reads it"),
        (of(pattern=r"(?=a)b"), "at /properties/a/pattern: .*that looks neither ahead nor behind"),
        (of(pattern=r"(a)\1"), "at /properties/a/pattern: "),
        (of(pattern="(((a{100}){100}){100}){100}"), "at /properties/a/pattern: .*; write a shorter one"),
        (of(pattern="[ab]{20000}"), "at /properties/a/pattern: .*; write a shorter one"),
        (of(patternProperties={"(": {}}), r"at /properties/a/patternProperties/\(: .*; write a shorter one"),
        (of(patternProperties={f"^{n}": {} for n in range(PATTERNS + 1)}), "one too many; write at most 64 patterns"),
        (of(allOf=[{"pattern": str(n)} for n in range(PATTERNS + 1)]), "/64: pattern is one too many"),
        (of(allOf=[{"items": {}}] * 1_000), "at /properties/a: has one value looked at more than 1000 times; refer"),
        (of(**{"$schema": "http://json-schema.org/draft-07/schema#"}), r"\$schema is not right; write https"),
    ],
)  # fmt: skip
def test_what_is_no_schema_for_an_answer_is_refused_by_name(schema: Any, said: str) -> None:
    """And what would be right is said."""
    with pytest.raises(ValueError, match=said) as refused:
        checked_schema(schema)
    assert "; " in str(refused.value)


def test_a_schema_may_not_stand_in_itself_without_end() -> None:
    """Deep ones are refused, whatever they say."""
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="nested too deep"):
        checked_schema(of(**schema))


def doubling(deep: int) -> dict[str, Any]:
    defs: dict[str, Any] = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(deep)}
    return {"type": "object", "$defs": defs | {str(deep): ONE}, "properties": {"a": {"$ref": "#/$defs/0"}}}


def test_schemas_that_double_each_other_are_refused() -> None:
    """Where they would have one value looked at too often; a few may."""
    with pytest.raises(ValueError, match="looked at more than 1000 times"):
        checked_schema(doubling(60))
    assert check(doubling(6), {"a": 1}) is None


A: dict[str, Any] = {"$ref": "#/properties/a"}


def forms(**more: Any) -> list[dict[str, Any]]:
    return [{"properties": {"k": {"const": n}, "b": A}, **more} for n in (1, 2)]


@pytest.mark.parametrize(
    "keywords",
    [
        {"oneOf": forms()},
        {"anyOf": [{"properties": {"b": A}, "maxProperties": n} for n in (1, 2, 3)]},
        {"anyOf": [*forms(required=["k"]), {"additionalProperties": A}]},
        {"allOf": forms(required=["k"])},
        {"allOf": [{"properties": {"b": A}}, {"additionalProperties": A}]},
        {"properties": {"b": {"anyOf": [A, A]}}},
        {"patternProperties": {"^a": A, "a$": A}},
        {"items": A, "contains": A},
        {"if": {"items": A}, "then": {"items": {"anyOf": [A, NO]}}},
        {"prefixItems": [A], "allOf": [{"items": A}]},
    ],
    ids=str,
)
def test_what_doubles_with_each_level_of_a_value_is_refused(keywords: dict[str, Any]) -> None:
    """A schema that leads back to itself twice through one part of a value: the model says how deep that goes."""
    with pytest.raises(ValueError, match=r"leads back twice through one part of a value.*; refer once"):
        checked_schema(of(**keywords))


@pytest.mark.parametrize(
    "keywords",
    [
        {"properties": {"b": A, "c": {"anyOf": [NO, A]}, "d": {"items": A}}, "additionalProperties": A},
        {"anyOf": [{"type": "string"}, {"items": A}, {"additionalProperties": A}]},
        {"prefixItems": [A, A], "items": A},
        {"allOf": [{"properties": {"b": A}}, {"properties": {"c": A}}]},
        {"oneOf": [*forms(required=["k"]), NO]},
        {"oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]},
    ],
    ids=str,
)
def test_what_holds_itself_once_in_each_part_is_taken(keywords: dict[str, Any]) -> None:
    """Trees, lists of lists, and forms of which a value has one."""
    x, y = forms(required=["k"])
    assert checked_schema(of(**keywords) | {"$defs": {"x": x, "y": y}})


#: Ten levels of three forms each: the library looks at every one of them to say what is wrong.
DEEP = of(**{"$ref": "#/$defs/0"}) | {
    "$defs": {"10": NO}
    | {
        str(n): {"oneOf": [{"properties": {"b": {"$ref": f"#/$defs/{n + 1}"}}, "maxProperties": m} for m in (1, 2, 3)]}
        for n in range(10)
    }
}
NESTED: dict[str, Any] = {"c": 1}
for _ in range(10):
    NESTED = {"b": NESTED}


@pytest.mark.parametrize(
    ("schema", "value", "found"),
    [
        (of(items={"enum": [[n] for n in range(8_000)]}), [[7_999]] * 20_000, TOO_MUCH),
        (of(allOf=[{"uniqueItems": True}] * 900), list(range(200_000)), TOO_MUCH),
        (of(anyOf=[{"items": {"enum": ["y"]}, "maxItems": 3}] * 900), ["y"] * 10_000, Wrong(*WRONG)),
        (of(anyOf=[{"type": "string"}] * 100), [0] * 300_000, Wrong(*WRONG)),
        (DEEP, NESTED, Wrong(*WRONG)),
    ],
    ids=["compares", "sorts", "explains", "hoards", "nests"],
)
async def test_no_schema_keeps_a_worker_busy(
    checker: Checker, schema: dict[str, Any], value: Any, found: Wrong
) -> None:
    """What takes too much time or memory is not right, or is not explained; meanwhile the worker does other things, and
    the next answer is checked as ever."""
    output, turns = JsonSchema(checked_schema(schema), checker), 0
    judging = asyncio.create_task(judge(output, orjson.dumps({"a": value}).decode(), "end"))
    while not judging.done():
        await asyncio.sleep(0.001)
        turns += 1
    said = await judging
    assert said is not None
    assert (found.told in said.told, said.place) == (True, found.place)
    assert turns > 10
    assert await ask(checker, of(**ONE), {"a": 1}) is None


def test_a_pattern_takes_no_longer_for_being_nasty() -> None:
    """Of those for which others take for ever."""
    assert wrong("a" * 50_000 + "b", pattern="(a+)+$") == "/properties/a/pattern"
    assert not wrong("a" * 50_000, pattern="^(a|a)*$")


@pytest.mark.parametrize(
    ("name", "right", "not_right"),
    [
        ("date", ["2031-01-31"], ["2031-02-30", "31.1.2031", "2031-01-31T00:00:00Z", "٢٠٣١-01-31"]),
        ("time", ["12:00:00Z", "12:00:00.5+01:00"], ["12:00", "25:00:00Z", "12:00:00"]),
        ("date-time", ["2031-01-31T12:00:00Z", "2031-01-31t12:00:00.25-05:00"], ["2031-01-31T12:00:00", "2031-01-31"]),
        ("duration", ["P1D", "P1Y2M3DT4H", "P2W"], ["P", "PT", "1D", "P1DT", "P1H", "PT1.5S"]),
        ("email", ["a@b.c"], ["a", "a@", "a b@c", "a@b@c"]),
        ("idn-email", ["ä@b.c"], ["a", "a@", "a b@c", "a@b@c"]),
        ("hostname", ["a", "a.example", "xn--4gbwdl.xn--wgbh1c"], ["", "-a", "a-", "a..b", "a" * 64, "a_b", "ä.b"]),
        ("idn-hostname", ["a", "ä.example"], ["", "-a", "a..b", "a_b"]),
        ("ipv4", ["127.0.0.1"], ["127.0.0", "127.0.0.256", "::1"]),
        ("ipv6", ["::1", "2001:db8::1"], ["1::2::3", "127.0.0.1", "fe80::1%eth0"]),
        ("uri", ["https://a/b?c#d", "mailto:a@b"], ["a/b", "//a", "http://a b", "http://ä/"]),
        ("uri-reference", ["https://a/b?c#d", "a/b"], ["http://a b", "ä"]),
        ("iri", ["https://ä/b?c#d", "mailto:a@b"], ["a/b", "//a", "http://a b"]),
        ("iri-reference", ["https://ä/b?c#d", "a/b"], ["http://a b"]),
        ("uri-template", ["https://a/{b}"], ["https://a/{b"]),
        ("json-pointer", ["", "/a/0"], ["a", "/~2"]),
        ("relative-json-pointer", ["0", "1/a"], ["/a", "-1"]),
        ("regex", ["^a+$"], ["("]),
        ("uuid", ["0192d3a4-0000-7000-8000-000000000000"], ["0192d3a400007000800000000000000", "x"]),
    ],
)
def test_a_format_is_what_its_name_says(name: str, right: list[str], not_right: list[str]) -> None:
    """Every one that is taken; texts alone have one."""
    assert [text for text in right if wrong(text, format=name)] == []
    assert [text for text in not_right if not wrong(text, format=name)] == []
    assert not wrong(7, format=name)


def test_every_format_is_tried() -> None:
    """By the test above."""
    [mark] = [mark for mark in test_a_format_is_what_its_name_says.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {row[0] for row in mark.args[1]} == set(FORMATS)


@pytest.mark.parametrize(
    ("value", "keywords", "told"),
    [
        ("x", ONE, 'a: it is not of type "integer"'),
        (["x"], {"items": {"type": ["null", "integer"]}}, 'a[0]: it is not of types "null", "integer"'),
        ({}, {"required": ["b", "c"]}, 'a: "b" is a required property'),
        ({"b": 1}, {"properties": {}, "additionalProperties": False}, "a: Additional properties are not allowed ('b'"),
        ("x", {"enum": ["y", 1]}, 'a: it is not one of "y" or 1'),
        ("x", {"const": "y"}, 'a: "y" was expected'),
        (3, {"minimum": 5}, "a: it is less than the minimum of 5"),
        ("x", {"minLength": 5}, "a: it is shorter than 5 characters"),
        ("x", {"anyOf": [NO, ONE]}, "a: it is not valid under any of the schemas listed in the 'anyOf' keyword"),
        ("x", {"anyOf": [ONE]}, 'a: it is not of type "integer"'),
        ({"b": 1}, {"anyOf": [NO, {"properties": {"b": NO}}]}, 'a.b: it is not of type "null"'),
        ({"b": [1]}, {"oneOf": [ONE, {"properties": {"b": {"oneOf": [ONE, {"items": NO}]}}}]}, "a.b[0]: it is not"),
        (3, {"oneOf": [{"minimum": 1}, {"maximum": 5}, NO]}, "a: it is valid under more than one of the schemas"),
    ],
)
def test_a_model_is_told_where_its_answer_is_wrong(value: Any, keywords: dict[str, Any], told: str) -> None:
    """In few words, of which its own are no part. Of several forms, of the one that it may have meant."""
    found = check(of(**keywords), {"a": value})
    assert found is not None
    assert found.told.startswith(told)


@pytest.mark.parametrize(
    ("value", "keywords"),
    [
        ("Quackenbush", ONE),
        ({"Quackenbush": "Quackenbush"}, {"additionalProperties": ONE}),
        ({"Quackenbush": 1}, {"additionalProperties": False, "properties": {}}),
        ({"Quackenbush": 1}, {"unevaluatedProperties": False}),
        ({"Quackenbush": 1}, {"propertyNames": {"maxLength": 3}}),
        (["Quackenbush"], {"items": {"anyOf": [NO, {"const": 3}]}}),
        (["Quackenbush", "Quackenbush"], {"uniqueItems": True}),
    ],
)
def test_what_others_are_told_holds_nothing_of_the_answer(value: Any, keywords: dict[str, Any]) -> None:
    """A place in the schema alone."""
    place = wrong(value, **keywords)
    assert re.fullmatch(r"(/[\w$]+)+", place)
    assert "Quackenbush" not in place


def test_what_is_told_stays_short() -> None:
    """However long the schema's words are, and the answer's."""
    found = check(of(additionalProperties={"enum": ["x" * 5_000]}), {"a": {"k" * 9_000: {"b": 1}}})
    assert found is not None
    assert len(found.told) <= LONGEST
    assert len(found.place) <= LONGEST


def judges() -> list[psutil.Process]:
    """Those that live."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "celeriac.agents.judge" in child.cmdline():
                found.append(child)
    return found


async def started(checker: Checker) -> psutil.Process:
    """The judge of one that judges."""
    known = judges()
    assert await ask(checker, of(**ONE), {"a": 1}) is None
    [made] = [process for process in judges() if process not in known]
    return made


async def test_a_judge_that_was_killed_is_followed_by_another(checker: Checker) -> None:
    """Whoever did it: no answer is wrong for that, and nobody is left behind."""
    first = await started(checker)
    for number in (signal.SIGINT, signal.SIGTERM):  # what is told a whole group or container
        os.kill(first.pid, number)
    assert await ask(checker, of(**ONE), {"a": 1}) is None
    assert first.is_running()
    first.kill()
    assert await ask(checker, of(**ONE), {"a": 1}) is None
    [another] = judges()
    assert os.getsid(another.pid) == another.pid
    assert [another.rlimit(which)[0] for which in (psutil.RLIMIT_AS, psutil.RLIMIT_CORE)] == [MEMORY, 0]
    await checker.__aexit__()
    assert not another.is_running()


async def test_judges_that_died_while_nobody_asked_say_nothing_of_an_answer(checker: Checker) -> None:
    """Where memory is short they go first, both at once; a right answer is right all the same."""
    await started(checker)
    hard = of(**ONE) | {"description": "another"}
    assert await checker._slow.asked(orjson.dumps([orjson.dumps(hard).decode(), '{"a": 1}']) + b"\n") == [None]
    for process in judges():
        process.kill()
    await until(lambda: not judges())
    assert await ask(checker, of(**ONE), {"a": 1}) is None


async def test_a_judge_that_is_killed_over_an_answer_says_nothing_of_it(checker: Checker) -> None:
    """It had not used up its own time: another one judges, also in place of the one for what takes longer."""
    await started(checker)
    for _ in range(3):
        for one in judges():
            one.suspend()
        asking = asyncio.create_task(ask(checker, of(**ONE), {"a": 1}))
        await asyncio.sleep(0.1)
        for one in judges():
            one.kill()
        assert await asking is None


async def test_a_judge_that_does_nothing_is_replaced(checker: Checker, capsys: pytest.CaptureFixture[str]) -> None:
    """By the clock; the log says whose answer it was."""
    first = await started(checker)
    first.suspend()
    began = time.monotonic()
    with bound(job_id="j-7"):
        assert await ask(checker, of(**ONE), {"a": 1}) is None
    assert time.monotonic() - began < QUICK * PATIENCE + 10
    wait_until(lambda: not first.is_running(), "the judge to be gone")
    [line] = [line for line in capsys.readouterr().out.splitlines() if "output_check_lost" in line]
    assert "j-7" in line


async def test_nobody_waits_for_what_takes_long_twice(checker: Checker) -> None:
    """The schema over which a judge was lost has another judge from then on: the one of all others lives on."""
    found = await ask(checker, DEEP, {"a": NESTED})
    assert found == Wrong(*WRONG)
    first = await started(checker)
    held = asyncio.gather(*(ask(checker, DEEP, {"a": NESTED}) for _ in range(3)))
    await asyncio.sleep(0)
    assert await ask(checker, of(**ONE), {"a": 1}) is None
    assert not held.done()
    assert await held == [Wrong(*WRONG)] * 3
    assert first.is_running()


async def test_what_takes_longer_than_most_is_judged_all_the_same(checker: Checker) -> None:
    """By a judge with more time."""
    assert await ask(checker, of(allOf=[{"uniqueItems": True}] * 80), {"a": list(range(50_000))}) is None


async def test_a_judge_has_none_of_its_workers_keys(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It judges strangers' words."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert (await started(checker)).environ().keys() <= {"PATH", "PYTHONPATH", "LC_CTYPE"}


def test_a_judge_leaves_with_its_worker() -> None:
    """Even if that is killed."""
    program = (
        "import asyncio, os, psutil, signal; from celeriac.agents.check import Checker\n"
        "async def main():\n"
        '    await Checker().wrong("{}", "1")\n'
        "    print(psutil.Process().children()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    wait_until(lambda: not psutil.pid_exists(int(ended.stdout)), "the judge to be gone")
