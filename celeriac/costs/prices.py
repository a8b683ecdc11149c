"""What a call cost: exact, in nano-dollars, rounded up once.

The table is `genai-prices`, behind overrides from files. A model that neither knows is never free: it costs what the
provider's dearest known model costs, and says that it is an estimate. So does a tier or a region that nobody knows.
"""

from __future__ import annotations

import fnmatch
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from celeriac.costs import overrides, regions
from celeriac.costs.library import Table
from celeriac.costs.overrides import Override
from celeriac.costs.rows import Rates, Row, Tier
from celeriac.errors import PriceUnknown
from celeriac.llm.model import BUILT_IN, Lane, ModelRequest, Usage
from celeriac.settings import Settings

SHIPPED: Final = Path(__file__).parent / "prices.toml"
#: Seconds for which the row of a model is not looked up anew. Prices change at midnight, some at half past an hour.
SLOT: Final = 1800
#: Tokens that providers put around a message, and before the first one: roles, separators, templates. Generous, since
#: the bound has to be true; it lasts only as long as the call.
PER_MESSAGE: Final = 32
UNSEEN: Final = 512
#: What is added where there are tools: up to 530 tokens with Anthropic's models, as its documentation of tool use says.
TOOLS_UNSEEN: Final = 1024
#: Who is sent the tier and the region of each call, and which region: what they bill is known beforehand.
PINNED: Final[Mapping[str, str]] = dict.fromkeys(BUILT_IN, "")

_DAY: Final = re.compile(r"[-@]20\d\d(-?)(0[1-9]|1[0-2])\1(0[1-9]|[12]\d|3[01])$|-latest$")

#: How well a model's price is known: its own; that of the model that it is a newer snapshot of; the dearest's.
Known = Literal["own", "model", "dearest"]


@dataclass(frozen=True, slots=True)
class Price:
    """nanos: what the call cost in nano-dollars. source: the file where the price stands, or the library with its
    version. row: under which name it stands there, as provider/model. date: since when, or as of when, as 2026-11-30,
    "" where nobody says. tier, region: that were priced. estimated: the model, the tier or the region was not known.
    """

    nanos: int
    source: str
    estimated: bool = False
    row: str = ""
    date: str = ""
    tier: str = "standard"
    region: str = ""


