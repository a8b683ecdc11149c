"""Images that a model is shown: by a URL, which its provider fetches, or with all their data."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

#: What OpenAI and Anthropic both take.
MEDIA_TYPES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
#: Characters of an address: those that are signed are long.
MAX_ADDRESS: Final = 8192
#: Of a `data:` URL, and so three megabytes: Anthropic takes five of base64 an image.
MAX_DATA: Final = 4_000_000

_DATA: Final = re.compile(rf"data:({'|'.join(map(re.escape, MEDIA_TYPES))});base64,(.+)", re.DOTALL)
_PRINTABLE: Final = re.compile(r"[!-~]+")

#: Tokens that an image counts for at most, by how its model's name begins; the first that fits. OpenAI's guide "Images
#: and vision" (Model sizing behavior, Calculating costs; as of November 2026) says of `"detail": "high"`, which we
#: always send: a model that counts tiles sees at most 8 of 512 pixels, so 85 + 8 * 170 = 1,445 (gpt-4o, gpt-4.1,
#: gpt-4.5, gpt-5, o1, o3), but gpt-4o-mini 2,833 + 8 * 5,667; one that counts patches sees at most 1,536 of them, from
#: gpt-5.4 on 2,500, times a factor of at most 2.46.
OPENAI: Final = (
    ("gpt-4o-mini", 48_169),
    *((name, 6_150) for name in ("gpt-4-turbo", "gpt-4.1", "gpt-4.5", "gpt-4o", "gpt-5", "o1", "o3", "o4-mini")),
)
#: Anthropic's guide "Vision": the newest models scale an image down to 4,784 tokens, the others to about 1,600.
ANTHROPIC: Final = 4_784
#: Of any other model, whoever's: as the dearest above. It holds at any detail, which somebody in between may change:
#: OpenAI's newest models take at most 30,000 patches, times 1.2, and refuse more.
ANY: Final = 48_169


@dataclass(frozen=True, slots=True)
class Image:
    """url: https, or `data:` with all of it. at: characters of the message's text that stand before it."""

    url: str = field(repr=False)
    at: int = 0

    @property
    def data(self) -> tuple[str, str] | None:
        """Its media type and its data in base64; None where its provider fetches it."""
        found = _DATA.fullmatch(self.url)
        return (found[1], found[2]) if found else None


def checked_url(url: str) -> str:
    """The same URL, if every provider could take it. Raises ValueError with the remedy, and nothing of the URL."""
    if not url.startswith("data:"):
        return _address(url)
    if len(url) > MAX_DATA:
        raise ValueError(f"has {len(url)} characters; send at most {MAX_DATA}, a smaller image or its https address")
    data = Image(url).data
    if data is None:
        kinds = ", ".join(MEDIA_TYPES)
        raise ValueError(f"is no image that providers take; send data:TYPE;base64,DATA, where TYPE is one of {kinds}")
    with suppress(ValueError):
        if base64.b64decode(data[1], validate=True):
            return url
    raise ValueError("is no base64; send the image's bytes in base64, without line breaks")


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_https = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_https = False
    if not is_https or not _PRINTABLE.fullmatch(url):
        raise ValueError("is no https address; send one that the provider can fetch, or the image itself as data:")
    if "@" in parts.netloc:
        raise ValueError("holds a user or a password; send an address without, or the image itself as data:")
    if len(url) > MAX_ADDRESS:
        raise ValueError(f"has {len(url)} characters; send an address of at most {MAX_ADDRESS}")
    return url


def most_tokens(provider: str, model: str) -> int:
    """That one image counts for, at most, whatever its size."""
    if provider == "anthropic":
        return ANTHROPIC
    if provider == "openai":
        return next((most for name, most in OPENAI if model.startswith(name)), ANY)
    return ANY
