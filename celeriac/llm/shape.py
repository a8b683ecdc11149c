"""A JSON schema as Anthropic takes it: a dialect with closed objects, without bounds and without schemas in themselves.

Any other keyword is a 400 there ("For 'integer' type, property 'minimum' is not supported"), so what only narrows is
left out: it is a hint, and whoever asked checks the answer against the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: As the SDK's own `transform_schema` lists them in 2.12, which itself is of no use here: it raises for some schemas,
#: and closes objects of which any property was asked for.
FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
NOTES: Final = ("title", "description")
DEFS: Final = "#/$defs/"


class _NotToBeSaid(Exception):
    """In this dialect."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same in the dialect, or wider where only that can be said; None where it would lose what it asks for."""
    saying = _Saying(schema)
    try:
        said = saying.said(schema, frozenset())
    except _NotToBeSaid:
        return None
    return said | {"$defs": saying.defs} if saying.defs else said


class _Saying:
    """defs: the definitions that were referred to."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._known: Mapping[str, Any] = root.get("$defs", {})
        self.defs: dict[str, Any] = {}

    def said(self, schema: Any, way: frozenset[str]) -> dict[str, Any]:
        """way: the definitions that this one stands in."""
        if not isinstance(schema, Mapping) or "prefixItems" in schema:
            raise _NotToBeSaid
        notes = {name: schema[name] for name in NOTES if name in schema}
        if "$ref" in schema:
            return self._ref(schema["$ref"], way)
        if literals := {name: schema[name] for name in ("enum", "const") if name in schema}:
            if not all(_is_plain(value) for value in (*literals.get("enum", ()), literals.get("const"))):
                raise _NotToBeSaid
            return literals | notes
        if "allOf" in schema:
            # Closed objects cannot be put together.
            if len(schema["allOf"]) > 1 or "properties" in schema:
                raise _NotToBeSaid
            return self.said(schema["allOf"][0], way) | notes
        if forms := schema.get("anyOf") or schema.get("oneOf"):
            if "properties" in schema:
                raise _NotToBeSaid
            return {"anyOf": [self.said(form, way) for form in forms]} | notes
        kinds = schema.get("type")
        if isinstance(kinds, str):
            return self._of_type(kinds, schema, way) | notes
        if kinds:
            return {"anyOf": [self._of_type(kind, schema, way) for kind in kinds]} | notes
        raise _NotToBeSaid

    def _ref(self, ref: str, way: frozenset[str]) -> dict[str, Any]:
        name = ref.removeprefix(DEFS)
        if not ref.startswith(DEFS) or name in way or name not in self._known:
            raise _NotToBeSaid
        if name not in self.defs:
            self.defs[name] = self.said(self._known[name], way | {name})
        return {"$ref": ref}

    def _of_type(self, kind: str, schema: Mapping[str, Any], way: frozenset[str]) -> dict[str, Any]:
        made: dict[str, Any] = {"type": kind}
        if kind == "object":
            properties = schema.get("properties")
            if not properties or schema.get("additionalProperties", False) is not False:
                raise _NotToBeSaid
            required = schema.get("required", [])
            if not properties.keys() >= set(required):
                raise _NotToBeSaid
            made["properties"] = {name: self.said(part, way) for name, part in properties.items()}
            made |= {"required": required, "additionalProperties": False}
        elif kind == "array":
            if "items" not in schema:
                raise _NotToBeSaid
            made["items"] = self.said(schema["items"], way)
            if schema.get("minItems") in (0, 1):
                made["minItems"] = int(schema["minItems"])
        elif kind == "string" and schema.get("format") in FORMATS:
            made["format"] = schema["format"]
        return made


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)
