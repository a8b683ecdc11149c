"""Money: integer nano-dollars in Redis, `Decimal` in Python, text on the wire. Never a float."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Final

NANO: Final = Decimal(10) ** 9


def usd(nanos: int) -> str:
    """Nano-dollars as dollars, exactly: 1234 is "0.000001234"."""
    return f"{Decimal(nanos) / NANO:.9f}"


def nanos(dollars: Decimal) -> int:
    """Dollars as nano-dollars, rounded up: a fraction is never given away."""
    return int((dollars * NANO).to_integral_value(ROUND_CEILING))
