"""What every model client promises, whoever is behind it."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from celeriac.errors import ModelTimeout, Overloaded, RateLimited
from celeriac.llm.model import Lane

from .conftest import Case, Sent


async def test_an_answer_has_text_usage_and_a_name(model: Case) -> None:
    """Whatever a receipt needs is in the answer."""
    await model.meets(text="Paris it is")
    answer = await model.answer()
    assert answer.text == "Paris it is"
    assert answer.usage.output == 3
    assert answer.usage.input > 0
    assert answer.lane == model.request().lane
    assert (answer.model, answer.stop_reason) == ("small", "end")
    assert answer.request_id
    assert answer.seconds > 0


async def test_the_output_limit_is_sent_and_reported(model: Case) -> None:
    """An answer that met the limit says so, and is charged no more."""
    await model.meets(text="one two three four five")
    answer = await model.answer(max_output_tokens=2)
    assert (answer.text, answer.stop_reason, answer.usage.output) == ("one two", "length", 2)


async def test_a_longer_conversation_is_more_input(model: Case) -> None:
    """Instructions and messages both count."""
    client = model.client
    short = await client.answer(model.request())
    long = await client.answer(model.request(text="word " * 400, instructions="Be brief. " * 50))
    assert long.usage.input > short.usage.input + 300


async def test_no_answer_before_the_deadline_is_a_timeout_in_doubt(model: Case) -> None:
    """The call was sent: it may be billed."""
    await model.meets(delay=30.0)
    model.client = Sent(model.client)
    with pytest.raises(ModelTimeout) as caught:
        await model.answer(deadline=0.2)
    assert caught.value.in_doubt


async def test_an_error_names_whom_we_asked(model: Case) -> None:
    """Provider and model are facts of the error, for the breaker and the receipt."""
    await model.meets(delay=30.0)
    model.client = Sent(model.client)
    with pytest.raises(ModelTimeout) as caught:
        await model.answer(deadline=0.1)
    assert Lane(caught.value.provider, caught.value.model) == model.request().lane


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (529, Overloaded)])
async def test_a_busy_provider_is_an_error_of_our_own(model: Case, status: int, kind: type[Exception]) -> None:
    """Nothing was run, so nothing is in doubt; and the next call is answered."""
    await model.meets(status=status)
    with pytest.raises(kind) as caught:
        await model.answer()
    assert not caught.value.in_doubt  # type: ignore[attr-defined]  # both are ModelErrors


async def test_an_error_survives_pickling(model: Case) -> None:
    """Celery moves errors between processes."""
    await model.meets(status=429, headers={"retry-after": "2"})
    with pytest.raises(RateLimited) as caught:
        await model.answer()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # our own bytes
    assert type(again) is RateLimited
    assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))
    assert again.retry_after == 2.0


async def test_cancelling_a_call_passes_through(model: Case) -> None:
    """A cancelled call is cancelled, not failed."""
    await model.meets(delay=30.0)
    task = asyncio.create_task(model.answer())
    await model.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_at_the_same_time_get_their_own_answers(model: Case) -> None:
    """Nothing is shared between calls but the connections."""
    answers = await asyncio.gather(*(model.answer(text=f"number {i}") for i in range(20)))
    assert [answer.text for answer in answers] == [f"You said: number {i}" for i in range(20)]
    assert len({answer.request_id for answer in answers}) == 20
