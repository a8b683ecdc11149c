"""Tools that we ship, for agents of any deployment: a calculator, and a look at pages that the operator allows."""

from __future__ import annotations

import ast
import asyncio
import fnmatch
import math
import operator
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Annotated, Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
import simpleeval
from bs4 import BeautifulSoup
from pydantic import Field

from celeriac.agents.tools import ToolFailed, tool
from celeriac.settings import FetchSettings, load_settings
from celeriac.webhooks.addresses import NotPublic, PublicResolver, is_literal, is_public

#: Numbers above this are not for a calculator: what is made of them would take long.
LARGEST: Final = 10**300
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS: Final = 5
#: Of a page: what is beyond is not read.
MOST_BYTES: Final = 2 * 1024 * 1024
READABLE: Final = ("text/", "application/json", "application/xml", "application/xhtml+xml", "application/ld+json")


Number = int | float


def _numbers(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The same of numbers alone, and of none that is too large: texts can be multiplied too."""

    def checked(*numbers: Any) -> Any:
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, Number):
                raise ToolFailed("only numbers can be computed")
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ToolFailed("a number is too large")
        return compute(*numbers)

    return checked


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 1000:
        raise ToolFailed("the power is too large: exponents go up to 1,000")
    return base**exponent


def _factorial(number: Any) -> int:
    if number > 150:
        raise ToolFailed("the factorial is too large: they go up to 150")
    return math.factorial(number)


_OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
OPERATORS: Final = {kind: _numbers(compute) for kind, compute in _OPERATORS.items()}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "factorial": _factorial,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
FUNCTIONS: Final = {name: _numbers(compute) for name, compute in _FUNCTIONS.items()}


@tool(idempotent=True)
async def calculator(
    expression: Annotated[str, Field(max_length=1000, description="As in Python: (3 + 4) * 2 ** 0.5, sqrt(2), pi")],
) -> str:
    """Compute an arithmetic expression exactly. Use it for every calculation."""
    if ";" in expression or "\n" in expression:
        raise ToolFailed("that cannot be computed: it is more than one expression")
    evaluator = simpleeval.SimpleEval(
        operators=OPERATORS, functions=FUNCTIONS, names={"pi": math.pi, "e": math.e}, allowed_attrs={}
    )
    try:
        made = evaluator.eval(expression)
    except KeyError as error:
        raise ToolFailed("that cannot be computed: it holds an operator that is none of + - * / // % **") from error
    except RecursionError as error:
        raise ToolFailed("that cannot be computed: it is nested too deep") from error
    except (simpleeval.InvalidExpression, SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        raise ToolFailed(f"that cannot be computed: {error}") from error
    return str(_numbers(operator.pos)(made))


@cache
def _settings() -> FetchSettings:
    return load_settings().fetch


@tool(idempotent=True, timeout=timedelta(seconds=40))
async def http_fetch(
    url: Annotated[str, Field(max_length=2000, description="http:// or https://")],
) -> str:
    """Read a web page or a document as text."""
    settings = _settings()
    resolver = None if settings.private_addresses else PublicResolver()
    # No cookies, no proxy of the environment, no credentials: who answers learns that somebody asked.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, force_close=True, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=settings.timeout.total_seconds()),
        headers={"User-Agent": settings.user_agent},
    ) as session:
        try:
            for _ in range(MOST_REDIRECTS + 1):
                _check(url, settings)
                async with session.get(url, allow_redirects=False) as answer:
                    if answer.status in REDIRECTS and (to := answer.headers.get("Location")):
                        url = urljoin(url, to)
                        continue
                    return await _text(answer)
        except ToolFailed:
            raise
        except (NotPublic, aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise ToolFailed(f"the page could not be read: {_why(error)}") from error
    raise ToolFailed(f"the page sends one elsewhere more than {MOST_REDIRECTS} times")


def _why(error: BaseException) -> str:
    while error is not None and not isinstance(error, NotPublic) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, NotPublic) else type(error).__name__


def _check(url: str, settings: FetchSettings) -> None:
    """Raises ToolFailed for what the operator does not allow."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ToolFailed("that is no URL") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ToolFailed("that is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ToolFailed("a URL with a user or a password is not asked for")
    if not any(fnmatch.fnmatchcase(host.lower(), allowed.lower()) for allowed in settings.hosts):
        allowed = ", ".join(settings.hosts)
        raise ToolFailed(f"{host} is not allowed; " + (f"allowed are: {allowed}" if allowed else "no host is"))
    if settings.private_addresses:
        return
    if port not in (None, 80, 443):
        raise ToolFailed("only the ports 80 and 443 are asked")
    # An address is not looked up, and not every spelling of one is known here: 127.1, 0x7f000001.
    if is_literal(host) and not is_public(host):
        raise ToolFailed(f"{host} is not of the public internet")


async def _text(answer: aiohttp.ClientResponse) -> str:
    if answer.status >= 400:
        raise ToolFailed(f"the page answered with {answer.status}")
    kind = answer.content_type
    if not kind.startswith(READABLE):
        raise ToolFailed(f"the page is {kind}, and no text")
    body = b""
    async for part in answer.content.iter_any():
        body += part
        if len(body) > MOST_BYTES:
            break
    text = body[:MOST_BYTES].decode(answer.get_encoding() or "utf-8", errors="replace")
    return await asyncio.to_thread(_plain, text) if "html" in kind else text


def _plain(html: str) -> str:
    soup = BeautifulSoup(html, "html.parser")
    for part in soup(["script", "style", "noscript", "template"]):
        part.decompose()
    return soup.get_text("\n", strip=True)
