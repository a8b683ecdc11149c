"""Pages of strangers become text: in their own encoding, in time that is in proportion, in threads of their own."""

from __future__ import annotations

import asyncio
import codecs
import threading
import time

import pytest

from celeriac.agents import page
from celeriac.agents.page import MOST_MARKUP, as_text, plain


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<html><script>evil()</script><h1>Leeks &amp; more</h1><p>In butter.</p></html>", "Leeks & more\nIn butter."),
        ("a<!-- b --><style>c</style><noscript><b>d</b></noscript><i> e </i>", "a\ne"),
        ("a<template>b<template>c</template>d</template>e", "a\ne"),
        ("a<template><script>b</script>c</template>d", "a\nd"),
        ("a</template></script>b<template>c</script>d</template>e", "a\nb\ne"),
        ("<script>if (a<b) '</scrip>'</script>x", "x"),
        ("a<script>never closed", "a"),
        ("5 < 6 &lt; 7 & &copy; &#x1F600;", "5 < 6 < 7 & \N{COPYRIGHT SIGN} \U0001f600"),
        ("<a href='>'>x", "x"),
        ("<title>A &amp; B</title><textarea><b></textarea>", "A & B\n<b>"),
        ("", ""),
    ],
)
def test_of_markup_the_texts_are_left(markup: str, text: str) -> None:
    """Those that are meant for people, a line each."""
    assert plain(markup) == text


SIZE = 600_000
HOSTILE = {
    "tags that nobody closes": "<a " * (SIZE // 3),
    "deep": "<div>" * (SIZE // 5),
    "deep, and closed by others": "<b>" * (SIZE // 6) + "</i>" * (SIZE // 8),
    "reopened in each paragraph": "".join(f"<b a={n}>" for n in range(SIZE // 30)) + "<p>x" * (SIZE // 8),
    "misnested": "<a><div>" * (SIZE // 8),
    "attributes": "<a " + " ".join(f"a{n}=1" for n in range(SIZE // 8)) + ">",
    "quotes": '<a b="' * (SIZE // 6),
    "entities": "&NotEqualTilde" * (SIZE // 14),
    "numbers": "&#" + "1" * SIZE,
    "ampersands": "&" * SIZE,
    "comments": "<!--" * (SIZE // 4),
    "comments that end": "<!---->" * (SIZE // 7),
    "declarations": "<!" * (SIZE // 2),
    "scripts": "<script>" + "</script" * (SIZE // 8),
    "scripts in comments": "<script><!--<script>" * (SIZE // 20),
    "templates": "<template>" * (SIZE // 10),
    "closed, never opened": "</a>" * (SIZE // 4),
    "texts": "x<b>" * (SIZE // 4),
}


@pytest.mark.parametrize("markup", HOSTILE.values(), ids=HOSTILE)
def test_hostile_markup_takes_time_in_proportion(markup: str) -> None:
    """Half a second where nothing else runs; in proportion to the square it were minutes."""
    began = time.thread_time()
    plain(markup)
    assert time.thread_time() - began < 3


async def test_of_very_much_markup_the_beginning_is_read() -> None:
    """Other texts are as long as they are."""
    body = b"x" * MOST_MARKUP + b"beyond"
    assert await as_text(body, None, markup=True) == "x" * MOST_MARKUP
    assert (await as_text(body, None, markup=False)).endswith("beyond")


async def test_pages_do_not_keep_names_from_being_looked_up() -> None:
    """Their threads are two, and their own."""
    loop, door = asyncio.get_running_loop(), threading.Event()
    reading = [loop.run_in_executor(page.THREADS, door.wait, 30) for _ in range(2)]
    third = asyncio.create_task(as_text(b"<p>x", None, markup=True))
    try:
        await asyncio.wait_for(loop.getaddrinfo("127.0.0.1", 80), 20)
        assert not third.done()
    finally:
        door.set()
    assert await third == "x"
    await asyncio.gather(*reading)


CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        (CAFE.encode(), None, CAFE),
        (CAFE.encode("latin-1"), "ISO-8859-1", CAFE),
        (CAFE.encode("latin-1"), None, "caf\N{REPLACEMENT CHARACTER}"),
        (CAFE.encode(), "zlib", CAFE),
        (b"caf-dma", "punycode", "caf-dma"),
        (b"caf+AOk-", "utf-7", "caf+AOk-"),
        (CAFE.encode(), "no-such-charset", CAFE),
        (CAFE.encode(), "", CAFE),
        (CAFE.encode(), "utf\0-8", CAFE),
        (codecs.BOM_UTF8 + CAFE.encode(), None, CAFE),
        (codecs.BOM_UTF8 + CAFE.encode(), "latin-1", CAFE),
        (codecs.BOM_UTF16_BE + CAFE.encode("utf-16-be"), "utf-16", CAFE),
        (b"<meta charset=koi8-r><p>" + "чай".encode("koi8-r"), None, "чай"),
        (b"<meta charset=zlib><p>" + CAFE.encode(), None, CAFE),
        ("привет".encode("cp1251"), "windows-1251", "привет"),
        (b"\xff\xff", "utf-8", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"", None, ""),
    ],
)
async def test_a_page_is_read_in_the_encoding_that_it_says(body: bytes, charset: str | None, text: str) -> None:
    """By its mark of byte order, its header, its own words; else as UTF-8. What is no encoding of texts is none."""
    assert await as_text(body, charset, markup=True) == text
