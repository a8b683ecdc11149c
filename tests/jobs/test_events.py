"""What those are told who read along: every state, step and piece of text, in order, and each once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from celeriac.connections import patiently
from celeriac.errors import Fenced, StoreFull
from celeriac.jobs import events as events_module
from celeriac.jobs.events import BEHIND, LEFT_BEHIND, Behind, Channels, Event
from celeriac.jobs.model import JobError, NewJob, State
from celeriac.settings import Settings
from celeriac.stores import open_stores
from tests.conftest import Valkey
from tests.jobs.conftest import Queue
from tests.jobs.test_full import fill
from tests.processes import until


async def told(queue: Queue, job: str, after: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All that is stored for its readers."""
    return [read(event) for event in await queue.stores.events.after(job, after)]


def read(event: Event) -> tuple[str, dict[str, Any]]:
    return event.kind, json.loads(event.data)


async def states(queue: Queue, job: str) -> list[dict[str, Any]]:
    return [facts for kind, facts in await told(queue, job) if kind == "state"]


async def take(events: AsyncIterator[Event | None], count: int) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event, _ in zip_to(events, count) if event is not None]


async def zip_to(events: AsyncIterator[Event | None], count: int) -> AsyncIterator[tuple[Event | None, int]]:
    for number in range(count):
        yield await anext(events), number


async def test_a_reader_is_told_of_every_state(queue: Queue) -> None:
    """In order, and why a job is parked. Being rung for is nothing that a caller sees."""
    await queue.worker()
    job = await queue.submit(stream=True)
    await queue.jobs.park(await queue.claim(job), "retry", timedelta(seconds=1), retry=True)
    queue.later(1000)
    await queue.fleet.upkeep()
    await queue.jobs.give_back(await queue.claim(job))
    await queue.jobs.wait_for_lane(await queue.claim(job), "openai/m", timedelta(seconds=1))
    await queue.jobs.cancel(job.id, "default")
    assert await states(queue, job.id) == [
        {"state": "queued"},
        {"state": "running"},
        {"state": "parked", "reason": "retry"},
        {"state": "queued"},
        {"state": "running"},
        {"state": "queued"},
        {"state": "running"},
        {"state": "parked", "reason": "lane_closed"},
        {"state": "cancelled"},
    ]


async def test_a_job_that_nobody_reads_leaves_no_events(queue: Queue) -> None:
    """A stream takes 4 KB at least."""
    await queue.worker()
    job = await queue.submit()
    claim = await queue.claim(job)
    await queue.stores.journal.commit(claim, 0, {"kind": "answer"}, None, told={"step": 1})
    await queue.finish(claim)
    assert await told(queue, job.id) == []
    assert not queue.redis.exists(f"celeriac:events:{job.id}")


async def test_text_is_told_once(queue: Queue) -> None:
    """A write may arrive twice, and late. Each call begins with a start: no text is joined to another's."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    say = queue.stores.journal.say
    for begins, text in (
        (0, ""),
        (0, "Leeks "),
        (0, ""),
        (0, "Leeks "),
        (6, "are "),
        (0, "Leeks "),
        (6, "are "),
        (10, "up\n\u2028\u00fc."),
    ):
        await say(claim, "c1", 1, begins, text)
    await say(claim, "c2", 1, 0, "")
    await say(claim, "c3", 1, 0, "Once more")
    texts = [event for event in await told(queue, job.id) if event[0] != "state"]
    assert texts == [
        ("start", {"step": 1, "attempt": 1, "call": "c1"}),
        ("delta", {"step": 1, "from": 0, "text": "Leeks "}),
        ("delta", {"step": 1, "from": 6, "text": "are "}),
        ("delta", {"step": 1, "from": 10, "text": "up\n\u2028\u00fc."}),
        ("start", {"step": 1, "attempt": 1, "call": "c2"}),
        ("start", {"step": 1, "attempt": 1, "call": "c3"}),
        ("delta", {"step": 1, "from": 0, "text": "Once more"}),
    ]


async def test_a_run_that_lost_its_job_says_nothing(queue: Queue) -> None:
    """Another run has it, and its readers."""
    await queue.worker()
    job = await queue.submit(stream=True)
    lost = await queue.claim(job)
    await queue.jobs.give_back(lost)
    before = await told(queue, job.id)
    with pytest.raises(Fenced):
        await queue.stores.journal.say(lost, "c1", 1, 0, "Leeks")
    await queue.claim(job)
    with pytest.raises(Fenced):
        await queue.stores.journal.say(lost, "c1", 1, 0, "Leeks")
    assert await told(queue, job.id) == [*before, ("state", {"state": "running"})]


async def test_a_step_is_told_as_it_is_stored(queue: Queue) -> None:
    """Together, and once."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    for _ in range(2):
        await queue.stores.journal.commit(claim, 0, {"kind": "answer"}, None, told={"step": 1, "kind": "answer"})
    steps = [event for event in await told(queue, job.id) if event[0] == "step"]
    assert steps == [("step", {"step": 1, "kind": "answer"})]


