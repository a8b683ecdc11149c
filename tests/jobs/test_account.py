"""What a receipt is made of, as the store has it: a job, its calls, and those that it asked for, in one moment."""

from __future__ import annotations

import pytest

from celeriac.accounts import receipt
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import check_sums
from celeriac.jobs.journal import Settlement
from celeriac.jobs.model import Account, Claim, JobError, State
from tests.jobs.conftest import Queue
from tests.jobs.test_children import asking, parent, running

PRICES = Prices()


async def account(queue: Queue, job: str) -> Account:
    """As the store has it; its sums are those of its lines, whenever one looks."""
    found = await queue.jobs.account(job, "default")
    assert found is not None
    check_sums(receipt(found, PRICES))
    return found


async def revision(queue: Queue, job: str) -> int:
    return (await account(queue, job)).job.revision


async def is_final(queue: Queue, job: str) -> bool:
    final: bool = receipt(await account(queue, job), PRICES)["final"]
    return final


async def admit(queue: Queue, claim: Claim, call: str = "c1") -> None:
    await queue.stores.journal.admit(claim, call, 100, {})


async def settle(queue: Queue, claim: Claim, stands: str = "settled", call: str = "c1") -> None:
    await queue.stores.journal.settle(claim, Settlement(call, stands, 100, 40, {}))  # type: ignore[arg-type]  # by name


async def test_each_change_of_a_jobs_sums_is_a_revision(queue: Queue) -> None:
    """What is said again changes nothing, and neither does what moves no money."""
    claim = await running(queue)
    assert await revision(queue, claim.id) == 0
    await admit(queue, claim)
    assert await revision(queue, claim.id) == 1
    await settle(queue, claim, "doubt")
    assert await revision(queue, claim.id) == 2
    await settle(queue, claim)
    assert await revision(queue, claim.id) == 3
    await admit(queue, claim)
    await settle(queue, claim)
    await queue.finish(claim)
    assert await revision(queue, claim.id) == 3


async def test_a_change_of_a_childs_sums_is_a_revision_of_all_for_whom_it_works(queue: Queue) -> None:
    """Their receipts show its amounts as those of their children, and have no line of it."""
    top, (asked,) = await asking(queue)
    middle = await queue.claim(asked)
    below = await queue.claim(await queue.submit(parent=parent(middle)))
    await admit(queue, below)
    await settle(queue, below)
    assert [await revision(queue, claim.id) for claim in (top, middle, below)] == [2, 2, 2]
    await admit(queue, middle)
    assert [await revision(queue, claim.id) for claim in (top, middle, below)] == [3, 3, 2]
    made = receipt(await account(queue, top.id), PRICES)
    assert (made["lines"], made["own"]["cost_usd"]) == ([], "0.000000000")
    assert (made["children"]["cost_usd"], made["children"]["reserved_usd"]) == ("0.000000040", "0.000000100")
    (child,) = made["children"]["jobs"]
    assert (child["job_id"], child["cost_usd"], child["children_cost_usd"]) == (
        middle.id, "0.000000000", "0.000000040",
    )  # fmt: skip


async def test_a_receipt_is_final_once_its_call_in_doubt_settles_late(queue: Queue) -> None:
    """The end alone does not do: the call may still turn out to have cost less."""
    claim = await running(queue)
    await admit(queue, claim)
    await queue.end(claim, state=State.FAILED, error=JobError("timeout", "too slow"))
    before = await revision(queue, claim.id)
    assert not await is_final(queue, claim.id)
    await settle(queue, claim)
    assert await is_final(queue, claim.id)
    assert await revision(queue, claim.id) == before + 1
    (line,) = receipt(await account(queue, claim.id), PRICES)["lines"]
    assert (line["late"], line["cost_usd"], line["bound_usd"]) == (True, "0.000000040", "0.000000100")


async def test_a_retried_job_is_not_final_until_it_has_ended_again(queue: Queue) -> None:
    """Its revision goes on from where it was: what it spent before is on the same receipt."""
    claim = await running(queue)
    await admit(queue, claim)
    await settle(queue, claim)
    await queue.end(claim, state=State.FAILED, error=JobError("bad_answer", "no"))
    assert await is_final(queue, claim.id)
    await queue.jobs.replay(claim.id, "default", fresh=True)
    assert (await is_final(queue, claim.id), await revision(queue, claim.id)) == (False, 2)
    again = await queue.claim(claim.id)
    await admit(queue, again, "c2")
    await settle(queue, again, call="c2")
    await queue.finish(again)
    made = receipt(await account(queue, claim.id), PRICES)
    assert (made["final"], made["revision"], made["own"]["cost_usd"]) == (True, 4, "0.000000080")


async def test_a_job_is_not_final_while_one_that_works_for_it_runs(queue: Queue) -> None:
    """At any depth, though no call is under way: it may buy another one, or be about to be told that nobody waits."""
    top, (asked,) = await asking(queue)
    middle = await queue.claim(asked)
    below = await queue.claim(await queue.submit(parent=parent(middle)))
    await queue.jobs.cancel(top.id, None)
    assert not await is_final(queue, top.id)
    await queue.end(middle, state=State.CANCELLED)
    found = await account(queue, top.id)
    assert (found.job.state, found.children[0].at_work) == (State.CANCELLED, True)
    assert not await is_final(queue, top.id)
    await queue.end(below, state=State.CANCELLED)
    assert await is_final(queue, top.id)
    await queue.jobs.replay(below.id, "default")
    assert not await is_final(queue, top.id)


async def test_what_a_forgotten_child_cost_stays_in_the_sums(queue: Queue) -> None:
    """It is named, and nothing else is known of it."""
    top, (asked,) = await asking(queue)
    child = await queue.claim(asked)
    await admit(queue, child)
    await settle(queue, child)
    await queue.finish(child)
    queue.redis.delete(f"celeriac:job:{child.id}", f"celeriac:calls:{child.id}")
    queue.planted = True
    made = receipt(await account(queue, top.id), PRICES)
    assert (made["children"]["cost_usd"], made["children"]["unlisted_cost_usd"]) == ("0.000000040",) * 2
    assert made["children"]["jobs"][0] == made["children"]["jobs"][0] | {"job_id": child.id, "state": None}


@pytest.mark.parametrize("planted", ["wrong type", "makes no sense"])
async def test_a_child_that_cannot_be_read_hides_no_receipt(queue: Queue, planted: str) -> None:
    """It is shown as one that is forgotten, and nothing is called final meanwhile."""
    top, (asked,) = await asking(queue)
    queue.planted = True
    if planted == "wrong type":
        queue.redis.set(f"celeriac:job:{asked.id}", "x")
    else:
        queue.redis.hset(f"celeriac:job:{asked.id}", mapping={"cost": "x"})
    (child,) = (await account(queue, top.id)).children
    assert (child.job, child.at_work) == (None, True)


async def test_there_is_no_account_of_another_tenants_job(queue: Queue) -> None:
    """Nor of one that is not there."""
    accepted = await queue.submit()
    assert await queue.jobs.account(accepted.id, "other") is None
    assert await queue.jobs.account("nobody", None) is None
    assert await queue.jobs.account(accepted.id, None) is not None
