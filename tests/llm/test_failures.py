"""Each row of the error table, through both SDKs, with what it means for the money."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from email.utils import formatdate
from inspect import getmembers, isclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from celeriac import errors
from celeriac.drill.process import ProviderProcess
from celeriac.errors import ModelError, RateLimited
from celeriac.llm.adapter import Adapter
from celeriac.llm.anthropic import Anthropic
from celeriac.llm.failures import LONGEST_WAIT, STATUS, broken, kind_of, refused, retry_after
from celeriac.llm.model import Lane
from celeriac.llm.openai import OpenAI
from celeriac.llm.transport import Wire, open_http
from tests.processes import held

from .conftest import WIRES, Case, adapter

ROOT = Path(__file__).parents[2]

#: row of the table, fault, error, in doubt
ROWS = [
    ("rate limited", "429", errors.RateLimited, False),
    ("quota", "quota", errors.QuotaExhausted, False),
    ("billing", "402", errors.QuotaExhausted, False),
    ("overloaded", "503", errors.Overloaded, False),
    ("overloaded", "529", errors.Overloaded, False),
    ("overloaded, says a gateway", "unavailable", errors.Overloaded, True),
    ("server", "500", errors.ProviderFailed, False),
    ("server", "502", errors.ProviderFailed, False),
    ("server", "504", errors.ProviderFailed, False),
    ("server", "408", errors.ProviderFailed, False),
    ("server", "409", errors.ProviderFailed, False),
    ("server, says a gateway", "gateway", errors.ProviderFailed, True),
    ("network", "reset-before", errors.Unreachable, True),
    ("network", "reset-after", errors.Unreachable, True),
    ("protocol", "reset-middle", errors.BadAnswer, True),
    ("protocol", "truncated", errors.BadAnswer, True),
    ("protocol", "html", errors.BadAnswer, True),
    ("protocol", "empty", errors.BadAnswer, True),
    ("protocol", "object", errors.BadAnswer, True),
    ("protocol", "null", errors.BadAnswer, True),
    ("protocol", "list", errors.BadAnswer, True),
    ("protocol", "not-json", errors.BadAnswer, True),
    ("protocol", "no-usage", errors.BadAnswer, True),
    ("protocol", "null-usage", errors.BadAnswer, True),
    ("protocol", "negative-usage", errors.BadAnswer, True),
    ("protocol", "float-usage", errors.BadAnswer, True),
    ("protocol", "string-usage", errors.BadAnswer, True),
    ("protocol", "true-usage", errors.BadAnswer, True),
    ("protocol", "huge-usage", errors.BadAnswer, True),
    ("protocol", "more-cached-than-input", errors.BadAnswer, True),
    ("auth", "401", errors.BadCredentials, False),
    ("auth", "403", errors.BadCredentials, False),
    ("bad request", "400", errors.BadModelRequest, False),
    ("bad request", "413", errors.BadModelRequest, False),
    ("bad request", "422", errors.BadModelRequest, False),
    ("bad request, too long", "context", errors.ContextTooLong, False),
    ("bad request, unknown model", "model", errors.UnknownModel, False),
    ("content", "policy", errors.ContentRefused, False),
    ("content", "refusal", errors.ContentRefused, False),
]


@pytest.mark.parametrize(
    "body",
    [
        {"message": "Endpoint request timed out"},
        {"code": 502},
        {"detail": "bad gateway"},
        {"error": "upstream"},
        {"type": "https://example.com/problems/timeout", "title": "timeout", "status": 504},
        {"error": {"code": "BackendTimeout", "message": "no answer"}},
        "upstream request timeout",
        None,
    ],
)
@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_a_gateways_json_does_not_say_that_nothing_was_billed(status: int, body: object) -> None:
    """Only the API of the model can: the model behind a gateway may have worked."""
    assert refused(Lane("openai", "m"), Wire(), status, body).in_doubt


@pytest.mark.parametrize(("row", "fault", "kind", "in_doubt"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
async def test_a_row_of_the_error_table(
    sdk: Case, row: str, fault: str, kind: type[ModelError], in_doubt: bool
) -> None:
    """The fault has its type, says whether it may be billed, and comes with the provider's name of the request."""
    with pytest.raises(ModelError) as caught:
        await sdk.answer(f"fault-{fault}")
    assert type(caught.value) is kind
    assert caught.value.in_doubt is in_doubt
    if not fault.startswith(("reset-before", "reset-after")):
        assert caught.value.request_id.startswith("req_")


