"""Answers that are right but for a piece somewhere inside: a provider's fault, and none of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.drill import wire
from celeriac.drill.behaviour import Behaviour
from celeriac.llm.adapter import Adapter, Declined
from celeriac.llm.model import Answer, Lane, Message, ModelRequest
from celeriac.llm.reading import NotAnAnswer
from celeriac.llm.streams import ErrorInStream

from .conftest import WIRES, adapter

TOKENS: Final = wire.Tokens(input=3, cache_read=1, cache_write=0, output=4, reasoning=1)
BEHAVIOURS: Final = (
    Behaviour(text="Leeks, please."),
    Behaviour(text="I look.", calls=[{"name": "weather", "arguments": {"town": "Paris"}}]),
    Behaviour(text="", finish="refusal"),
    Behaviour(text="Leeks", finish="length"),
)
DEEP: Final[Any] = json.loads('{"a":' * 300 + "1" + "}" * 300)
#: What stands where something else belongs. The last one has been left out altogether.
GONE: Final = object()
JUNK: Final[list[Any]] = [
    None, True, 0, -1, 7, 1.5, 10**15, "", "x", [], [None], ["x"], [7], [[]], {}, {"x": 1}, [{}], {"type": 5},
    DEEP, GONE,
]  # fmt: skip
#: Key by key and index by index.
Path = tuple[Any, ...]


def paths(of: Any, way: Path = ()) -> Iterator[Path]:
    parts: list[tuple[Any, Any]] = []
    if isinstance(of, dict):
        parts = list(of.items())
    elif isinstance(of, list):
        parts = list(enumerate(of))
    for key, part in parts:
        yield (*way, key)
        yield from paths(part, (*way, key))


def spoil(of: Any, way: Path, junk: Any) -> None:
    """Where the way is still there."""
    for key in way[:-1]:
        try:
            of = of[key]
        except (KeyError, IndexError, TypeError):
            return
    if (isinstance(of, dict) and way[-1] in of) or (isinstance(of, list) and way[-1] in range(len(of))):
        if junk is GONE:
            del of[way[-1]]
        else:
            of[way[-1]] = copy.deepcopy(junk)


class Reader:
    """How one adapter reads what one API says, at once or event by event."""

    def __init__(self, name: str, client: Adapter, *, streams: bool) -> None:
        self.name, self.client, self.streams = name, client, streams
        api: Any = "responses" if name == "responses" else "chat"
        self.request = ModelRequest(Lane(WIRES[name], "small"), (Message("user", "hi"),), api=api)

    def said(self, behaviour: Behaviour) -> Any:
        """The body, or the events of the stream."""
        api = wire.PATHS[{"chat": "/v1/chat/completions"}.get(self.name, f"/v1/{self.name}")]
        body = {"model": "small", "stream_options": {"include_usage": True}}
        made = wire.answer(api, "1", body, behaviour.text or "", TOKENS, behaviour)
        if not self.streams:
            return made
        lines = b"".join(wire.events(api, "1", made, body, behaviour)).decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    def read(self, said: Any) -> Answer | None:
        """None where it is no answer. Anything else that is raised is a bug of ours."""
        try:
            if not self.streams:
                return self.client._read(said, self.request)
            gatherer = self.client._gatherer(self.request)
            for event in said:
                # Anything but an object is stopped before.
                assert isinstance(gatherer.take("", event if isinstance(event, dict) else {}), str)
            return self.client._read(gatherer.whole(), self.request)
        except (NotAnAnswer, Declined, ErrorInStream):
            return None


def is_sane(answer: Answer | None) -> bool:
    """What the rest of the house builds on."""
    if answer is None:
        return True
    texts = [answer.text, answer.model, answer.tier, *(text for c in answer.calls for text in (c.name, c.arguments))]
    counts = answer.usage.as_dict().values()
    return all(isinstance(text, str) for text in texts) and all(type(n) is int and n >= 0 for n in counts)


@pytest.fixture(params=WIRES)
def reader(request: pytest.FixtureRequest, http: httpx2.AsyncClient) -> Callable[[bool], Reader]:
    client = adapter(request.param, http, "http://127.0.0.1:9")
    assert isinstance(client, Adapter)
    return lambda streams: Reader(request.param, client, streams=streams)


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
async def test_a_piece_of_the_wrong_shape_is_no_fault_of_ours(reader: Callable[[bool], Reader], streams: bool) -> None:
    """Whichever piece it is: no answer, or one that is as all are."""
    of = reader(streams)
    for behaviour in BEHAVIOURS:
        right = of.said(behaviour)
        assert (of.read(right) is None) == (behaviour.finish == "refusal")
        for way in paths(right):
            for junk in JUNK:
                said = copy.deepcopy(right)
                spoil(said, way, junk)
                assert is_sane(of.read(said)), (way, junk)


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
def test_nor_are_several(reader: Callable[[bool], Reader], streams: bool) -> None:
    """In any mixture."""
    of = reader(streams)
    rights = [of.said(behaviour) for behaviour in BEHAVIOURS]
    ways = [list(paths(right)) for right in rights]

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(rights) - 1))
        said = copy.deepcopy(rights[which])
        for way in data.draw(st.lists(st.sampled_from(ways[which]), min_size=2, max_size=4)):
            spoil(said, way, data.draw(st.sampled_from(JUNK)))
        assert is_sane(of.read(said))

    holds()
