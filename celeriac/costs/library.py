"""`genai-prices` as rows: the table that it ships, and a newer one from a file of its own format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from celeriac.costs.rows import STANDARD, Row, Step, Tier, dearest
from celeriac.errors import Misconfigured
from celeriac.llm.model import CLASSES, Usage

#: What the library calls the circumstances that a price may depend on, and we a tier.
CIRCUMSTANCES: Final = ("service_tier", "processing", "speed")
MILLION: Final = 1_000_000
#: What may follow a model's name without being another model: its day, and how clouds write it.
SUFFIX: Final = re.compile(r"([-@](\d{8}|\d{4}-\d\d-\d\d|latest))?(-v\d+(:\d+)?)?")


class Table:
    """source: how a receipt names it."""

    def __init__(self, snapshot: Any, source: str) -> None:
        self._snapshot = snapshot
        self.source = source
        #: id of a model, and which of its prices are in force -> those as a row.
        self._rows: dict[tuple[Any, ...], tuple[Any, Row]] = {}

    @classmethod
    def shipped(cls) -> Table:
        # Imported late: 0.2 s that only a process which prices calls should spend.
        from genai_prices.data_snapshot import get_snapshot

        return cls(get_snapshot(), f"genai-prices {version('genai-prices')}")

    @classmethod
    def read(cls, file: Path) -> Table:
        """Raises Misconfigured naming the file, what is wrong with it, and the remedy."""
        from genai_prices.data_snapshot import DataSnapshot

        # Private, and what its own update reads a download with: the library has no other way in.
        from genai_prices.types import _providers_from_raw

        try:
            # As text to `Decimal`: a price is never a float, not even on its way in.
            raw = json.loads(file.read_text(), parse_float=Decimal)
            providers = _providers_from_raw(raw) if isinstance(raw, list) else []
            made = cls(DataSnapshot(providers, from_auto_update=False), file.name)
            if not any(made.prices_a_token(model, datetime.now(UTC)) for p in providers for model in p.models):
                raise ValueError("it holds no model that is priced by its tokens")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise Misconfigured(
                f"{file}: {why}; CELERIAC_PRICES_DATA_FILE names a data file of genai-prices, as "
                "prices/new_data/v2/data.json of its repository"
            ) from error
        return made

    def models(self, provider: str) -> Iterator[Any]:
        for theirs in self._snapshot.providers:
            if theirs.id == provider:
                yield from theirs.models

    def count(self) -> int:
        return sum(len(theirs.models) for theirs in self._snapshot.providers)

    def find(self, provider: str, model: str) -> Any:
        """The model of that name, None for none. Not one whose name is only the beginning of it: what follows may be
        another and dearer one.
        """
        try:
            _, found = self._snapshot.find_provider_model(model, None, provider, None)
        except LookupError:
            return None
        return found if _is_named(found.match, model.lower()) else None

    @staticmethod
    def prices_a_token(model: Any, at: datetime) -> bool:
        """What is priced by the second or the picture has no price of a token, and is not free for that."""
        prices = model.get_prices(at)
        return prices.input_mtok is not None and prices.output_mtok is not None

    @staticmethod
    def probe(model: Any, at: datetime) -> Decimal:
        """What a long call costs, in dollars: to compare models by."""
        return _dollars(model.get_prices(at), Usage(input=MILLION, output=MILLION))

    def row(self, provider: str, model: Any, at: datetime) -> Row:
        """Of a model that is priced by its tokens."""
        variants = [variant for variant in model.price_variants or () if len(variant.when) == 1]
        in_force = tuple(variant.constraint is None or variant.constraint.active(at) for variant in variants)
        key = (id(model), id(model.get_prices(at)), in_force)
        if key not in self._rows:
            # With the model, whose id is another's once it is gone.
            self._rows[key] = model, self._made(provider, model, variants, in_force, at)
        return self._rows[key][1]

    def _made(self, provider: str, model: Any, variants: list[Any], in_force: tuple[bool, ...], at: datetime) -> Row:
        prices = model.get_prices(at)
        tiers = {"": _tier(prices, _since(model, prices))}
        later = []
        for variant, active in zip(variants, in_force, strict=True):
            ((circumstance, name),) = variant.when.items()
            if circumstance not in CIRCUMSTANCES or name in STANDARD:
                continue
            start = getattr(variant.constraint, "start_date", None)
            then = max(at, datetime.combine(start, time(), UTC)) if start else at
            tier = _tier(model.get_prices(then, dict(variant.when)), str(start or ""))
            if active:
                tiers[name] = tier
            else:
                later.append(tier)
        fee = _dollars(prices, Usage()) * 10**9
        return Row(self.source, f"{provider}/{model.id}", tiers, dearest([*tiers.values(), *later]), fee)


def _is_named(match: Any, name: str) -> bool:
    for clause in (*getattr(match, "or_", ()), *getattr(match, "and_", ())):
        if _is_named(clause, name):
            return True
    begin = getattr(match, "starts_with", None)
    if begin is not None:
        return name.startswith(begin) and SUFFIX.fullmatch(name.removeprefix(begin)) is not None
    return not hasattr(match, "or_") and not hasattr(match, "and_") and bool(match.is_match(name))


def _since(model: Any, prices: Any) -> str:
    for conditional in model.prices if isinstance(model.prices, list) else ():
        if conditional.prices is prices:
            return str(getattr(conditional.constraint, "start_date", ""))
    return ""


def _tier(prices: Any, date: str) -> Tier:
    """The library needs 75 us a call to find out what a token costs; here it is asked once for each class and step."""
    from genai_prices.types import ModelPrice, TieredPrices

    named = {name: price for name, price in vars(prices).items() if price is not None}
    starts = {0, *(tier.start for price in named.values() if isinstance(price, TieredPrices) for tier in price.tiers)}
    steps = []
    for above in sorted(starts):
        flat = ModelPrice(
            **{name: _at(price, above) if isinstance(price, TieredPrices) else price for name, price in named.items()}
        )
        fee = _dollars(flat, Usage())
        dollars = [_dollars(flat, Usage(**{name: MILLION})) - fee for name in CLASSES]
        steps.append(Step(above, tuple(amount * 1000 for amount in dollars)))
    return Tier(tuple(steps), date)


def _at(price: Any, above: int) -> Decimal:
    found: Decimal = price.base
    for tier in price.tiers:
        if tier.start <= above:
            found = tier.price
    return found


def _dollars(prices: Any, usage: Usage) -> Decimal:
    from genai_prices import Usage as Counted

    total: Decimal = prices.calc_price(Counted(**counted(usage)))["total_price"]
    return total


def counted(usage: Usage) -> Mapping[str, int]:
    """As the library counts: its input is the whole prompt, its output all that was made, and the others are parts."""
    return {
        "input_tokens": usage.prompt,
        "cache_read_tokens": usage.cache_read,
        "cache_write_tokens": usage.written,
        "cache_write_5m_tokens": usage.cache_write,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "output_tokens": usage.made,
        "output_reasoning_tokens": usage.reasoning,
    }