async def test_every_billed_call_is_answered_or_in_doubt(sdk: Case) -> None:
    """The promise behind the table: what the provider charged for, we either settle or book in doubt."""
    booked = 0
    for _, fault, kind, _ in ROWS:
        try:
            await sdk.answer(f"fault-{fault}")
            booked += 1
        except ModelError as error:
            booked += error.in_doubt or (kind is errors.ContentRefused and getattr(error, "usage", None) is not None)
    assert (await sdk.provider.bill())["calls"] <= booked


@pytest.mark.parametrize("sdk_name", ["chat", "messages"])
async def test_every_status_has_a_meaning(http: httpx2.AsyncClient, provider: ProviderProcess, sdk_name: str) -> None:
    """No status from 400 to 599 gets past the table or lets an SDK's exception out."""
    case = Case(sdk_name, adapter(sdk_name, http, provider.url), provider)
    for status in range(400, 600):
        with pytest.raises(ModelError) as caught:
            await case.answer(f"fault-{status}")
        expected = STATUS.get(status, errors.BadModelRequest if status < 500 else errors.ProviderFailed)
        assert (status, type(caught.value)) == (status, expected)
        assert caught.value.status == status


@pytest.mark.parametrize(("module", "client"), [(openai, OpenAI), (anthropic, Anthropic)])
def test_every_exception_of_the_sdk_is_in_the_table(module: Any, client: type[Adapter]) -> None:
    """A class that a new SDK version adds fails here, and is then decided on."""
    base = client.errors.keys()
    defined = [
        kind
        for _, kind in getmembers(module._exceptions, isclass)
        if issubclass(kind, Exception) and kind.__module__.startswith(module.__name__)
    ]
    assert len(defined) > 15
    for kind in defined:
        if issubclass(kind, client.status_error):
            continue  # by status, which the test above walks
        assert kind in base or kind.__name__ in NEVER_RAISED_BY_A_POST, kind


#: They belong to other parts of the SDKs: webhooks, sockets, credentials we do not use. They become a LocalFault.
NEVER_RAISED_BY_A_POST = {
    "InvalidWebhookSignatureError",
    "SubjectTokenProviderError",
    "WebSocketConnectionClosedError",
    "WebSocketQueueFullError",
    "APIWebhookValidationError",
    "RetryableError",
    "CredentialsError",
    "IdentityTokenFileError",
}


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_the_documents_say_of_each_error_what_is_done_about_it() -> None:
    """All that a call to a model may end with."""
    table = (ROOT / "docs/retries.md").read_text().partition("## What is done about an error")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    codes = {kind.code for _, kind in getmembers(errors, isclass) if issubclass(kind, ModelError)} - {ModelError.code}
    assert sorted(named) == sorted(codes)


@pytest.mark.parametrize(("base", "client"), [(openai.OpenAIError, OpenAI), (anthropic.AnthropicError, Anthropic)])
@pytest.mark.parametrize("stage", ["start", "sent"])
def test_no_exception_of_the_sdk_is_let_out(base: type[Exception], client: type[Adapter], stage: Any) -> None:
    """Every class, wherever the SDK defines it, becomes one of ours; in doubt exactly if something was sent."""
    wire = Wire()
    wire.stage = stage
    others: list[type[Exception]] = [ValueError, TypeError, RuntimeError, MemoryError]
    for kind in [base, *subclasses(base), *others]:
        # Without its arguments, of which each class has its own.
        made = broken(kind.__new__(kind), Lane("p", "m"), wire, client.errors)
        assert isinstance(made, ModelError)
        assert type(made).__module__ == "celeriac.errors"
        assert made.in_doubt is (stage == "sent")
        if kind in others:
            assert made.ours, "a bug of ours says nothing of the provider"


