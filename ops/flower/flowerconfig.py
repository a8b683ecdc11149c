"""Flower as operators of Celeriac want it: loaded by Flower's own `--conf`, or by `FLOWER_CONF`.

A row is a job: its id, how it ended, when the worker received and started it, and how often it was tried. The result
says first how long the job waited and ran, because Flower's own times begin when a worker takes the job. No prompt and
no answer reaches it. Costs, jobs and providers have pages of their own, which read the store.
"""

import ast
from typing import Any

from celeriac.jobs.dispatch import RUN_JOB
from ops.flower import metrics as metrics  # answers /metrics in place of Flower's handler
from ops.flower.pages import add_pages

add_pages()

tasks_columns = "name,uuid,state,result,received,started,runtime,retries,worker"
max_tasks = 50_000


def format_task(task: Any) -> Any:
    """A job's summary in words, for Flower's pages; its API has the fields. Of a failed job, the error."""
    if task.name == RUN_JOB:
        task.result = in_words(task.result) if task.result else task.exception
    return task


def in_words(result: str) -> str:
    """result: Celery's representation of `Summary.as_result`; another one stays as it is."""
    try:
        summary = ast.literal_eval(result)
        return (
            f"waited {summary['waited_seconds']} s, ran {summary['seconds']} s: "
            f"{summary['state']}, {summary['agent']}, {summary['model']}, "
            f"{summary['input_tokens']} + {summary['output_tokens']} tokens, ${summary['cost_usd']}"
        )
    except (ValueError, SyntaxError, TypeError, LookupError):
        return result
