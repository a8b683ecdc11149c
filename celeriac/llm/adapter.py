"""What all adapters have in common: one deadline, one translation of failures, and nothing of the SDK is let out."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Final

import httpx2

from celeriac.errors import BadAnswer, ContentRefused, ModelError
from celeriac.llm.failures import broken, failure, kind_of, refused, request_id
from celeriac.llm.limits import limits
from celeriac.llm.model import Answer, ModelRequest
from celeriac.llm.reading import NotAnAnswer, json_object
from celeriac.llm.streams import DONE, ErrorInStream, Gatherer
from celeriac.llm.transport import MAX_ANSWER_BYTES, Wire, current_wire

#: Seconds for what follows an answer that is whole.
LINGER: Final = 0.25


class Adapter(ABC):
    """A model client over one SDK client.

    It asks once. Every `ModelError` says by `in_doubt` whether the call may have been billed; errors hold no key, no
    prompt and no exception of the SDK, neither as cause nor as context.
    """

    #: what the SDK raises for an answer that is not 2xx
    status_error: ClassVar[type[Exception]]
    #: everything else that it may raise -> what it means
    errors: ClassVar[Mapping[type[BaseException], type[ModelError]]]
    #: where its address says that models run; an answer may know better
    region: str = ""

    async def answer(self, request: ModelRequest) -> Answer:
        wire, began = Wire(), time.monotonic()
        token = current_wire.set(wire)
        try:
            async with asyncio.timeout(request.deadline) as limit:
                response = await self._ask(request)
                answer = await self._read_from(response, request, limit)
            return replace(
                answer,
                region=answer.region or self.region,
                request_id=request_id(wire.headers),
                seconds=time.monotonic() - began,
                limits=limits(wire.headers),
            )
        except ErrorInStream as error:
            # Something was made, and may be billed, whatever went wrong then.
            kind = kind_of(wire.status, error.body)
            failed = failure(kind, request.lane, wire, in_doubt=True, why="an error in the stream")
        except NotAnAnswer as error:
            failed = failure(BadAnswer, request.lane, wire, in_doubt=True, why=str(error))
        except Declined as error:
            # With its usage it is settled like an answer; without, nobody knows.
            facts = {"region": self.region, **error.facts} if error.kind is ContentRefused else error.facts
            failed = failure(error.kind, request.lane, wire, in_doubt=error.in_doubt, **facts)
        except Exception as error:
            failed = self._translated(error, request, wire)
        finally:
            current_wire.reset(token)
        # Outside the handlers, so that the SDK's exception is no context: it holds the request with its key and prompt.
        try:
            raise failed
        finally:
            del failed

    async def _read_from(self, response: httpx2.Response, request: ModelRequest, limit: asyncio.Timeout) -> Answer:
        # Here, and not where errors are raised: no variable of their frames may hold what was answered.
        if request.on_text is None:
            made = json_object(response.content)
            return self._read(await self._finished(made, request) if request.stored else made, request)
        return self._read(await self._gathered(response, request, limit), request)

    async def _gathered(
        self, response: httpx2.Response, request: ModelRequest, limit: asyncio.Timeout
    ) -> dict[str, Any]:
        """The body that the answer has without a stream."""
        gatherer = self._gatherer(request)
        try:
            if response.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
                raise NotAnAnswer("no stream")
            events = aiter(httpx2.EventSource(response, max_event_size=MAX_ANSWER_BYTES))
            async for event in events:
                if event.data == DONE:
                    break
                if event.event == "ping" or not event.data:
                    continue
                text = gatherer.take(event.event, json_object(event.data.encode()))
                if text and request.on_text is not None:
                    request.on_text(text)
                if gatherer.kept_as and request.on_stored is not None:
                    await request.on_stored(gatherer.kept_as)
                    request = replace(request, on_stored=None)
                if gatherer.is_whole:
                    break
            made = gatherer.whole()
            # It is there, whatever the call's deadline is.
            limit.reschedule(None)
            # Read to its end a connection can be used again; nobody waits for one that does not end.
            with suppress(TimeoutError, httpx2.HTTPError):
                async with asyncio.timeout(LINGER):
                    async for _ in events:
                        pass
            return made
        finally:
            await response.aclose()

    def _translated(self, error: Exception, request: ModelRequest, wire: Wire) -> ModelError:
        if isinstance(error, self.status_error):
            return refused(request.lane, wire, getattr(error, "status_code", 0), getattr(error, "body", None))
        return broken(error, request.lane, wire, self.errors)

    @abstractmethod
    async def _ask(self, request: ModelRequest) -> httpx2.Response:
        """Send the request through the SDK and hand out the raw response.

        Through the SDK's own `post`, with the finished body: OpenAI's `create` walks every message before it sends the
        same JSON (40 ms of CPU for 200 messages, 1.2 this way), and reading the answer into the SDK's classes costs up
        to a quarter of a call and does not notice what is wrong with it.
        """

    async def _finished(self, made: dict[str, Any], request: ModelRequest) -> dict[str, Any]:
        """The body of an answer that may be stored, once it is there. Raises NotAnAnswer."""
        return made

    @abstractmethod
    def _gatherer(self, request: ModelRequest) -> Gatherer:
        """For the stream of this request."""

    @abstractmethod
    def _read(self, made: dict[str, Any], request: ModelRequest) -> Answer:
        """Raises NotAnAnswer, or Declined."""


async def post(sdk: Any, stream: Any, path: str, body: dict[str, Any], request: ModelRequest) -> httpx2.Response:
    """Through an SDK's own `post`. stream: its class for one; where it is asked for, nothing of it is read yet."""
    options = {"timeout": request.deadline}
    if request.on_text is None:
        return await sdk.post(path, body=body, cast_to=httpx2.Response, options=options)  # type: ignore[no-any-return]
    body |= {"stream": True}
    opened = await sdk.post(path, body=body, cast_to=object, stream=True, stream_cls=stream[object], options=options)
    return opened.response  # type: ignore[no-any-return]


class Declined(Exception):
    """The provider answered 200 and said in it that there is no answer. kind, facts: of the error that it becomes."""

    def __init__(self, kind: type[ModelError], *, in_doubt: bool = False, **facts: Any) -> None:
        super().__init__(kind.__name__)
        self.kind = kind
        self.in_doubt = in_doubt
        self.facts = facts
