"""What came for a URL, as text. It comes from strangers: whatever they send takes time in proportion to its length.

That is why markup is only taken apart, and never built into a tree: how a browser closes what nobody closed takes time
in proportion to the square of it, in every library that does it as the standard says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final
from urllib.parse import urljoin

from turbohtml import Token, Tokenizer, TokenType
from turbohtml.detect import Detection, detect

#: Of markup: what is beyond is not read.
MOST_MARKUP: Final = 1024 * 1024
#: What is in these is for browsers.
HIDDEN: Final = frozenset({"script", "style", "noscript", "template"})
_BLOCKS: Final = """
address article aside blockquote body br button caption center dd details dialog div dl dt fieldset figcaption figure
footer form h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav ol optgroup option p pre search section
select summary textarea title ul
"""
#: These break a line, or what is in a cell.
BLOCKS: Final = frozenset(_BLOCKS.split())
MEANT: Final = BLOCKS | {"table", "tr", "td", "th", "a", "base", "img", "sup"}
FOREIGN: Final = frozenset({"svg", "math"})
#: What follows these is no markup, for the tokenizer.
RAW: Final = HIDDEN | {"title", "textarea", "iframe", "noembed", "noframes", "plaintext", "xmp"}
CDATA: Final = "[CDATA["
CELL: Final = " | "
#: Signs that a power begins with, and what is raised and is none.
SIGNS: Final = "+-\N{MINUS SIGN}("
ORDINALS: Final = frozenset({"st", "nd", "rd", "th"})
#: As long as one that may be asked.
LONGEST_ADDRESS: Final = 2000
#: Characters of all that are told: to one long address a page may have a great many short links.
MOST_ADDRESSES: Final = 100_000
#: Of a cell that is wide or high, what is heeded: what little markup asks for is little.
MOST_COLUMNS: Final = 30
MOST_ROWS: Final = 1000
#: Its own threads: those of the event loop look names up, for everybody.
THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="page")
#: A mark of byte order, a <meta charset>, or valid UTF-8; no guesses.
_CERTAIN: Final = Detection(threshold=1.0)


async def as_text(body: bytes, charset: str | None, *, markup: bool, xml: bool = False, url: str = "") -> str:
    """charset: as the header has it, which may be anything. xml: the markup is XHTML. url: the page's own."""
    work = partial(_marked_up, xml=xml, url=url) if markup else _decoded
    text = await asyncio.get_running_loop().run_in_executor(THREADS, work, body, charset)
    if text.strip():
        return text
    return f"({'the first MiB of ' if markup and len(body) > MOST_MARKUP else ''}the page holds no text)"


def _marked_up(body: bytes, charset: str | None, *, xml: bool, url: str) -> str:
    return plain(_decoded(body[:MOST_MARKUP], charset), url, xml=xml)


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


def plain(markup: str, url: str = "", *, xml: bool = False) -> str:
    """The texts, a line for each block and each row of a table, and the addresses of links behind them."""
    text = _Text(url)
    inside, depth = "", 0
    for token, strict in _tokens(markup, xml):
        tag, whole = token.tag or "", strict and token.self_closing
        if token.type is TokenType.TEXT:
            if not depth:
                text.say(token.data or "")
        elif token.type is TokenType.START_TAG:
            if tag == inside if depth else tag in HIDDEN:
                if not whole:
                    inside, depth = tag, depth + 1
            elif not depth and tag in MEANT:
                text.begin(tag, token)
                if whole:
                    text.end(tag)
        elif token.type is TokenType.END_TAG:
            if depth:
                depth -= tag == inside
            elif tag in MEANT:
                text.end(tag)
        elif token.type is TokenType.COMMENT and strict and not depth and (token.data or "").startswith(CDATA):
            text.say((token.data or "").removeprefix(CDATA).removesuffix("]]"))
    return text.all()


def _tokens(markup: str, xml: bool) -> Iterator[tuple[Token, bool]]:
    """And of each, whether the rules of XML hold there: `<script/>` is a whole element then. The tokenizer would take
    all that follows for a script, up to `</script>`: it is told to begin anew.
    """
    tokenizer, foreign = Tokenizer(), 0
    for part in _parts(markup):
        token = None
        for token in tokenizer.feed(part):
            if token.tag in FOREIGN and not token.self_closing:
                foreign = foreign + 1 if token.type is TokenType.START_TAG else max(0, foreign - 1)
            yield token, xml or foreign > 0
        if token is not None and token.self_closing and token.tag in RAW and (xml or foreign):
            tokenizer.reset()
    for token in tokenizer.close():
        yield token, xml or foreign > 0


def _parts(markup: str) -> Iterator[str]:
    """Each but the last ends where the tag of a whole element may."""
    start = 0
    while (found := markup.find("/>", start)) >= 0:
        yield markup[start : found + 2]
        start = found + 2
    yield markup[start:]


