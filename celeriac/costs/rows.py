"""A row of a price list: what a token of each class costs, in each tier, and from how long a prompt on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from typing import Final

from celeriac.llm.model import CLASSES, Usage

#: The tier that is priced where nothing else is said, by all its names.
STANDARD: Final = ("", "default", "standard")
#: Where each class stands in the rates of a step.
INPUT, READ, WRITE, WRITE_1H, OUTPUT, REASONING = range(len(CLASSES))
#: What a prompt can be at most without a lifetime of an hour asked for, which no request of ours does.
CAUSED: Final = (INPUT, READ, WRITE)

#: Nano-dollars a token, in the order of `CLASSES`. A thousand of them are a dollar a million tokens.
Rates = tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What the whole call costs where its prompt has more tokens than `above`."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Tier:
    """steps: by rising `above`, the first of all prompts. date: since when, or as of when, "" where nobody says."""

    steps: tuple[Step, ...]
    date: str = ""

    def times(self, factor: Decimal) -> Tier:
        if factor == 1:
            return self
        return replace(
            self, steps=tuple(Step(step.above, tuple(rate * factor for rate in step.rates)) for step in self.steps)
        )

    def rates(self, prompt: int) -> Rates:
        for step in reversed(self.steps[1:]):
            if prompt > step.above:
                return step.rates
        return self.steps[0].rates

    def nanos(self, usage: Usage, fee: Decimal = Decimal(0)) -> int:
        """Exactly, and rounded up once."""
        rates = self.steps[0].rates if len(self.steps) == 1 else self.rates(usage.prompt)
        total = rates[INPUT] * usage.input + rates[OUTPUT] * usage.output + fee
        if usage.cache_read:
            total += rates[READ] * usage.cache_read
        if usage.cache_write:
            total += rates[WRITE] * usage.cache_write
        if usage.cache_write_1h:
            total += rates[WRITE_1H] * usage.cache_write_1h
        if usage.reasoning:
            total += rates[REASONING] * usage.reasoning
        return int(total.to_integral_value(ROUND_CEILING))

    def most(self, prompt: int, made: int, fee: Decimal = Decimal(0)) -> int:
        """What a call costs at most whose prompt and answer have no more tokens, however they are cached and thought.

        Also where a longer prompt is cheaper: each step is looked at for the longest prompt that it has.
        """
        highest = Decimal(0)
        for step, after in zip(self.steps, (*self.steps[1:], None), strict=True):
            if step.above and prompt <= step.above:
                break
            longest = prompt if after is None else min(prompt, after.above)
            read = max(step.rates[name] for name in CAUSED)
            highest = max(highest, read * longest + max(step.rates[OUTPUT], step.rates[REASONING]) * made)
        return int((highest + fee).to_integral_value(ROUND_CEILING))


def dearest(tiers: Iterable[Tier]) -> Tier:
    """The tier that costs what the dearest of these does, in each class and for each length of the prompt."""
    of = tuple(tiers)
    starts = sorted({step.above for tier in of for step in tier.steps})
    steps = []
    for above in starts:
        rates = [tier.rates(above + 1) for tier in of]
        steps.append(Step(above, tuple(max(column) for column in zip(*rates, strict=True))))
    return Tier(tuple(steps), of[0].date)


@dataclass(frozen=True, slots=True)
class Row:
    """source: the file, or the library with its version. name: under which it stands there, as provider/model.

    tiers: by name, the standard one under "". ceiling: what the dearest of them costs, those that are not in force yet
    included. fee: nano-dollars a call. regions: what its tokens cost there, as a factor.
    """

    source: str
    name: str
    tiers: Mapping[str, Tier]
    ceiling: Tier
    fee: Decimal = Decimal(0)
    regions: Mapping[str, Decimal] = field(default_factory=dict)

    def tier(self, name: str) -> tuple[str, Tier, bool]:
        """Its name here, and whether it is known; one that is not costs what the dearest does."""
        if name in STANDARD:
            return "standard", self.tiers[""], True
        found = self.tiers.get(name)
        return (name, found, True) if found else (name, self.ceiling, False)


def rates_of(dollars: Sequence[Decimal]) -> Rates:
    """From dollars a million tokens."""
    return tuple(amount * 1000 for amount in dollars)


def dollars_of(rate: Decimal) -> str:
    """A million tokens, as price lists write it."""
    return f"{(rate / 1000).normalize():f}"
