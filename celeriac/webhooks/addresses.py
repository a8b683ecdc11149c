"""Where a request may go that somebody else named: to addresses of the public internet, and to nothing near us.

A name is looked up once, and what it stands for is what is connected to: one that is harmless when it is checked and
stands for `169.254.169.254` a moment later gets nowhere. And whatever was read out of a URL, and by whom: no socket is
made for an address that is not public.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

#: All that was ever given out of IPv6 (RFC 4291, IANA). Site-local addresses (fec0::/10) and IPv4 in every costume
#: (::/96, ::ffff:0:0/96, ::ffff:0:0:0/96, 64:ff9b:1::/48) are outside.
GIVEN_OUT: Final = IPv6Network("2000::/3")
NAT64: Final = IPv6Network("64:ff9b::/96")
#: Global by the book, or by the book of an older Python, and near us all the same.
NEAR: Final = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocols; metadata of Oracle's older clouds is 192.0.0.192
        "192.88.99.0/24",  # the nearest 6to4 relay
        "168.63.129.16/32",  # Azure's own: name server, health, agents of its machines
        "161.26.0.0/16",  # IBM Cloud: its services inside
        "166.8.0.0/14",  # IBM Cloud: endpoints inside
        "2001::/23",  # Teredo, and more protocols
        "2002::/16",  # 6to4, given up long ago: an IPv4 address, and a relay near us
        "3fff::/20",  # documentation
    )
)


class NotPublic(OSError):
    """The name, or the address, is not of the public internet."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, shared or reserved, and
    none that a cloud answers at from within.

    An IPv4 address that a NAT64 has written as an IPv6 one is looked at as what it stands for.
    """
    return _is_public(ip_address(address.partition("%")[0]))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in GIVEN_OUT:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NEAR)


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


def public_socket(to: tuple[Any, ...]) -> socket.socket:
    """For aiohttp's connector, which asks for one when all is known: family, kind, protocol, name, and the address that
    is connected to next. Raises NotPublic for one that is near us.
    """
    family, kind, protocol, _, address = to
    if not is_public(address[0]):
        raise NotPublic("that address is not of the public internet")
    return socket.socket(family, kind, protocol)


def is_literal(host: str) -> bool:
    """Whether a host is an address itself, which nobody looks up."""
    try:
        ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True
