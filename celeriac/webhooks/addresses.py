"""Where a request may go that somebody else named: to addresses of the public internet, and to nothing near us.

A name is looked up once, and what it stands for is what is connected to: one that is harmless when it is checked and
stands for `169.254.169.254` a moment later gets nowhere.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

NAT64: Final = IPv6Network("64:ff9b::/96")


class NotPublic(OSError):
    """The name, or the address, is not of the public internet."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, shared or reserved.

    An IPv4 address that is written as an IPv6 one (mapped, 6to4, Teredo, NAT64) is looked at as what it stands for.
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        inner = [parsed.ipv4_mapped, parsed.sixtofour, *(parsed.teredo or ())]
        if parsed in NAT64:
            inner.append(IPv4Address(int(parsed) & 0xFFFFFFFF))
        if any(part is not None and not part.is_global for part in inner):
            return False
    return parsed.is_global and not parsed.is_multicast


class PublicResolver(AbstractResolver):
    """Looks names up for aiohttp. Raises NotPublic for a name that stands for anything near us, whatever else it
    stands for.
    """

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            if not is_public(one["host"]):
                raise NotPublic(f"{host} is not of the public internet")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def is_literal(host: str) -> bool:
    """Whether a host is an address itself, which nobody looks up."""
    try:
        ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True
