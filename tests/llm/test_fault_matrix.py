"""Everything that can go wrong with a call, through each SDK: what it is called, how often the lane is asked, what the
fleet makes of the lane, and who is thought to have been paid."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx2
import pytest

from celeriac.agents.calls import Calls, Lease
from celeriac.connections import patiently
from celeriac.costs.prices import Prices
from celeriac.drill.process import ProviderProcess
from celeriac.errors import ModelError
from celeriac.gate.lanes import spelt
from celeriac.jobs.model import Call, Claim, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Lane, Message, ModelRequest
from celeriac.llm.patient import Patience, Patient
from celeriac.llm.transport import open_http
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey

from .conftest import WIRES, Sent, adapter

#: What becomes of the lane: the failures count, it is closed at once, it is left alone for a while, or nothing.
Fate = Literal["counts", "opens", "cools", "nothing"]
TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """code: of the error. again: whether the lane is asked again at once. stands: how each call is booked."""

    code: str
    again: bool
    fate: Fate
    stands: Literal["released", "doubt", "settled"]
    next_lane: bool = True


OVERLOADED = Row("overloaded", True, "counts", "released")
FAILED = Row("provider_failed", True, "counts", "released")
TIMEOUT = Row("timeout", True, "counts", "doubt")
BAD_ANSWER = Row("bad_answer", True, "counts", "doubt")
BROKEN = Row("unreachable", True, "counts", "doubt")
BAD_REQUEST = Row("bad_request", False, "nothing", "released", next_lane=False)
REFUSED = Row("content_refused", False, "nothing", "settled", next_lane=False)

#: A fault that the provider knows by name, or a behaviour -> what comes of it.
MATRIX: Final[dict[str, tuple[dict[str, Any], Row]]] = {
    "429": ({"status": 429}, Row("rate_limited", False, "cools", "released")),
    "429 seconds": ({"status": 429, "headers": {"retry-after": "7"}}, Row("rate_limited", False, "cools", "released")),
    "429 ms": ({"status": 429, "headers": {"retry-after-ms": "7000"}}, Row("rate_limited", False, "cools", "released")),
    "429 absurd": (
        {"status": 429, "headers": {"retry-after": "99999999999"}},
        Row("rate_limited", False, "cools", "released"),
    ),
    "429 date": (
        {"status": 429, "headers": {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}},
        Row("rate_limited", False, "cools", "released"),
    ),
    # "At once" is no time: the fleet waits as where none is named.
    "429 zero": ({"status": 429, "headers": {"retry-after": "0"}}, Row("rate_limited", False, "cools", "released")),
    "429 negative": (
        {"status": 429, "headers": {"retry-after": "-7"}},
        Row("rate_limited", False, "cools", "released"),
    ),
    "429 past date": (
        {"status": 429, "headers": {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}},
        Row("rate_limited", False, "cools", "released"),
    ),
    "429 nonsense": (
        {"status": 429, "headers": {"retry-after": "soon"}},
        Row("rate_limited", False, "cools", "released"),
    ),
    "quota": ({"fault": "quota"}, Row("quota_exhausted", False, "opens", "released")),
    "402": ({"status": 402}, Row("quota_exhausted", False, "opens", "released")),
    "401": ({"status": 401}, Row("bad_credentials", False, "opens", "released")),
    "403": ({"status": 403}, Row("bad_credentials", False, "opens", "released")),
    "503": ({"status": 503}, OVERLOADED),
    "529": ({"status": 529}, OVERLOADED),
    "503 of a gateway": ({"fault": "unavailable"}, Row("overloaded", True, "counts", "doubt")),
    "500": ({"status": 500}, FAILED),
    "502": ({"status": 502}, FAILED),
    "504": ({"status": 504}, FAILED),
    "408": ({"status": 408}, FAILED),
    "409": ({"status": 409}, FAILED),
    "502 of a gateway": ({"fault": "gateway"}, Row("provider_failed", True, "counts", "doubt")),
    "500 that asks for time": (
        {"status": 500, "headers": {"retry-after": "7"}},
        Row("provider_failed", False, "cools", "released"),
    ),
    "hang": ({"fault": "hang"}, TIMEOUT),
    "drip": ({"fault": "drip"}, TIMEOUT),
    "reset before": ({"fault": "reset-before"}, BROKEN),
    "reset after": ({"fault": "reset-after"}, BROKEN),
    **{
        name: ({"fault": name}, BAD_ANSWER)
        for name in (
            "html",
            "empty",
            "object",
            "null",
            "list",
            "not-json",
            "no-usage",
            "null-usage",
            "negative-usage",
            "float-usage",
            "string-usage",
            "true-usage",
            "huge-usage",
            "more-cached-than-input",
        )
    },
    "truncated": ({"fault": "truncated"}, BAD_ANSWER),
    "reset in the middle": ({"fault": "reset-middle"}, BAD_ANSWER),
    "400": ({"status": 400}, BAD_REQUEST),
    "413": ({"status": 413}, BAD_REQUEST),
    "422": ({"status": 422}, BAD_REQUEST),
    "404": ({"fault": "model"}, Row("unknown_model", False, "nothing", "released")),
    "context": ({"fault": "context"}, Row("context_too_long", False, "nothing", "released")),
    "policy": ({"fault": "policy"}, Row("content_refused", False, "nothing", "released", next_lane=False)),
    "refusal": ({"fault": "refusal"}, REFUSED),
    "filter": ({"fault": "filter"}, REFUSED),
}


class Rig:
    """One run over one lane."""

    def __init__(self, stores: Stores, valkey: Valkey, claim: Claim, http: httpx2.AsyncClient) -> None:
        self.stores, self.redis, self.claim, self.http = stores, valkey.client(), claim, http
        self.text: list[str] = []

    async def fails(
        self, wire: str, url: str, deadline: float = 10.0, *, hangs: bool = False, streams: bool = False
    ) -> tuple[ModelError, list[Call]]:
        """How a question goes, with patience, and the calls as they are booked. hangs: the provider does, so a short
        deadline will do. streams: it asks for a stream.
        """
        self.lane = Lane(WIRES[wire], "small")
        lease = Lease()
        client = adapter(wire, self.http, url)
        if hangs:
            client, deadline = Sent(client), 0.5
        calls = Calls(
            self.claim, client, self.stores.journal, Prices(), lease, caps={}, insist=lambda write: patiently(write)
        )
        api: Literal["chat", "responses"] = "responses" if wire == "responses" else "chat"
        on_text = self.text.append if streams else None
        request = ModelRequest(self.lane, (Message("user", "hi"),), deadline=deadline, api=api, on_text=on_text)
        with pytest.raises(ModelError) as caught:
            await Patient(calls, Patience(TRIES)).answer(request)
        await calls.close()
        job = await self.stores.jobs.get(self.claim.id, None)
        assert job is not None
        return caught.value, list(job.calls)

    def fate(self, calls: int) -> Fate:
        """What the fleet makes of the lane after so many calls."""
        known = self.redis.hgetall(f"celeriac:lane:{spelt(self.lane)}")
        if "opened" in known:
            return "opens"
        if "shut" in known:
            assert 1000 <= int(known["span"]) <= 3_600_000, "sane, whatever was asked for"
            return "cools"
        slots = [slot.split(" ") for name, slot in known.items() if name.startswith("slot")]
        failures = sum(int(bad) for _, _, bad in slots)
        assert failures in {0, calls}
        return "counts" if failures else "nothing"


@pytest.fixture
async def rig(stores: Stores, valkey: Valkey, http: httpx2.AsyncClient) -> AsyncIterator[Rig]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    await fleet.register("w1", ["celeriac"], 1, (), {"celeriac": ""})
    job = await stores.jobs.submit(NewJob(new_id(), "default", "assistant", "celeriac", (("user", "hi"),)))
    claim = await stores.jobs.claim(job.id, "w1", new_nonce())
    assert isinstance(claim, Claim)
    yield Rig(stores, valkey, claim, http)
    await line.aclose()


def holds(row: Row, error: ModelError, calls: list[Call], fate: Fate) -> None:
    times = TRIES if row.again else 1
    assert (error.code, error.next_lane, fate) == (row.code, row.next_lane, row.fate)
    assert [(call.stands, call.facts["error"]) for call in calls] == [(row.stands, row.code)] * times
    assert len(error.attempts) == times


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", MATRIX)
async def test_each_fault_is_what_the_table_says(
    rig: Rig, provider: ProviderProcess, wire: str, fault: str, streams: bool
) -> None:
    """Class, tries, breaker and money; and what is settled, released and in doubt covers the provider's bill."""
    behaviour, row = MATRIX[fault]
    await provider.default(**behaviour)
    error, calls = await rig.fails(wire, provider.url, hangs=row is TIMEOUT, streams=streams)
    holds(row, error, calls, rig.fate(len(calls)))
    billed = (await provider.bill())["calls"]
    assert billed <= sum(call.stands != "released" for call in calls)