async def test_events_live_as_long_as_their_job(queue: Queue) -> None:
    """And an hour at most after its end; a job that is started again goes on with them."""
    await queue.worker()
    job = await queue.submit(stream=True)
    key = f"celeriac:events:{job.id}"
    assert queue.redis.ttl(key) == -1
    await queue.end(await queue.claim(job), state=State.FAILED, answer=None, error=JobError("timeout", "no"))
    assert 0 < queue.redis.ttl(key) <= 3600 < queue.redis.ttl(f"celeriac:job:{job.id}")
    await queue.jobs.replay(job.id, "default")
    assert queue.redis.ttl(key) == -1
    assert [facts["state"] for facts in await states(queue, job.id)] == ["queued", "running", "failed", "queued"]


async def test_only_so_many_events_are_kept(queue: Queue) -> None:
    """Who missed some can tell."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    events = queue.stores.events
    first = (await events.after(job.id, "", most=1))[0].id
    assert not await events.is_cut(job.id, "")
    for number in range(4200):
        await queue.stores.journal.say(claim, "c1", 1, number, "x")
    assert 4000 <= queue.redis.xlen(f"celeriac:events:{job.id}") < 4200
    assert await events.is_cut(job.id, "")
    assert await events.is_cut(job.id, first)
    kept = (await events.after(job.id, "", most=1))[0].id
    assert not await events.is_cut(job.id, kept)
    assert not await events.is_cut("nobody", "")


async def test_in_a_full_store_text_gives_way(queue: Queue) -> None:
    """What is left of the memory is for what was paid for. How the job goes is told all the same."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    fill(queue)
    try:
        with pytest.raises(StoreFull):
            await queue.stores.journal.say(claim, "c1", 1, 0, "Leeks")
        await queue.finish(claim)
    finally:
        queue.redis.config_set("maxmemory", "0")
    assert [facts["state"] for facts in await states(queue, job.id)] == ["queued", "running", "succeeded"]


async def test_a_stream_that_is_none_hides_no_change(queue: Queue) -> None:
    """Whoever wrote it."""
    queue.planted = True
    await queue.worker()
    job = await queue.submit(stream=True)
    queue.redis.set(f"celeriac:events:{job.id}", "no stream", keepttl=False)
    claim = await queue.claim(job)
    await queue.stores.journal.say(claim, "c1", 1, 0, "Leeks")
    assert await queue.finish(claim) is None
    assert await queue.state(job) == State.SUCCEEDED


