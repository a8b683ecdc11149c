"""`llm-usage`: a Celery event for each call whose outcome this worker has booked, for whoever follows `celery events`.

It is sent while task events are (`-E`, `worker_send_task_events`, or asked for remotely). Nobody waits for it: a call
leaves its facts here, and the hub publishes what has come together, as it does with other events. What is lost is lost;
the ledger has it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from celery import bootsteps

from celeriac.costs.money import usd
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Claim
from celeriac.logs import get_logger
from worker.events import EVERY, EventBatches

log = get_logger(__name__)

TYPE: Final = "llm-usage"
GROUP: Final = "llm"
#: Of calls that nobody was told of yet, while the broker is away.
MOST: Final = 10_000


class LiveUsage:
    """What calls left, until the hub sends it. dispatcher: Celery's, None before the first and after the last."""

    def __init__(self) -> None:
        self.dispatcher: Any = None
        self._waiting: deque[tuple[Claim, Settlement, float]] = deque(maxlen=MOST)

    @property
    def is_wanted(self) -> bool:
        dispatcher = self.dispatcher
        return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)

    def put(self, claim: Claim, settlement: Settlement) -> None:
        """In the event loop's thread, after each call."""
        if self.is_wanted:
            self._waiting.append((claim, settlement, time.time()))

    def send(self) -> None:
        """In the hub's thread, from time to time."""
        dispatcher = self.dispatcher
        while self._waiting and dispatcher is not None:
            claim, settlement, at = self._waiting.popleft()
            if dispatcher.groups:
                # Asked for remotely, by the name of another group.
                dispatcher.groups.add(GROUP)
            try:
                dispatcher.send(TYPE, timestamp=at, **facts(claim, settlement))
            except Exception as error:
                log.warning("usage_event_not_sent", job_id=claim.id, reason=type(error).__name__)
                return


def facts(claim: Claim, settlement: Settlement) -> dict[str, Any]:
    """By OpenTelemetry's names where it has some: its input holds what was read from caches and written to them, its
    output the reasoning. Amounts are dollars as text. No prompt and no answer.
    """
    told, stands = settlement.facts, settlement.stands
    provider, _, model = str(told.get("lane", "")).partition("/")
    event = {
        "uuid": claim.id,
        "call": settlement.call,
        "attempt": claim.attempt,
        "step": told.get("step", 1),
        "tenant": claim.tenant,
        "outcome": stands,
        "seconds": told.get("seconds"),
        "cost_usd": usd(settlement.nanos if stands == "settled" else 0),
        "in_doubt_usd": usd(settlement.bound if stands == "doubt" else 0),
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": claim.agent,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
    }
    if told.get("model"):
        event["gen_ai.response.model"] = told["model"]
    if told.get("error"):
        event["error.type"] = told["error"]
    if used := told.get("usage"):
        event |= {
            "gen_ai.usage.input_tokens": sum(used[f"{name}_tokens"] for name in ("input", "cache_read", "cache_write")),
            "gen_ai.usage.output_tokens": used["output_tokens"],
            "gen_ai.usage.cache_read.input_tokens": used["cache_read_tokens"],
            "gen_ai.usage.cache_creation.input_tokens": used["cache_write_tokens"],
            "gen_ai.usage.reasoning.output_tokens": used["reasoning_tokens"],
        }
    return event


class UsageEvents(bootsteps.StartStopStep):
    """After each connection to the broker; and once more when the last jobs have ended, before the last batch goes."""

    requires = (EventBatches,)

    def include_if(self, consumer: Any) -> bool:
        return consumer.hub is not None and hasattr(consumer.app, "live_usage")  # else a worker without jobs

    def start(self, consumer: Any) -> None:
        live: LiveUsage = consumer.app.live_usage
        dispatcher = consumer.event_dispatcher
        dispatcher.buffer_group = {*dispatcher.buffer_group, GROUP}
        live.dispatcher = dispatcher
        self._timer = consumer.hub.call_repeatedly(EVERY, live.send)

    def stop(self, consumer: Any) -> None:
        """What comes until the broker is back, or the worker ends, waits."""
        self._timer.cancel()

    def shutdown(self, consumer: Any) -> None:
        live: LiveUsage = consumer.app.live_usage
        live.send()
        live.dispatcher = None