def test_a_deadline_that_ends_before_anything_began_is_our_own_fault() -> None:
    """Something blocked the event loop."""
    made = broken(TimeoutError(), Lane("p", "m"), Wire(), {})
    assert (type(made), made.in_doubt, made.ours) == (errors.LocalFault, False, True)


def test_every_transport_failure_has_a_meaning() -> None:
    """Also those that only another transport would raise."""
    for kind in subclasses(httpx2.TransportError):
        made = broken(kind("x"), Lane("p", "m"), Wire(), {})
        assert not isinstance(made, errors.BadModelRequest)
        assert isinstance(made, ModelError)


async def test_a_closed_port_is_not_in_doubt(http: httpx2.AsyncClient) -> None:
    """Nothing was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for name in WIRES:
            with pytest.raises(errors.Unreachable) as caught:
                await Case(name, adapter(name, http, url), None).answer()
            assert not caught.value.in_doubt


async def test_an_unknown_host_is_not_in_doubt(http: httpx2.AsyncClient) -> None:
    """Nothing was sent."""
    for name in WIRES:
        with pytest.raises(errors.Unreachable) as caught:
            await Case(name, adapter(name, http, "http://nowhere.invalid"), None).answer()
        assert not caught.value.in_doubt


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that accepts no connection: its backlog is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for caller in callers:
            caller.close()


@pytest.mark.parametrize("name", WIRES)
async def test_a_server_that_accepts_nobody_is_a_timeout_not_in_doubt(deaf: str, name: str) -> None:
    """The connect timeout is smaller than the deadline, and ends with proof that nothing was sent."""
    async with open_http(2, connect_timeout=0.2) as http:
        with pytest.raises(errors.ModelTimeout) as caught:
            await Case(name, adapter(name, http, deaf), None).answer(deadline=20.0)
    assert not caught.value.in_doubt


@pytest.mark.parametrize("name", WIRES)
async def test_a_deadline_that_ends_while_connecting_is_not_in_doubt(deaf: str, name: str) -> None:
    """What counts is whether a byte was written, not which clock ran out."""
    async with open_http(2) as http:
        with pytest.raises(errors.ModelTimeout) as caught:
            await Case(name, adapter(name, http, deaf), None).answer(deadline=0.2)
    assert not caught.value.in_doubt


@pytest.mark.parametrize("name", WIRES)
async def test_a_call_that_got_no_connection_is_our_own_fault(provider: ProviderProcess, name: str) -> None:
    """All connections were busy until the deadline: nothing was sent, and another lane would not help."""
    async with open_http(1) as http:
        case = Case(name, adapter(name, http, provider.url), provider)
        await case.meets(hang=True)
        first = asyncio.create_task(case.answer())
        await case.started()
        with pytest.raises(errors.LocalFault) as caught:
            await case.answer(deadline=0.2)
        assert (caught.value.in_doubt, caught.value.next_lane) == (False, False)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_dripping_answer_ends_at_the_deadline(sdk: Case) -> None:
    """The SDKs' own timeouts are per read, and a byte a tenth of a second keeps them content for ever."""
    for deadline in (0.5, 2.0, 8.0):
        began = held()
        with pytest.raises(errors.ModelError) as caught:
            await sdk.answer("fault-drip", deadline=deadline)
        took = held() - began
        if caught.value.status:  # else the machine was too busy for the beginning of the answer
            break
    assert isinstance(caught.value, errors.ModelTimeout)
    assert caught.value.in_doubt
    assert caught.value.request_id
    assert took < deadline + 2.5