class _Text:
    """Lines in the making."""

    def __init__(self, url: str) -> None:
        self._base = url
        self._lines: list[str] = []
        self._line: list[str] = []
        #: What stands before the next word, unless it is the first one of its line or cell.
        self._gap, self._first = "", True
        #: Whether the line says anything, beside cells that are empty.
        self._said = False
        self._table = _Table()
        self._around: list[_Table] = []
        self._raised = False
        self._verbatim = 0
        self._link: str | None = None
        #: Each address is told once; that of the page is known.
        self._told = {"", url.partition("#")[0]}
        self._left = MOST_ADDRESSES

    def begin(self, tag: str, token: Token) -> None:
        match tag:
            case "table":
                self._break()
                self._around.append(self._table)
                self._table = _Table()
            case "tr":
                self._break()
                self._table.next_row()
            case "td" | "th":
                if not self._table.is_in_row:
                    self._break()
                self._line.append(CELL * self._table.next_cell(token.attr("colspan"), token.attr("rowspan")))
                self._gap, self._first = "", True
            case "a":
                self._address()
                self._link = token.attr("href")
            case "base":
                self._base = self._resolved(token.attr("href") or "") or self._base
            case "img":
                self.say(token.attr("alt") or "")
            case "sup":
                self._raised = True
            case _:
                self._block()
                self._verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        match tag:
            case "table":
                self._break()
                self._table = self._around.pop() if self._around else _Table()
            case "tr":
                self._break()
                self._table.next_row()
            case "a":
                self._address()
            case "sup":
                self._raised = False
            case "td" | "th" | "base" | "img":
                pass
            case _:
                self._block()
                self._verbatim -= tag == "pre" and self._verbatim > 0

    def say(self, text: str) -> None:
        words = text.split()
        if self._verbatim:
            self._put(self._gap.strip() and self._gap, text, bool(words))
            return
        if not self._gap and text[:1].isspace():
            self._gap = " "
        if not words:
            return
        before = self._gap
        if self._raised and not before and (words[0][0].isalnum() or words[0][0] in SIGNS) and words[0] not in ORDINALS:
            before = "^"  # 10<sup>9</sup> is not 109
        self._raised = False
        self._put(before, " ".join(words))
        self._gap = " " if text[-1].isspace() else ""

    def all(self) -> str:
        self._address()
        self._break()
        return "\n".join(self._lines)

    def _put(self, before: str, text: str, says: bool = True) -> None:
        if not self._first:
            self._line.append(before)
        self._line.append(text)
        self._said = self._said or says
        self._gap, self._first = "", self._first and not says

    def _block(self) -> None:
        """In a row no line ends: it is one."""
        if self._table.is_in_row:
            self._gap = "; "
        else:
            self._break()

    def _break(self) -> None:
        if self._said:
            self._lines.append("".join(self._line).strip("\n"))
        self._line.clear()
        self._gap, self._first, self._said = "", True, False

    def _address(self) -> None:
        link, self._link = self._link, None
        if link is None or link in self._told or self._left <= 0:
            return
        address = self._resolved(link)
        if address not in self._told:
            gap = self._gap
            self._left -= len(address)
            self._put(" ", f"({address})")
            self._gap = gap
        self._told |= {link, address}

    def _resolved(self, link: str) -> str:
        """Nothing, where it is none that could be asked."""
        if len(link) > LONGEST_ADDRESS:
            return ""
        try:
            address = urljoin(self._base, link.strip()).partition("#")[0].replace(" ", "%20")
        except ValueError:
            return ""
        return address if address.lower().startswith(("http://", "https://")) else ""


class _Table:
    """Where a cell stands: beside the one before it, and below none that is several rows high."""

    def __init__(self) -> None:
        self._row = self._at = self._next = 0
        #: Of columns: the first row that is free again.
        self._free: dict[int, int] = {}

    @property
    def is_in_row(self) -> bool:
        return self._next > 0

    def next_row(self) -> None:
        self._row += self._next > 0
        self._at = self._next = 0

    def next_cell(self, wide: str | None, high: str | None) -> int:
        """How many columns further it begins than the one before it."""
        column = self._next
        while self._free.get(column, 0) > self._row:
            column += 1
        further, self._at = column - self._at, column
        self._next = column + _count(wide, MOST_COLUMNS)
        if (rows := _count(high, MOST_ROWS)) > 1:
            for below in range(column, min(self._next, MOST_COLUMNS)):
                self._free[below] = self._row + rows
        return further


def _count(said: str | None, most: int) -> int:
    return max(1, min(most, int(said))) if said and len(said) < 6 and said.isascii() and said.isdigit() else 1
