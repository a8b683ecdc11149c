"""What an async task may rely on. One worker serves all of these tests."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.result import AsyncResult

from tests.processes import wait_until
from tests.worker.conftest import PATIENCE, Standing


def failure_of(result: AsyncResult[Any]) -> str:
    return type(result.get(timeout=PATIENCE, propagate=False)).__name__


def pool_stats(standing: Standing) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        answer = standing.celery.control.inspect([standing.worker.name], timeout=2).stats()
        return dict(answer[standing.worker.name]["pool"]) if answer else {}

    return wait_until(ask, "stats")


def test_an_async_body_is_awaited(standing: Standing) -> None:
    """The result is what the coroutine returned."""
    assert standing.call("add", 2, 3) == 5


def test_the_request_is_known_everywhere_inside_a_task(standing: Standing) -> None:
    """In the body, after an await, in child tasks and in threads."""
    result = standing.send("who_am_i")
    assert result.get(timeout=PATIENCE) == [result.id] * 5 + ["pool_app.who_am_i"]


def test_a_task_retries_itself(standing: Standing) -> None:
    assert standing.call("retry_twice") == 2


def test_autoretry_sees_the_errors_of_a_coroutine(standing: Standing) -> None:
    assert standing.call("autoretried") == 2


def test_pydantic_models_go_in_and_out(standing: Standing) -> None:
    assert standing.call("double", {"item": "tea", "count": 2}) == {"item": "tea", "count": 4}


def test_ignore_stores_nothing(standing: Standing) -> None:
    result = standing.send("ignored")
    standing.marked("ignored")
    standing.call("add", 1, 1)
    assert result.state == "PENDING"


def test_reject_ends_the_task(standing: Standing) -> None:
    assert failure_of(standing.send("rejected")) == "Reject"


def test_an_error_of_the_body_is_the_tasks_failure(standing: Standing) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        standing.call("fails")


def test_what_ended_is_let_go_without_garbage_collection(standing: Standing) -> None:
    """A failure's account alone is 60 KB, and a queue of agent jobs retries often."""
    standing.call("collect", False)
    try:
        for _ in range(10):
            standing.call("add", 1, 1)
            failure_of(standing.send("fails"))
            failure_of(standing.send("rejected"))
            standing.call("retry_twice")
        # Ten of each kind, and the last few may be on their way out at this moment.
        assert standing.call("collect", False) < 8
    finally:
        standing.call("collect", True)


def test_a_countdown_delays_an_async_task(standing: Standing) -> None:
    began = time.monotonic()
    assert standing.call("add", 1, 2, countdown=1) == 3
    assert time.monotonic() - began > 0.9


def test_an_ignored_result_is_not_stored(standing: Standing) -> None:
    result = standing.send("unstored")
    standing.marked("unstored")
    standing.call("add", 1, 1)
    assert standing.valkey.client().get(f"celery-task-meta-{result.id}") is None


@pytest.mark.parametrize(
    ("task", "args", "outcome"), [("paints", ["red"], "task_success"), ("fails", [], "task_failure")]
)
def test_the_signals_of_a_task_are_sent(standing: Standing, task: str, args: list[str], outcome: str) -> None:
    result = standing.send(task, *args)
    assert standing.marked(f"signals:{result.id}", 3) == ["task_prerun", outcome, "task_postrun"]


def test_an_async_task_applies_another_within_itself(standing: Standing) -> None:
    """`.apply()` inside a body does not need a second event loop."""
    assert standing.call("nests", 5) == 7


def test_an_async_task_enqueues_another(standing: Standing) -> None:
    assert AsyncResult(standing.call("delegates"), app=standing.celery).get(timeout=PATIENCE) == 5


def test_a_task_reports_its_progress(standing: Standing) -> None:
    assert standing.call("reports") == "done"
    assert standing.marks("reports") == ["HALFWAY"]


def test_the_events_of_a_task_arrive_in_order(standing: Standing) -> None:
    """Received, started, succeeded: what Flower shows."""
    seen: list[str] = []
    sent: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if not sent:  # the worker's heartbeat: we are listening
            sent.append(standing.send("add", 1, 1).id)
        elif event.get("uuid") == sent[0]:
            seen.append(event["type"])
            receiver.should_stop = event["type"] == "task-succeeded"

    with standing.celery.connection_for_read() as connection:
        receiver = standing.celery.events.Receiver(connection, handlers={"*": note})
        receiver.capture(limit=None, timeout=PATIENCE, wakeup=False)
    assert seen == ["task-received", "task-started", "task-succeeded"]


