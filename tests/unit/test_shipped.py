"""The tools that we ship: a calculator that computes and nothing else, and a look at pages that stays where it may."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from yarl import URL

from celeriac.agents import arithmetic, shipped
from celeriac.agents.tools import Result, ToolFailed, find_tool
from celeriac.settings import FetchSettings


async def calculate(expression: str) -> Result:
    tool = find_tool("celeriac.agents.shipped:calculator")
    return await tool.call(orjson.dumps({"expression": expression}).decode())


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1234567 * 7654321", "9449772114007"),
        ("(3 + 4) * 2 ** 3 - 7 // 2 + 7 % 4", "56"),
        ("sqrt(2) * sqrt(2)", "2.0000000000000004"),
        ("round(pi, 4)", "3.1416"),
        ("max(1, -2, 3) + min(1, -2) + abs(-5)", "6"),
        ("factorial(20) / factorial(18)", "380.0"),
        ("-2 ** 2", "-4"),
    ],
)
async def test_a_calculator_computes(expression: str, result: str) -> None:
    """Exactly, where whole numbers stay whole."""
    assert await calculate(expression) == Result(result)


def test_a_model_is_told_what_a_calculator_knows() -> None:
    """Each function and constant, and that percent and commas are none."""
    told = find_tool("celeriac.agents.shipped:calculator").spec.schema["properties"]["expression"]["description"]
    assert {*arithmetic.FUNCTIONS, *arithmetic.NAMES} <= set(re.findall(r"\w+", told))
    assert "no percent, no commas in numbers" in told


@pytest.mark.parametrize(
    "expression",
    [
        "9 ** 9 ** 9",
        "2 ** 100000",
        "(10 ** 15) ** 1000 * 2",
        "factorial(100000)",
        "10 ** 300 * 10 ** 300",
        "'a' * 1000000000",
        "'a'",
        "1 < 2",
        "1 / 0",
        "sqrt(-1)",
        "(-8) ** 0.5",
        "__import__('os').system('true')",
        "(1).__class__",
        "[x for x in [1, 2]]",
        "lambda: 1",
        "x",
        "import os",
        "1 if 1 else 2; 3",
        "",
        "(" * 400 + "1" + ")" * 400,
        "-" * 900 + "1",
        "9" * 999 + " ** 1000",
    ],
)
async def test_a_calculator_does_nothing_else(expression: str) -> None:
    """Nor does it take long: the model is told that it cannot be computed."""
    began = time.monotonic()
    said = await calculate(expression)
    assert said.failed or said.text in {"1", "-1"}
    assert time.monotonic() - began < 1
    assert "the tool failed: " not in said.text


class Line:
    """What this process connects to, as Python sees it. From here nothing goes out, whatever is broken: a connection
    to anywhere but this machine fails, and so does the look-up of a name that is not its own.
    """

    def __init__(self) -> None:
        self.is_held = False
        self.connected: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, facts: tuple[Any, ...]) -> None:
        if not self.is_held:
            return
        if event == "socket.connect" and isinstance(facts[1], tuple):
            self.connected.append(facts[1][0])
            if not ip_address(facts[1][0]).is_loopback:
                raise OSError("this goes out")
        elif event == "socket.getaddrinfo" and facts[0] not in (None, "localhost", "localhost."):
            try:
                socket.inet_aton(facts[0])
            except OSError:
                raise socket.gaierror("this goes out") from None


LINE = Line()


@pytest.fixture(autouse=True)
def line() -> Iterator[Line]:
    LINE.connected.clear()
    LINE.is_held = True
    yield LINE
    LINE.is_held = False


class Site:
    """A site near us. url: of it. asked: the paths that were."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        match request.path:
            case "/page":
                html = "<html><script>evil()</script><h1>Leeks &amp; more</h1><p>In butter.</p></html>"
                return web.Response(text=html, content_type="text/html")
            case "/deep/links":
                return web.Response(text="<a href=../page>Leeks</a>", content_type="text/html")
            case "/kind":
                return web.Response(text=request.query["text"], content_type=request.query["is"])
            case "/data":
                return web.json_response({"leeks": 3, "agent": request.headers["User-Agent"]})
            case "/binary":
                return web.Response(body=b"\0" * 10, content_type="application/octet-stream")
            case "/long":
                return web.Response(text="x" * 3_000_000, content_type="text/plain")
            case "/to":
                return web.Response(status=302, headers={"Location": request.query["url"]})
            case "/bytes":
                kind = request.query["kind"]
                return web.Response(body="<p>caf\u00e9</p>".encode(request.query["in"]), headers={"Content-Type": kind})
            case "/headers":
                return web.json_response(dict(request.headers))
            case "/cookie":
                return web.Response(
                    status=302, headers={"Location": "/headers", "Set-Cookie": "session=hunter2; Path=/"}
                )
            case "/endless":
                return await self._goes_on(request, b"x" * 65536)
            case "/slow":
                return await self._goes_on(request, b"x", 0.02)
            case "/loop":
                return web.Response(status=302, headers={"Location": "/loop"})
        return web.Response(status=404)

    async def _goes_on(self, request: web.Request, part: bytes, pause: float = 0) -> web.StreamResponse:
        """Until the other side has gone."""
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(part)
                await asyncio.sleep(pause)
        return answer


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[FetchSettings]:
    """What the operator allows; the last one counts."""
    given = [FetchSettings()]
    monkeypatch.setattr(shipped, "_settings", lambda: given[-1])
    return given


