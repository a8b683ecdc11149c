"""Reading along over HTTP: server-sent events, as any client of them reads them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from api_shim.streams import reading
from celeriac.jobs import events as events_module
from celeriac.jobs.model import NewJob
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_stores
from tests.conftest import Valkey
from tests.processes import Shim, running, wait_until


def cancelled(shim: Shim) -> str:
    """A job that is over, and whose events can be read."""
    id: str = shim.submit(stream=True)["id"]
    assert shim.http.post(f"/v1/jobs/{id}/cancel").status_code == 200
    return id


def test_a_stream_ends_with_the_job(shim: Shim) -> None:
    """As it can be asked for: who reads along needs no other request."""
    id = cancelled(shim)
    events = list(shim.events(id))
    assert [(event.event, json.loads(event.data).get("state")) for event in events] == [
        ("state", "queued"),
        ("state", "cancelled"),
        ("end", "cancelled"),
    ]
    assert json.loads(events[-1].data) == shim.job(id)
    assert events[-1].id > events[-2].id == events[0].id, "who has the last state alone comes back for the end"


def test_what_comes_is_told_as_it_comes(shim: Shim) -> None:
    """The head is sent at once, and no proxy is to hold back what follows."""
    id = shim.submit(stream=True)["id"]
    with shim.http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-store")
        events = iter(httpx2.EventSource(answer))
        assert json.loads(next(events).data) == {"state": "queued"}
        shim.http.post(f"/v1/jobs/{id}/cancel")
        assert [event.event for event in events] == ["state", "end"]


def test_a_reader_goes_on_where_it_was(shim: Shim) -> None:
    """By the header that clients send when they connect again. Who has everything is told not to."""
    id = cancelled(shim)
    first, _, end = shim.events(id)
    assert [event.event for event in shim.events(id, first.id)] == ["state", "end"]
    answer = shim.http.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": end.id})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_job_that_is_started_again_is_read_on(shim: Shim) -> None:
    """An end that is no longer one ends no stream."""
    id = cancelled(shim)
    assert shim.http.post(f"/v1/jobs/{id}/retry").status_code == 202
    assert shim.http.post(f"/v1/jobs/{id}/cancel").status_code == 200
    told = [(event.event, json.loads(event.data).get("state")) for event in shim.events(id)]
    states = [("state", state) for state in ("queued", "cancelled", "queued", "cancelled")]
    assert told == [*states, ("end", "cancelled")]


def test_a_reader_that_missed_something_is_told(shim: Shim, valkey: Valkey) -> None:
    """Else it would take what is left for all there was."""
    id = cancelled(shim)
    first, _, _ = shim.events(id)
    valkey.client().xtrim(f"celeriac:events:{id}", maxlen=1, approximate=False)
    assert [event.event for event in shim.events(id)] == ["missed", "state", "end"]
    assert [event.event for event in shim.events(id, first.id)] == ["missed", "state", "end"]


def test_a_job_whose_events_are_gone_ends_its_stream(shim: Shim, valkey: Valkey) -> None:
    """A store may lose them; nobody waits for what will not come."""
    id = cancelled(shim)
    valkey.client().delete(f"celeriac:events:{id}")
    (end,) = shim.events(id)
    assert (end.event, json.loads(end.data)) == ("end", shim.job(id))


def test_how_long_somebody_reads_is_no_time_of_an_answer(shim: Shim) -> None:
    """Else every reader would be an answer that took too long."""

    def answers() -> tuple[float, float]:
        """How many there were, and the seconds of all."""
        name = 'celeriac_http_request_duration_seconds_%s{method="GET",route="/v1/jobs/{job_id}/events"}'
        metrics = shim.http.get("/metrics").text
        found = [re.search(re.escape(name % what) + r" (\S+)", metrics) for what in ("count", "sum")]
        count, seconds = (float(match[1]) if match else 0.0 for match in found)
        return count, seconds

    id = shim.submit(stream=True)["id"]
    events, before, began = shim.events(id), answers(), time.monotonic()
    next(events)
    took = time.monotonic() - began
    time.sleep(0.6)
    shim.http.post(f"/v1/jobs/{id}/cancel")
    assert [event.event for event in events] == ["state", "end"]
    wait_until(lambda: answers()[0] == before[0] + 1, "it to be counted")
    assert answers()[1] - before[1] <= took


def test_what_cannot_be_read_is_said(shim: Shim) -> None:
    """By its name, with what to do instead."""
    plain = shim.submit()["id"]
    read = shim.submit(stream=True)["id"]
    for id, after, status, code, field in (
        ("no-such-job", "", 404, "not_found", "job_id"),
        (plain, "", 409, "conflict", "job_id"),
        (read, "yesterday", 422, "invalid", "Last-Event-ID"),
        (read, "99999999999999999999-0", 422, "invalid", "Last-Event-ID"),
    ):
        answer = shim.http.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": after})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["errors"][0]["field"]) == (status, code, field), problem
    assert shim.submit(stream=True)["stream"] is True
    assert shim.job(plain)["stream"] is False
    assert shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", "stream": "yes"}).status_code == 422


def test_who_leaves_in_the_middle_is_no_error(own_shim: Shim) -> None:
    """A tab that is closed is nothing that an operator has to look at."""
    key = {"X-API-Key": "key-of-a-0123456789"}
    body = {"agent": "assistant", "input": "hi", "stream": True}
    id = own_shim.http.post("/v1/jobs", json=body, headers=key).json()["id"]
    for _ in range(5):
        with own_shim.http.stream("GET", f"/v1/jobs/{id}/events", headers=key) as answer:
            next(iter(httpx2.EventSource(answer)))
    wait_until(lambda: own_shim.output().count("/v1/jobs/{job_id}/events") == 5, "the lines of all five")
    assert "Exception" not in own_shim.output()
    assert "[error" not in own_shim.output()


async def test_after_a_silence_a_reader_hears_of_an_end_that_was_not_told(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may have lost the event."""
    monkeypatch.setattr(events_module, "SILENCE", 0.2)
    await stores.jobs.submit(NewJob("j", "default", "assistant", "celeriac", (("user", "hi"),), stream=True))
    job = await stores.jobs.get("j", "default")
    assert job is not None
    told = reading(stores, job, "")
    assert b"queued" in await anext(told)
    await stores.redis.hdel("celeriac:job:j", "stream")  # nobody is told from now on
    await stores.jobs.cancel("j", "default")
    async with asyncio.timeout(10):
        *pings, end = [chunk async for chunk in told]
    assert set(pings) == {b": ping\n\n"}
    assert end.startswith(b"event: end\n")
    assert b'"state":"cancelled"' in end


