"""Calls in doubt: listed whether or not their jobs are known, and resolved once, in all sums, by whoever found out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.exceptions import ResponseError

from celeriac.accounts import receipt
from celeriac.costs.audit import PAGE
from celeriac.costs.books import COLUMNS
from celeriac.costs.doubts import InDoubt, Outcome
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import check_sums
from celeriac.errors import Conflict, Invalid, NotFound
from celeriac.jobs.journal import Admitted, Full, Settlement
from celeriac.jobs.model import Claim, Parent, Place
from tests.jobs.conftest import Queue
from tests.jobs.explained import Look, faults
from tests.jobs.test_budgets import Buyers

#: How long the ledger's entries are kept, in ms.
KEPT = timedelta(days=45) // timedelta(milliseconds=1)


class Doubters(Buyers):
    """Jobs with calls that may have been billed, and somebody who finds out."""

    async def doubt(self, claim: Claim, bound: int, name: str = "", **facts: Any) -> str:
        said = await self.ask(claim, bound, name=name)
        assert isinstance(said, Admitted), said
        await self.queue.stores.journal.settle(claim, Settlement(self.name, "doubt", bound, 0, facts, None, ""))
        return self.name

    async def resolve(self, claim: Claim, call: str, outcome: Outcome, note: str = "") -> bool:
        resolved = await self.queue.stores.doubts.resolve(claim.id, call, outcome, "cli:ann", note)
        return not resolved.again

    async def listed(self, **facts: Any) -> list[str]:
        return [one.call for one in await self.queue.stores.doubts.list(**facts)]

    def forget(self, claim: Claim) -> None:
        """Its record has aged out, with what is as old."""
        self.queue.planted = True
        names = list(self.queue.redis.scan_iter(f"celeriac:*:{claim.id}"))
        self.queue.redis.delete(*[name for name in names if not name.startswith("celeriac:resolved")])

    def entries(self, claim: Claim) -> list[dict[str, str]]:
        """Of the ledger."""
        name = f"celeriac:ledger:{self.queue.now // 86_400_000}"
        return [entry for _, entry in self.queue.redis.xrange(name) if entry["job"] == claim.id]

    def usage(self) -> tuple[int, int, int]:
        """Calls, errors and cost, of all series."""
        sums = [text.split() for text in self.queue.redis.hvals("celeriac:usage")]
        calls, errors, cost = (
            sum(int(row[COLUMNS.index(name)]) for row in sums) for name in ("calls", "errors", "cost")
        )
        return calls, errors, cost

    def sums(self, claim: Claim, below: str = "") -> tuple[int, int, int]:
        """Settled, in doubt, and how often they were changed."""
        record = self.queue.record(claim)
        return int(record.get(f"{below}cost", 0)), int(record.get(f"{below}in_doubt", 0)), int(record["revision"])


@pytest.fixture
async def buyers(queue: Queue) -> Doubters:
    queue.later(1_800_000_000_000)
    await queue.worker(slots=50)
    return Doubters(queue)


async def child_of(buyers: Doubters, above: Claim) -> Claim:
    parent = Parent(above.id, above.worker, above.nonce, 9, ((above.id, None), *above.ancestors), ())
    return await buyers.queue.claim(await buyers.queue.submit(tenant=above.tenant, parent=parent))


@pytest.mark.parametrize(("outcome", "cost"), [(70, 70), (0, 0), (100, 100), (130, 130), ("released", 0)])
async def test_what_somebody_found_out_takes_the_place_of_the_doubt(
    buyers: Doubters, outcome: Outcome, cost: int
) -> None:
    """In the sums of the job and of all that it works for, of its scopes and windows, in the ledger, the usage and the
    receipt; whatever the amount, it is the truth."""
    await buyers.caps("all", hour=1000, ever=1000)
    above = await buyers.job()
    job = await child_of(buyers, above)
    call = await buyers.doubt(job, 100, lane="openai/gpt-5.4-mini", request_id="req_1")
    calls, errors, _ = buyers.usage()
    (_, _, revision), (_, in_doubt, revision_above) = buyers.sums(job), buyers.sums(above, "below_")
    assert in_doubt == 100
    assert await buyers.resolve(job, call, outcome)
    for window in ("hour", "ever"):
        assert await buyers.used("all", window) == (cost, 0, 0)
    assert buyers.sums(job) == (cost, 0, revision + 1)
    assert buyers.sums(above, "below_") == (cost, 0, revision_above + 1)
    assert buyers.usage() == (calls, errors, cost)
    last = buyers.entries(job)[-1]
    stands = "released" if outcome == "released" else "settled"
    assert (last["stands"], last["nanos"], last["in_doubt"]) == (stands, str(cost), "-100")
    [shown] = (await buyers.queue.job(job.id, "acme")).calls
    assert (shown.stands, shown.nanos, shown.facts["resolved"]) == (stands, cost, True)
    assert shown.facts.get("overrun", False) is (cost > 100)
    account = await buyers.queue.jobs.account(job.id, "acme")
    assert account is not None
    check_sums(receipt(account, Prices()))
    assert await buyers.listed() == []


@pytest.mark.parametrize("outcome", [70, "released"])
async def test_a_doubt_outlives_the_record_of_its_job(buyers: Doubters, outcome: Outcome) -> None:
    """It is resolved all the same, also in the sums of those for whom the job worked; the ledger says whose it was."""
    await buyers.caps("agent:assistant", ever=1000)
    above = await buyers.job()
    job = await child_of(buyers, above)
    call = await buyers.doubt(job, 100)
    await buyers.queue.finish(job)
    buyers.forget(job)
    cost = 0 if outcome == "released" else 70
    [found] = await buyers.queue.stores.doubts.list()
    assert (found.job, found.tenant, found.agent, found.bound) == (job.id, "acme", "assistant", 100)
    assert await buyers.resolve(job, call, outcome)
    assert await buyers.used("agent:assistant") == (cost, 0, 0)
    assert buyers.sums(above, "below_")[:2] == (cost, 0)
    assert buyers.usage()[2] == cost
    last = buyers.entries(job)[-1]
    assert (last["tenant"], last["agent"], last["attempt"]) == ("acme", "assistant", "1")
    assert (last["nanos"], last["in_doubt"]) == (str(cost), "-100")
    assert not buyers.queue.redis.exists(f"celeriac:job:{job.id}", f"celeriac:calls:{job.id}")
    assert list(Look(buyers.queue.redis).money()) == []
    assert await buyers.listed() == []
    assert not await buyers.resolve(job, call, outcome)
    with pytest.raises(Conflict, match="was resolved already"):
        await buyers.resolve(job, call, 71)


async def test_an_answer_settles_its_doubt_though_the_job_is_forgotten(buyers: Doubters) -> None:
    """From a worker that was given up too early, and for longer than a record is kept. Once, in all sums."""
    parent = await buyers.job()
    job = await child_of(buyers, parent)
    call = await buyers.doubt(job, 100)
    await buyers.queue.finish(job)
    buyers.forget(job)
    for _ in range(2):
        await buyers.settle(job, call, "settled", 60)
        assert await buyers.listed() == []
        assert buyers.sums(parent, "below_")[:2] == (60, 0)
        assert buyers.queue.redis.hmget("celeriac:used:all", "cost", "in_doubt") == ["60", "0"]
        assert [(e["nanos"], e["in_doubt"]) for e in buyers.entries(job)] == [("0", "100"), ("60", "-100")]
    assert not buyers.queue.record(job), "what has aged out is not made again"
    assert not buyers.queue.redis.exists(f"celeriac:calls:{job.id}")


async def test_what_was_found_out_counts_among_the_dearest_jobs(buyers: Doubters) -> None:
    """As what settles late does."""
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    await buyers.queue.finish(job)
    await buyers.resolve(job, call, 70)
    day = datetime.fromtimestamp(buyers.queue.now / 1000, UTC)
    assert [(one.job, one.nanos) for one in await buyers.queue.stores.dearest.between(day, day, 9)] == [(job.id, 70)]


async def test_a_window_that_is_gone_is_not_made_again(buyers: Doubters) -> None:
    """Its sums are nobody's any more; those that are there are corrected."""
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    [hour] = buyers.queue.redis.scan_iter("celeriac:use:all:hour.*")
    buyers.queue.redis.delete(hour)
    assert await buyers.resolve(job, call, 70)
    assert not buyers.queue.redis.exists(hour)
    [day] = buyers.queue.redis.scan_iter("celeriac:use:all:day.*")
    assert buyers.queue.redis.hmget(day, "cost", "in_doubt") == ["70", "0"]


