"""Tools that we ship, for agents of any deployment: a calculator, and a look at pages that the operator allows."""

from __future__ import annotations

import fnmatch
from datetime import timedelta
from functools import cache
from typing import Annotated, Final

import aiohttp
from pydantic import Field
from yarl import URL

from celeriac.agents import arithmetic, page
from celeriac.agents.tools import ToolFailed, tool
from celeriac.settings import FetchSettings, load_settings
from celeriac.webhooks.addresses import NotPublic, PublicResolver, is_literal, is_public, public_socket

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS: Final = 5
#: Of public addresses; of others, where they are allowed, any.
PORTS: Final = frozenset({80, 443})
#: Of a page: what is beyond is not read.
MOST_BYTES: Final = 2 * 1024 * 1024
#: And what is written in XML or JSON: feeds, problems.
READABLE: Final = ("text/", "application/json", "application/xml")


@tool(idempotent=True)
async def calculator(
    expression: Annotated[
        str,
        Field(
            max_length=arithmetic.LONGEST,
            description="As in Python: (3 + 4) * 2 ** 0.5, 1200 * 15/100; no percent, no commas in numbers. In all, "
            f"{arithmetic.KNOWN}. Angles are in radians; log is the natural one, or log(number, base).",
        ),
    ],
) -> str:
    """Compute an arithmetic expression: whole numbers exactly, fractions as floats. Use it for every calculation."""
    return str(arithmetic.compute(expression))


@cache
def _settings() -> FetchSettings:
    return load_settings().fetch


@tool(idempotent=True, timeout=timedelta(seconds=40))
async def http_fetch(
    url: Annotated[str, Field(max_length=2000, description="http:// or https://")],
) -> str:
    """Read a web page or a document as text, with the addresses of its links."""
    settings = _settings()
    near = settings.private_addresses
    connector = aiohttp.TCPConnector(
        resolver=None if near else PublicResolver(),
        socket_factory=None if near else public_socket,
        force_close=True,
        use_dns_cache=False,
    )
    # No cookies, no proxy of the environment, no credentials: who answers learns that somebody asked.
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=settings.timeout.total_seconds()),
        headers={"User-Agent": settings.user_agent},
    ) as session:
        try:
            # It is read once: what is checked is what is asked. In two spellings of a host two may read two hosts.
            place = _url(url)
            for _ in range(MOST_REDIRECTS + 1):
                _check(place, settings)
                async with session.get(place, allow_redirects=False) as answer:
                    if answer.status in REDIRECTS and (to := answer.headers.get("Location")):
                        place = place.join(_url(to))
                        continue
                    return await _text(answer)
        except ToolFailed:
            raise
        except TimeoutError as error:
            raise ToolFailed(f"the page was not read within {settings.timeout.total_seconds():g} s") from error
        except (NotPublic, aiohttp.ClientError, ValueError, OSError) as error:
            raise ToolFailed(f"the page could not be read: {_why(error)}") from error
    raise ToolFailed(f"the page sends one elsewhere more than {MOST_REDIRECTS} times")


def _why(error: BaseException) -> str:
    while error is not None and not isinstance(error, NotPublic) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, NotPublic) else type(error).__name__


def _url(text: str) -> URL:
    try:
        return URL(text)
    except ValueError as error:
        raise ToolFailed("that is no URL") from error


def _check(url: URL, settings: FetchSettings) -> None:
    """Raises ToolFailed for what the operator does not allow."""
    host = url.raw_host or ""
    if url.scheme not in ("http", "https") or not host:
        raise ToolFailed("that is no http or https URL")
    if url.user is not None or url.password is not None:
        raise ToolFailed("a URL with a user or a password is not asked for")
    # As it is looked up, or as people write it: one host both times.
    spelt = (host.lower(), (url.host or "").lower())
    if not any(fnmatch.fnmatchcase(name, allowed.lower()) for allowed in settings.hosts for name in spelt):
        allowed = ", ".join(settings.hosts)
        raise ToolFailed(f"{host} is not allowed; " + (f"allowed are: {allowed}" if allowed else "no host is"))
    if settings.private_addresses:
        return
    if url.port not in PORTS:
        raise ToolFailed("only the ports 80 and 443 are asked")
    # An address is not looked up, and not every spelling of one is known here: 127.1, 0x7f000001.
    if is_literal(host) and not is_public(host):
        raise ToolFailed(f"{host} is not of the public internet")


async def _text(answer: aiohttp.ClientResponse) -> str:
    if answer.status >= 400:
        raise ToolFailed(f"the page answered with {answer.status}")
    kind = answer.content_type
    if not kind.startswith(READABLE) and not kind.endswith(("+xml", "+json")):
        raise ToolFailed(f"the page is {kind}, and no text")
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > MOST_BYTES:
            break
    markup, xml = "html" in kind, kind == "application/xhtml+xml"
    return await page.as_text(bytes(body[:MOST_BYTES]), answer.charset, markup=markup, xml=xml, url=str(answer.url))