async def test_a_store_that_is_away_ends_a_stream_without_a_word(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients come back for the rest."""
    monkeypatch.setattr(events_module, "SILENCE", 0.2)
    stores = open_stores(load_settings(redis_url=own_valkey.url))
    await stores.jobs.submit(NewJob("j", "default", "assistant", "celeriac", (("user", "hi"),), stream=True))
    job = await stores.jobs.get("j", "default")
    assert job is not None
    told = reading(stores, job, "")
    assert b"queued" in await anext(told)
    own_valkey.stop()
    async with asyncio.timeout(20):
        assert {chunk async for chunk in told} <= {b": ping\n\n"}
    await stores.close()


def test_a_store_that_goes_away_ends_a_stream_and_no_request_fails(own_valkey: Valkey) -> None:
    """Its reader comes back."""
    with running(Shim(own_valkey.url)) as shim:
        id = shim.submit(stream=True)["id"]
        with shim.http.stream("GET", f"/v1/jobs/{id}/events") as answer:
            events = iter(httpx2.EventSource(answer))
            next(events)
            shim.http.post(f"/v1/jobs/{id}/cancel")
            own_valkey.stop()
            told = [event.event for event in events]
        own_valkey.start()
        assert told in ([], ["state", "end"])
        assert "Exception in ASGI" not in shim.output()
        left = [event.event for event in shim.events(id)]
        assert left[-1] == "end"


@pytest.fixture
def own_shim(valkey: Valkey) -> Iterator[Shim]:
    with running(
        Shim(valkey.url, CELERIAC_SHIM__API_KEYS='{"a": "key-of-a-0123456789", "b": "key-of-b-0123456789"}')
    ) as shim:
        yield shim


def test_nobody_reads_a_job_of_another_tenant(own_shim: Shim) -> None:
    """Not even that there is one."""
    a, b = ({"X-API-Key": f"key-of-{name}-0123456789"} for name in "ab")
    job = own_shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", "stream": True}, headers=a).json()
    where = f"/v1/jobs/{job['id']}/events"
    assert own_shim.http.get(where).status_code == 401
    assert own_shim.http.get(where, headers=b).status_code == 404
    with own_shim.http.stream("GET", where, headers=a) as answer:
        assert answer.status_code == 200


def test_a_shim_that_stops_ends_its_streams(own_shim: Shim) -> None:
    """Their readers connect to another one and go on."""
    key = {"X-API-Key": "key-of-a-0123456789"}
    job = own_shim.http.post("/v1/jobs", json={"agent": "assistant", "input": "hi", "stream": True}, headers=key).json()
    told: list[str] = []

    def read() -> None:
        with own_shim.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=key) as answer:
            told.extend(event.event for event in httpx2.EventSource(answer))
        told.append("over")

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: told, "the first event")
    own_shim.process.terminate()
    own_shim.wait(10)
    reader.join(5)
    assert told == ["state", "over"]
