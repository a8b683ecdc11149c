"""Images over the three wires."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from anthropic.types import ImageBlockParam
from openai.types.chat import ChatCompletionContentPartImageParam
from openai.types.responses import ResponseInputImageParam
from pydantic import TypeAdapter

from celeriac.errors import BadModelRequest
from celeriac.llm.images import Image
from celeriac.llm.model import Message, ModelRequest, Usage
from celeriac.llm.reading import NotAnAnswer, checked

from .conftest import Case

URL: Final = "https://pictures.example/leek.png"
DATA: Final = "data:image/webp;base64,AAAA"
SHOWN: Final = Message("user", "One:Two:Which?", images=(Image(URL, 4), Image(DATA, 8)))
#: api -> its own words for that message
CONTENT: Final[dict[str, list[dict[str, Any]]]] = {
    "chat": [
        {"type": "text", "text": "One:"},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
        {"type": "text", "text": "Two:"},
        {"type": "image_url", "image_url": {"url": DATA, "detail": "high"}},
        {"type": "text", "text": "Which?"},
    ],
    "responses": [
        {"type": "input_text", "text": "One:"},
        {"type": "input_image", "image_url": URL, "detail": "high"},
        {"type": "input_text", "text": "Two:"},
        {"type": "input_image", "image_url": DATA, "detail": "high"},
        {"type": "input_text", "text": "Which?"},
    ],
    "messages": [
        {"type": "text", "text": "One:"},
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "text", "text": "Two:"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": "AAAA"}},
        {"type": "text", "text": "Which?"},
    ],
}
#: api -> the SDK's type for an image
THEIRS: Final[dict[str, Any]] = {
    "chat": ChatCompletionContentPartImageParam,
    "responses": ResponseInputImageParam,
    "messages": ImageBlockParam,
}


def request(case: Case, *messages: Message) -> ModelRequest:
    asked = case.request()
    return ModelRequest(asked.lane, messages, api=asked.api, deadline=asked.deadline)


async def said(case: Case) -> list[dict[str, Any]]:
    body = json.loads((await case.provider.requests())[-1]["body"])
    messages: list[dict[str, Any]] = body["input" if case.name == "responses" else "messages"]
    return messages


async def test_images_are_shown_in_the_wires_own_words(sdk: Case) -> None:
    """By address or with their data, in their places between the texts, as the SDK's own types have them."""
    answer = await sdk.client.answer(request(sdk, SHOWN, Message("assistant", "One."), Message("user", "Sure?")))
    assert answer.text == "You said: Sure?"
    first, second, third = await said(sdk)
    assert first == {"role": "user", "content": CONTENT[sdk.name]}
    assert (second["content"], third["content"]) == ("One.", "Sure?"), "what shows none is a text"
    # What the SDK's type does not know would be left out.
    images = first["content"][1::2]
    assert TypeAdapter(list[THEIRS[sdk.name]]).validate_python(images) == images  # type: ignore[misc]  # made at run time


async def test_what_was_said_beside_images_is_answered(sdk: Case) -> None:
    """Also beside none."""
    assert (await sdk.client.answer(request(sdk, SHOWN))).text == "You said: One: Two: Which?"
    await sdk.client.answer(request(sdk, Message("user", "", images=(Image(URL),))))
    [only] = await said(sdk)
    assert len(only["content"]) == 1


async def test_the_usage_of_a_call_with_images_is_what_the_provider_says(sdk: Case) -> None:
    """It counts an image by its own rules, and not by its bytes."""
    large = Image(f"data:image/png;base64,{'A' * 400_000}")
    answer = await sdk.client.answer(request(sdk, Message("user", "hi", images=(large, Image(URL)))))
    bill = await sdk.provider.bill()
    assert answer.usage.input == bill["input"]
    assert 2_000 < answer.usage.input < 2_200


@pytest.mark.parametrize("url", ["data:image/tiff;base64,AAAA", "data:image/png;base64,AA=A", "file:///leek.png"])
async def test_an_image_that_a_provider_refuses_is_a_bad_request(sdk: Case, url: str) -> None:
    """Nobody else is asked, and nothing is billed."""
    with pytest.raises(BadModelRequest) as refused:
        await sdk.client.answer(request(sdk, Message("user", "hi", images=(Image(url),))))
    assert not refused.value.in_doubt
    assert (await sdk.provider.bill())["calls"] == 0


def test_the_tokens_of_an_image_are_believed(sdk: Case) -> None:
    """The dearest image is more than the few words beside it could be, and no nonsense."""
    most = Usage(input=48_169)
    assert checked(most, request(sdk, Message("user", "hi", images=(Image(URL),)))) == most
    with pytest.raises(NotAnAnswer):
        checked(most, request(sdk, Message("user", "hi")))
