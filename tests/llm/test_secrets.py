"""No key, no prompt and nothing a provider said is in an error, whatever part of it is looked at."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from types import TracebackType

import httpx2
import pytest

from celeriac.drill.behaviour import FAULTS
from celeriac.drill.process import ProviderProcess
from celeriac.errors import LocalFault, ModelError, Unreachable
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, Usage
from celeriac.llm.transport import open_http

from .conftest import KEY, PROMPT, WIRES, Case, adapter

#: All faults that end in an error, and every status that our provider answers with the key or the prompt in it; whether
#: a stream is asked for.
FAULTY = [*sorted(FAULTS.keys() - {"wrong-model", "length"}), "401", "404", "422", "429", "500", "529"]
#: What would not end by itself.
ENDLESS = {"drip", "hang"}
WAYS = [
    (fault, streams) for fault in FAULTY for streams in (False, True) if streams or not fault.endswith("-in-stream")
]


def ours(tb: TracebackType | None) -> list[str]:
    """The frames of our own code with their variables, as an error reporter prints them."""
    shown: list[str] = []
    while tb is not None:
        if "/celeriac/" in tb.tb_frame.f_code.co_filename:
            shown += [repr(value) for value in tb.tb_frame.f_locals.values()]
        tb = tb.tb_next
    return shown


@pytest.mark.parametrize(("fault", "streams"), WAYS)
async def test_an_error_tells_no_secret(sdk: Case, fault: str, streams: bool) -> None:
    """Message, repr, fields, pickle, chain, and the variables of every frame of ours."""
    on_text = (lambda _: None) if streams else None
    try:
        deadline = 0.5 if fault in ENDLESS else 10.0
        await sdk.answer(f"fault-{fault}", text=PROMPT, instructions=PROMPT, on_text=on_text, deadline=deadline)
    except ModelError as error:
        caught = error
    tells_nothing(caught)


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid", "https"], ids=["port", "host", "tls"])
async def test_an_error_of_the_connection_tells_no_secret(
    http: httpx2.AsyncClient, provider: ProviderProcess, name: str, url: str
) -> None:
    """The SDK's errors hold the request."""
    url = provider.url.replace("http:", "https:") if url == "https" else url
    try:
        await Case(name, adapter(name, http, url), None).answer(text=PROMPT, instructions=PROMPT)
    except Unreachable as error:
        caught = error
    tells_nothing(caught)


@pytest.mark.parametrize("name", WIRES)
async def test_an_error_without_a_connection_tells_no_secret(provider: ProviderProcess, name: str) -> None:
    """All of them are in use."""
    async with open_http(1) as http:
        case = Case(name, adapter(name, http, provider.url), provider)
        hanging = asyncio.create_task(case.answer("fault-hang"))
        await case.started()
        try:
            await case.answer(text=PROMPT, instructions=PROMPT, deadline=0.2)
        except LocalFault as error:
            caught = error
        hanging.cancel()
        await asyncio.wait([hanging])
    tells_nothing(caught)


def tells_nothing(caught: ModelError) -> None:
    assert caught.__cause__ is None
    assert caught.__context__ is None
    shown = [str(caught), repr(caught), repr(vars(caught)), repr(pickle.dumps(caught))]
    shown += traceback.format_exception(caught)
    shown += ours(caught.__traceback__)
    for secret in (KEY, KEY[-12:], PROMPT, "Quackenbush"):
        assert not [text for text in shown if secret in text]


async def test_an_error_stands_alone_while_another_is_handled(sdk: Case) -> None:
    """Its context is then the caller's own error, and nothing of the SDK's."""
    own = KeyError("the caller's own")

    async def while_handling_it() -> None:
        try:
            raise own
        except KeyError:
            await sdk.answer("fault-401")

    with pytest.raises(ModelError) as caught:
        await while_handling_it()
    assert caught.value.__context__ is own


def test_texts_stay_out_of_repr() -> None:
    """Error reporters print the variables of a frame."""
    request = ModelRequest(Lane("openai", "m"), (Message("user", PROMPT),), instructions=PROMPT)
    assert PROMPT not in repr(request)
    assert PROMPT not in repr(Answer(PROMPT, Usage(), request.lane, "m"))
