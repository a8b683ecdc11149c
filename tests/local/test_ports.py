"""Ports: what is said of those that cannot be had."""

from __future__ import annotations

import socket

from celeriac.local.ports import Port, free, mistakes


def test_a_taken_port_is_named_with_its_setting() -> None:
    """So that nobody has to look for either."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        assert list(mistakes([Port("CELERIAC_SHIM__PORT", "127.0.0.1", number)])) == [
            f"port {number} (CELERIAC_SHIM__PORT) is taken; set CELERIAC_SHIM__PORT to a free one"
        ]


def test_one_port_for_two_is_a_mistake() -> None:
    """Even if it is free: the second to start would find it taken."""
    [number] = free("127.0.0.1", 1)
    said = list(mistakes([Port("ONE", "127.0.0.1", number), Port("OTHER", "127.0.0.1", number)]))
    assert said[0] == f"port {number} (ONE) is also OTHER; set them to different ports"


def test_a_strangers_address_is_a_mistake() -> None:
    """192.0.2.1 is nobody's: it is reserved for documentation."""
    [line] = mistakes([Port("CELERIAC_SHIM__PORT", "192.0.2.1", 8000)])
    assert line.startswith("CELERIAC_SHIM__HOST: 192.0.2.1 is not an address of this machine: ")


def test_a_connection_that_is_still_closing_does_not_take_its_port() -> None:
    """A restart right after a stop finds such connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        caller = socket.create_connection(("127.0.0.1", number))
        answerer, _ = listener.accept()
        answerer.close()  # the side that closes first keeps the port in TIME_WAIT
        caller.close()
    assert not list(mistakes([Port("CELERIAC_SHIM__PORT", "127.0.0.1", number)]))


def test_free_ports_are_free_and_different() -> None:
    """As many as asked for."""
    found = free("127.0.0.1", 5)
    assert len(set(found)) == 5
    assert not list(mistakes(Port(str(number), "127.0.0.1", number) for number in found))