@pytest.mark.parametrize("gone", [False, True])
async def test_what_was_resolved_stays_so(buyers: Doubters, gone: bool) -> None:
    """The same again changes nothing; something else is refused, and says what was said."""
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    assert await buyers.resolve(job, call, 70)
    await buyers.queue.finish(job)
    if gone:
        buyers.forget(job)
    before = buyers.queue.everything()
    assert not await buyers.resolve(job, call, 70)
    for other in (71, 0, "released"):
        with pytest.raises(Conflict, match=r"billed at \$0\.000000070; that stays"):
            await buyers.resolve(job, call, other)  # type: ignore[arg-type]  # an outcome
    assert buyers.queue.everything() == before


@pytest.mark.parametrize("how", ["settled", "finished", "fenced", "forgotten"])
async def test_an_answer_after_a_resolution_changes_no_book_and_is_told(
    buyers: Doubters, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever brings it: somebody answers for what was said. It is an error where the two differ."""
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    assert await buyers.resolve(job, call, "released")
    if how in {"fenced", "forgotten"}:
        await buyers.queue.finish(job)
    if how == "forgotten":
        buyers.forget(job)
    entries, usage = buyers.entries(job), buyers.usage()
    late = Settlement(call, "settled", 100, 42, {}, None, "")
    if how == "finished":
        await buyers.queue.end(job, settlement=late)
    else:
        await buyers.queue.stores.journal.settle(job, late)
    assert (buyers.entries(job), buyers.usage()) == (entries, usage)
    [said] = [line for line in capsys.readouterr().out.splitlines() if "outcome_after_resolution" in line]
    assert "error" in said
    assert "42" in said
    await buyers.queue.stores.journal.settle(job, Settlement(call, "released", 100, 0, {}, None, ""))
    assert "error" not in capsys.readouterr().out


async def test_only_what_is_in_doubt_is_resolved(buyers: Doubters) -> None:
    """A call that is being made, or whose outcome is known, is nobody's to change; nor is one that nobody knows."""
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 100, name="open"), Admitted)
    await buyers.buy(job, 100, 70, name="paid")
    assert isinstance(await buyers.ask(job, 100, name="free"), Admitted)
    await buyers.settle(job, "free", "released")
    before = buyers.queue.everything()
    for call, why in (("open", "being made"), ("paid", r"cost \$0\.000000070"), ("free", "not billed")):
        with pytest.raises(Conflict, match=why):
            await buyers.resolve(job, call, 70)
    with pytest.raises(NotFound, match="no call none of job"):
        await buyers.resolve(job, "none", 70)
    assert buyers.queue.everything() == before


