"""Images of a message: which are taken, where they stand in it, how they are stored, what they count for at most."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.connections import pack
from celeriac.contexts.store import decode_turns, encode_turn
from celeriac.costs.prices import Prices, most_input
from celeriac.errors import Invalid, Unpriceable
from celeriac.jobs.model import NewJob
from celeriac.jobs.request import MAX_IMAGE_DATA, MAX_IMAGES, Asked, read_submission
from celeriac.llm.images import MAX_ADDRESS, MAX_DATA, Image, checked_url
from celeriac.llm.model import Lane, Message, ModelRequest, Usage

URL = "https://pictures.example/leek.png?signed=secret-token"
DATA = f"data:image/png;base64,{base64.b64encode(b'secret-pixels').decode()}"
SHOWN = Message("user", "One:Two:", images=(Image(URL, 4), Image(DATA, 8)))


def asked(*content: object, role: str = "user") -> dict[str, object]:
    last = [] if role == "user" else [{"role": "user", "content": "Well?"}]
    return {"agent": "assistant", "input": [{"role": role, "content": list(content)}, *last]}


def image(url: str = URL) -> dict[str, str]:
    return {"type": "image", "url": url}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "url", [URL, "HTTPS://[::1]:8443/x", *(f"data:image/{kind};base64,AAAA" for kind in ("png", "jpeg", "gif", "webp"))]
)
def test_what_every_provider_takes_is_taken(url: str) -> None:
    """As it is."""
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "https address"),
        ("http://pictures.example/leek.png", "https address"),
        ("ftp://pictures.example/leek.png", "https address"),
        ("file:///etc/passwd", "https address"),
        ("https:///leek.png", "https address"),
        ("https://[pictures/leek.png", "https address"),
        ("https://pictures.example:leek/", "https address"),
        ("https://pictures.example/a leek.png", "https address"),
        ("https://pictures.example/l\u00e9ek.png", "https address"),
        ("https://me:secret@pictures.example/leek.png", "a user or a password"),
        ("https://me@pictures.example/leek.png", "a user or a password"),
        (f"https://pictures.example/{'x' * MAX_ADDRESS}", f"at most {MAX_ADDRESS}"),
        ("data:image/tiff;base64,AAAA", "image/webp"),
        ("data:image/svg+xml;base64,AAAA", "image/webp"),
        ("data:image/png,AAAA", "data:TYPE;base64,DATA"),
        ("data:image/png;base64,", "data:TYPE;base64,DATA"),
        ("data:image/png;base64,AAA", "in base64"),
        ("data:image/png;base64,AA\nAA", "in base64"),
        ("data:image/png;base64,=", "in base64"),
        ("data:image/png;base64,\u00e9AAA", "in base64"),
        (f"data:image/png;base64,{'A' * MAX_DATA}", f"at most {MAX_DATA}"),
    ],
)
def test_what_some_provider_would_refuse_is_refused_here(url: str, remedy: str) -> None:
    """Over either door, naming the field and what to do, and nothing of the URL."""
    with pytest.raises(Invalid, match=r"input.0.content.1.url: ") as refused:
        read_submission(asked(text("See:"), image(url)))
    assert refused.value.field == "input"
    assert remedy in str(refused.value)
    assert ";" in str(refused.value), "it says what to do"
    assert not any(word in str(refused.value) for word in ("pictures", "secret", "passwd", "tiff"))


@pytest.mark.parametrize("kind", ["input_audio", "audio", "file", "document", "video_url"])
def test_parts_that_cannot_be_priced_are_refused_by_name(kind: str) -> None:
    """What they cost nobody could say before the call."""
    with pytest.raises(Unpriceable, match=f"input.0.content.1: {kind}: what a call costs with it"):
        read_submission(asked(text("Hear:"), {"type": kind, kind: {"data": "AAAA"}}))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            asked({"type": "image_url", "image_url": {"url": URL}}),
            'input.0.content.0: is no part that we take; send {"',
        ),
        (asked({"text": "hi"}), 'input.0.content.0: is no part that we take; send {"'),
        (asked({"type": ["image"]}), 'input.0.content.0: is no part that we take; send {"'),
        (asked("hi"), "input.0.content.0: Input should be"),
        (asked(), "input.0.content: List should have at least 1 item"),
        (asked(text("")), "input.0.content.0.text: String should have at least 1 character"),
        (asked({"type": "image"}), "input.0.content.0.url: Field required"),
        (asked(image() | {"detail": "auto"}), "input.0.content.0.detail: what a call costs with it"),
        (asked(image(), role="assistant"), "input.0: holds an image; only messages of the user may"),
        (asked(*[image()] * (MAX_IMAGES + 1)), f"input: holds {MAX_IMAGES + 1} images; send at most {MAX_IMAGES}"),
        (
            asked(*[image("data:image/png;base64," + "A" * 3_999_000)] * 5),
            f"send at most {MAX_IMAGE_DATA}, or their addresses",
        ),
    ],
)
def test_a_wrong_part_is_told_what_to_do(request_: dict[str, object], message: str) -> None:
    """The field by its place, without the names of our own unions."""
    with pytest.raises(Invalid) as refused:
        read_submission(request_)
    assert message in str(refused.value)


def test_an_image_stands_where_the_caller_put_it() -> None:
    """Texts side by side are lines of one; a message of an image alone is one; a text is what it was."""
    [mixed] = Asked.model_validate(
        asked(text("One:"), image(), text("Two:"), text("or three:"), image(DATA))
    ).messages()
    message = Message.read(mixed)
    assert list(message.parts()) == ["One:", Image(URL, 4), "Two:\nor three:", Image(DATA, 19)]
    [alone] = Asked.model_validate(asked(image())).messages()
    assert list(Message.read(alone).parts()) == [Image(URL)]
    assert Asked.model_validate(asked(text("hi"), role="assistant")).messages()[0] == ("assistant", "hi")
    assert list(Message("user", " \n").parts()) == [" \n"]


def test_texts_of_white_space_beside_an_image_are_left_out() -> None:
    """Providers refuse them."""
    message = Message("user", " \nTwo: ", images=(Image(URL, 2), Image(DATA, 6)))
    assert list(message.parts()) == [Image(URL, 2), "Two:", Image(DATA, 6)]


@given(st.text(), st.lists(st.integers(0, 20), max_size=4).map(sorted))
def test_no_text_and_no_image_is_lost(said: str, places: list[int]) -> None:
    """Wherever they stand, in their order; also stored and read, in a record or in a turn."""
    images = tuple(Image(f"https://x/{n}", min(at, len(said))) for n, at in enumerate(places))
    message = Message("user", said, images=images)
    assert [part for part in message.parts() if isinstance(part, Image)] == list(images)
    shown = "".join(part for part in message.parts() if isinstance(part, str))
    assert "".join(shown.split()) == "".join(said.split())
    assert decode_turns([encode_turn([message, Message("assistant", "ok")])]) == (message, Message("assistant", "ok"))


def test_a_message_without_images_is_stored_as_ever() -> None:
    """What an older release wrote is read, and it reads what has no images. What has some it takes for no message, and
    answers nothing rather than half of it."""
    old = b"2:" + pack([("user", "hi"), ("assistant", "Paris")])
    assert decode_turns([old]) == (Message("user", "hi"), Message("assistant", "Paris"))
    assert encode_turn(decode_turns([old])) == old
    assert len(SHOWN.said()) == 3


def test_another_text_stands_behind_the_images() -> None:
    """Their places were in the old one."""
    assert list(SHOWN.reworded("What was said.").parts()) == [Image(URL), Image(DATA), "What was said."]


#: The largest image at the highest detail that each counts; and what is not known counts as the dearest.
MOST = {
    Lane("openai", "gpt-4o-mini"): 2_833 + 8 * 5_667,
    Lane("openai", "gpt-4o-mini-2024-07-18"): 2_833 + 8 * 5_667,
    Lane("openai", "gpt-4o"): 85 + 8 * 170,
    Lane("openai", "gpt-4.1-nano"): 3_779,  # 1,536 * 2.46
    Lane("openai", "gpt-5.4"): 3_000,  # 2,500 * 1.2
    Lane("openai", "gpt-5.4-nano"): 6_150,  # 2,500 * 2.46, were it one of the newer
    Lane("openai", "o1-pro"): 75 + 8 * 150,
    Lane("openai", "gpt-9"): 2_833 + 8 * 5_667,
    Lane("openai", "ft:gpt-4o-mini:acme"): 2_833 + 8 * 5_667,
    Lane("anthropic", "claude-haiku-5-5"): 4_784,
    Lane("together", "gpt-4o"): 36_000,  # 30,000 * 1.2, where somebody else sets the detail
}


@pytest.mark.parametrize("lane", MOST, ids=str)
@pytest.mark.parametrize("kind", ["input", "cache_read", "cache_write"])
def test_no_image_costs_more_than_its_bound(lane: Lane, kind: str) -> None:
    """Booked before the call is sent, for each image, whatever its size."""
    bare = most_input(ModelRequest(lane, (Message("user", "hi"),)))
    request = ModelRequest(lane, (Message("user", "hi", images=(Image(URL), Image(DATA))),), max_output_tokens=10)
    most = Usage(**{kind: bare + 2 * MOST[lane]}, output=10)
    assert Prices().bound(request) >= Prices().price(lane, lane.model, most).nanos


def test_the_data_of_an_image_is_no_text() -> None:
    """Three megabytes are booked as what the image counts for."""
    lane = Lane("anthropic", "claude-haiku-5-5")
    small, large = (
        most_input(ModelRequest(lane, (Message("user", "hi", images=(Image(url),)),)))
        for url in (URL, f"data:image/png;base64,{'A' * 3_000_000}")
    )
    assert small == large < 6_000


def test_images_stay_out_of_repr() -> None:
    """Error reporters print the variables of a frame."""
    request = Asked.model_validate(asked(image(), image(DATA)))
    job = NewJob("id", "acme", "assistant", "celeriac", request.messages())
    for shown in (SHOWN, ModelRequest(Lane("openai", "m"), (SHOWN,)), request.input[0], job):
        assert "pictures" not in repr(shown)
        assert DATA[22:] not in repr(shown)
