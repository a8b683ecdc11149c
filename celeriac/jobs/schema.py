"""JSON schemas of what an answer has to be: which of them we take. `celeriac.agents.check` is the other half.

Schemas are strangers' words. `jsonschema_rs` reads them; here stands what it would take and we do not: keywords that it
passes over, references to what is no schema, and schemas that look at one value without end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final
from urllib.parse import unquote

import orjson
from jsonschema_rs import RegexOptions, ValidationError, Validator, validator_for

#: Bytes of a schema, as JSON: it goes to the model with each call, and is paid for each time.
MAX_SCHEMA: Final = 64 * 1024
#: How often a schema may have one value looked at, by references, allOf and the like; forty of them that double each
#: other would never end.
LOOKS: Final = 1_000
#: Patterns of a schema, and bytes of one that is compiled: the longest take a millisecond each.
PATTERNS: Final = 64
PATTERN_SIZE: Final = 256 * 1024
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
TYPES: Final = ("null", "boolean", "object", "array", "number", "string", "integer")
#: As the library lists them.
FORMATS: Final = (
    *("date", "time", "date-time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
    *("regex", "uuid"),
)
#: What pydantic writes beside those. They are words for the model: nobody checks them.
UNCHECKED_FORMATS: Final = (
    *("binary", "base64url", "json-string", "password", "color", "fraction", "time-delta", "zoneinfo", "name-email"),
    *("path", "file-path", "directory-path", "multi-host-uri", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork"),
    *("ipv4interface", "ipv4network", "ipv6interface", "ipv6network"),
    *("uuid1", "uuid3", "uuid4", "uuid5", "uuid6", "uuid7", "uuid8"),
)
#: Characters of what a model is told of its answer, and of a place in a schema.
LONGEST: Final = 300

#: Keywords with a schema, a list of schemas, schemas by name, and with a value.
SCHEMA: Final = (
    *("items", "contains", "unevaluatedItems", "additionalProperties", "unevaluatedProperties", "propertyNames"),
    *("not", "if", "then", "else"),
)
SCHEMAS: Final = ("prefixItems", "allOf", "anyOf", "oneOf")
NAMED: Final = ("properties", "patternProperties", "dependentSchemas", "$defs")
VALUES: Final = (
    *("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minContains"),
    *("maxContains", "minProperties", "maxProperties", "required", "dependentRequired", "$ref"),
)
#: What says nothing of which answers are right; of a `discriminator`, `oneOf` says the same.
NOTES: Final = (
    *("title", "description", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema"),
    "discriminator",
)
KEYWORDS: Final = (*VALUES, *SCHEMA, *SCHEMAS, *NAMED, *NOTES)
#: Those whose schemas are of the same value, and not of a part of it.
IN_PLACE: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"})
#: Those whose schemas are of a part of it: what kind of value has it, and which of them look at parts of their own.
PARTS: Final = {
    **dict.fromkeys(("properties", "additionalProperties", "unevaluatedProperties"), ("object", "")),
    **dict.fromkeys(("prefixItems", "items", "unevaluatedItems"), ("array", "")),
    "patternProperties": ("object", "each"),
    "contains": ("array", "each"),
}
#: Any part of a value, for those that name none.
ANY: Final = "*"
#: What would be right, where the library does not say it.
RIGHT: Final = {
    "type": f"one of {', '.join(TYPES)}, or a list of them",
    "pattern": "a shorter one, or one as Rust's regex crate reads it, that looks neither ahead nor behind",
}


def checked_schema(given: Any) -> dict[str, Any]:
    """The schema, if it is one that we take. Raises ValueError: what is wrong with it; what would be right."""
    try:
        text = orjson.dumps(given)
    except TypeError as error:
        raise ValueError(
            "is no JSON, or nested too deep; send an object of texts, numbers, lists and objects"
        ) from error
    if len(text) > MAX_SCHEMA:
        raise ValueError(
            f"has {len(text)} bytes; send at most {MAX_SCHEMA}, it goes to the model with each call and is paid for"
        )
    schema = orjson.loads(text)
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError('is no schema of an object; begin with "type": "object"')
    reading = _Reading()
    reading.read(schema, "")
    reading.follow()
    try:
        compiled(schema)
    except ValidationError as error:
        *_, keyword = "", *(str(part) for part in error.instance_path)
        if "patternProperties" in error.instance_path[-2:]:
            keyword = "pattern"
        message = cut(error.message.replace("; ", ", "))
        right = RIGHT.get(keyword, "it as JSON Schema 2020-12 has it")
        raise ValueError(f"{at(pointer(error.instance_path))}: {message}; write {right}") from None
    reading.follow_parts()
    return schema


def compiled(schema: dict[str, Any]) -> Validator:
    """Nothing is fetched, and patterns take time in proportion to the text. Its messages call a value "it".

    Raises ValidationError for what is no schema.
    """
    return validator_for(
        schema,
        validate_formats=True,
        ignore_unknown_formats=True,
        offline=True,
        pattern_options=RegexOptions(size_limit=PATTERN_SIZE),
        mask="it",
    )


class _Reading:
    """Of one schema. Places in it are JSON pointers. What is no schema at all is left to the library."""

    def __init__(self) -> None:
        self._schemas: dict[str, Any] = {}
        self._in_place: dict[str, list[str]] = {}
        #: By place: source, kind of value, part, and the place of its schema.
        self._parts: dict[str, list[tuple[str, str, str, str]]] = {}
        self._refs: list[tuple[str, str]] = []
        self._patterns = 0

    def read(self, schema: Any, place: str) -> None:
        self._schemas[place], self._in_place[place], self._parts[place] = schema, [], []
        for keyword, value in schema.items() if isinstance(schema, dict) else ():
            if keyword not in KEYWORDS:
                raise ValueError(f"{at(place)}: {shown(keyword)} is not checked here; use {', '.join(KEYWORDS)}")
            if keyword == "$schema" and value not in (DIALECT, f"{DIALECT}#"):
                raise ValueError(f"{at(place)}: $schema is not right; write {DIALECT}")
            if keyword == "format" and isinstance(value, str) and value not in (*FORMATS, *UNCHECKED_FORMATS):
                raise ValueError(
                    f"{at(place)}: {shown(value)} is no format that is known here; write one of {', '.join(FORMATS)}"
                )
            if keyword == "$ref" and isinstance(value, str):
                self._refs.append((place, value))
            self._patterns += len(value) if keyword == "patternProperties" else keyword == "pattern"
            if self._patterns > PATTERNS:
                raise ValueError(f"{at(place)}: {keyword} is one too many; write at most {PATTERNS} patterns")
            for under, part in _inner(keyword, value):
                inner = f"{place}/{keyword}{under}"
                self.read(part, inner)
                if keyword in IN_PLACE:
                    self._in_place[place].append(inner)
                elif keyword in PARTS:
                    kind, apart = PARTS[keyword]
                    part = under if keyword in {"properties", "prefixItems"} else ANY
                    self._parts[place].append((keyword + under if apart else "", kind, part, inner))

    def follow(self) -> None:
        """References lead to schemas in here, not back to where they stand, and the work of all has a bound."""
        for place, ref in self._refs:
            target = unquote(ref[1:])
            if not ref.startswith("#") or target not in self._in_place:
                raise ValueError(
                    f"{at(place)}: $ref leads to no schema in here, and none is fetched; write it like #/$defs/name"
                )
            self._in_place[place].append(target)
        looks: dict[str, int] = {}
        try:
            for place in TopologicalSorter(self._in_place).static_order():
                looks[place] = 1 + sum(looks[inner] for inner in self._in_place[place])
                if looks[place] > LOOKS:
                    raise ValueError(
                        f"{at(place)}: has one value looked at more than {LOOKS} times; refer to less in allOf, anyOf "
                        "and the like"
                    )
        except CycleError as error:
            raise ValueError(f"{at(error.args[1][0])}: $ref leads back to itself; refer to a part of a value") from None

    def follow_parts(self) -> None:
        """Nothing leads back to itself by two ways through one part of a value: each level would double the work.

        It is asked of what is a schema.
        """
        edges = {place: [*inner, *(part[-1] for part in self._parts[place])] for place, inner in self._in_place.items()}
        ring = _rings(edges)
        #: By place: the parts of one value through which it leads back.
        back: dict[str, set[tuple[str, str]]] = {}
        for place in TopologicalSorter(self._in_place).static_order():
            sources: dict[str, set[tuple[str, str]]] = {}
            for source, kind, part, inner in self._parts[place]:
                if ring[inner] == ring[place]:
                    sources.setdefault(kind + source, set()).add((kind, part))
            forms: dict[str, list[tuple[int, str]]] = {}
            for number, inner in enumerate(self._in_place[place]):
                if ring[inner] == ring[place] and back[inner]:
                    keyword = inner.removeprefix(place + "/").partition("/")[0]
                    forms.setdefault(keyword if keyword in {"anyOf", "oneOf"} else "", []).append((number, inner))
            for keyword, inners in forms.items():
                together = keyword and self._are_told_apart([inner for _, inner in inners])
                for number, inner in inners:
                    sources.setdefault(keyword if together else f"#{number}", set()).update(back[inner])
            mine = back[place] = set()
            for theirs in sources.values():
                if mine & theirs or _any_meets(mine, theirs) or _any_meets(theirs, mine):
                    raise ValueError(
                        f"{at(place)}: $ref leads back twice through one part of a value, and each level doubles the "
                        "work; refer once, or tell forms apart by a required property with a const"
                    )
                mine |= theirs

    def _are_told_apart(self, forms: Sequence[str]) -> bool:
        """Whether a value is of one of these at most, by a property that each of them requires with another value."""
        told: list[dict[str, str]] = []
        for place in forms:
            form = self._schemas[place]
            while isinstance(form, dict) and "$ref" in form:
                form = self._schemas[unquote(form["$ref"][1:])]
            form = form if isinstance(form, dict) else {}
            parts = {name: form.get("properties", {}).get(name) for name in form.get("required", ())}
            told.append(
                {n: str(part["const"]) for n, part in parts.items() if isinstance(part, dict) and "const" in part}
            )
        return any(len({names.get(name) for names in told} - {None}) == len(told) for name in told[0])


def _any_meets(some: set[tuple[str, str]], others: set[tuple[str, str]]) -> bool:
    return any((kind, ANY) in some and any(kind == other for other, _ in others) for kind in ("object", "array"))


def _rings(edges: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each place another one's name: the same for those that lead to one another."""
    seen: set[str] = set()
    ended: list[str] = []
    back: dict[str, list[str]] = {place: [] for place in edges}
    for start in edges:
        way = [] if start in seen else [(start, iter(edges[start]))]
        seen.add(start)
        while way:
            place, rest = way[-1]
            for to in rest:
                back[to].append(place)
                if to not in seen:
                    seen.add(to)
                    way.append((to, iter(edges[to])))
                    break
            else:
                way.pop()
                ended.append(place)
    rings: dict[str, str] = {}
    for start in reversed(ended):
        left = [] if start in rings else [start]
        while left:
            place = left.pop()
            if place not in rings:
                rings[place] = start
                left += back[place]
    return rings


def _inner(keyword: str, value: Any) -> list[tuple[str, Any]]:
    """The schemas under a keyword, each with the rest of its place."""
    if keyword in SCHEMA:
        return [("", value)]
    if keyword in SCHEMAS and isinstance(value, list):
        return [(pointer([number]), part) for number, part in enumerate(value)]
    if keyword in NAMED and isinstance(value, dict):
        return [(pointer([name]), part) for name, part in value.items()]
    return []


def pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def at(place: str) -> str:
    return f"at {shown(place)}" if place else "at its top"


def shown(place: str) -> str:
    """As a message has it: its end says most."""
    return place if len(place) <= LONGEST // 2 else "..." + place[-LONGEST // 2 :]


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
