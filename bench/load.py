"""A light HTTP client for load from one process: prepared bytes over kept connections, answers read and counted."""

from __future__ import annotations

import asyncio
import time


async def _connection(host: str, port: int, request: bytes, until: float, most: list[int]) -> list[float]:
    reader, writer = await asyncio.open_connection(host, port)
    took = []
    try:
        while most[0] > 0 and time.perf_counter() < until:
            most[0] -= 1
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            assert status < 300, head
            at = head.lower().index(b"content-length:")
            length = int(head[at + 15 : head.index(b"\r\n", at)])
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
    finally:
        writer.close()
    return took


async def load(
    url: str, path: str, body: bytes, *, key: str, connections: int, requests: int, seconds: float = 60
) -> list[float]:
    """POST `body` so many times over so many connections; answers each request's time in seconds."""
    host, _, port = url.removeprefix("http://").partition(":")
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    most, until = [requests], time.perf_counter() + seconds
    runs = [_connection(host, int(port), request, until, most) for _ in range(connections)]
    return [seconds for took in await asyncio.gather(*runs) for seconds in took]