async def fetch(url: str) -> Result:
    return await find_tool("celeriac.agents.shipped:http_fetch").call(orjson.dumps({"url": url}).decode())


async def test_a_page_is_read_as_text(site: Site, allowed: list[FetchSettings]) -> None:
    """Without its scripts; other texts as they are. Who answers learns that Celeriac asks."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    assert await fetch(f"{site.url}/page") == Result("Leeks & more\nIn butter.")
    assert await fetch(f"{site.url}/data") == Result('{"leeks": 3, "agent": "celeriac"}')
    assert (await fetch(f"{site.url}/to?url=/page")).text == "Leeks & more\nIn butter."
    assert "cut: the result has" in (await fetch(f"{site.url}/long")).text


async def test_links_go_out_from_where_the_page_was_in_the_end(site: Site, allowed: list[FetchSettings]) -> None:
    """And can be asked as they are told."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    told = (await fetch(f"{site.url}/to?url=/deep/links")).text
    assert told == f"Leeks ({site.url}/page)"
    assert (await fetch(told[7:-1])).text == "Leeks & more\nIn butter."


FEED = """<?xml version="1.0"?>
<rss version="2.0"><channel><title>Leeks</title><link>https://example.com/</link>
<item><title>Prices &amp; news</title><link>https://example.com/1</link><pubDate>Thu, 26 Nov 2026 09:00:00 GMT</pubDate>
<description><![CDATA[<p>They are <b>2.50</b> now.</p>]]></description></item></channel></rss>"""


@pytest.mark.parametrize(
    ("kind", "sent", "told"),
    [
        ("application/rss+xml", FEED, FEED),
        ("application/atom+xml", "<feed/>", "<feed/>"),
        ("application/problem+json", '{"title": "late"}', '{"title": "late"}'),
        ("application/ld+json", "{}", "{}"),
        ("application/xhtml+xml", "<html><script src='a.js'/><p>Leeks</p></html>", "Leeks"),
        ("text/html", "<script>start()</script>", "(the page holds no text)"),
        ("text/plain", " ", "(the page holds no text)"),
    ],
)
async def test_what_is_written_in_a_language_of_texts_is_read(
    site: Site, allowed: list[FetchSettings], kind: str, sent: str, told: str
) -> None:
    """Feeds and data as they are, pages as people see them; that there is nothing to read is said."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    assert await fetch(str(URL(f"{site.url}/kind").with_query({"is": kind, "text": sent}))) == Result(told)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "the page answered with 404"),
        ("/binary", "application/octet-stream, and no text"),
        ("/loop", "sends one elsewhere more than 5 times"),
        ("/to?url=http://localhost/", "localhost is not allowed; allowed are: 127.0.0.1"),
        ("/to?url=file:///etc/passwd", "no http or https URL"),
    ],
)
async def test_what_cannot_be_read_is_told(site: Site, allowed: list[FetchSettings], path: str, why: str) -> None:
    """A page that sends one elsewhere is held to the same rules."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    said = await fetch(site.url + path)
    assert said.failed
    assert why in said.text