@pytest.mark.parametrize("amount", [-1, 1.5, float("nan"), True, None, "70", "settled", 9 * 10**15 + 1])
async def test_what_is_no_amount_is_refused(buyers: Doubters, amount: Any) -> None:
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    with pytest.raises(Invalid, match="whole nano-dollars"):
        await buyers.resolve(job, call, amount)
    with pytest.raises(Invalid, match="a note is a line"):
        await buyers.resolve(job, call, 1, "two\nlines")
    assert await buyers.listed() == [call]


async def test_more_than_could_be_is_an_overrun_and_counts_for_the_alerts(
    buyers: Doubters, capsys: pytest.CaptureFixture[str]
) -> None:
    await buyers.caps("all", ever=1000)
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    assert await buyers.queue.stores.alerts.list() == []
    assert (await buyers.queue.stores.doubts.resolve(job.id, call, 600, "cli:ann")).overrun
    assert "call_over_its_bound" in capsys.readouterr().out
    assert [alert.use for alert in await buyers.queue.stores.alerts.list()] == [600]


async def test_who_waits_for_money_goes_on_by_a_resolution(buyers: Doubters) -> None:
    """As by any outcome: as far as there is room now."""
    await buyers.caps("all", ever=100)
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    waiting = [await buyers.job() for _ in range(2)]
    for other in waiting:
        full = await buyers.ask(other, 40)
        assert isinstance(full, Full)
        await buyers.waits(other, full)
    await buyers.queue.fleet.upkeep()
    assert [await buyers.place(other) for other in waiting] == [Place.PARKED] * 2
    assert await buyers.resolve(job, call, 50)
    assert [await buyers.place(other) for other in waiting] == [Place.READY, Place.PARKED]
    await buyers.queue.fleet.upkeep()
    assert await buyers.place(waiting[0]) == Place.RUNG


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("planted", ["doubts", "doubt_calls", "resolved", "ledger", "usage", "used", "use", "alerts"])
async def test_a_key_of_the_wrong_type_does_not_keep_the_truth_out(buyers: Doubters, planted: str, gone: bool) -> None:
    """What cannot be written is left or made anew; the other sums are corrected. A list that is lost loses with it the
    calls whose jobs are forgotten."""
    queue = buyers.queue
    above = await buyers.job()
    job = await child_of(buyers, above)
    call = await buyers.doubt(job, 100)
    [use] = queue.redis.scan_iter("celeriac:use:all:hour.*")
    names = {
        "resolved": f"celeriac:resolved:{job.id}:{call}",
        "ledger": f"celeriac:ledger:{queue.now // 86_400_000}",
        "used": "celeriac:used:all",
        "use": use,
    }
    await queue.finish(job)
    if gone:
        buyers.forget(job)
    queue.planted = True
    name = names.get(planted, f"celeriac:{planted}")
    queue.redis.delete(name)
    queue.redis.rpush(name, "nonsense")
    if planted == "doubt_calls" and gone:
        with pytest.raises(NotFound):
            await buyers.resolve(job, call, 70)
        return
    assert await buyers.resolve(job, call, 70)
    assert buyers.sums(above, "below_")[:2] == (70, 0)
    assert queue.redis.hmget("celeriac:used:tenant%3Aacme", "cost", "in_doubt") == ["70", "0"]
    if not gone:
        assert buyers.sums(job)[:2] == (70, 0)
    assert not await buyers.resolve(job, call, 70)


