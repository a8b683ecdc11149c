"""What a call cost: exact, in nano-dollars, rounded up once.

The table is `genai-prices`, behind overrides from files. A model that neither knows is never free: it costs what the
provider's dearest known model costs, and says that it is an estimate.
"""

from __future__ import annotations

import fnmatch
import time
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from celeriac.costs.money import nanos
from celeriac.errors import Misconfigured
from celeriac.llm.model import Lane, ModelRequest, Usage

SHIPPED: Final = Path(__file__).parent / "prices.toml"
#: Token classes of an override, in dollars per million tokens.
CLASSES: Final = ("input", "cache_read", "cache_write", "output")
#: Tokens that providers put around a message, and before the first one: roles, separators, templates. Generous, since
#: the bound has to be true; it lasts only as long as the call.
PER_MESSAGE: Final = 32
UNSEEN: Final = 512
#: What is added where there are tools: up to 530 tokens with Anthropic's models, as its documentation of tool use says.
TOOLS_UNSEEN: Final = 1024


@dataclass(frozen=True, slots=True)
class Price:
    """nanos: what the call cost in nano-dollars. source: where the price stood. estimated: the model was not known."""

    nanos: int
    source: str
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Dollars per million tokens, by class."""

    source: str
    dollars: Mapping[str, Decimal]

    def price(self, usage: Usage) -> Decimal:
        """In dollars."""
        tokens = {name: getattr(usage, name) for name in CLASSES}
        return sum((self.dollars[name] * count for name, count in tokens.items()), Decimal(0)) / 1_000_000


class Prices:
    """Prices as known at start. files: overrides, the last one wins; model names may hold `*`."""

    def __init__(self, *files: Path) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        for file in (SHIPPED, *files):
            for name, row in read(file).items():
                # To the end, even if it was named before: among patterns the later one wins.
                self._rows.pop(name, None)
                self._rows[name] = row
        self._dearest: dict[str, Any] = {}
        #: id of the library's prices -> those prices, and the same as a row where they are flat.
        self._flat: dict[int, tuple[Any, Row | None]] = {}
        self._bound_of = lru_cache(4096)(self._bound_for)

    @cached_property
    def _table(self) -> Any:
        # Imported late: 0.2 s that only a process which prices calls should spend.
        from genai_prices.data_snapshot import get_snapshot

        return get_snapshot()

    def price(self, lane: Lane, model: str, usage: Usage, at: datetime | None = None) -> Price:
        """The price of one call. model: as the provider named it in its answer. at: when it was sent."""
        if row := self._row(lane.provider, model):
            return Price(nanos(row.price(usage)), row.source)
        at = at or datetime.now(UTC)
        found, prices, known = self._found(lane, model, at)
        row = self._as_row(prices)
        dollars = row.price(usage) if row else _dollars(prices, usage)
        return Price(nanos(dollars), f"genai-prices {found.id}", estimated=not known)

    def _found(self, lane: Lane, model: str, at: datetime) -> tuple[Any, Any, bool]:
        """The library's model, its prices, and whether it is the one: else a snapshot's own model, or the dearest."""
        for name in (model, lane.model) if model.startswith(f"{lane.model}-") else (model,):
            try:
                _, found = self._table.find_provider_model(name, None, lane.provider, None)
            except LookupError:
                continue
            prices = found.get_prices(at)
            # What is priced by the second or the picture has no price of a token, and is not free for that.
            if prices.input_mtok is not None and prices.output_mtok is not None:
                return found, prices, name == model
        dearest = self._dearest_of(lane.provider, at)
        return dearest, dearest.get_prices(at), False

    def bound(self, request: ModelRequest) -> int:
        """The highest price that the call can have, in nano-dollars: it is booked before the call is sent.

        Every byte a token, at the dearest class of input, and the whole output limit. A model may be billed under a
        longer name than it was asked for; what then costs more than the bound is an overrun, and booked as such.
        """
        # Looked up for each call, and the same for many: tokens are rounded up by at most a sixteenth, prices are those
        # of the hour.
        tokens, hour = most_input(request), int(time.time()) // 3600
        step = max(1, 1 << tokens.bit_length() - 5)
        return self._bound_of(request.lane, -(-tokens // step) * step, request.max_output_tokens, hour)

    def window(self, lane: Lane) -> int | None:
        """The tokens that fit into one call, input and output together; None where that is not known."""
        try:
            _, found = self._table.find_provider_model(lane.model, None, lane.provider, None)
        except LookupError:
            return None
        window: int | None = found.context_window
        return window

    def _bound_for(self, lane: Lane, tokens: int, output: int, _hour: int) -> int:
        return max(
            self.price(lane, lane.model, Usage(**{name: tokens}, output=output)).nanos
            for name in ("input", "cache_read", "cache_write")
        )

    def _as_row(self, prices: Any) -> Row | None:
        """What a million tokens of each class cost, None where that depends on how many there are.

        The library needs 75 us a call to find that out anew.
        """
        if id(prices) not in self._flat:
            flat = all(isinstance(price, Decimal) for price in vars(prices).values() if price is not None)
            if flat and not _dollars(prices, Usage()):
                row = Row("", {name: _dollars(prices, Usage(**{name: 1_000_000})) for name in CLASSES})
            else:
                row = None
            self._flat[id(prices)] = prices, row
        return self._flat[id(prices)][1]

    def _row(self, provider: str, model: str) -> Row | None:
        exact = self._rows.get((provider, model))
        if exact is not None:
            return exact
        for (whose, pattern), row in reversed(self._rows.items()):
            if whose == provider and "*" in pattern and fnmatch.fnmatchcase(model.lower(), pattern.lower()):
                return row
        return None

    def _dearest_of(self, provider: str, at: datetime) -> Any:
        if provider not in self._dearest:
            probe = Usage(input=1_000_000, output=1_000_000)
            models = [m for p in self._table.providers if p.id == provider for m in p.models]
            if not models:  # a provider without prices is priced as the dearest of all
                models = [m for p in self._table.providers if p.id in {"openai", "anthropic"} for m in p.models]
            self._dearest[provider] = max(models, key=lambda model: _dollars(model.get_prices(at), probe))
        return self._dearest[provider]


def most_input(request: ModelRequest) -> int:
    """Tokens, at most: the bytes of all text, raw or as a tokenizer may normalise it, what its images count for
    (`celeriac.llm.images` says how), and what providers add unseen.

    One character was seen to grow 11-fold by NFKC, so the larger form counts.
    """
    texts = list(request.texts())
    # A piece of text is a message, or a part of what describes a tool or its call: each is wrapped in something.
    unseen = UNSEEN + TOOLS_UNSEEN if request.tools else UNSEEN
    # So is each image, and each piece of text between two.
    pieces = len(texts) + 2 * sum(len(message.images) for message in request.messages)
    return sum(_bytes(text) for text in texts) + request.image_tokens() + PER_MESSAGE * pieces + unseen


def _bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    raw = len(text.encode(errors="replace"))
    return max(raw, len(unicodedata.normalize("NFKC", text).encode(errors="replace")))


def _dollars(prices: Any, usage: Usage) -> Decimal:
    from genai_prices import Usage as Counted

    # There the input is the whole prompt and the cached classes are parts of it; ours are disjoint.
    counted = Counted(
        input_tokens=usage.input + usage.cache_read + usage.cache_write,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write,
        output_tokens=usage.output,
    )
    total: Decimal = prices.calc_price(counted)["total_price"]
    return total


def read(file: Path) -> dict[tuple[str, str], Row]:
    """Overrides from a TOML file: `[provider."model"]` with dollars per million tokens as strings.

    `input` and `output` are required; `cache_read` and `cache_write` cost what `input` costs unless named. Raises
    Misconfigured naming the file, the entry and the remedy.
    """
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Misconfigured(f"{file}: {why}; CELERIAC_PRICES_FILE names the prices of this deployment") from error
    rows = {}
    for provider, models in tables.items():
        for model, given in models.items() if isinstance(models, dict) else [("", models)]:
            where = f'{file}: [{provider}."{model}"]'
            if not isinstance(given, dict) or not {"input", "output"} <= given.keys() <= set(CLASSES):
                raise Misconfigured(f"{where}: give input and output, and if they differ cache_read and cache_write")
            rows[provider, model] = Row(file.name, {name: _amount(where, name, given) for name in CLASSES})
    return rows


def _amount(where: str, name: str, given: Mapping[str, Any]) -> Decimal:
    text = given.get(name, given["input"])
    try:
        amount = Decimal(text) if isinstance(text, str) else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise Misconfigured(f'{where}: {name} is {text!r}; write dollars per million tokens as text, as "0.25"')
    return amount