@dataclass(frozen=True, slots=True)
class _Terms:
    """Everything of a price but the tokens."""

    row: Row
    tier: str
    prices: Tier
    region: str
    estimated: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A row as it is in force at one moment. known: as `Known` says. since: of an override that has a day."""

    row: Row
    known: Known
    since: str = ""


class Prices:
    """Prices as known at start. overriding: files, the last one wins; model names may hold `*`.

    data: a table in the library's format, looked at before the one that it ships. refuses_unknown: whether a model that
    nobody knows the price of may not be asked. pinned: by provider, where its models run, for those who are sent the
    tier and the region of each call; whoever is not may bill any tier that there is. Raises Misconfigured.
    """

    @classmethod
    def of(cls, settings: Settings, **how: Any) -> Prices:
        """Those of the files that the settings name. how: as the class takes it. Raises Misconfigured."""
        return cls(*([settings.prices_file] if settings.prices_file else []), data=settings.prices_data_file, **how)

    def __init__(
        self,
        *overriding: Path,
        data: Path | None = None,
        refuses_unknown: bool = False,
        pinned: Mapping[str, str] = PINNED,
    ) -> None:
        self._overrides: dict[tuple[str, str], overrides.Overrides] = {}
        for file in (SHIPPED, *overriding):
            for name, found in overrides.read(file).items():
                # To the end, even if it was named before: among patterns the later one wins.
                self._overrides.pop(name, None)
                self._overrides[name] = found
        self._newer = (Table.read(data),) if data else ()
        self._refuses_unknown = refuses_unknown
        self._pinned = dict(pinned)
        self._bound_of = lru_cache(4096)(self._bound_for)
        self._terms_of = lru_cache(4096)(self._terms_for)
        self._dearest_of = lru_cache(64)(self._dearest_for)
        self._listed = lru_cache(4096)(self._listed_for)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        return (*self._newer, Table.shipped())

    def price(
        self, lane: Lane, model: str, usage: Usage, at: datetime | None = None, *, tier: str = "", region: str = ""
    ) -> Price:
        """The price of one call. model, tier, region: as its provider named them in its answer. at: when it was sent.

        Of several prices that follow each other, the one in force then counts.
        """
        moment = time.time() if at is None else at.timestamp()
        terms = self._terms_of(lane, model, tier, region, int(moment // SLOT))
        row = terms.row
        return Price(
            terms.prices.nanos(usage, row.fee),
            row.source,
            terms.estimated,
            row.name,
            terms.prices.date,
            terms.tier,
            terms.region,
        )

    def rates(
        self, lane: Lane, model: str, usage: Usage, at: datetime | None = None, *, tier: str = "", region: str = ""
    ) -> Rates:
        """What a token of each class costs in the call that `price` prices so, without what the call itself costs."""
        moment = time.time() if at is None else at.timestamp()
        return self._terms_of(lane, model, tier, region, int(moment // SLOT)).prices.rates(usage.prompt)

    def bound(self, request: ModelRequest, at: datetime | None = None) -> int:
        """The highest price that the call can have, in nano-dollars: it is booked before the call is sent. at: when.

        Every byte a token, at the dearest class of input that it can cause, and the whole output limit; at the tier and
        in the region that it is sent with, the dearest where it is sent with none. A model may be billed under a longer
        name than it was asked for; what then costs more than the bound is an overrun, and booked as such.
        """
        # Looked up for each call, and the same for many: tokens are rounded up by at most a sixteenth, prices are those
        # of the hour.
        moment = time.time() if at is None else at.timestamp()
        tokens, hour = most_input(request), int(moment) // 3600
        step = max(1, 1 << tokens.bit_length() - 5)
        return self._bound_of(request.lane, -(-tokens // step) * step, request.max_output_tokens, hour)

    def check(self, lane: Lane) -> None:
        """Raises PriceUnknown for a model that may not be asked because nobody knows its price."""
        if self._refuses_unknown and self.listed(lane).known == "dearest":
            raise PriceUnknown(
                f"{lane} was not asked: nobody knows what it costs; name its price in CELERIAC_PRICES_FILE",
                provider=lane.provider,
                model=lane.model,
                asked=False,
            )

    def listed(self, lane: Lane, at: datetime | None = None) -> Listed:
        """The row of a lane's model."""
        return self._listed(lane, lane.model, _slot(at))

    def overrides(self) -> Iterator[tuple[str, Override]]:
        """Of the files, ours included, by provider/model; those to come too."""
        for (provider, model), found in self._overrides.items():
            for override in reversed(found):
                yield f"{provider}/{model}", override

    def window(self, lane: Lane) -> int | None:
        """The tokens that fit into one call, input and output together; None where that is not known."""
        for table in self.tables:
            if found := table.find(lane.provider, lane.model):
                window: int | None = found.context_window
                return window
        return None

    def _terms_for(self, lane: Lane, model: str, tier: str, region: str, slot: int) -> _Terms:
        listed = self._listed(lane, model, slot)
        row = listed.row
        name, prices, knows_tier = row.tier(tier)
        factor, knows_region = self._factor(lane.provider, model, region, row)
        exact = listed.known == "own" and knows_tier and knows_region
        return _Terms(row, name, prices.times(factor), region, not exact)

    @staticmethod
    def _factor(provider: str, model: str, region: str, row: Row) -> tuple[Decimal, bool]:
        if region in row.regions:
            return row.regions[region], True
        factor, known = regions.factor(provider, model, region)
        return (factor, True) if known else (max(factor, *row.regions.values(), regions.NONE), False)

    def _bound_for(self, lane: Lane, tokens: int, output: int, hour: int) -> int:
        return max(
            self._most(self._listed(lane, lane.model, slot).row, lane, tokens, output)
            for slot in range(hour * 3600 // SLOT, (hour + 1) * 3600 // SLOT)
        )

    def _most(self, row: Row, lane: Lane, tokens: int, output: int) -> int:
        region = self._pinned.get(lane.provider)
        if region is not None:
            tier, (factor, _) = row.tiers[""], self._factor(lane.provider, lane.model, region, row)
        else:
            factors = (regions.NONE, regions.dearest(lane.provider, lane.model), *row.regions.values())
            tier, factor = row.ceiling, max(factors)
        return tier.times(factor).most(tokens, output, row.fee)

    def _listed_for(self, lane: Lane, model: str, slot: int) -> Listed:
        at = datetime.fromtimestamp(slot * SLOT, UTC)
        # The model of the day has the price of the model; and so has the one that is asked for as the latest.
        plain = undated(model)
        names = list(dict.fromkeys((model, plain, lane.model if undated(lane.model) == plain else model)))
        if override := self._override(lane.provider, names, at):
            return Listed(override.row, "own", str(override.since or ""))
        for name in names:
            for table in self.tables:
                found = table.find(lane.provider, name)
                if found and table.prices_a_token(found, at):
                    return Listed(table.row(lane.provider, found, at), "own" if name == model else "model")
        return Listed(self._dearest_of(lane.provider, slot * SLOT // 86400), "dearest")

    def _override(self, provider: str, names: list[str], at: datetime) -> Override | None:
        for name in names:
            if found := _in_force(self._overrides.get((provider, name), ()), at):
                return found
        for (whose, pattern), candidates in reversed(self._overrides.items()):
            if whose != provider or "*" not in pattern:
                continue
            if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in names) and (
                found := _in_force(candidates, at)
            ):
                return found
        return None

    def _dearest_for(self, provider: str, day: int) -> Row:
        """Of the provider's known models; of OpenAI's and Anthropic's where none of its models is in the table."""
        at = datetime.fromtimestamp(day * 86400, UTC)
        for providers in ((provider,), BUILT_IN):
            models = [
                (table, name, model)
                for name in providers
                for table in self.tables
                for model in table.models(name)
                if table.prices_a_token(model, at)
            ]
            if models:
                break
        table, name, model = max(models, key=lambda found: found[0].probe(found[2], at))
        return table.row(name, model, at)


def _in_force(candidates: overrides.Overrides, at: datetime) -> Override | None:
    return next((found for found in candidates if found.since is None or found.since <= at.date()), None)


def undated(model: str) -> str:
    """The model that a snapshot is of: gpt-5 of gpt-5-2026-03-01. Any other longer name is another model's."""
    return _DAY.sub("", model)


def _slot(at: datetime | None) -> int:
    return int((time.time() if at is None else at.timestamp()) // SLOT)


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