@pytest.mark.parametrize("way", [{}, {"content_type": "text/event-stream"}, {"gzip": True}], ids=str)
async def test_an_answer_without_end_is_cut_off(sdk: Case, way: dict[str, Any]) -> None:
    """A body of any size would fill the memory of every job in the process, however it is sent."""
    await sdk.meets(pad=17 * 1024 * 1024, **way)
    with pytest.raises(errors.BadAnswer) as caught:
        await sdk.answer()
    assert caught.value.in_doubt


async def test_a_compressed_refusal_is_a_refusal(sdk: Case) -> None:
    """Of a gateway that does not look at what we accept: its status and its time count, and nothing is in doubt."""
    await sdk.meets(status=429, gzip=True, headers={"retry-after": "20"})
    with pytest.raises(errors.RateLimited) as caught:
        await sdk.answer()
    assert (caught.value.status, caught.value.retry_after, caught.value.in_doubt) == (429, 20.0, False)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after-ms": "20"}, 1.0),
        ({"retry-after": "1e9"}, LONGEST_WAIT),
        ({"retry-after": "inf"}, LONGEST_WAIT),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_the_time_to_wait_is_read(sdk: Case, headers: dict[str, str], seconds: float | None) -> None:
    """Never for ever, a second at least, and none where the provider named none, or one that is over."""
    await sdk.meets(status=429, headers=headers)
    with pytest.raises(RateLimited) as caught:
        await sdk.answer()
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("over", ["0", "-5", "nan", "soon", ""])
def test_a_time_that_is_over_hides_none_that_is_to_come(over: str) -> None:
    """Some send both headers, and one of them without a meaning."""
    assert retry_after({"retry-after-ms": over, "retry-after": "7"}) == 7.0
    assert retry_after({"retry-after-ms": over, "retry-after": date(1000.0)}, now=980.0) == 20.0
    assert retry_after({"retry-after-ms": over, "retry-after": over}) is None


def date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def test_the_time_to_wait_may_be_a_date() -> None:
    """As HTTP allows; one in the past names no wait."""
    assert retry_after({"retry-after": date(1000.0)}, now=980.0) == 20.0
    assert retry_after({"retry-after": date(1000.0)}, now=2000.0) is None


@pytest.mark.parametrize("now", [700.0, 1300.0], ids=["ours is late", "ours is early"])
def test_a_date_is_by_the_clock_of_whoever_named_it(now: float) -> None:
    """It says in the same answer what its clock shows."""
    assert retry_after({"retry-after": date(1000.0), "date": date(980.0)}, now=now) == 20.0


@pytest.mark.parametrize("said", ["soon", "", "-1", date(980.0 + 90_000.0), date(980.0 - 90_000.0)])
def test_a_clock_that_makes_no_sense_is_not_believed(said: str) -> None:
    assert retry_after({"retry-after": date(1000.0), "date": said}, now=980.0) == 20.0


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"type": "exceed_context_size_error", "code": 400}, errors.ContextTooLong),
        (400, {"message": "This model's maximum context length is 4096 tokens"}, errors.ContextTooLong),
        (400, {"message": "input length and `max_tokens` exceed context limit: 1 + 2 > 3"}, errors.ContextTooLong),
        (500, {"type": "overloaded_error"}, errors.Overloaded),
        (503, {"code": "slow_down"}, errors.Overloaded),
        (403, {"details": {"error_code": "contract_spend_limit_reached"}}, errors.QuotaExhausted),
        (400, "not a mapping", errors.BadModelRequest),
        (500, None, errors.ProviderFailed),
    ],
)
def test_what_the_provider_says_counts_more_than_the_status(status: int, error: object, kind: type[ModelError]) -> None:
    """Codes and, where there is none, the words that real servers use."""
    assert kind_of(status, {"error": error}) is kind
