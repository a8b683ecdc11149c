"""What people are told of an alert."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from celeriac.alerting import as_text
from celeriac.costs.alerts import Alert

NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("use", "cap", "said"),
    [
        (9_000_000_000, 10_000_000_000, "$9.00 of $10.00"),
        (4_000_000, 5_000_000, "$0.004 of $0.005"),
        (999_999_999, 1_000_000_000, "$0.999999999 of $1.00"),
        (1, 0, "$0.000000001 of $0.00"),
        (1_234_567_500_000_000, 9_000_000_000_000_000, "$1,234,567.50 of $9,000,000.00"),
    ],
)
def test_amounts_are_told_as_they_are(use: int, cap: int, said: str) -> None:
    """None is rounded to what it is not: a small budget is not $0.00, and what is nearly used is not used up."""
    alert = Alert("1-1", "threshold", NOON, "tenant:acme", "day", use, cap, percent=50)
    assert as_text(alert) == f"Celeriac: tenant:acme has reached 50 % of its budget: {said} of the day."


def test_a_rate_is_told_with_when_the_cap_is_reached() -> None:
    alert = Alert("1-1", "rate", NOON, "all", "ever", 2_000_000, 3_000_000, rate=500_000, reached_at=NOON)
    assert as_text(alert) == (
        "Celeriac: all has used $0.002 of $0.003. At this rate ($0.0005 an hour) the cap is reached at "
        "2026-11-27 12:00 UTC."
    )
