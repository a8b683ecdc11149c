"""What it costs more to have a model run in one region.

The library knows no regions, and ignores those that it is told. These are the providers' own words, as of November
2026. Anthropic's "Data residency": `inference_geo` "us" multiplies every class of tokens by 1.1. OpenAI's "Data
residency": a regional address costs 10 % more with models released since 5 March 2026.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

#: Where nothing is added.
ANYWHERE: Final = ("", "global")
UPLIFT: Final = Decimal("1.1")
NONE: Final = Decimal(1)

ANTHROPIC: Final = ("us",)
#: The addresses that OpenAI's guide lists, as `eu` of eu.api.openai.com.
OPENAI: Final = ("us", "eu", "au", "ca", "jp", "in", "sg", "kr", "gb", "ae")
#: Released before 5 March 2026. What is not named is dearer.
OPENAI_OLDER: Final = re.compile(
    r"(chatgpt-4o|codex-mini|computer-use|gpt-(3\.5|4|4\.1|4\.5|4o|5|5\.1|5\.2|5\.3)|o1|o3|o4)(-.*)?"
)


def factor(provider: str, model: str, region: str) -> tuple[Decimal, bool]:
    """What the price of a token is multiplied by, and whether the provider says so: what it does not is the dearest."""
    if region in ANYWHERE:
        return NONE, True
    if provider == "anthropic":
        return UPLIFT, region in ANTHROPIC
    if provider == "openai":
        known = region in OPENAI
        return (NONE if known and OPENAI_OLDER.fullmatch(model) else UPLIFT), known
    return NONE, False


def dearest(provider: str, model: str) -> Decimal:
    """Wherever it runs."""
    if provider == "openai" and OPENAI_OLDER.fullmatch(model):
        return NONE
    return UPLIFT if provider in ("anthropic", "openai") else NONE
