"""The rates that a provider allows, as it says them in the headers of its answers."""

from __future__ import annotations

import pytest

from celeriac.errors import RateLimited
from celeriac.llm.limits import Limit, limits

from .conftest import Case

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "48",
    "anthropic-ratelimit-requests-reset": "2026-03-12T10:00:00Z",
    "anthropic-ratelimit-input-tokens-limit": "30000",
    "anthropic-ratelimit-input-tokens-remaining": "25000",
    "anthropic-ratelimit-input-tokens-reset": "2026-03-12T10:00:10Z",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-output-tokens-remaining": "7000",
    "anthropic-ratelimit-tokens-limit": "38000",
    "anthropic-ratelimit-tokens-remaining": "32000",
}


def test_openai_and_anthropic_name_their_limits_in_their_own_ways() -> None:
    """A minute's worth each. Tokens of input and output are counted together, or apart, or both."""
    assert limits(OPENAI) == (Limit("requests", 500, 499, 60), Limit("tokens", 200_000, 149_984, 60))
    assert limits(ANTHROPIC) == (
        Limit("requests", 50, 48, 60),
        Limit("tokens", 38_000, 32_000, 60),
        Limit("input", 30_000, 25_000, 60),
        Limit("output", 8000, 7000, 60),
    )


@pytest.mark.parametrize(
    ("most", "left", "reset", "period"),
    [
        ("200", "150", "6h0m0s", 86_400),  # OpenAI's smallest tier: 200 a day
        ("14400", "14370", "2m59.56s", 86_189),  # Groq: 14,400 a day
        ("200", "199", "7m12s", 86_400),
        ("10000", "9999", "8.64s", 60),  # by the day too, but that shows only once more of it is used
        ("60", "0", "1m0s", 60),
        ("60", "0", "1d0h", 86_400),
        ("100", "100", "3h0m0s", 60),  # full: it does not say how fast it fills
        ("100", "50", "soon", 60),
        ("100", "50", "2026-03-12T10:00:00Z", 60),
        ("100", "50", None, 60),
    ],
)
def test_a_limit_of_a_day_is_told_from_one_of_a_minute(most: str, left: str, reset: str | None, period: int) -> None:
    """By how long it takes to fill: both come in the same headers."""
    headers = {"x-ratelimit-limit-requests": most, "x-ratelimit-remaining-requests": left}
    if reset:
        headers["x-ratelimit-reset-requests"] = reset
    [limit] = limits(headers)
    assert limit.period == pytest.approx(period, abs=1)


@pytest.mark.parametrize(
    ("most", "left"),
    [
        ("", "5"),
        ("0", "0"),
        ("-5", "1"),
        ("many", "1"),
        ("60", ""),
        ("60", "-1"),
        ("1e3", "5"),
        ("9" * 13, "5"),
        ("6.5", "1"),
    ],
)
def test_what_makes_no_sense_is_no_limit(most: str, left: str) -> None:
    """Whoever stands between us and the provider may write anything there."""
    assert limits({"x-ratelimit-limit-requests": most, "x-ratelimit-remaining-requests": left}) == ()


def test_no_more_is_left_than_there_is() -> None:
    assert limits({"x-ratelimit-limit-tokens": "60", "x-ratelimit-remaining-tokens": "90"}) == (
        Limit("tokens", 60, 60),
    )


@pytest.mark.parametrize("status", [200, 429])
async def test_answers_and_refusals_bring_the_limits_with_them(sdk: Case, status: int) -> None:
    headers = ANTHROPIC if sdk.name == "messages" else OPENAI
    await sdk.meets(status=status, headers=headers)
    if status == 200:
        found = (await sdk.answer()).limits
    else:
        with pytest.raises(RateLimited) as caught:
            await sdk.answer()
        found = caught.value.limits
    assert found == limits(headers)
    assert len(found) >= 2
