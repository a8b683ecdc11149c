"""The proxy between a process and Redis does what it says, against a real server."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Cut
from redis.exceptions import RedisError

from celeriac.drill.proxy import Proxy, value_end, words_of
from celeriac.jobs.lease import Fleet
from celeriac.settings import load_settings
from celeriac.stores import open_fleet, open_stores


def client(proxy: Proxy, **options: object) -> aioredis.Redis:
    return aioredis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0), **{"socket_timeout": 2, **options})


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"+OK\r\n+OK\r\n", 5),
        (b"$3\r\nabc\r\n", 9),
        (b"$3\r\nab", -1),
        (b"$-1\r\n", 5),
        (b"*-1\r\n", 5),
        (b"*2\r\n$1\r\na\r\n:1\r\n:2\r\n", 15),
        (b"*2\r\n$1\r\na\r\n", -1),
        (b"%1\r\n+a\r\n*1\r\n:1\r\n", 16),
        (b"|1\r\n+a\r\n+b\r\n:7\r\n:8\r\n", 16),
        (b">2\r\n+a\r\n+b\r\n", 12),
        (b"_\r\n", 3),
        (b",1.5\r\n", 6),
        (b"$2\r\n\r\n\r\n", 8),
        (b"", -1),
    ],
)
def test_values_are_told_apart(data: bytes, end: int) -> None:
    """Both versions of the protocol, complete and cut off anywhere."""
    assert value_end(data) == end
    if end > 0:
        assert all(value_end(data[:cut]) == -1 for cut in range(end))


def test_a_command_is_read_word_by_word() -> None:
    """Words may hold line ends."""
    assert words_of(b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n") == [b"GET", b"a\r\nb"]


async def test_what_nobody_breaks_passes(proxy: Proxy) -> None:
    """Pipelines, transactions, subscriptions and a value of a megabyte."""
    async with client(proxy) as redis:
        big = b"x" * 2**20
        await redis.set("big", big)
        assert await redis.get("big") == big
        async with redis.pipeline(transaction=True) as pipe:
            pipe.incr("a").lrange("none", 0, -1).hgetall("none")
            assert await pipe.execute() == [1, [], {}]
        async with redis.pubsub() as listener:
            await listener.subscribe("news")
            await listener.get_message(timeout=2)
            await redis.publish("news", "hello")
            message = await listener.get_message(ignore_subscribe_messages=True, timeout=2)
            assert message is not None
            assert message["data"] == b"hello"
    assert proxy.connections == 0 or await _until(lambda: proxy.connections == 0)


async def test_a_swallowed_pop_takes_the_element_and_tells_nobody(proxy: Proxy) -> None:
    """Redis popped and answered; the client has a cut connection, and the list is empty."""
    async with client(proxy) as redis:
        swallow = proxy.swallow(command="BRPOP")
        waiting = asyncio.create_task(redis.brpop(["list"], timeout=5))
        await asyncio.sleep(0.1)
        await redis.lpush("list", "message")
        with pytest.raises(Cut):
            await waiting
        assert swallow.done.is_set()
        assert await redis.llen("list") == 0
        await redis.lpush("list", "next")
        assert await redis.brpop(["list"], timeout=2) == (b"list", b"next"), "only one was to be swallowed"


async def test_an_empty_pop_is_delivered(proxy: Proxy) -> None:
    """Nothing was taken, so there is nothing to lose."""
    async with client(proxy) as redis:
        swallow = proxy.swallow(command="BRPOP")
        assert await redis.brpop(["list"], timeout=0.05) is None
        assert swallow.left == 1


async def test_a_subscription_is_left_alone(proxy: Proxy) -> None:
    """Its messages answer no command."""
    async with client(proxy, protocol=2) as redis, redis.pubsub() as listener:
        swallow = proxy.swallow(command="SUBSCRIBE")
        await listener.subscribe("news", "weather")
        assert [(await listener.get_message(timeout=2) or {})["type"] for _ in range(2)] == ["subscribe", "subscribe"]
        await redis.publish("weather", "rain")
        assert (await listener.get_message(timeout=2) or {})["data"] == b"rain"
        assert swallow.left == 1


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "silent"])
async def test_the_answer_of_a_named_script_is_swallowed_and_its_work_is_done(proxy: Proxy, cut: bool) -> None:
    """It is known by the file it comes from, whatever the helpers in front of it are; the others are answered."""
    settings = load_settings(redis_url=proxy.url, jobs={"lease": timedelta(seconds=1)})
    stores = open_stores(settings)
    fleet, line = open_fleet(settings, stores, name="line")
    assert isinstance(fleet, Fleet)
    try:
        swallow = proxy.swallow(script="register", cut=cut)
        assert await stores.jobs.get("nobody", "default") is None, "another script is not meant"
        with pytest.raises(Exception, match="does not answer"):
            await fleet.register("w1", ["celeriac"], 1, (), {"celeriac": ""})
        assert len(swallow.answers) == 1
        assert await stores.jobs.workers_alive() == [{"celeriac"}]
    finally:
        await stores.close()
        await line.aclose()


async def test_refused_connections_are_cut_until_they_are_accepted_again(proxy: Proxy) -> None:
    """Those that are open, too."""
    async with client(proxy) as redis:
        await redis.ping()
        proxy.refuse()
        for _ in range(3):
            with pytest.raises((RedisError, OSError)):
                await redis.ping()
        proxy.accept()
        assert await redis.ping()


async def test_a_black_hole_answers_nothing_until_it_speaks(proxy: Proxy) -> None:
    """The connection stays open; what was held back arrives then."""
    async with client(proxy) as redis:
        await redis.ping()
        proxy.hush()
        asked = asyncio.create_task(redis.incr("a"))
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
        proxy.speak()
        assert await asked == 1


async def test_answers_are_late(proxy: Proxy) -> None:
    """By as much as was asked for."""
    async with client(proxy) as redis:
        await redis.ping()
        proxy.latency = 0.2
        began = time.monotonic()
        await redis.ping()
        assert time.monotonic() - began >= 0.2


async def test_a_server_that_is_away_is_a_cut_connection() -> None:
    """As without a proxy."""
    async with Proxy(1) as proxy, client(proxy) as redis:
        with pytest.raises((RedisError, OSError)):
            await redis.ping()


async def _until(condition: object) -> bool:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the proxy tells nobody
            await asyncio.sleep(0.01)
    return True


def test_every_script_of_ours_has_a_name_of_its_own() -> None:
    """Else the wrong answer would be swallowed."""
    import celeriac

    names = [file.stem for file in Path(celeriac.__file__).parent.rglob("*.lua")]
    assert len(names) == len(set(names))
