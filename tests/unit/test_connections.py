"""The line to Redis: broken in the middle of a command, and whole again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from redis.exceptions import ConnectionError as Cut

from celeriac.connections import open_redis
from celeriac.drill.proxy import Proxy


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