def test_a_soft_limit_is_raised_where_the_body_waits(standing: Standing) -> None:
    """The body may catch it, clean up with further awaits and succeed."""
    assert standing.call("soft_caught") == "cleaned up"


def test_a_soft_limit_that_is_not_caught_fails_the_task(standing: Standing) -> None:
    """Child tasks are ended too, and a caller knows the error by Celery's own name."""
    result = standing.send("soft_group")
    assert failure_of(result) == "SoftTimeLimitExceeded"
    assert standing.marks("soft_group") == ["child ended", "child ended"]


def test_a_hard_limit_cancels_the_coroutine(standing: Standing) -> None:
    result = standing.send("hard")
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert standing.marked(f"cancelled:{result.id}")


def test_a_body_that_ignores_its_hard_limit_does_not_succeed(standing: Standing) -> None:
    result = standing.send("hard_and_stubborn")
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert standing.marked(f"stubborn:{result.id}")
    standing.call("add", 1, 1)
    assert AsyncResult(result.id, app=standing.celery).state == "FAILURE"


def test_revoke_cancels_the_coroutine(standing: Standing) -> None:
    result = standing.send("waits", "revoke")
    standing.marked("revoke:began")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    assert standing.marked("revoke:cancelled") == [result.id]


def test_a_body_cancelled_by_its_own_code_fails(standing: Standing) -> None:
    """It is not mistaken for a revocation, which would leave the caller waiting."""
    assert failure_of(standing.send("cancels_itself")) == "CancelledError"


def test_a_task_that_exits_fails_alone(standing: Standing) -> None:
    """`sys.exit` in a body does not end the worker with all its other tasks."""
    assert failure_of(standing.send("exits")) == "WorkerLostError"
    assert standing.call("add", 1, 1) == 2


def test_context_variables_belong_to_one_task(standing: Standing) -> None:
    results = [standing.send("paints", colour) for colour in ("red", "blue", "green")]
    answers = [result.get(timeout=PATIENCE) for result in results]
    assert answers == [["none", "red"], ["none", "blue"], ["none", "green"]]


def test_a_def_task_does_not_stop_the_loop(standing: Standing) -> None:
    """It runs in a thread, with its own request, while async tasks go on."""
    slow = standing.send("blocks_a_thread", "thread")
    standing.marked("thread:began")
    assert standing.call("add", 1, 1) == 2
    assert not slow.ready()
    standing.tell("thread")
    assert slow.get(timeout=PATIENCE) == slow.id


def test_writing_a_result_does_not_stop_the_loop(standing: Standing) -> None:
    """The result backend's I/O runs in threads: a write of a second leaves the loop alone."""
    lag = standing.send("worst_lag", "lag")
    standing.marked("lag:began")
    for result in [standing.send("stored_slowly") for _ in range(3)]:
        assert result.get(timeout=PATIENCE)
    standing.tell("lag")
    assert lag.get(timeout=PATIENCE) < 0.5


def test_a_task_that_blocks_the_loop_is_named(standing: Standing) -> None:
    """Once a stall, with its id and the line that blocks; stats count it, as each that is logged, and give the lag."""
    result = standing.send("blocks", 2.0)
    result.get(timeout=PATIENCE)
    log = standing.worker.logged(f"task pool_app.blocks[{result.id}]")
    assert log.count(f"by task pool_app.blocks[{result.id}]") == 1
    assert "time.sleep(seconds)" in log

    def logged() -> int:
        return standing.worker.output().count("The event loop has been blocked for")

    # Not once alone: a busy machine may stop the worker, too, and between two looks.
    wait_until(lambda: logged() == pool_stats(standing)["stalls"], "as many to be counted as are logged")
    assert pool_stats(standing)["max-concurrency"] == 20
    wait_until(lambda: pool_stats(standing)["loop-lag"] < 0.5, "the lag to be over")


def test_tasks_that_the_loop_has_not_begun_with_are_counted_as_waiting(standing: Standing) -> None:
    """Handed to a loop that is busy with another: they were taken from the broker, and nobody has heard of them yet."""
    blocking = standing.send("blocks_until_told", "blocking")
    standing.marked("blocking:began")
    waiting = [standing.send("add", 1, n) for n in range(3)]
    wait_until(lambda: pool_stats(standing)["waiting"] == 3, "three to wait", 20)
    standing.tell("blocking")
    assert [result.get(timeout=PATIENCE) for result in waiting] == [1, 2, 3]
    blocking.get(timeout=PATIENCE)
    assert pool_stats(standing)["waiting"] == 0