async def test_a_reader_hears_what_was_and_what_comes(queue: Queue) -> None:
    """Without a gap and without a repetition, however what is stored and what is published meet."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)

    async def write() -> None:
        for number in range(300):
            await queue.stores.journal.say(claim, "c1", 1, number, "x")

    writing = asyncio.create_task(write())
    readers = []
    for wait in range(5):
        await asyncio.sleep(0.02 * wait)
        readers.append(asyncio.create_task(all_of(queue, job.id, 303)))
    await writing
    for events in await asyncio.gather(*readers):
        assert [event.id for event in events] == [event.id for event in await queue.stores.events.after(job.id, "")]


async def all_of(queue: Queue, job: str, count: int, after: str = "") -> list[Event]:
    async with queue.stores.events.follow(job, after) as events:
        return await take(events, count)


async def test_a_reader_may_go_on_after_any_event(queue: Queue) -> None:
    """As a client does that comes back."""
    await queue.worker()
    job = await queue.submit(stream=True)
    await queue.finish(await queue.claim(job))
    everything = await queue.stores.events.after(job.id, "")
    for number, event in enumerate(everything[:-1]):
        left = everything[number + 1 :]
        assert await all_of(queue, job.id, len(left), event.id) == left


async def test_a_lost_connection_loses_no_event(queue: Queue) -> None:
    """What was published while nobody listened is looked for."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    async with queue.stores.events.follow(job.id, "") as events:
        await take(events, 2)
        for number in range(3):
            assert queue.redis.client_kill_filter(_type="pubsub")
            await queue.stores.journal.say(claim, f"c{number}", 1, 0, "Leeks")
            start, delta = await take(events, 2)
            assert (start.kind, json.loads(start.data)["call"], delta.kind) == ("start", f"c{number}", "delta")


async def test_many_readers_come_while_the_connection_breaks(queue: Queue) -> None:
    """As they all do at once when a store comes back: each hears its job, and so does whoever waits for an end."""
    jobs = [(await queue.submit(stream=True)).id for _ in range(40)]

    async def reader(job: str, wait: float) -> list[Event]:
        await asyncio.sleep(wait)
        return await patiently(lambda: all_of(queue, job, 1))

    for _ in range(5):
        readers = [asyncio.create_task(reader(job, number / 2000)) for number, job in enumerate(jobs)]
        await asyncio.sleep(0.01)
        queue.redis.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(20):
            assert [len(events) for events in await asyncio.gather(*readers)] == [1] * 40
    async with queue.stores.ends.watch(jobs[0]) as woken, queue.stores.events.follow(jobs[0], "") as events:
        await take(events, 1)
        await queue.jobs.cancel(jobs[0], "default")
        await asyncio.wait_for(woken.wait(), 5)
        assert [read(event) for event in await take(events, 1)] == [("state", {"state": "cancelled"})]


