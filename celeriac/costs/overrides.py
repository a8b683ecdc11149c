"""Prices of the deployment's own, from a TOML file: `[provider."model"]` with dollars a million tokens, as text.

`input` and `output` are required. `cache_read` and `cache_write` cost what `input` does unless named, `cache_write_1h`
what `cache_write` does, `reasoning` what `output` does. All further keys are optional:

- `[[provider."model".steps]]` with `above`, and prices of its own: from a longer prompt than so many tokens on (cached
  ones count) the whole call costs these.
- `[provider."model".tiers.flex]`: prices of a service tier, which may have steps too.
- `regions = { us = "1.1" }`: what tokens cost more there.
- `date`: as of when the price was looked up, for whoever reads a receipt.
- `from`: the day, UTC, since which it is in force. Several rows of one model are `[[provider."model"]]`, of which the
  newest that is in force counts: a change can be entered beforehand. Before the first, the built-in price counts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from celeriac.costs.rows import Row, Step, Tier, dearest, rates_of
from celeriac.errors import Misconfigured
from celeriac.llm.model import CLASSES

#: What a class costs that is not named.
AS: Final = {"cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write", "reasoning": "output"}
OTHERS: Final = ("steps", "tiers", "regions", "date", "from")


@dataclass(frozen=True, slots=True)
class Override:
    """since: the day from which its row is in force, None for ever."""

    since: date | None
    row: Row


#: Of one model, the newest first.
Overrides = tuple[Override, ...]


def read(file: Path) -> dict[tuple[str, str], Overrides]:
    """By provider and model, in their order. Raises Misconfigured naming the file, the entry and the remedy."""
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Misconfigured(f"{file}: {why}; CELERIAC_PRICES_FILE names the prices of this deployment") from error
    made = {}
    for provider, models in tables.items():
        for model, given in models.items() if isinstance(models, dict) else [("", models)]:
            where = f'{file}: [{provider}."{model}"]'
            rows = given if isinstance(given, list) else [given]
            found = [_override(where, file.name, f"{provider}/{model}", row) for row in rows]
            if len({override.since for override in found}) < len(found) or not found:
                raise Misconfigured(f"{where}: two rows are in force since the same day; give each its own `from`")
            found.sort(key=lambda override: override.since or date.min, reverse=True)
            made[provider, model] = tuple(found)
    return made


def _override(where: str, source: str, name: str, given: Any) -> Override:
    given = _table(where, given, OTHERS)
    since, looked_up = _day(where, "from", given), _day(where, "date", given)
    day = (since or looked_up or "") and str(since or looked_up)
    tiers = {"": _tier(where, given, day)}
    for tier, prices in _named(where, "tiers", given):
        tiers[tier] = _tier(f"{where}.tiers.{tier}", _table(f"{where}.tiers.{tier}", prices, ("steps",)), day)
    regions = {
        region: _amount(where, f"regions.{region}", factor, 'a factor as text, as "1.1"')
        for region, factor in _named(where, "regions", given)
    }
    return Override(since, Row(source, name, tiers, dearest(tiers.values()), regions=regions))


def _tier(where: str, given: Mapping[str, Any], day: str) -> Tier:
    steps = [Step(0, _rates(where, given))]
    rows = given.get("steps", [])
    if not isinstance(rows, list):
        raise Misconfigured(f"{where}: steps is {rows!r}; write each step under a header of its own, in two brackets")
    for row in rows:
        step = _table(f"{where}.steps", row, ("above",))
        above = step.get("above")
        if type(above) is not int or above <= 0:
            raise Misconfigured(f"{where}.steps: above is {above!r}; write tokens of the prompt, as 200000")
        steps.append(Step(above, _rates(f"{where}.steps", step)))
    if len({step.above for step in steps}) < len(steps):
        raise Misconfigured(f"{where}.steps: two steps begin above the same number of tokens; give each its own")
    return Tier(tuple(sorted(steps, key=lambda step: step.above)), day)


def _table(where: str, given: Any, others: Iterable[str]) -> Mapping[str, Any]:
    known = {*CLASSES, *others}
    if not isinstance(given, dict) or not {"input", "output"} <= given.keys():
        raise Misconfigured(f"{where}: give input and output; {', '.join(sorted(known))} are known")
    if unknown := sorted(given.keys() - known):
        raise Misconfigured(f"{where}: there is no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return given


def _named(where: str, key: str, given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    found = given.get(key, {})
    if not isinstance(found, dict):
        raise Misconfigured(f"{where}: {key} is {found!r}; write a table, of names and what holds for them")
    return found.items()


def _rates(where: str, given: Mapping[str, Any]) -> tuple[Decimal, ...]:
    dollars: dict[str, Decimal] = {}
    for name in CLASSES:
        if name in given or name not in AS:
            dollars[name] = _amount(where, name, given[name], 'dollars per million tokens as text, as "0.25"')
        else:
            # `output` stands before `reasoning`, and each before what costs the same.
            dollars[name] = dollars[AS[name]]
    return rates_of([dollars[name] for name in CLASSES])


def _amount(where: str, name: str, text: Any, form: str) -> Decimal:
    try:
        amount = Decimal(text) if isinstance(text, str) else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise Misconfigured(f"{where}: {name} is {text!r}; write {form}")
    return amount


def _day(where: str, name: str, given: Mapping[str, Any]) -> date | None:
    day = given.get(name)
    if isinstance(day, str):
        try:
            return date.fromisoformat(day)
        except ValueError:
            day = repr(day)
    if day is None or (isinstance(day, date) and not isinstance(day, datetime)):
        return day
    raise Misconfigured(f"{where}: {name} is {day}; write a day, as 2027-01-31: it begins at midnight UTC")
