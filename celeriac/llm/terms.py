"""Who is at the other end, and where its models run: what a provider bills depends on it. No SDK is needed to ask."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

OPENAI_URL: Final = "https://api.openai.com/v1"
ANTHROPIC_URL: Final = "https://api.anthropic.com"

_REGION: Final = re.compile(r"(\w+)\.api\.openai\.com")
#: The version in a model's name, as claude-opus-4-6 or claude-fable-5.
_CLAUDE: Final = re.compile(r"claude-[a-z]+-(\d+)(?:[-.](\d{1,2}))?(?![\d])")


def is_openai(url: str) -> bool:
    """Whether OpenAI itself answers there, Azure included."""
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith((".api.openai.com", ".openai.azure.com"))


def is_anthropic(url: str) -> bool:
    return urlsplit(url).hostname == "api.anthropic.com"


def region_of(url: str) -> str:
    """Where models run that are asked there: OpenAI says it by the name of the host alone (`eu.api.openai.com`)."""
    found = _REGION.fullmatch(urlsplit(url).hostname or "")
    return found[1] if found else ""


def runs_where_it_is_told(model: str) -> bool:
    """Whether it takes Anthropic's `inference_geo`: older models than Opus 4.6 and Sonnet 4.6 refuse it (Anthropic's
    "Data residency", as of November 2026).
    """
    found = _CLAUDE.match(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= (4, 6)
