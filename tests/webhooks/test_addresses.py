"""Addresses of the public internet, and all the others."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from celeriac.webhooks.addresses import NotPublic, PublicResolver, is_public, public_socket


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.215.14", "166.12.0.1", "2606:4700:4700::1111", "64:ff9b::0101:0101"],
)
def test_an_address_of_the_public_internet(address: str) -> None:
    """Also where a gateway writes it as an IPv6 one."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # metadata of a cloud
        "100.64.0.1",  # a provider's own network
        "0.0.0.0",  # noqa: S104
        "255.255.255.255",
        "224.0.0.1",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "2002:0a00:0001::",  # 6to4 of 10.0.0.1
        "2002:a83f:8110::",  # 6to4 of 168.63.129.16
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a83f:8110",  # and of 168.63.129.16
        "64:ff9b:1::7f00:1",  # of a NAT64 of one's own
        "::7f00:1",  # compatible with 127.0.0.1
        "::1.1.1.1",
        "::ffff:1.1.1.1",
        "::ffff:0:7f00:1",  # translated from 127.0.0.1
        "fec0::1",  # site-local
        "fd00:ec2::254",  # metadata of a cloud, as all that follow
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "161.26.0.10",
        "166.8.0.1",
        "166.11.255.255",
        "192.88.99.1",  # a relay
        "2001::1",  # Teredo
        "2001:20::1",
        "2002:101:101::1",  # 6to4, of whatever
        "3fff::1",  # documentation
        "5f00::1",  # segments of somebody's own network
    ],
)
def test_an_address_near_us(address: str) -> None:
    """Private, loopback, link-local, shared, reserved, multicast; and IPv6 addresses that stand for one."""
    assert not is_public(address)


async def test_a_name_that_stands_for_an_address_near_us_is_refused() -> None:
    with pytest.raises(NotPublic, match="localhost is not of the public internet"):
        await PublicResolver().resolve("localhost", 80)


class Names(AbstractResolver):
    """Answers with these, for any name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


async def test_a_name_is_refused_for_one_address_near_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands among those of the public internet: which one is connected to is not known yet."""
    resolver = PublicResolver()
    for addresses in (("1.1.1.1", "127.0.0.1"), ("10.0.0.1", "1.1.1.1"), ("1.1.1.1", "1.0.0.1", "::1", "8.8.8.8")):
        monkeypatch.setattr(resolver, "_resolver", Names(*addresses))
        with pytest.raises(NotPublic, match=r"example\.com is not of the public internet"):
            await resolver.resolve("example.com", 80)
    monkeypatch.setattr(resolver, "_resolver", Names("1.1.1.1", "1.0.0.1"))
    assert [found["host"] for found in await resolver.resolve("example.com", 80)] == ["1.1.1.1", "1.0.0.1"]


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, ("127.0.0.1", 80)), (socket.AF_INET6, ("::1", 80, 0, 0))]
)
def test_there_is_no_socket_for_an_address_near_us(family: int, address: tuple[object, ...]) -> None:
    """Whoever asks for one: it is the last look before a connection."""
    with pytest.raises(NotPublic, match="that address is not of the public internet"):
        public_socket((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address))
    with public_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("1.1.1.1", 80))) as made:
        assert made.family == socket.AF_INET
