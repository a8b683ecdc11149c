"""How fast money is spent, and when a cap will be reached if that goes on."""

from __future__ import annotations

from datetime import datetime, timedelta

from celeriac.costs.books import HOUR
from celeriac.costs.budgets import Use


def rate(this_hour: int, last_hour: int, into: timedelta) -> int:
    """Nano-dollars an hour, from what this clock hour cost so far and what the one before did: of that one counts the
    part that lies within the last sixty minutes. into: how long this hour has lasted.
    """
    share = max(timedelta(0), HOUR - into)
    return this_hour + last_hour * int(share.total_seconds()) // int(HOUR.total_seconds())


def reached_at(use: Use, nanos_an_hour: int, now: datetime) -> datetime | None:
    """When what is settled and in doubt reaches the cap, to the minute; `now` where it has, None where it will not
    before the window ends.
    """
    left = use.cap.nanos - use.settled - use.in_doubt
    now = now.replace(second=0, microsecond=0)
    if left <= 0:
        return now
    if nanos_an_hour <= 0:
        return None
    minutes = left * 60 // nanos_an_hour
    # A window without an end is not looked at for longer than a year.
    if minutes > 366 * 24 * 60:
        return None
    at = now + timedelta(minutes=minutes)
    return at if use.ends is None or at < use.ends else None
