"""From the events of a stream to the answer that the same call has without one: what is believed is one thing.

Each gatherer takes the events of one API and hands out the text as it comes; in the end it has the body that the API
answers with when nobody asks for a stream. A stream that ends before that is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson

from celeriac.llm.reading import NotAnAnswer, kept_as, member, objects, optional

DONE: Final = "[DONE]"
SHORT: Final = "the stream ended before the answer was complete"


class ErrorInStream(Exception):
    """The provider ended the stream with an error of its own. body: as it wrote it."""

    def __init__(self, body: object) -> None:
        super().__init__("an error in the stream")
        self.body = body


class Gatherer(Protocol):
    #: the provider's own name of the answer, where it can be looked up by that; "" before
    kept_as: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing is to come any more, whatever the connection does."""
        ...

    def take(self, event: str, data: dict[str, Any]) -> str:
        """The text that this event brings, "" for none. Raises NotAnAnswer, ErrorInStream."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of the answer. Raises NotAnAnswer where the stream ended before it was complete."""
        ...


class ChatGatherer:
    """Chat Completions: chunks with pieces of one choice, the usage in a chunk of its own."""

    kept_as = ""
    is_whole = False  # the usage comes behind the end, and then a word

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self._calls: list[dict[str, Any]] = []
        self._at: dict[Any, int] = {}
        self._reason: str | None = None

    def take(self, event: str, data: dict[str, Any]) -> str:
        if data.get("error"):
            raise ErrorInStream(data)
        for name in ("model", "service_tier", "usage"):
            if data.get(name) is not None:
                self._made[name] = data[name]
        text = ""
        for choice in objects(data, "choices"):  # some say of other things in between
            if (reason := choice.get("finish_reason")) is not None:
                self._reason = reason
            delta = optional(choice, "delta", dict) or {}
            for name in ("content", "refusal"):
                if isinstance(piece := delta.get(name), str):
                    self._message[name] = (self._message.get(name) or "") + piece
                    text += piece if name == "content" else ""
            for piece in objects(delta, "tool_calls"):
                self._take_call(piece)
        return text

    def _take_call(self, piece: dict[str, Any]) -> None:
        number, id = optional(piece, "index", int), piece.get("id")
        function = optional(piece, "function", dict) or {}
        at = self._at.get(number, len(self._calls) - 1 if number is None and not id else None)
        # Some number all calls alike; then their ids tell them apart.
        if at is None or at < 0 or (id and self._calls[at]["id"] not in (None, id)):
            at = self._at[number] = len(self._calls)
            self._calls.append({"id": id, "function": {"name": "", "arguments": ""}})
        made = self._calls[at]
        made["id"] = made["id"] or id
        # A name comes at once; some repeat it with each piece.
        if isinstance(said := function.get("name"), str):
            made["function"]["name"] = made["function"]["name"] or said
        if isinstance(said := function.get("arguments"), str):
            made["function"]["arguments"] += said

    def whole(self) -> dict[str, Any]:
        if self._reason is None:
            raise NotAnAnswer(SHORT)
        if self._calls:
            self._message["tool_calls"] = self._calls
        elif self._message["content"] is None and "refusal" not in self._message:
            self._message["content"] = ""  # it said nothing, piece by piece
        return self._made | {"choices": [{"index": 0, "message": self._message, "finish_reason": self._reason}]}


class ResponsesGatherer:
    """Responses: pieces of text on the way, and the whole response in the last event."""

    def __init__(self) -> None:
        self._made: dict[str, Any] | None = None
        self.kept_as = ""

    @property
    def is_whole(self) -> bool:
        return self._made is not None

    def take(self, event: str, data: dict[str, Any]) -> str:
        kind = data.get("type") or event
        if kind == "error":
            raise ErrorInStream({"error": data})
        if kind == "response.output_text.delta":
            text: str = member(data, "delta", str)
            return text
        if kind == "response.created":
            self.kept_as = kept_as(data.get("response"))
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._made = member(data, "response", dict)
        return ""

    def whole(self) -> dict[str, Any]:
        if self._made is None:
            raise NotAnAnswer(SHORT)
        return self._made


class MessagesGatherer:
    """Anthropic's Messages: a message without content, its blocks piece by piece, and what came of it."""

    kept_as = ""

    def __init__(self) -> None:
        self._made: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}
        self.is_whole = False

    def take(self, event: str, data: dict[str, Any]) -> str:
        kind = data.get("type") or event
        if kind == "error":
            raise ErrorInStream(data)
        if kind == "message_start":
            self._made = dict(member(data, "message", dict))
            # What it says there of the output is no count of it: the end alone tells that.
            usage = optional(self._made, "usage", dict) or {}
            self._made["usage"] = {name: number for name, number in usage.items() if name != "output_tokens"}
        elif kind == "content_block_start":
            number = member(data, "index", int)
            self._blocks[number] = dict(member(data, "content_block", dict))
            return optional(self._blocks[number], "text", str) or ""
        elif kind == "content_block_delta":
            return self._take_piece(member(data, "index", int), member(data, "delta", dict))
        elif kind == "message_delta":
            self._end(data)
        elif kind == "message_stop":
            self.is_whole = True
        return ""

    def _take_piece(self, number: int, delta: dict[str, Any]) -> str:
        block = self._blocks.get(number)
        if block is None:
            raise NotAnAnswer("a piece of a block that was not begun")
        if delta.get("type") == "text_delta":
            piece: str = member(delta, "text", str)
            block["text"] = (block.get("text") or "") + piece
            return piece
        if delta.get("type") == "input_json_delta":
            self._inputs[number] = self._inputs.get(number, "") + member(delta, "partial_json", str)
        return ""

    def _end(self, data: dict[str, Any]) -> None:
        if self._made is None:
            raise NotAnAnswer("a message that was not begun")
        self._made |= member(data, "delta", dict)
        said: Mapping[str, Any] = optional(data, "usage", dict) or {}
        # What is counted by now stands for what was counted at the beginning.
        self._made["usage"] = (optional(self._made, "usage", dict) or {}) | {
            k: v for k, v in said.items() if v is not None
        }

    def whole(self) -> dict[str, Any]:
        if self._made is None or not self.is_whole:
            raise NotAnAnswer(SHORT)
        for number, text in self._inputs.items():
            try:
                self._blocks[number]["input"] = orjson.loads(text or "{}")
            except orjson.JSONDecodeError as error:
                if self._made.get("stop_reason") != "max_tokens":
                    raise NotAnAnswer("arguments of a tool that are no JSON") from error
                self._blocks[number]["input"] = {}  # cut off: such a call is not made
        return self._made | {"content": [block for _, block in sorted(self._blocks.items())]}
