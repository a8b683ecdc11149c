"""A stock Celery application, as careful as its settings allow: what the drill compares us with.

celery -A celeriac.drill.stock_app worker
"""

from __future__ import annotations

import os

import redis
from celery import Celery

#: Where the broker is (through the drill's proxy), and where finished tasks are noted (past it).
BROKER, NOTES = "DRILL_BROKER_URL", "DRILL_NOTES_URL"
#: A list of the numbers of the tasks that ran.
DONE = "done"
#: Seconds until Redis's unacknowledged messages are delivered again; an hour by default.
VISIBILITY = 5

app = Celery("stock", broker=os.environ.get(BROKER, "redis://"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": VISIBILITY},
)


@app.task(name="stock.note")
def note(number: int) -> None:
    redis.Redis.from_url(os.environ[NOTES]).rpush(DONE, number)
