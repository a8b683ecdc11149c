"""How fast money is spent, and when a cap is reached if that goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from celeriac.costs.budgets import Cap, Use
from celeriac.costs.forecast import rate, reached_at

NOW = datetime(2026, 11, 27, 14, 40, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.mark.parametrize(
    ("this", "last", "minutes", "expected"),
    [(0, 60, 0, 60), (0, 60, 30, 30), (40, 60, 30, 70), (40, 60, 60, 40), (40, 0, 5, 40), (0, 1, 59, 0)],
)
def test_the_rate_is_that_of_the_last_sixty_minutes(this: int, last: int, minutes: int, expected: int) -> None:
    """Of the hour before counts the part that is not over for as long."""
    assert rate(this, last, timedelta(minutes=minutes)) == expected


def use(settled: int, ends: datetime | None = MIDNIGHT, *, in_doubt: int = 0, reserved: int = 0) -> Use:
    return Use(Cap("day", 1000), settled, in_doubt, reserved, None, ends)


@pytest.mark.parametrize(
    ("of", "an_hour", "expected"),
    [
        (use(900), 100, datetime(2026, 11, 27, 15, 40, tzinfo=UTC)),
        (use(500, in_doubt=400, reserved=90), 100, datetime(2026, 11, 27, 15, 40, tzinfo=UTC)),
        (use(0), 100, None),
        (use(0, None), 100, datetime(2026, 11, 28, 0, 40, tzinfo=UTC)),
        (use(0, None), 0, None),
        (use(999), 10**18, datetime(2026, 11, 27, 14, 40, tzinfo=UTC)),
        (use(1001), 0, datetime(2026, 11, 27, 14, 40, tzinfo=UTC)),
        (use(0, None), 1, datetime(2027, 1, 8, 6, 40, tzinfo=UTC)),
        (Use(Cap("ever", 9 * 10**15), 0, 0, 0, None, None), 1, None),
    ],
)  # fmt: skip
def test_a_cap_is_reached_at_a_time_if_it_goes_on_like_this(of: Use, an_hour: int, expected: datetime | None) -> None:
    """To the minute, and within its window or not at all; what is only reserved may come back."""
    assert reached_at(of, an_hour, NOW) == expected
