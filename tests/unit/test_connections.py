"""The line to Redis: broken in the middle of a command, and whole again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from redis.exceptions import ConnectionError as Cut

from celeriac.connections import open_redis
from celeriac.drill.proxy import Proxy
from tests.conftest import Valkey
from tests.processes import free_port


async def test_a_command_whose_line_is_cut_is_sent_again(proxy: Proxy) -> None:
    """Over a new connection, up to three times: whoever called does not notice."""
    redis = open_redis(proxy.url, connections=1)
    try:
        await redis.set("city", "Paris")
        lost = proxy.swallow(command="GET", times=3)
        assert await redis.get("city") == b"Paris"
        assert len(lost.answers) == 3
        lost = proxy.swallow(command="GET", times=4)
        with pytest.raises(Cut):
            await redis.get("city")
        assert len(lost.answers) == 4
    finally:
        await redis.aclose()


async def test_repetitions_take_their_time(proxy: Proxy) -> None:
    """A thousand workers must not fall upon a Redis that has just come back all at once."""
    redis = open_redis(proxy.url, connections=1, retries=6)
    try:
        lost = proxy.swallow(command="PING", times=6)
        assert await redis.ping()
    finally:
        await redis.aclose()
    waits = [after - before for (before, _), (after, _) in pairwise(lost.answers)]
    # Drawn from up to 0.1, 0.2, 0.4, 0.8 and 1 s: less than this in all comes once in millions of times.
    assert sum(waits) > 0.05


async def test_who_waits_for_a_connection_goes_before_whoever_comes(valkey: Valkey) -> None:
    """Each in turn: those who ask again and again leave something to the one that asks once."""
    async with aclosing(open_redis(valkey.url, connections=1)) as redis:
        order: list[str] = []

        async def ask(name: str, times: int) -> None:
            for _ in range(times):
                await redis.ping()
                order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c", "d", "e"):
                group.create_task(ask(name, 400))
    assert "".join(order) == "abcde" * 400


async def test_who_no_longer_waits_takes_no_turn(valkey: Valkey) -> None:
    """Its time was over, or it was cut off: the connection goes to the next one."""
    async with aclosing(open_redis(valkey.url, connections=1, timeout=0.5)) as redis:
        held = await redis.connection_pool.get_connection()
        with pytest.raises(Cut, match="No connection available"):
            await redis.ping()
        cut_off = asyncio.create_task(redis.ping())
        await asyncio.sleep(0)
        next_one = asyncio.create_task(redis.ping())
        await asyncio.sleep(0)
        cut_off.cancel()
        await redis.connection_pool.release(held)
        assert await next_one
        assert cut_off.cancelled()
        assert [await redis.ping() for _ in range(3)] == [True] * 3


async def test_a_connection_that_cannot_be_made_keeps_no_turn() -> None:
    """Nobody listens there: whoever comes next tries anew, and waits for nobody."""
    nowhere = f"redis://127.0.0.1:{free_port()}"
    async with aclosing(open_redis(nowhere, connections=1, timeout=0.5, retries=0)) as redis:
        for _ in range(3):
            with pytest.raises(Cut, match="connecting to"):
                await redis.ping()