async def test_nothing_is_resolved_that_cannot_be_written_down(buyers: Doubters) -> None:
    """Who said so is part of it."""
    job = await buyers.job()
    call = await buyers.doubt(job, 100)
    buyers.queue.redis.rpush("celeriac:changes", "nonsense")
    before = buyers.queue.everything()
    with pytest.raises(ResponseError, match="celeriac:changes"):
        await buyers.resolve(job, call, 70)
    assert buyers.queue.everything() == before
    buyers.queue.redis.delete("celeriac:changes")


async def test_calls_in_doubt_are_listed_by_age_page_by_page(buyers: Doubters) -> None:
    """With what their provider knows them by. Who leaves the list meanwhile makes it pass over nobody."""
    queue, began = buyers.queue, buyers.queue.now
    mine, others = await buyers.job(), await buyers.job("other", "reviewer")
    # More than a page of one moment.
    at_once = [await buyers.doubt(mine, 5, name=f"a{i:03}") for i in range(PAGE + 20)]
    queue.later(60_000)
    await queue.fleet.heartbeat("w1", 50, taking=True)
    facts = {"lane": "openai/gpt-5.4-mini", "error": "timeout", "request_id": "req_1", "digest": "d", "step": 2}
    late = await buyers.doubt(others, 7, **facts)
    await queue.stores.journal.note(others, late, "resp_1")
    assert await buyers.listed(most=1000) == [*at_once, late]
    assert await buyers.listed(tenant="other") == [late]
    assert await buyers.listed(before=datetime.fromtimestamp(began / 1000 + 30, UTC), most=1000) == at_once
    at = datetime.fromtimestamp(queue.now / 1000, UTC)
    assert await queue.stores.doubts.list(tenant="other") == (
        InDoubt(others.id, late, "other", "reviewer", "openai/gpt-5.4-mini", 7, at, 1, 2, "timeout", "req_1", "resp_1"),
    )
    first = await queue.stores.doubts.list(most=150)
    assert await buyers.resolve(mine, at_once[0], 5)
    second = await queue.stores.doubts.list(most=1000, after=first[-1].cursor)
    assert [one.call for one in (*first, *second)] == [*at_once, late]
    with pytest.raises(Invalid, match="is no cursor"):
        await buyers.listed(after="nonsense")
    queue.planted = True
    queue.redis.hset("celeriac:doubt_calls", f"{mine.id} {at_once[1]}", "nonsense")
    assert await buyers.listed(most=1000) == [*at_once[2:], late]