#: JSON, an object, with what belongs there, and something in it that does not.
AT_ONCE: Final = {
    "chat": {"choices": [{"message": {"content": None, "tool_calls": 5}, "finish_reason": "stop"}]},
    "responses": {"status": "completed", "output": [{"type": "message", "content": ["x"]}]},
    "messages": {"content": ["x"], "stop_reason": "end_turn"},
}
STREAMED: Final = {
    "chat": {"choices": [{"delta": "x"}]},
    "responses": {"type": "response.completed", "response": AT_ONCE["responses"]},
    "messages": {"type": "message_start", "message": {"usage": 7}},
}
USED: Final = {"usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"), 1)}


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
async def test_an_answer_that_is_wrong_inside_is_held_against_the_lane(
    rig: Rig, provider: ProviderProcess, wire: str, streams: bool
) -> None:
    """As one that is none at all: it is no bug of ours, and half of a lane's answers may look like that."""
    said: dict[str, Any] = AT_ONCE[wire] | USED
    if streams:
        said = STREAMED[wire]
        if wire == "responses":
            said |= {"response": AT_ONCE[wire] | USED}
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in (said, {"type": "message_delta", "delta": {}}))
        await provider.default(body=body, content_type="text/event-stream")
    else:
        await provider.default(body=json.dumps(said))
    error, calls = await rig.fails(wire, provider.url, streams=streams)
    holds(BAD_ANSWER, error, calls, rig.fate(len(calls)))
    assert not error.ours


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("fault", "code"), [("overloaded-in-stream", "overloaded"), ("error-in-stream", "provider_failed")]
)
async def test_an_error_inside_a_stream_is_in_doubt(
    rig: Rig, provider: ProviderProcess, wire: str, fault: str, code: str
) -> None:
    """It had begun. OpenAI has one error for both."""
    await provider.default(fault=fault, text="Leeks are planted in spring.")
    error, calls = await rig.fails(wire, provider.url, streams=True)
    row = Row(code if wire == "messages" else "provider_failed", True, "counts", "doubt")
    holds(row, error, calls, rig.fate(len(calls)))
    assert rig.text
    assert (await provider.bill())["calls"] == len(calls)


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://no-such-host.invalid"], ids=["no server", "no such host"]
)
async def test_what_was_never_sent_costs_nothing(rig: Rig, wire: str, url: str, streams: bool) -> None:
    """There is proof: no connection was made."""
    error, calls = await rig.fails(wire, url, streams=streams)
    holds(Row("unreachable", True, "counts", "released"), error, calls, rig.fate(len(calls)))


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_server_that_cannot_speak_tls_was_sent_nothing(
    rig: Rig, provider: ProviderProcess, wire: str, streams: bool
) -> None:
    error, calls = await rig.fails(wire, provider.url.replace("http:", "https:"), streams=streams)
    holds(Row("unreachable", True, "counts", "released"), error, calls, rig.fate(len(calls)))


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
async def test_our_own_want_of_connections_is_not_held_against_the_lane(
    rig: Rig, provider: ProviderProcess, wire: str, streams: bool
) -> None:
    """All that there are wait for answers: nothing was sent."""
    import asyncio

    await provider.default(fault="hang")
    async with open_http(1, connect_timeout=2.0) as http:
        request = ModelRequest(Lane(WIRES[wire], "small"), (Message("user", "hi"),), deadline=30.0)
        busy = asyncio.create_task(adapter(wire, http, provider.url).answer(request))
        await provider.until(lambda state: state["in_flight"] == 1)
        rig.http = http
        error, calls = await rig.fails(wire, provider.url, deadline=0.5, streams=streams)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
    row = Row("local_fault", True, "nothing", "released", next_lane=False)
    holds(row, error, calls, rig.fate(len(calls)))
