"""What a provider says of the rates that it allows, in the headers of its answers.

OpenAI and most who speak like it: https://platform.openai.com/docs/guides/rate-limits. Anthropic:
https://docs.anthropic.com/en/api/rate-limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

#: "input" and "output" are tokens too; a provider counts them apart, or together as "tokens".
Bucket = Literal["requests", "tokens", "input", "output"]

#: Bucket -> how its headers for the limit, and for what is left of it, are called.
OPENAI: Final[Mapping[Bucket, tuple[str, str]]] = {
    "requests": ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
    "tokens": ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),
}
ANTHROPIC: Final[Mapping[Bucket, tuple[str, str]]] = {
    "requests": ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining"),
    "tokens": ("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining"),
    "input": ("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining"),
    "output": ("anthropic-ratelimit-output-tokens-limit", "anthropic-ratelimit-output-tokens-remaining"),
}
#: How long until the bucket is full again, as "1s", "120ms" or "6m0.5s".
RESET: Final = "x-ratelimit-reset-requests"
MINUTE: Final = 60.0
#: Whoever asked us to slow down is left alone for so long at least, whatever time it names. Seconds.
SHORTEST_WAIT: Final = 1.0
DAY: Final = 86_400.0
#: A bucket that is not full after so many seconds is not filled every minute.
LONGER: Final = 120.0
#: What is above this is not a limit.
MOST: Final = 10**12

_COUNT = re.compile(r"\d{1,13}")
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS: Final = (86_400.0, 3600.0, 60.0, 1.0, 0.001)


@dataclass(frozen=True, slots=True)
class Limit:
    """A bucket of the provider's. most: what it holds when full. left: what it holds. period: seconds to fill it."""

    bucket: Bucket
    most: int
    left: int
    period: float = MINUTE


def limits(headers: Mapping[str, str]) -> tuple[Limit, ...]:
    """The buckets that the headers name; what makes no sense is left out. headers: by names in lower case."""
    found = []
    for names in (OPENAI, ANTHROPIC):
        for bucket, (limit, remaining) in names.items():
            most, left = _count(headers.get(limit)), _count(headers.get(remaining))
            if most and left is not None:
                left = min(left, most)
                found.append(
                    Limit(bucket, most, left, _period(most, left, headers) if bucket == "requests" else MINUTE)
                )
        if found:
            break
    return tuple(found)


def _count(said: str | None) -> int | None:
    number = int(said) if said and _COUNT.fullmatch(said) else None
    return None if number is None or number > MOST else number


def _period(most: int, left: int, headers: Mapping[str, str]) -> float:
    """A minute, unless it would be full by then: OpenAI and Groq name limits of a day in the same headers."""
    seconds = _seconds(headers.get(RESET))
    if seconds is None or seconds <= LONGER or left == most:
        return MINUTE
    return min(DAY, max(MINUTE, seconds * most / (most - left)))


def _seconds(said: str | None) -> float | None:
    found = _TIME.fullmatch(said) if said else None
    if found is None:
        return None
    return sum(float(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part)