async def test_a_call_in_doubt_leaves_the_list_with_the_entries_of_the_ledger(buyers: Doubters) -> None:
    """By upkeep, whether or not another call comes to be in doubt. More at a time than one look removes."""
    queue, job = buyers.queue, await buyers.job()
    for _ in range(PAGE + 1):
        await buyers.doubt(job, 5)
    queue.later(60_000)
    await queue.fleet.heartbeat("w1", 50, taking=True)
    late = await buyers.doubt(job, 5)
    # The record of a job that is still running would be there too.
    queue.planted = True
    queue.later(KEPT - 30_000)
    await queue.fleet.heartbeat("w1", 50, taking=True)
    for _ in range(2):
        await queue.fleet.upkeep()
    assert await buyers.listed() == [late]
    queue.later(60_000)
    await queue.fleet.heartbeat("w1", 50, taking=True)
    await queue.fleet.upkeep()
    assert await buyers.listed() == []
    assert not queue.redis.exists("celeriac:doubts", "celeriac:doubt_calls")


async def test_a_call_whose_worker_died_is_listed(buyers: Doubters) -> None:
    """Nobody said why it is in doubt."""
    job = await buyers.job()
    assert isinstance(await buyers.ask(job, 100, name="a"), Admitted)
    await buyers.queue.given_up()
    [found] = await buyers.queue.stores.doubts.list()
    assert (found.job, found.call, found.tenant, found.error, found.attempt) == (job.id, "a", "acme", "", 1)


async def test_who_resolved_what_is_kept_with_who_changed_budgets(buyers: Doubters) -> None:
    """Each is shown its own, however many of the others lie between."""
    await buyers.caps("all", ever=10**6)
    job = await buyers.job()
    names = [await buyers.doubt(job, 5) for _ in range(PAGE + 1)]
    for name in names:
        await buyers.resolve(job, name, "released", "not on the invoice")
    await buyers.resolve(job, await buyers.doubt(job, 100), 70, "by its request id")
    newest, before, *rest = await buyers.queue.stores.doubts.changes(1000)
    assert (newest.call, newest.by, newest.bound, newest.outcome) == (buyers.name, "cli:ann", 100, 70)
    assert (before.call, before.bound, before.outcome, before.note) == (names[-1], 5, "released", "not on the invoice")
    assert len(rest) == PAGE
    assert len(await buyers.queue.stores.doubts.changes(2)) == 2
    [budget] = await buyers.queue.stores.budgets.changes(1)
    assert (budget.scope, budget.by) == ("all", "test")
    assert datetime.now(UTC) - newest.at < timedelta(minutes=5)
    assert faults(buyers.queue.redis) == []
