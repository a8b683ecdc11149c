"""What came for a URL, as text. It comes from strangers: whatever they send takes time in proportion to its length.

That is why markup is only taken apart, and never built into a tree: how a browser closes what nobody closed takes time
in proportion to the square of it, in every library that does it as the standard says.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from turbohtml import TokenType, tokenize
from turbohtml.detect import Detection, detect

#: Of markup: what is beyond is not read.
MOST_MARKUP: Final = 1024 * 1024
#: What is in these is for browsers.
HIDDEN: Final = frozenset({"script", "style", "noscript", "template"})
#: Its own threads: those of the event loop look names up, for everybody.
THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="page")
#: A mark of byte order, a <meta charset>, or valid UTF-8; no guesses.
_CERTAIN: Final = Detection(threshold=1.0)


async def as_text(body: bytes, charset: str | None, *, markup: bool) -> str:
    """charset: as the header has it, which may be anything."""
    return await asyncio.get_running_loop().run_in_executor(
        THREADS, partial(_marked_up if markup else _decoded, body, charset)
    )


def _marked_up(body: bytes, charset: str | None) -> str:
    return plain(_decoded(body[:MOST_MARKUP], charset))


def _decoded(body: bytes, charset: str | None) -> str:
    """By its mark of byte order, the header's charset if it is one, what the page says itself, or as UTF-8."""
    found = detect(body, _CERTAIN)
    if not found.bom and charset is not None:
        try:
            # The encodings of the web alone: Python's own names are also of compression, and of slower things.
            return body.decode(f"whatwg-{charset}", errors="replace")
        except (LookupError, ValueError):
            pass  # it is none
    return body.decode(found.codec or "utf-8", errors="replace").removeprefix("\ufeff")


def plain(markup: str) -> str:
    """The texts between the tags, a line each."""
    texts: list[str] = []
    inside, depth = "", 0
    for token in tokenize(markup, capture_attributes=False):
        if token.type is TokenType.TEXT:
            if not depth and (text := (token.data or "").strip()):
                texts.append(text)
        elif token.type is TokenType.START_TAG:
            if token.tag == inside if depth else token.tag in HIDDEN:
                inside, depth = token.tag or "", depth + 1
        elif token.type is TokenType.END_TAG and depth and token.tag == inside:
            depth -= 1
    return "\n".join(texts)
