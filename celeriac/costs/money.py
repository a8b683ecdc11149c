"""Money: integer nano-dollars in Redis, `Decimal` in Python, text on the wire. Never a float."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Final

NANO: Final = Decimal(10) ** 9


def usd(nanos: int) -> str:
    """Nano-dollars as dollars, exactly: 1234 is "0.000001234"."""
    return f"{Decimal(nanos) / NANO:.9f}"


def nanos(dollars: Decimal) -> int:
    """Dollars as nano-dollars, rounded up: a fraction is never given away."""
    return int((dollars * NANO).to_integral_value(ROUND_CEILING))


def shares(total: int, parts: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole nano-dollars for each part, which make up `total`: the sum of the exact ones, rounded up.

    By largest remainder: each part is rounded down, and what is missing goes to those that lost most by that, the first
    of equals first. None is more than one away from what it is exactly. Raises ValueError for another total.
    """
    if total != ceil(sum(parts.values(), Fraction())):
        raise ValueError("the parts are not those of this total")
    made = {name: floor(part) for name, part in parts.items()}
    by_loss = sorted(parts, key=lambda name: made[name] - parts[name])
    for name in by_loss[: total - sum(made.values())]:
        made[name] += 1
    return made
