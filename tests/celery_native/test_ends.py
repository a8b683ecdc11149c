"""However a job ends, whoever waits for it in Celery hears of it: nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult

from celeriac.agents.registry import read_agents
from celeriac.agents.runner import Runner
from celeriac.costs.prices import Prices
from celeriac.jobs.model import NewJob
from celeriac.jobs.store import new_id
from celeriac.llm.scripted import Scripted
from celeriac.settings import SHIPPED_AGENTS
from celeriac.stores import Stores
from tests.celery_native.conftest import Home, Town, get
from tests.processes import wait_until

Done = Callable[[Home, AsyncResult[object]], None]


def nothing(home: Home, result: AsyncResult[object]) -> None:
    """Its time runs out."""


ENDS = pytest.mark.parametrize(
    ("facts", "done", "why"),
    [({}, Home.revoke, "cancelled"), ({}, Home.cancel, "cancelled"), ({"expires_in": 3}, nothing, "expired")],
    ids=["revoked", "cancelled", "expired"],
)


@pytest.fixture
def held(home: Home) -> Iterator[AsyncResult[object]]:
    """A job that holds the context `held` until the test is over; others of that context are queued behind it."""
    home.scripted({"hang": True})
    holder = home.ask("Take your time.", context_id="held").apply_async()
    home.stored(holder, "running")
    wait_until(lambda: home.in_flight() == 1, "its call")
    yield holder
    home.revoke(holder)
    wait_until(lambda: home.record(holder)["place"] == "ended", "the context to be free")


def end(home: Home, result: AsyncResult[object], done: Done) -> None:
    """Once it is queued; it may have run out of its time by then."""
    home.stored(result, "" if done is nothing else "behind")
    done(home, result)


@ENDS
def test_a_job_that_ends_while_it_is_queued_is_revoked_to_celery(
    home: Home, held: AsyncResult[object], facts: dict[str, object], done: Done, why: str
) -> None:
    """No worker ran it, and its result is there all the same."""
    result = home.ask(context_id="held", **facts).apply_async()
    end(home, result, done)
    # A stock worker that hears of a revocation says so itself, before we do.
    with pytest.raises(TaskRevokedError, match=f"{why}|revoked"):
        get(result)
    wait_until(lambda: result.id not in home.untold(), "the end to be told")


@ENDS
def test_a_chord_hears_of_a_member_that_ended_while_it_was_queued(
    home: Home, held: AsyncResult[object], facts: dict[str, object], done: Done, why: str
) -> None:
    """It fails, its body is not called and the errbacks of the body are."""
    header = [home.ask(str(i)) for i in range(4)] + [home.ask(context_id="held", **facts)]
    about = f"chord {why} {done.__name__}"
    body = chord(header, home.tell(about).on_error(home.tell(f"error of {about}")), app=home.client).apply_async()
    end(home, body.parent.results[4], done)
    with pytest.raises(ChordError, match=why):
        get(body)
    assert home.notes(f"error of {about}") == [body.id]
    assert home.valkey.client().llen(f"shop:notes:{about}") == 0


@ENDS
def test_a_chain_hears_of_a_job_that_ended_while_it_was_queued(
    home: Home, held: AsyncResult[object], facts: dict[str, object], done: Done, why: str
) -> None:
    """Whoever waits for its last task alone is told too. (Celery's own revoke leaves that out.)"""
    last = chain(home.ask(context_id="held", **facts), home.ask(), home.tell("never"), app=home.client).apply_async()
    first = last.parent.parent
    end(home, first, done)
    with pytest.raises(TaskRevokedError, match=why):
        get(last)


def test_a_job_that_fails_fails_the_chain_and_the_chord_around_it(home: Home) -> None:
    """With its own error."""
    home.always(status=400)
    last = chain(home.ask(), home.ask(), app=home.client).apply_async()
    with pytest.raises(Exception, match=r"^bad_request"):
        get(last)
    body = chord([home.ask(), home.ask()], home.tell("never"), app=home.client).apply_async()
    with pytest.raises(ChordError, match="bad_request"):
        get(body)


def test_a_job_that_is_tried_again_is_in_retry_and_then_has_its_result(home: Home) -> None:
    """Parked it holds no slot; Celery's backend says RETRY and why."""
    home.always(status=429, headers={"Retry-After": "2"})
    result = home.ask().apply_async()
    wait_until(lambda: home.state(result) == "RETRY" and home.record(result)["place"] == "parked", "the retry")
    assert "rate_limited" in str(home.client.AsyncResult(result.id).info)
    home.always(text="Paris")
    assert get(result)["state"] == "succeeded"


def test_the_end_is_told_by_another_worker_where_the_first_died_before_telling(town: Town) -> None:
    """kill -9 between the job's end and Celery's result: it is not run again, and its callback is called."""
    town.shop()
    dying = town.dying_worker("ended")
    town.always(text="Paris")
    result = town.ask().apply_async(link=town.tell("dying"))
    assert dying.wait() == -9
    assert (town.record(result)["state"], town.state(result)) == ("succeeded", "PENDING")
    assert town.valkey.client().ttl(f"celeriac:job:{result.id}") == -1, "it is kept until it was told"
    town.worker(CELERIAC_JOBS__LEASE="5")
    summary = get(result)
    assert summary["job_id"] == result.id
    assert town.notes("dying") == [summary]
    assert town.bill()["calls"] == 1
    wait_until(lambda: town.untold() == [], "the end to be told")
    assert town.valkey.client().ttl(f"celeriac:job:{result.id}") > 0


def test_a_chord_ends_where_a_worker_died_before_telling(town: Town) -> None:
    """One member had ended and was not told, the others were running: all come to the body, each once."""
    town.shop()
    dying = town.dying_worker("ended", CELERIAC_JOBS__LEASE="5")
    town.scripted({"delay": 5, "text": "Paris"}, *({"hang": True} for _ in range(4)))
    body = chord([town.ask(str(i)) for i in range(5)], town.tell("body"), app=town.client).apply_async()
    assert dying.wait() == -9
    assert [town.record(member)["place"] for member in body.parent.results].count("ended") == 1
    town.worker(CELERIAC_JOBS__LEASE="5")
    summaries = get(body)
    assert [summary["job_id"] for summary in summaries] == [member.id for member in body.parent.results]
    assert town.notes("body") == [summaries]


@pytest.mark.parametrize("readable", [True, False])
def test_a_chord_ends_where_a_worker_died_calling_its_body(town: Town, readable: bool) -> None:
    """Celery lets nobody else call it for 17 seconds here: the end that completes it is told again after that. Nobody
    takes it for a failure where that cannot be seen for a moment.
    """
    town.shop()
    dying = town.dying_worker("claimed")
    body = chord(
        [town.ask().on_error(town.tell("failed")) for _ in range(2)],
        town.tell("claimed").set(retry_policy={"max_retries": 2}),
        app=town.client,
    ).apply_async()
    assert dying.wait() == -9
    client, claim = town.valkey.client(), f"celery-taskset-meta-{body.parent.id}.c"
    assert (client.llen("shop:notes:claimed"), client.exists(claim)) == (0, 1)
    if not readable:
        client.delete(claim)
        client.rpush(claim, "nonsense")
    worker = town.worker(CELERIAC_JOBS__LEASE="5")
    if not readable:
        wait_until(lambda: "chord_not_looked_at" in worker.output(), "the telling to be put off")
        client.delete(claim)
    summaries = get(body)
    assert [summary["job_id"] for summary in summaries] == [member.id for member in body.parent.results]
    assert town.notes("claimed") == [summaries]
    assert client.llen("shop:notes:failed") == 0
    wait_until(lambda: town.untold() == [], "the end to be told")


def test_what_was_told_and_not_noted_is_told_again(town: Town) -> None:
    """kill -9 after the result was written: at least once, so a callback may come twice. The result stays the same."""
    town.shop()
    dying = town.dying_worker("written")
    result = town.ask().apply_async(link=town.tell("twice"))
    assert dying.wait() == -9
    summary = get(result)
    assert town.untold() == [result.id]
    town.worker(CELERIAC_JOBS__LEASE="5")
    assert [note["job_id"] for note in town.notes("twice", at_least=2)] == [result.id] * 2
    assert get(result) == summary
    wait_until(lambda: town.untold() == [], "the end to be told")


def test_ends_without_a_worker_are_told_when_there_is_one(town: Town) -> None:
    """Cancelled while no worker was up: nobody could be rung for."""
    worker = town.worker()
    results = [town.ask(run_at=str(datetime.now(UTC) + timedelta(hours=1))).apply_async() for _ in range(3)]
    for result in results:
        town.stored(result, "parked")
    worker.stop()
    for result in results:
        town.cancel(result)
    assert {town.state(result) for result in results} == {"PENDING"}
    town.worker()
    for result in results:
        with pytest.raises(TaskRevokedError, match="cancelled"):
            get(result)


def test_a_chord_waits_longer_than_its_caller_would_have_kept_it(town: Town) -> None:
    """The caller's own Celery would forget a chord after a minute here; its members may be parked for a week."""
    town.worker()
    town.client.conf.result_chord_expires = 60
    header = [town.ask(run_at=str(datetime.now(UTC) + timedelta(hours=1))) for _ in range(2)]
    body = chord(header, town.tell("late"), app=town.client).apply_async()
    wait_until(lambda: kept_for(town, body) > timedelta(days=7) - timedelta(minutes=1), "the chord to be kept")


def test_a_chord_waits_anew_each_time_that_a_member_is_parked(town: Town) -> None:
    """It may take longer than CHORD_TTL, as long as no single wait does."""
    town.worker(CELERIAC_JOBS__CHORD_TTL="100")
    town.shop()
    town.always(status=429, headers={"Retry-After": "2"})
    body = chord([town.ask(), town.ask()], town.tell("anew"), app=town.client).apply_async()
    for member in body.parent.results:
        town.stored(member, "parked")
    for part in parts_of(town, body):
        town.valkey.client().expire(part, 60)
    wait_until(lambda: kept_for(town, body) > timedelta(seconds=60), "the chord to be kept for another wait")
    town.always(text="Paris")
    assert len(get(body)) == 2


def parts_of(town: Town, body: AsyncResult[object]) -> list[str]:
    """The keys of what Celery remembers of the chord, of which there are some from the beginning."""
    return town.valkey.client().keys(f"celery-taskset-meta-{body.parent.id}.*")


def kept_for(town: Town, body: AsyncResult[object]) -> timedelta:
    """The least time for which any of them is kept yet."""
    return timedelta(seconds=min(town.valkey.client().ttl(part) for part in parts_of(town, body)))


def test_a_member_that_would_wait_longer_than_its_chord_is_refused(town: Town) -> None:
    """At submission, and at a retry, where it fails instead. Alone it may wait."""
    town.worker(CELERIAC_JOBS__CHORD_TTL="30")
    town.shop()
    late = {"run_at": str(datetime.now(UTC) + timedelta(minutes=2))}
    with pytest.raises(Exception, match="run_at: a chord waits for this job, and no longer than 0:00:30"):
        get(chord([town.ask(), town.ask(**late)], town.tell("never"), app=town.client).apply_async())
    town.stored(town.ask(**late).apply_async(), "parked")
    town.always(status=429, headers={"Retry-After": "120"})
    with pytest.raises(ChordError, match="rate_limited"):
        get(chord([town.ask(), town.ask()], town.tell("never"), app=town.client).apply_async())
    town.stored(town.ask().apply_async(), "parked")


async def test_a_bell_for_a_worker_that_the_store_gave_up_is_no_end(stores: Stores) -> None:
    """Somebody else has the job, or will: a failure under its id would be a lie."""
    job = NewJob(id=new_id(), tenant="default", agent="assistant", queue="celeriac", input=(("user", "hi"),))
    await stores.jobs.submit(job)
    runner = Runner(stores, read_agents(SHIPPED_AGENTS), Scripted("Paris"), Prices())
    runner.worker = "given-up"
    assert await runner.run(job.id) is None


def test_a_fault_of_ours_is_no_end(town: Town) -> None:
    """Celery is told nothing, and the job is run again."""
    worker = town.worker(CELERIAC_JOBS__LEASE="5")
    town.scripted({"delay": 2})
    result, client = town.ask().apply_async(), town.valkey.client()
    calls = f"celeriac:calls:{result.id}"
    wait_until(lambda: client.exists(calls), "the call to be booked")
    client.rename(calls, "kept")
    client.set(calls, "no hash")
    wait_until(lambda: "run_broken_off" in worker.output(), "the run to break off")
    assert town.state(result) == "PENDING"
    client.rename("kept", calls)
    assert get(result)["state"] == "succeeded"
