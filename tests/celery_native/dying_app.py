"""Our worker's application in a process that is killed at a moment of its first job, as kill -9 may find it.

DIE_WHEN: `begun`, when a submission has begun and is not stored; `ended`, when the store has the job's end and Celery
has not been told; `written`, when Celery's result is written and its callbacks are sent, and the store has not heard
of that; `claimed`, when the last member of a chord has claimed the call of its body and has not made it.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from celery import signals

from celeriac.jobs.dispatch import SUBMIT
from worker.app import app as app

#: moment -> the logger that speaks then, and how its line begins.
MOMENTS = {
    "ended": ("celeriac.agents.runner", "job_ended"),
    "written": ("celery.app.trace", "Task celeriac.run_job"),
}


def die(record: logging.LogRecord) -> bool:
    event = record.msg.get("event", "") if isinstance(record.msg, dict) else record.getMessage()
    if event.startswith(says):
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def die_storing(**_: object) -> None:
    # Time for an acknowledgement, which another thread sends, if it were to come as early as this.
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def die_calling(**_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ["DIE_WHEN"] == "begun":
    signals.task_prerun.connect(die_storing, sender=app.tasks[SUBMIT], weak=False)
elif os.environ["DIE_WHEN"] == "claimed":
    signals.before_task_publish.connect(die_calling, sender="shop.note", weak=False)
else:
    speaks, says = MOMENTS[os.environ["DIE_WHEN"]]
    logging.getLogger(speaks).addFilter(die)
