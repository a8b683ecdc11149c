"""Questions with images, over HTTP and a real worker."""

from __future__ import annotations

import base64
import json
import random
from typing import Any, Final

import pytest
import redis

from tests.story.conftest import Home

#: As an address that a store signed: who has it sees the picture.
URL: Final = "https://pictures.example/leek.png?signature=abc-signed-secret"
#: That no compression makes small.
PIXELS: Final = base64.b64encode(random.Random(7).randbytes(60_000)).decode()  # noqa: S311  # pixels
QUESTION: Final = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Compare "},
            {"type": "image", "url": URL},
            {"type": "text", "text": " with "},
            {"type": "image", "url": f"data:image/jpeg;base64,{PIXELS}"},
        ],
    }
]
AS_CHAT: Final = [
    {"type": "text", "text": "Compare "},
    {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    {"type": "text", "text": " with "},
    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PIXELS}", "detail": "high"}},
]
AS_MESSAGES: Final = [
    {"type": "text", "text": "Compare "},
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "text", "text": " with "},
    {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PIXELS}},
]


def ask(home: Home, question: Any = QUESTION, **facts: Any) -> dict[str, Any]:
    return home.ask(question, **facts)


def said(home: Home) -> list[list[Any]]:
    """What users said in each of the last two calls."""
    bodies = [json.loads(request["body"]) for request in home.asked()[-2:]]
    return [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in bodies]


def test_where_openai_fails_anthropic_is_shown_the_same_images(home: Home) -> None:
    """By address and with their data, each where it stood; what it cost is what the provider says."""
    home.scripted({"status": 402}, {"text": "Both are leeks."})
    job = ask(home, agent="impatient")
    assert (job["state"], job["answer"]) == ("succeeded", "Both are leeks.")
    assert [call["lane"].partition("/")[0] for call in job["calls"]] == ["openai", "anthropic"]
    assert said(home) == [[AS_CHAT], [AS_MESSAGES]]
    assert job["usage"]["input_tokens"] == home.bill()["input"] > 2_000


def test_a_conversation_keeps_its_images(home: Home) -> None:
    """The next job's model sees them again; whoever reads it is told what they are, and not shown the data."""
    home.scripted({"text": "Both are leeks."}, {"text": "Quite."})
    ask(home, agent="assistant", context_id="leeks")
    ask(home, "Sure?", agent="assistant", context_id="leeks")
    assert said(home) == [[AS_CHAT], [AS_CHAT, "Sure?"]]
    answer = home.the_shim.http.get("/v1/contexts/leeks")
    first, *rest = answer.json()["messages"]
    assert first == {
        "role": "user",
        "content": "Compare \n with ",
        "images": [
            {"at": 8, "url": URL, "media_type": None, "bytes": None},
            {"at": 15, "url": None, "media_type": "image/jpeg", "bytes": 60_000},
        ],
    }
    assert rest == [
        {"role": "assistant", "content": "Both are leeks."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Quite."},
    ]
    assert PIXELS[:100] not in answer.text


@pytest.mark.parametrize("agent", ["impatient", "thorough"])
def test_nothing_but_the_record_holds_an_image(home: Home, agent: str) -> None:
    """Neither logs nor metrics nor the job, as it is shown; and the journal of its steps stays small."""
    home.scripted({"status": 400}, {"status": 400}) if agent == "impatient" else home.always(text="Leeks.")
    job = ask(home, agent=agent, stream=True)
    assert job["state"] == ("failed" if agent == "impatient" else "succeeded")
    client = redis.Redis(port=home.valkey.port)
    sizes = {key: client.memory_usage(key, samples=0) for key in client.scan_iter(f"*{job['id']}*")}
    assert [key for key, size in sizes.items() if size > 20_000] == [f"celeriac:job:{job['id']}".encode()]
    shown = [
        home.the_worker.output(),
        home.the_shim.output(),
        home.the_shim.http.get("/metrics").text,
        home.the_shim.http.get("/v1/jobs").text,
        json.dumps(job),
    ]
    assert not [text for text in shown if "signed-secret" in text or PIXELS[:40] in text]
