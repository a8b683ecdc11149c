"""The drill can fail: each promise that a history breaks is found, and a history that breaks none is clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celeriac.drill.history import (
    KINDS,
    Billed,
    Call,
    Fault,
    History,
    Post,
    Rewind,
    Seen,
    billed_of,
    recoveries,
    seen_of,
    violations,
)
from celeriac.drill.leftovers import StoredKey
from celeriac.drill.report import result_of, table
from celeriac.jobs.model import State

JOBS = range(1, 5)


def label(number: int) -> str:
    return f"drill-t-{number}"


def job(number: int, **facts: Any) -> Seen:
    seen = Seen(
        id=f"job{number}",
        at=200.0,
        label=label(number),
        state=State.SUCCEEDED,
        created=100.0 + number,
        started=101.0 + number,
        ended=102.0 + number,
        context="talk" if number <= 2 else None,
        answer=f"You said: {label(number)} says hello",
        calls=(Call(f"req{number}", None, False),),
        tokens=(10, 0, 5),
    )
    return replace(seen, **facts)


def billed(number: int, **facts: Any) -> Billed:
    return replace(Billed(f"req{number}", label(number), 101.0 + number, True, (10, 0, 5)), **facts)


def said(number: int) -> list[tuple[str, str]]:
    return [("user", f"{label(number)} says hello"), ("assistant", f"You said: {label(number)} says hello")]


def clean() -> History:
    """Four jobs, two of them in a conversation, and nothing wrong."""
    return History(
        posts=[Post(label(n), 100.0 + n, "accepted", f"job{n}", 202) for n in JOBS],
        seen=[job(n, at=150.0) for n in JOBS],
        final={f"job{n}": job(n) for n in JOBS},
        turns={"talk": [*said(1), *said(2)]},
        billed=[billed(n) for n in JOBS],
        keys=[
            StoredKey("celeriac:seq"),
            StoredKey("celeriac:job:job1", seconds=86000.0),
            StoredKey("celeriac:protocol"),
        ],
    )


def kinds(history: History) -> set[str]:
    return {violation.kind for violation in violations(history)}


def test_a_history_that_breaks_no_promise_is_clean() -> None:
    """No false alarm."""
    assert violations(clean()) == []


def test_an_answer_to_turns_that_were_lost_is_not_missed() -> None:
    """Where the store lost history, a job may say that its turn did not fit any more."""
    assert violations(not_appended(rewound=True)) == []


def lost() -> History:
    history = clean()
    history.final["job3"] = job(3, state=State.RUNNING, ended=None, answer=None, calls=(), tokens=None)
    history.billed = [billed(n) for n in (1, 2, 4)]
    history.seen = [seen for seen in history.seen if seen.id != "job3"]
    return history


def gone() -> History:
    history = clean()
    del history.final["job3"]
    history.billed = [billed(n) for n in (1, 2, 4)]
    return history


def stored_but_not_answered() -> History:
    history = lost()
    history.posts[2] = Post(label(3), 103.0, "maybe", "job3", 503)
    return history


def changed(**facts: Any) -> History:
    history = clean()
    history.final["job3"] = job(3, **facts)
    return history


def doubled() -> History:
    history = clean()
    twin = job(3, id="job5", calls=(Call("req5", None, False),))
    history.posts.append(Post(label(3), 105.0, "accepted", "job5", 202))
    history.final["job5"] = twin
    assert history.billed is not None
    history.billed.append(billed(3, request_id="req5"))
    return history


def wrong_answer() -> History:
    history = clean()
    history.final["job3"] = job(3, answer=f"You said: {label(4)} says hello")
    history.seen = []
    return history


def turns(*numbers: int) -> History:
    history = clean()
    history.turns["talk"] = [message for number in numbers for message in said(number)]
    return history


def not_appended(*, rewound: bool = False) -> History:
    """The second turn of the conversation is missing, and its job says so."""
    history = turns(1)
    history.final["job2"] = job(2, appended=False)
    if rewound:
        history.rewinds = [Rewind(kept_until=99.0, at=99.5)]
        history.noticed = True
    return history


def ended_by_two() -> History:
    history = clean()
    history.said = {"job3": [105.0, 106.0], "job4": [106.0]}
    return history


def half_a_turn() -> History:
    history = clean()
    del history.turns["talk"][-1]
    return history


def calls(*calls: Call, **facts: Any) -> History:
    history = clean()
    history.final["job3"] = job(3, calls=calls, **facts)
    return history


def bill(*lines: Billed) -> History:
    history = clean()
    assert history.billed is not None
    history.billed = [*(line for line in history.billed if line.request_id != "req3"), *lines]
    return history


def stored(*keys: StoredKey) -> History:
    history = clean()
    history.keys = [*(history.keys or ()), *keys]
    return history


def forgotten() -> History:
    history = gone()
    history.rewinds = [Rewind(102.5, 104.5)]
    history.seen = [seen for seen in history.seen if seen.id != "job3"]
    return history


@pytest.mark.parametrize(
    ("kind", "history"),
    [
        ("lost", lost()),
        ("lost", gone()),
        ("lost", stored_but_not_answered()),
        ("twice", changed(state=State.FAILED)),
        ("twice", changed(answer=f"{label(3)} again")),
        ("twice", changed(state=State.RUNNING, ended=None)),
        ("twice", ended_by_two()),
        ("doubled", doubled()),
        ("wrong answer", wrong_answer()),
        ("context", turns(1)),
        ("context", turns(1, 2, 2)),
        ("context", turns(2, 1)),
        ("context", turns(1, 3, 2)),
        ("context", half_a_turn()),
        ("context", not_appended()),
        ("not billed", bill()),
        ("not billed", bill(billed(3, tokens=(11, 0, 5)))),
        ("not billed", bill(billed(3, label=label(4)))),
        ("not booked", bill(billed(3), billed(3, request_id="req9"))),
        ("not booked", bill(billed(3), billed(3, request_id="req9", label="nobody"))),
        ("not booked", calls(Call("req3", "server", False))),
        ("not booked", bill(billed(3), billed(3, request_id="req8"), billed(3, request_id="req9"))),
        ("bought twice", calls(Call("req3", None, False), Call("req9", None, False))),
        ("orphan", stored(StoredKey("celeriac:held:host.1.ab", size=2))),
        ("orphan", stored(StoredKey("celeriac:rung:celeriac"))),
        ("orphan", stored(StoredKey("celeriac:ready:celeriac:1:default"))),
        ("orphan", stored(StoredKey("celeriac:nonsense"))),
        ("orphan", stored(StoredKey("celeriac:busy"))),
        ("orphan", stored(StoredKey("celeriac:untold"))),
        ("orphan", stored(StoredKey("celeriac:dying"))),
        ("orphan", stored(StoredKey("celeriac:full"))),
        ("orphan", stored(StoredKey("celeriac:left:acme"))),
        ("orphan", stored(StoredKey("celeriac:quarantined"))),
        ("orphan", stored(StoredKey("celeriac:jobs:acme:running"))),
        ("orphan", stored(StoredKey("celeriac:job:job3"))),
        ("orphan", stored(StoredKey("celeriac:recount"))),
        ("orphan", stored(StoredKey("celeriac:turns:default:talk"))),
        ("orphan", stored(StoredKey("somebody:elses"))),
        ("orphan", stored(StoredKey("celeriac:worker:host.1.ab", fields={"running": "0"}))),
        (
            "orphan",
            stored(
                StoredKey("celeriac:workers", fields={"host.1.ab": "9.0"}),
                StoredKey("celeriac:worker:host.1.ab", fields={"running": "1", "queues": "celeriac"}),
            ),
        ),
        ("orphan", stored(StoredKey("celeriac:workers", fields={"host.1.ab": "-60.0"}))),
        ("unnoticed", forgotten()),
        ("unexpected", History(unexpected=["the worker spins"])),
    ],
)
def test_a_broken_promise_is_found(kind: str, history: History) -> None:
    """And it is called by its name."""
    assert kind in kinds(history)
    assert all(violation.kind in KINDS for violation in violations(history))


@pytest.mark.parametrize(
    "history",
    [
        calls(Call("req7", "server", True), Call("req3", None, False)),
        stored(
            StoredKey("celeriac"),
            StoredKey("celeriac:workers", fields={"host.1.ab": "9.0"}),
            StoredKey("celeriac:worker:host.1.ab", fields={"running": "0", "queues": "celeriac"}),
            StoredKey("celeriac:turns:default:talk", seconds=86000.0),
            StoredKey("celeriac:jobs:default:succeeded", size=4),
            StoredKey("_kombu.binding.celery.pidbox"),
        ),
    ],
)
def test_what_is_in_order_is_no_violation(history: History) -> None:
    """A call in doubt that nobody billed, and keys with a reason."""
    assert violations(history) == []


def test_a_call_in_doubt_covers_one_billed_call_that_nobody_can_name() -> None:
    """One, not two: the second is money that nobody knows of."""
    history = calls(Call("", "timeout", True), Call("req3", None, False))
    assert history.billed is not None
    history.billed.append(billed(3, request_id="req8", written=False))
    assert violations(history) == []
    history.billed.append(billed(3, request_id="req9", written=False))
    assert kinds(history) == {"not booked"}


def test_a_job_that_may_have_been_accepted_may_be_missing() -> None:
    """Nobody was promised anything."""
    history = gone()
    history.posts[2] = Post(label(3), 103.0, "maybe", "job3", 503)
    history.seen = [seen for seen in history.seen if seen.id != "job3"]
    assert violations(history) == []


def test_what_a_store_lost_with_its_history_is_named_if_a_worker_noticed() -> None:
    """The promises hold within one history of the store; its end must be seen."""
    history = forgotten()
    history.noticed = True
    assert violations(history) == []
    assert history.forgotten() == ["job3"]
    history.posts[2] = replace(history.posts[2], at=99.0)
    assert kinds(history) == {"lost"}, "it was answered before what was kept"


def test_jobs_that_still_run_are_a_reason_for_what_is_held() -> None:
    """They are lost; what they hold is not counted against them again."""
    history = lost()
    history.keys = [StoredKey("celeriac:held:host.1.ab"), StoredKey("celeriac:job:job3")]
    assert kinds(history) == {"lost"}


def test_recovery_lasts_from_the_fault_to_the_end() -> None:
    """Or to the next run, where a second fault hits the job before its end."""
    history = clean()
    assert recoveries(history) == []
    history.faults = [Fault("kill", 103.0, {"job3": 102.5, "job4": 102.5})]
    assert recoveries(history) == [2.0, 3.0]
    history.faults.append(Fault("kill", 104.5, {"job3": 104.0}))
    assert recoveries(history) == [0.5, 1.0, 3.0]
    history.faults[1] = Fault("kill", 104.5, {"job3": 102.5})
    assert recoveries(history) == [2.0, 3.0], "it had not recovered: that is one trouble, and it began with the first"


def test_the_same_end_stored_again_is_one_end() -> None:
    """It was seen before a Redis that was killed had it on disk: only its time differs."""
    assert list(violations(changed(ended=110.0))) == []


def test_an_answer_that_came_late_is_paid_and_bought_again() -> None:
    """Its run had lost the job: it is no second answer of the step, and stands on the bill all the same."""
    late = Call("r", None, in_doubt=False, late=True)
    assert (late.paid, late.answered) == (True, False)


def test_a_job_and_a_bill_are_read_as_they_come() -> None:
    """From the wire into the history."""
    seen = seen_of(
        {
            "id": "x",
            "state": "failed",
            "metadata": {"drill": "drill-t-1"},
            "created_at": "2026-01-01T00:00:00Z",
            "started_at": None,
            "ended_at": "2026-01-01T00:00:01.500Z",
            "context_id": None,
            "answer": None,
            "error": {"code": "overloaded", "message": ""},
            "calls": [{"step": 2, "error": "overloaded", "request_id": "r", "in_doubt": True, "late": False}],
            "usage": {"input_tokens": 1, "cache_read_tokens": 2, "output_tokens": 3},
        },
        at=5.0,
    )
    assert (seen.label, seen.error, seen.tokens, seen.doubts) == ("drill-t-1", "overloaded", (1, 2, 3), 1)
    assert seen.ended is not None
    assert seen.ended - seen.created == 1.5
    line = {"id": "r", "about": "drill-t-1 says hello", "at": 1.0, "written": True}
    assert billed_of({**line, "input": 1, "cache_read": 2, "output": 3}) == Billed(
        "r", "drill-t-1", 1.0, True, (1, 2, 3)
    )


def test_the_report_names_what_is_wrong() -> None:
    """A row for each scenario, the violations below, the same in JSON."""
    good, bad = result_of("calm", clean(), 1.0), result_of("kill-workers", lost(), 2.0, kept="/somewhere")
    text = "\n".join(table([good, bad]))
    assert "kill-workers" in text
    assert "lost: job3: is running" in text
    assert "1 violations" in text
    assert "/somewhere" in text
    assert bad.as_json()["lost"] == 1
    assert good.as_json()["violations"] == []
    assert "nothing lost" in "\n".join(table([good]))
