"""Addresses of the public internet, and all the others."""

from __future__ import annotations

import pytest

from celeriac.webhooks.addresses import NotPublic, PublicResolver, is_public


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::0101:0101"])
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
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    ],
)
def test_an_address_near_us(address: str) -> None:
    """Private, loopback, link-local, shared, reserved, multicast; and IPv6 addresses that stand for one."""
    assert not is_public(address)


async def test_a_name_that_stands_for_an_address_near_us_is_refused() -> None:
    with pytest.raises(NotPublic, match="localhost is not of the public internet"):
        await PublicResolver().resolve("localhost", 80)
