"""Ports on this machine: which are taken, which are free."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """setting: the environment variable that changes it."""

    setting: str
    host: str
    number: int


def mistakes(ports: Iterable[Port]) -> Iterator[str]:
    """A line for each port that cannot be listened on, naming it and the setting that changes it."""
    ports = list(ports)
    wanted = Counter(port.number for port in ports)
    for port in ports:
        if wanted[port.number] > 1:
            others = " and ".join(p.setting for p in ports if p.number == port.number and p is not port)
            yield f"port {port.number} ({port.setting}) is also {others}; set them to different ports"
        elif why := _refusal(port):
            yield why


def _refusal(port: Port) -> str:
    try:
        _listen(port.host, port.number).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            setting = port.setting.replace("_PORT", "_HOST")
            return f"{setting}: {port.host} is not an address of this machine: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            return f"port {port.number} ({port.setting}) is taken; set {port.setting} to a free one"
        return f"port {port.number} ({port.setting}) cannot be used on {port.host}: {error.strerror}"
    return ""


def free(host: str, count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as taken:
        return [taken.enter_context(_listen(host, 0)).getsockname()[1] for _ in range(count)]


def _listen(host: str, number: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # As servers do: connections of an earlier run that are still closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
