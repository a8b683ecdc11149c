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
        ("a<!-- b --><style>c</style><noscript><b>d</b></noscript><i> e </i>", "a e"),
        ("a<template>b<template>c</template>d</template>e", "ae"),
        ("a<template><script>b</script>c</template>d", "ad"),
        ("a</template></script>b<template>c</script>d</template>e", "abe"),
        ("<script>if (a<b) '</scrip>'</script>x", "x"),
        ("a<script>never closed", "a"),
        ("5 < 6 &lt; 7 & &copy; &#x1F600;", "5 < 6 < 7 & \N{COPYRIGHT SIGN} \U0001f600"),
        ("<a href='>'>x", "x"),
        ("<title>A &amp; B</title><textarea><b></textarea>", "A & B\n<b>"),
        ("", ""),
    ],
)
def test_of_markup_the_texts_are_left(markup: str, text: str) -> None:
    """Those that are meant for people, a line for each block."""
    assert plain(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("1<b>2</b>3", "123"),
        ("$<span>12</span>.<span>50</span>", "$12.50"),
        ("<i>un</i>believable  <b>news</b>\n, it <em>is </em>so", "unbelievable news , it is so"),
        ("10<sup>9</sup> m<sup>-2</sup> H<sub>2</sub>O", "10^9 m^-2 H2O"),
        ("x<sup>n</sup> 2<sup>nd</sup> so<sup>[1]</sup> <sup>*</sup>", "x^n 2nd so[1] *"),
        ("<div>a<div>b</div>c</div>d<br>e<p>f<p>g", "a\nb\nc\nd\ne\nf\ng"),
        ("<p>See<img alt=' the map '>here", "See the map here"),
        ("<p>Run:</p><pre>\nif x:\n    <b>y</b>()\n</pre>z", "Run:\nif x:\n    y()\nz"),
        ("<svg><style/></svg>after", "after"),
        ("<svg><title/><path d=''/></svg><p>5 km</p>", "5 km"),
        ("<math><mi>a</mi><style/></math>b", "ab"),
        ("<svg><![CDATA[a]]></svg>b", "ab"),
        ("<svg/><script/>c</script>d", "d"),
        ("<svg></svg><script/>c</script>d", "d"),
    ],
)
def test_a_line_is_broken_where_a_reader_sees_it_broken(markup: str, text: str) -> None:
    """And nowhere else: a number in pieces is another number. In an image of lines a tag may be a whole element."""
    assert plain(markup) == text


PRICES = """
<html><head><title>Prices</title><script src="/a.js"></script></head><body>
<table class="p">
  <caption>Leeks, per kg</caption>
  <thead><tr><th>Kind</th><th>Small</th><th>Large</th><th>Organic</th></tr></thead>
  <tbody>
    <tr><td>Early</td><td></td><td>$<span>2</span>.<span>50</span></td><td>&nbsp;</td></tr>
    <tr><td rowspan="2">Winter</td><td><p>1.80</p></td><td><div>2.10</div><div>from May</div></td><td>3.00</td></tr>
    <tr><td>1.90<td><td>3.10</tr>
    <tr><td></td><td>1.00</td></tr>
    <tr><td></td><td> </td></tr>
    <tr><td colspan=3>Sum</td><td><b>9</b></td></tr>
  </tbody>
</table>
<p>All <b>with</b> tax.</p>
"""


def test_a_table_keeps_its_columns() -> None:
    """A line for each row; empty cells, and those that are several wide or high, stand where they stand."""
    assert plain(PRICES) == (
        "Prices\nLeeks, per kg\nKind | Small | Large | Organic\nEarly |  | $2.50 | \n"
        "Winter | 1.80 | 2.10; from May | 3.00\n | 1.90 |  | 3.10\n | 1.00\nSum |  |  | 9\nAll with tax."
    )


def test_tables_stand_in_tables() -> None:
    """Each with columns of its own."""
    markup = "<table><tr><td>a<table><tr><td>1<td>2</table><td>b</table>c"
    assert plain(markup) == "a\n1 | 2\n | b\nc"


