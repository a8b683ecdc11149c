"""Celery's task events in batches.

Celery's consumer publishes what its last turn has buffered, so a busy worker pays a round trip to the broker for nearly
every event: a fifth of the CPU time of a job. Here they are held for `EVERY` at most.
"""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps

#: Seconds that an event may wait. Longer batches save little more; Flower redraws once a second at the most.
EVERY: Final = 0.5
#: Events in a batch; one is about 300 bytes.
MOST: Final = 500


class EventBatches(bootsteps.StartStopStep):
    """Takes the place of the consumer's own flushing, after each connection to the broker."""

    requires = ("celery.worker.consumer.events:Events",)

    def include_if(self, consumer: Any) -> bool:
        return consumer.hub is not None

    def start(self, consumer: Any) -> None:
        dispatcher, due = consumer.event_dispatcher, False

        def flush() -> None:
            nonlocal due
            due = False
            dispatcher.flush()

        def buffered() -> None:
            nonlocal due
            if not due:
                due = True
                consumer.hub.call_later(EVERY, flush)

        dispatcher.buffer_limit = MOST
        dispatcher.on_send_buffered = buffered

    def stop(self, consumer: Any) -> None:
        """The last ones: the dispatcher is closed next."""
        if consumer.event_dispatcher is not None and consumer.event_dispatcher.enabled:
            consumer.event_dispatcher.flush()

    shutdown = stop