async def test_nothing_is_asked_that_the_operator_did_not_allow(site: Site, allowed: list[FetchSettings]) -> None:
    """By default nothing is; a pattern stands for hosts."""
    assert "no host is" in (await fetch(f"{site.url}/page")).text
    allowed.append(FetchSettings(hosts=("*.0.0.1",), private_addresses=True))
    assert not (await fetch(f"{site.url}/page")).failed
    allowed.append(FetchSettings(hosts=("*.example.com",), private_addresses=True))
    for url in (f"{site.url}/page", "http://example.com.evil.net/", "http://example.com/"):
        assert "is not allowed" in (await fetch(url)).text
    assert site.asked == ["/page"]


NEAR = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ⓛocalhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.0.0.1.",
    "127.0.0.1\t",
    "127%2e0%2e0%2e1",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "127．0｡0．1",
    "１２７.0.0.1",
    "１２７.１",
    "0.0.0.0",  # noqa: S104
    "0",
    "[::1]",
    "[::１]",
    "[::1%25lo]",
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[fec0::1]",
    "[fe80::1%25lo]",
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
]


@pytest.mark.parametrize("host", NEAR)
async def test_nothing_near_us_is_connected_to(
    site: Site, line: Line, allowed: list[FetchSettings], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """However it is spelt, and though the operator allows every host and somebody listens there."""
    allowed.append(FetchSettings(hosts=("*",)))
    port = int(site.url.rpartition(":")[2])
    monkeypatch.setattr(shipped, "PORTS", {port})
    said = await fetch(f"http://{host}:{port}/page")
    assert said.failed
    assert "Leeks" not in said.text
    assert (site.asked, line.connected) == ([], [])


async def test_what_was_overlooked_in_a_url_is_not_connected_to(
    site: Site, line: Line, allowed: list[FetchSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket is made for an address near us, whoever let it through."""
    allowed.append(FetchSettings(hosts=("*",)))
    monkeypatch.setattr(shipped, "_check", lambda *_: None)
    said = await fetch(f"{site.url}/page")
    assert said == Result("the page could not be read: that address is not of the public internet", failed=True)
    assert (site.asked, line.connected) == ([], [])


async def test_what_is_checked_is_what_is_asked(site: Site, allowed: list[FetchSettings]) -> None:
    """A host is read once, also where a page sends one on: in two spellings two may read two hosts."""
    allowed.append(FetchSettings(hosts=("127.0.0.1", "bücher.example"), private_addresses=True))
    port = site.url.rpartition(":")[2]
    assert (await fetch(f"http://①②⑦.⓪.⓪.①:{port}/page")).text == "Leeks & more\nIn butter."
    assert (await fetch(f"{site.url}/to?url=http://①②⑦.⓪.⓪.①:{port}/page")).text == "Leeks & more\nIn butter."
    assert "127.0.0.2 is not allowed" in (await fetch(f"{site.url}/to?url=http://①②⑦.⓪.⓪.②:{port}/page")).text
    for host in ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"):
        assert "is not allowed" not in (await fetch(f"http://{host}/")).text


async def test_a_url_with_a_user_is_not_asked_for(site: Site, allowed: list[FetchSettings]) -> None:
    """Though its host is allowed, and though a page sends one there."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    place = site.url.removeprefix("http://")
    for user in ("user:secret", "user", ":secret", ":"):
        for url in (f"http://{user}@{place}/page", f"{site.url}/to?url=http://{user}@{place}/page"):
            assert await fetch(url) == Result("a URL with a user or a password is not asked for", failed=True)
    assert set(site.asked) == {"/to"}


@pytest.mark.parametrize("port", [0, 22, 81, 6379, 8080, 8443, 65535])
def test_of_the_public_internet_two_ports_are_asked(port: int) -> None:
    """Those of pages, of either scheme; any where private addresses are allowed too."""
    public, any_ = (FetchSettings(hosts=("*",), private_addresses=near) for near in (False, True))
    for scheme in ("http", "https"):
        for url in (f"{scheme}://example.com", f"{scheme}://example.com:80", f"{scheme}://example.com:443"):
            shipped._check(URL(url), public)
        odd = URL(f"{scheme}://example.com:{port}")
        shipped._check(odd, any_)
        with pytest.raises(ToolFailed, match="only the ports 80 and 443 are asked"):
            shipped._check(odd, public)


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com", "example.com", "http://[::1", "http://", "http:///x", "//127.0.0.1/", "http://a:99999/"],
)
async def test_a_url_that_is_none_is_told(line: Line, allowed: list[FetchSettings], url: str) -> None:
    allowed.append(FetchSettings(hosts=("*",), private_addresses=True))
    said = await fetch(url)
    assert said.failed
    assert said.text in ("that is no URL", "that is no http or https URL")
    assert line.connected == []


@pytest.mark.parametrize(
    ("kind", "encoding", "text"),
    [
        ("text/html", "utf-8", "caf\u00e9"),
        ("text/plain", "utf-8", "<p>caf\u00e9</p>"),
        ("application/xml", "utf-8", "<p>caf\u00e9</p>"),
        ("text/html; charset=iso-8859-1", "latin-1", "caf\u00e9"),
        ("text/html; charset=no-such", "utf-8", "caf\u00e9"),
        ("text/html; charset=zlib", "utf-8", "caf\u00e9"),
        ("text/html; charset=", "utf-8", "caf\u00e9"),
        ("text/html; charset*=zlib''x", "utf-8", "caf\u00e9"),
        ("text/html; ;;", "utf-8", "caf\u00e9"),
    ],
)
async def test_a_page_need_not_say_its_encoding(
    site: Site, allowed: list[FetchSettings], kind: str, encoding: str, text: str
) -> None:
    """Nor say one that there is."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    url = URL(f"{site.url}/bytes").with_query({"kind": kind, "in": encoding})
    assert await fetch(str(url)) == Result(text)


async def test_a_name_that_stands_for_something_near_us_is_told(line: Line, allowed: list[FetchSettings]) -> None:
    """By its name: what it stands for is not said."""
    allowed.append(FetchSettings(hosts=("*",)))
    said = await fetch("http://localhost/")
    assert said == Result("the page could not be read: localhost is not of the public internet", failed=True)
    assert line.connected == []


async def test_nothing_of_the_environment_goes_along(
    site: Site, allowed: list[FetchSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its proxy is not asked, which would look names up for itself; and its passwords are nobody's business."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True))
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    passwords = tmp_path / "netrc"
    passwords.write_text("machine 127.0.0.1 login clerk password hunter2\n")
    monkeypatch.setenv("NETRC", str(passwords))
    async with server:
        told = await fetch(f"{site.url}/headers")
    assert asked == []
    assert set(orjson.loads(told.text)) <= {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


async def test_a_page_leaves_no_cookie(site: Site, allowed: list[FetchSettings]) -> None:
    """Nor does one that sends one on: where it leads to does not learn who came."""
    allowed.append(FetchSettings(hosts=("localhost",), private_addresses=True))
    # By a name: of an address no client keeps cookies.
    told = await fetch(f"{site.url}/cookie".replace("127.0.0.1", "localhost"))
    assert site.asked == ["/cookie", "/headers"]
    assert "Cookie" not in orjson.loads(told.text)


async def test_a_page_that_never_ends_is_read_as_far_as_it_may(site: Site, allowed: list[FetchSettings]) -> None:
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True, timeout=timedelta(seconds=15)))
    told = await fetch(f"{site.url}/endless")
    assert not told.failed
    assert told.text.endswith(f"[cut: the result has {shipped.MOST_BYTES} characters]")


async def test_a_page_that_takes_too_long_is_left(site: Site, allowed: list[FetchSettings]) -> None:
    """Though something comes of it all the time."""
    allowed.append(FetchSettings(hosts=("127.0.0.1",), private_addresses=True, timeout=timedelta(seconds=0.3)))
    told = await asyncio.wait_for(fetch(f"{site.url}/slow"), 10)
    assert told == Result("the page was not read within 0.3 s", failed=True)