ARTICLE = """
<!DOCTYPE html><html><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="#top">Top</a></li>
<li><a href="/leeks/#list">Leeks</a></li></ul></nav>
<article><h1>How <em>we</em> grow leeks</h1>
<p>They are <a href="soil.html?a=1&amp;b=2"><b>earthed</b> up</a>, says the
<a href='https://example.org/report'>report</a><sup><a href="#n1">[1]</a></sup>.
The <a href="/leeks/soil.html?a=1&amp;b=2">soil</a>
matters. <a href="javascript:void(0)">Print</a> <a href="mailto:a@b.example">Write</a> <a href="http://[::1">odd</a>
<a name="x">here</a></p>
<a href="//cdn.example.net/map 1.png"><img src="m.png" alt="The map"></a>
</article>
"""


def test_links_have_their_addresses() -> None:
    """In full, so that they can be asked; each once, and none of what cannot be asked or is this page."""
    assert plain(ARTICLE, "https://example.com/leeks/grow.html?x=1#y") == (
        "Home (https://example.com/)\nTop\nLeeks (https://example.com/leeks/)\nHow we grow leeks\n"
        "They are earthed up (https://example.com/leeks/soil.html?a=1&b=2), says the report "
        "(https://example.org/report)[1]. The soil matters. Print Write odd here\nThe map (https://cdn.example.net/map%201.png)"
    )
    assert plain("<base href='/b/'><a href=c>d", "http://a.example/x/") == "d (http://a.example/b/c)"
    assert plain("<a href=c>d</a><a href=http://e.example/>f") == "df (http://e.example/)"
    assert plain(f"<a href=/{'x' * 3000}>a</a>", "http://a.example/") == "a"


XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="a.js"/><style type="text/css"/></head>
<body><script type="text/javascript">if (a / b) { write("<br/>") }</script><p>One<br/>two</p><noscript/><template/>
<textarea rows="2"/><p><![CDATA[3 < 4]]></p><iframe src="x"/><p>End</p></body></html>"""


def test_in_xhtml_a_tag_may_be_a_whole_element() -> None:
    """What stands after it is of the page. In HTML it is a tag like any, and what follows is a script."""
    assert plain(XHTML, xml=True) == "One\ntwo\n3 < 4\nEnd"
    assert plain("<script src='a.js'/>x</script><p>y") == "y"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html><body><div id=app></div><script>start()</script>", "(the page holds no text)"),
        (b"", "(the page holds no text)"),
        (b"<script>" + b"x" * MOST_MARKUP + b"</script><p>y", "(the first MiB of the page holds no text)"),
    ],
)
async def test_a_page_without_text_is_told_to_be_one(body: bytes, text: str) -> None:
    """A model that hears nothing takes it for an answer."""
    assert await as_text(body, None, markup=True) == text


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
    "whole scripts": "<script/>" * (SIZE // 9),
    "whole scripts in images": "<svg><script/>" * (SIZE // 14),
    "ends of whole elements": "<!--" + "/>" * (SIZE // 2),
    "ends of whole elements in a value": "<a b='" + "/>" * (SIZE // 2),
    "links": "".join(f"<a href={n}>" for n in range(SIZE // 14)),
    "tables in tables": "<table><td>x" * (SIZE // 12),
    "wide cells": "<table><tr>" + "<td colspan=999>x" * (SIZE // 17),
    "high cells": "<table><tr>" + "<td rowspan=999>x" * 900 + "<tr><td>x" * (SIZE // 9),
    "raised": "<sup>x" * (SIZE // 6),
    "verbatim": "<pre>x" * (SIZE // 6),
}


@pytest.mark.parametrize("markup", HOSTILE.values(), ids=HOSTILE)
def test_hostile_markup_takes_time_in_proportion(markup: str) -> None:
    """Half a second where nothing else runs; in proportion to the square it were minutes. And what is made of it is not
    much more than it was, however long the addresses are that its links stand for.
    """
    began = time.thread_time()
    made = plain(markup, f"http://example.com/{'x' * 1900}/", xml="script/" in markup)
    assert time.thread_time() - began < 3
    assert len(made) < 10 * SIZE


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
    ],
)
async def test_a_page_is_read_in_the_encoding_that_it_says(body: bytes, charset: str | None, text: str) -> None:
    """By its mark of byte order, its header, its own words; else as UTF-8. What is no encoding of texts is none."""
    assert await as_text(body, charset, markup=True) == text