async def test_a_reader_looks_for_itself_after_a_silence(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says that it is there."""
    monkeypatch.setattr(events_module, "SILENCE", 0.2)
    job = await queue.submit(stream=True)
    async with queue.stores.events.follow(job.id, "") as events:
        await take(events, 1)
        queue.redis.xadd(f"celeriac:events:{job.id}", {"step": '{"step":1}'})  # and nobody publishes it
        async with asyncio.timeout(10):
            assert await anext(events) is None
            event = await anext(events)
    assert event is not None
    assert read(event) == ("step", {"step": 1})


async def test_events_of_one_moment_are_told_in_order(queue: Queue) -> None:
    """Their ids are two numbers, which no text is: ten comes after nine."""
    job = await queue.submit(stream=True)
    queue.redis.delete(f"celeriac:events:{job.id}")
    for number in range(1, 13):
        queue.redis.xadd(f"celeriac:events:{job.id}", {"step": f'{{"step":{number}}}'}, id=f"5-{number}")
    told_of = [json.loads(event.data)["step"] for event in await all_of(queue, job.id, 9, "5-3")]
    assert told_of == list(range(4, 13))


async def test_a_store_that_was_away_loses_no_event(own_valkey: Valkey) -> None:
    """A reader that waits meanwhile hears what came, and need not connect again."""
    settings = Settings(redis_url=SecretStr(own_valkey.url))
    stores = open_stores(settings)
    try:
        job = NewJob("j", "default", "assistant", "celeriac", (("user", "hi"),), stream=True)
        await stores.jobs.submit(job)
        async with stores.events.follow("j", "") as events:
            await take(events, 1)
            waiting = asyncio.create_task(take(events, 1))
            with capture_logs() as logs:
                own_valkey.stop()
                # For longer than the client tries to connect by itself.
                await until(lambda: any(entry["event"] == "channels_interrupted" for entry in logs))
            own_valkey.start()
            await patiently(lambda: stores.jobs.cancel("j", "default"))
            assert [read(event) for event in await waiting] == [("state", {"state": "cancelled"})]
    finally:
        await stores.close()


async def test_after_a_break_nobody_is_believed_to_be_heard_who_is_not(own_valkey: Valkey) -> None:
    """Who listened before it, and left, is subscribed to anew once somebody wants that."""
    channels = open_stores(Settings(redis_url=SecretStr(own_valkey.url))).channels
    async with channels.hear("one", lambda _: None):
        pass
    with capture_logs() as logs:
        own_valkey.stop()
        await until(lambda: any(entry["event"] == "channels_interrupted" for entry in logs))
    own_valkey.start()
    await patiently(lambda: heard_of(channels, "other"))
    async with channels.hear("one", lambda _: None):
        assert "one" in own_valkey.client().pubsub_channels("*")
    await channels.close()


async def heard_of(channels: Channels, name: str) -> None:
    async with channels.hear(name, lambda _: None):
        pass


class Line:
    """A subscription whose answers come in an order that a test has chosen."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.left: set[bytes] = set()
        self.late: list[tuple[str, bytes]] = []

    async def publish(self, name: bytes, _: bytes) -> None:
        for word in (*self.late, ("message", name)):
            self.coming.put_nowait(word)

    def pubsub(self) -> Line:
        return self

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def subscribe(self, *names: bytes) -> None:
        for name in names:
            self.coming.put_nowait(("subscribe", name))

    async def unsubscribe(self, *names: bytes) -> None:
        self.left |= set(names)
        for name in names:
            self.coming.put_nowait(("unsubscribe", name))

    async def get_message(self, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109  # as the client has it
        async with asyncio.timeout(timeout):
            kind, name = await self.coming.get()
        return {"type": kind, "channel": name, "data": b""}


async def test_a_late_word_of_a_channel_that_was_left_leaves_it_deaf_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may listen to it again by then. Redis's answers come in this order once in a very long time."""
    monkeypatch.setattr(events_module, "LEFT_BEHIND", 0)
    line = Line()
    channels = Channels(line)  # type: ignore[arg-type]
    await heard_of(channels, "one")
    await heard_of(channels, "other")
    await until(lambda: b"one" in line.left and line.coming.empty())
    line.late = [("message", b"one")]  # it was under way
    await asyncio.wait_for(heard_of(channels, "one"), 2)
    await channels.close()


def test_what_piles_up_for_a_reader_is_bounded() -> None:
    """Who does not read for a while must not fill the process."""
    behind = Behind()
    for number in range(5 * BEHIND):
        behind.take(f"{number}-1 delta {{}}".encode())
        assert len(behind.heard) <= BEHIND
    assert behind.look


async def test_a_reader_far_behind_misses_nothing(queue: Queue) -> None:
    """What would pile up for it in this process is left in the store."""
    await queue.worker()
    job = await queue.submit(stream=True)
    claim = await queue.claim(job)
    async with queue.stores.events.follow(job.id, "") as events:
        await take(events, 2)
        for number in range(BEHIND + 100):
            await queue.stores.journal.say(claim, "c1", 1, number, "x")
        texts = [json.loads(event.data) for event in await take(events, BEHIND + 101)]
    assert [facts["from"] for facts in texts[1:]] == list(range(BEHIND + 100))


async def test_channels_of_readers_that_left_are_left(queue: Queue) -> None:
    """A process that has had many readers does not listen to all of them for ever."""
    jobs = [(await queue.submit(stream=True)).id for _ in range(LEFT_BEHIND + 50)]
    for job in jobs:
        await all_of(queue, job, 1)
    assert len(queue.redis.pubsub_channels("celeriac:events:*")) <= LEFT_BEHIND + 1
    # And may be listened to again.
    await queue.worker()
    async with queue.stores.events.follow(jobs[0], "") as events:
        await take(events, 1)
        await queue.jobs.cancel(jobs[0], "default")
        assert [read(event) for event in await take(events, 1)] == [("state", {"state": "cancelled"})]
