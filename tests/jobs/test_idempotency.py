"""The same key of a tenant is the same job, however often and from how many sides it is asked for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from celeriac.errors import Conflict, KeyReused
from celeriac.jobs.store import new_id
from tests.jobs.conftest import Queue


async def test_the_same_key_and_request_are_the_same_job(queue: Queue) -> None:
    """Whatever has become of it; nothing is stored for the second request."""
    await queue.worker()
    first = await queue.submit(idempotency_key="k", fingerprint="f")
    assert first.known is False
    for _ in range(2):
        again = await queue.submit(idempotency_key="k", fingerprint="f")
        assert (again.id, again.known, again.created_at) == (first.id, True, first.created_at)
        if queue.record(first)["place"] == "rung":
            await queue.finish(await queue.claim(first))
    assert len((await queue.jobs.list("default")).jobs) == 1


async def test_the_same_key_for_another_request_is_refused(queue: Queue) -> None:
    """It says which job the key stands for, and stores nothing."""
    first = await queue.submit(idempotency_key="k", fingerprint="f")
    before = queue.everything()
    with pytest.raises(KeyReused, match=first.id):
        await queue.submit(idempotency_key="k", fingerprint="other")
    assert queue.everything() == before


async def test_a_key_belongs_to_its_tenant(queue: Queue) -> None:
    """Two tenants may choose alike, and neither learns of the other."""
    first = await queue.submit(idempotency_key="k", fingerprint="f")
    other = await queue.submit(idempotency_key="k", fingerprint="g", tenant="acme")
    assert (other.known, other.id == first.id) == (False, False)


async def test_many_at_once_with_one_key_are_one_job(queue: Queue) -> None:
    """One of them makes it, the others are told of it."""
    answers = await asyncio.gather(*(queue.submit(idempotency_key="k", fingerprint="f") for _ in range(20)))
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.known for answer in answers) == 1
    assert len((await queue.jobs.list("default")).jobs) == 1


async def test_a_request_sent_again_by_the_client_of_the_store_is_new_both_times(queue: Queue) -> None:
    """The answer of the first was lost on the way: whoever made the job is not told that it was there before."""
    id = new_id()
    for _ in range(2):
        accepted = await queue.submit(id=id, idempotency_key="k", fingerprint="f")
        assert (accepted.id, accepted.known) == (id, False)


async def test_a_key_lives_a_day_even_if_results_do_not(queue: Queue) -> None:
    """It was written by submit, and its job's record lives as long: else the key would stand for nothing."""
    queue.jobs._keep = queue.jobs._keep | {"result": 3_600_000}
    await queue.worker()
    short, keyed = await queue.submit(), await queue.submit(idempotency_key="k", fingerprint="f")
    assert queue.redis.keys("celeriac:idempotency:*") != []
    queue.later(7_200_000)
    for job in (short, keyed):
        await queue.beat()
        await queue.finish(await queue.claim(job))
    (key,) = queue.redis.keys("celeriac:idempotency:*")
    day = 86_400_000
    assert queue.redis.pttl(f"celeriac:job:{short.id}") <= 3_600_000
    for name in (key, f"celeriac:job:{keyed.id}"):
        assert day - 7_200_000 - 10_000 < queue.redis.pttl(name) <= day - 7_200_000


async def test_a_key_lives_as_long_as_its_job(queue: Queue) -> None:
    """However long that waits, and however long its result is kept."""
    queue.jobs._keep = queue.jobs._keep | {"result": 7 * 86_400_000}
    await queue.worker()
    job = await queue.submit(idempotency_key="k", fingerprint="f")
    (key,) = queue.redis.keys("celeriac:idempotency:*")
    assert queue.redis.ttl(key) == -1
    await queue.finish(await queue.claim(job))
    assert queue.redis.pttl(key) > 6 * 86_400_000


async def test_a_key_whose_job_is_forgotten_is_free_again(queue: Queue) -> None:
    """A record that went with a lost history does not block its key for ever."""
    job = await queue.submit(idempotency_key="k", fingerprint="f")
    queue.redis.delete(f"celeriac:job:{job.id}")
    queue.planted = True
    assert (await queue.submit(idempotency_key="k", fingerprint="g")).known is False


async def test_a_request_that_was_refused_uses_up_no_key(queue: Queue) -> None:
    """The caller may try again when the context is free."""
    first = await queue.submit(context_id="c")
    with pytest.raises(Conflict):
        await queue.submit(context_id="c", if_busy="reject", idempotency_key="k", fingerprint="f")
    await queue.jobs.cancel(first.id, None)
    assert (await queue.submit(context_id="c", if_busy="reject", idempotency_key="k", fingerprint="f")).known is False


async def test_a_callers_words_do_not_become_part_of_a_key(queue: Queue) -> None:
    """A key may hold colons, spaces and megabytes."""
    for key in ("a:b", "a b\n", "x" * 100_000):
        assert (await queue.submit(idempotency_key=key, fingerprint="f")).known is False
    assert {len(key) for key in queue.redis.keys("celeriac:idempotency:*")} == {
        len("celeriac:idempotency:default:") + 32
    }


async def test_the_deadline_of_a_repetition_changes_nothing(queue: Queue) -> None:
    """The job is the first one's."""
    first = await queue.submit(idempotency_key="k", fingerprint="f")
    await queue.submit(idempotency_key="k", fingerprint="f", expires_in=timedelta(seconds=5))
    assert (await queue.job(first)).deadline is None
