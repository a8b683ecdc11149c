"""Hypothesis drives the scripts in every order, with time under its hand; what must always hold is looked at.

By hand, for longer: `pytest tests/jobs/test_every_order.py --hypothesis-profile=long`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celeriac.connections import unpack
from celeriac.contexts.store import decode_turns, encode_turn
from celeriac.costs.books import Account, counts
from celeriac.costs.budgets import Cap
from celeriac.costs.doubts import Outcome
from celeriac.errors import Conflict, CostLimit, Fenced, Stopped
from celeriac.jobs.journal import Full, Settlement
from celeriac.jobs.model import REPLAYABLE, Asked, Claim, JobError, Parent, Parked, State
from celeriac.jobs.store import new_id
from celeriac.llm.model import Lane, Message
from celeriac.settings import load_settings
from celeriac.stores import open_fleet, open_stores
from tests.conftest import Valkey
from tests.jobs.conftest import CLOCK, Queue
from tests.jobs.explained import Look, faults

QUEUES = ("celeriac", "slow")
#: Ways in which a run ends.
HOW = ("succeeded", "failed", "park", "retry", "children", "approval", "budget", "give_back")
PARKS = frozenset({"park", "retry", "children", "approval", "budget"})
LANE = Lane("openai", "x")
#: Jobs that one may ask for.
MOST = 3
LISTS = (*QUEUES, "celeriac.suspects", "slow.suspects")
LIMITS = {"t:a": 3, "t:*": 6, "a:reviewer": 2}
WHICH = st.integers(0, 1000)


@dataclass(eq=False)
class Process:
    """A worker process. silent: it does not say anything any more, but may go on writing."""

    name: str
    queues: tuple[str, ...]
    slots: int = 3
    silent: bool = False


@dataclass(eq=False)
class Run:
    """What a process believes that it runs. lost: it was seen not to hold the job, and must never hold it again."""

    claim: Claim
    lost: bool = False
    answer: Any = None
    steps: int = 0
    calls: list[str] = field(default_factory=list)


@dataclass
class Call:
    run: Run
    bound: int
    nanos: int = 0
    stands: str = "open"


class Machine(RuleBasedStateMachine):
    """Workers start, fall silent and wake; bells are lost, doubled and late; callers and runs repeat what they said."""

    valkey: Valkey
    bells: dict[str, str]
    ended: Counter[str]  # how often a run ended in each way that still held its job

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.valkey.client().flushall()
        settings = load_settings(redis_url=self.valkey.url)
        stores = open_stores(settings, clock=CLOCK)
        fleet, self.line = open_fleet(settings, stores, name="test", clock=CLOCK)
        self.queue = Queue(stores, fleet, self.valkey.client(), self.bells)
        self.redis, self.jobs_store, self.journal = self.queue.redis, stores.jobs, stores.journal
        self.queue.later(1_800_000_000_000)  # windows begin before, and not before 1970
        self.contexts: dict[str, str | None] = {}  # job -> "tenant:context"
        self.tenants: dict[str, str] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.taken: list[str] = []  # bells that a worker popped and has not answered
        self.processes: list[Process] = []
        self.runs: list[Run] = []
        self.calls: dict[str, Call] = {}
        self.steps: defaultdict[str, list[bytes]] = defaultdict(list)
        self.turns: defaultdict[str, list[str]] = defaultdict(list)
        self.forgotten: set[str] = set()  # contexts that were deleted once
        self.names = 0

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def name(self) -> str:
        self.names += 1
        return f"{self.names}"

    @initialize()
    def the_fleet_starts(self) -> None:
        for queues in (QUEUES, QUEUES, ("celeriac",)):
            self.start(queues)

    def start(self, queues: tuple[str, ...]) -> Process:
        process = Process(f"w{self.name()}", queues)
        templates = {name: self.bells[name] for queue in queues for name in (queue, f"{queue}.suspects")}
        for _ in range(2):
            self.do(self.queue.fleet.register(process.name, queues, process.slots, ["assistant"], templates, LIMITS))
        self.processes.append(process)
        return process

    def alive(self) -> list[Process]:
        return [process for process in self.processes if not process.silent]

    def beat(self, process: Process, *, taking: bool = True) -> None:
        # Who does the upkeep depends on the real clock: here it is a step of its own.
        self.redis.set("celeriac:upkeep", "nobody", px=900)
        try:
            self.do(self.queue.fleet.heartbeat(process.name, process.slots, taking=taking))
        except Fenced:  # given up: it starts anew
            self.processes.remove(process)
            self.start(process.queues)

    def record(self, id: str) -> dict[str, str]:
        return self.redis.hgetall(f"celeriac:job:{id}")

    def mine(self, run: Run) -> bool:
        job = self.record(run.claim.id)
        return (job.get("worker"), job.get("nonce")) == (run.claim.worker, run.claim.nonce)

    def pick(self, things: Any, which: int) -> Any:
        listed = list(things)
        return listed[which % len(listed)] if listed else None

    # Callers.

    @rule(
        tenant=st.sampled_from("ab"),
        agent=st.sampled_from(["assistant", "assistant", "reviewer"]),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(["low", "normal", "high"]),
        context=st.sampled_from([None, None, "x", "y"]),
        key=st.sampled_from([None, None, None, "k"]),
        starts=st.sampled_from([None, None, None, 10, 100]),
        expires=st.sampled_from([None, None, None, 5, 60]),
        twice=st.booleans(),
    )
    def submit(self, tenant: str, context: str | None, key: str | None, twice: bool, **facts: Any) -> None:
        id, starts, expires = new_id(), facts.pop("starts"), facts.pop("expires")
        if starts and expires and expires <= starts:
            expires = None  # it would be refused
        facts |= {
            "id": id,
            "tenant": tenant,
            "context_id": context,
            "idempotency_key": key,
            "limited": facts["agent"] == "reviewer",
            "run_at": starts and datetime.fromtimestamp(self.queue.now / 1000 + starts, UTC),
            "expires_in": expires and timedelta(seconds=expires),
        }
        accepted = self.do(self.queue.submit(**facts))
        if twice:
            assert self.do(self.queue.submit(**facts)).id == accepted.id
        if key and (tenant, key) in self.keys:
            assert (accepted.id, accepted.known) == (self.keys[tenant, key], True)
            return
        assert (accepted.id, accepted.known) == (id, False)
        if key:
            self.keys[tenant, key] = id
        self.contexts[id], self.tenants[id] = context and f"{tenant}:{context}", tenant

    @rule(which=WHICH, twice=st.booleans())
    def cancel(self, which: int, twice: bool) -> None:
        if (id := self.pick(self.contexts, which)) is None:
            return
        before = self.record(id)
        for _ in range(1 + twice):
            after = self.do(self.jobs_store.cancel(id, self.tenants[id]))
        if before["place"] == "ended":
            assert after == before["state"]
        else:
            assert after == ("running" if before["place"] == "running" else "cancelled")

    @rule(which=WHICH, fresh=st.booleans(), twice=st.booleans())
    def replay(self, which: int, fresh: bool, twice: bool) -> None:
        again = [id for id in self.contexts if self.record(id).get("state") in REPLAYABLE]
        if (id := self.pick(again, which)) is None:
            return
        version = self.redis.hget(f"celeriac:context:{self.contexts[id]}", "version") or "0"
        read = self.record(id).get("read_version", version)
        replayed = self.do(self.jobs_store.replay(id, self.tenants[id], fresh=fresh))
        if self.contexts[id] is None:
            assert replayed.fresh == fresh
        elif version != read:
            assert replayed.fresh
        if replayed.fresh:
            self.steps[id].clear()

    @rule(tenant=st.sampled_from("ab"), context=st.sampled_from("xy"))
    def a_context_is_deleted(self, tenant: str, context: str) -> None:
        self.do(self.queue.stores.contexts.delete(tenant, context))
        self.turns[f"{tenant}:{context}"].clear()
        self.forgotten.add(f"{tenant}:{context}")

    # The fleet.

    @rule(which=WHICH, slots=st.integers(0, 4), taking=st.sampled_from([True, True, False]))
    def heartbeat(self, which: int, slots: int, taking: bool) -> None:
        if process := self.pick(self.alive(), which):
            process.slots = slots
            self.beat(process, taking=taking)

    @rule(ms=st.sampled_from([100, 3000, 8000, 70_000]))
    def later(self, ms: int) -> None:
        self.queue.later(ms)

    @rule()
    def upkeep(self) -> None:
        self.do(self.queue.fleet.upkeep())

    @rule(which=WHICH)
    def a_worker_falls_silent(self, which: int) -> None:
        if process := self.pick(self.alive(), which):
            process.silent = True

    @rule(which=WHICH)
    def a_worker_dies_and_is_given_up(self, which: int) -> None:
        if process := self.pick(self.alive(), which):
            process.silent = True
        for _ in range(8):
            self.queue.later(5000)
            for other in self.alive():
                self.beat(other)
            self.do(self.queue.fleet.upkeep())
        assert all(self.redis.zscore("celeriac:workers", p.name) is None for p in self.processes if p.silent)
        if len(self.alive()) < 2:
            self.start(QUEUES)

    @rule(which=WHICH)
    def a_silent_worker_wakes(self, which: int) -> None:
        if process := self.pick([process for process in self.processes if process.silent], which):
            process.silent = False
            self.beat(process)

    # Bells and runs.

    @rule(queue=st.sampled_from(LISTS), lost=st.sampled_from([False, False, True]), doubled=st.booleans())
    def bell_is_taken(self, queue: str, lost: bool, doubled: bool) -> None:
        if bell := self.redis.rpop(queue):
            self.taken += [json.loads(bell)["headers"]["id"]] * (0 if lost else 1 + doubled)

    @rule(worker=WHICH, which=WHICH, twice=st.booleans())
    def claim(self, worker: int, which: int, twice: bool) -> None:
        process = self.pick(self.processes, worker)
        if not self.taken or process is None:
            return
        id = self.taken.pop(which % len(self.taken))
        nonce = self.name()
        try:
            claim = self.do(self.queue.try_claim(id, process.name, nonce))
        except Fenced:
            assert self.redis.zscore("celeriac:workers", process.name) is None
            return
        if claim is not None:
            assert claim.journal == tuple(self.steps[id])
            if twice:
                assert self.do(self.queue.try_claim(id, process.name, nonce)) == claim
            self.runs.append(Run(claim, steps=len(claim.journal)))

    @rule(worker=WHICH, which=WHICH)
    def bell_is_answered(self, worker: int, which: int) -> None:
        """The ordinary way, so that much is running."""
        for queue in LISTS:
            self.bell_is_taken(queue, lost=False, doubled=False)
        while self.taken:
            self.claim(worker, which, twice=False)
            worker += 1

    @rule(
        tenant=st.sampled_from("ab"),
        context=st.sampled_from([None, None, "x"]),
        worker=WHICH,
        how=st.sampled_from([None, *HOW]),
        twice=st.booleans(),
    )
    def a_job_gets_going(self, tenant: str, context: str | None, worker: int, how: str | None, twice: bool) -> None:
        """Else a run would hardly do anything: a job, its bell and a claim rarely follow each other by chance."""
        usual: dict[str, Any] = {"agent": "assistant", "queue": "celeriac", "priority": "normal"}
        self.submit(tenant, context, key=None, twice=False, starts=None, expires=None, **usual)
        self.bell_is_answered(worker, 0)
        if how and self.runs:
            self.run_ends(len(self.runs) - 1, how, paid=twice, twice=twice)

    @precondition(lambda self: self.runs)
    @rule(which=WHICH, bound=st.sampled_from([0, 5, 3 * 10**14]), twice=st.booleans())
    def call_is_admitted(self, which: int, bound: int, twice: bool) -> None:
        run = self.pick(self.runs, which)
        call, mine = self.name(), self.mine(run)
        record = self.record(run.claim.id)
        stopped = "stop" in record or int(record.get("deadline", self.queue.now + 1)) <= self.queue.now
        for _ in range(1 + twice):
            if mine and not stopped:
                account = Account(self.tenants[run.claim.id], "assistant")
                books = partial(account.books, LANE)
                try:
                    said = self.do(self.journal.admit(run.claim, call, bound, {"lane": "x"}, books=books))
                except CostLimit:
                    assert run.claim.ancestors, "only those above have a cap"
                    return
                if isinstance(said, Full):
                    assert said.bound == bound
                    return
                self.no_cap_is_crossed(self.tenants[run.claim.id])
            else:
                with pytest.raises(Stopped if mine else Fenced):
                    self.do(self.journal.admit(run.claim, call, bound, {"lane": "x"}))
        if mine and not stopped:
            self.calls[call] = Call(run, bound)
            run.calls.append(call)

    @rule(scope=st.sampled_from(["all", "tenant:a", "agent:assistant"]), cap=st.sampled_from([None, 0, 12, 4 * 10**14]))
    def an_operator_sets_a_cap(self, scope: str, cap: int | None) -> None:
        budgets = self.queue.stores.budgets
        if cap is not None:
            self.do(budgets.put(scope, [Cap("hour", cap), Cap("ever", cap)], "test"))
        elif scope in self.do(budgets.all()):
            self.do(budgets.delete(scope, "test"))

    def no_cap_is_crossed(self, tenant: str) -> None:
        """A call of this tenant was admitted just now: it fits under each cap that it is in; another tenant's may be
        above its own.
        """
        for scope, uses in self.do(self.queue.stores.budgets.all()).items():
            if scope.startswith("tenant:") and scope != f"tenant:{tenant}":
                continue
            for use in uses:
                assert use.settled + use.in_doubt + use.reserved <= use.cap.nanos, scope

    def settled(self, name: str, stands: str, nanos: int) -> Settlement:
        call = self.calls[name]
        counted = counts(None, nanos if stands == "settled" else 0)
        settlement = Settlement(name, stands, call.bound, nanos, {"lane": "x"}, counts=counted)  # type: ignore[arg-type]
        if call.stands not in {"settled", "released"}:
            call.stands, call.nanos = stands, nanos if stands == "settled" else 0
        return settlement

    @precondition(lambda self: self.calls)
    @rule(which=WHICH, stands=st.sampled_from(["settled", "doubt", "released"]), nanos=st.sampled_from([0, 7, 10**14]))
    def call_has_an_outcome(self, which: int, stands: str, nanos: int) -> None:
        """Whoever says it, and however late: the money lands, once."""
        name = self.pick(self.calls, which)
        self.do(self.journal.settle(self.calls[name].run.claim, self.settled(name, stands, nanos)))

    @precondition(lambda self: self.calls)
    @rule(which=WHICH, outcome=st.sampled_from(["released", 0, 7, 10**14]), twice=st.booleans())
    def somebody_finds_out(self, which: int, outcome: Outcome, twice: bool) -> None:
        """What became of a call in doubt. Of any other it is not theirs to say."""
        unknown = [name for name, call in self.calls.items() if call.stands in {"open", "doubt"}]
        name = self.pick(unknown or self.calls, which)
        call = self.calls[name]
        if call.stands == "open":
            self.do(self.journal.settle(call.run.claim, self.settled(name, "doubt", 0)))
        for again in range(1 + twice):
            work = self.queue.stores.doubts.resolve(call.run.claim.id, name, outcome, "test")
            if call.stands in {"settled", "released"} and not again:
                with suppress(Conflict):  # unless it was said before
                    assert self.do(work).again
                return
            assert self.do(work).again == bool(again)
            call.stands, call.nanos = ("released", 0) if outcome == "released" else ("settled", outcome)

    @precondition(lambda self: self.runs)
    @rule(which=WHICH, paid=st.booleans(), twice=st.booleans())
    def step_is_committed(self, which: int, paid: bool, twice: bool) -> None:
        run = self.pick(self.runs, which)
        mine, text, step = self.mine(run), self.name(), run.steps
        settlement = self.settled(run.calls[-1], "settled", 3) if paid and run.calls else None
        for _ in range(1 + twice):
            if mine:
                self.do(self.journal.commit(run.claim, step, {"text": text}, settlement))
                run.steps = step + 1
            else:
                with pytest.raises(Fenced):
                    self.do(self.journal.commit(run.claim, step, {"text": text}, settlement))
        if mine:
            stored = self.valkey_bytes(f"celeriac:journal:{run.claim.id}")
            assert unpack(stored[-1]) == {"text": text}
            self.steps[run.claim.id].append(stored[-1])

    def valkey_bytes(self, key: str) -> list[bytes]:
        return [text.encode() for text in self.redis.lrange(key, 0, -1)]

    @precondition(lambda self: self.runs)
    @rule(which=WHICH, cap=st.sampled_from([None, 10**15]), twice=st.booleans())
    def run_asks_for_another(self, which: int, cap: int | None, twice: bool) -> None:
        run = self.pick(self.runs, which)
        claim, mine, id = run.claim, self.mine(run), new_id()
        parent = Parent(claim.id, claim.worker, claim.nonce, MOST, ((claim.id, cap), *claim.ancestors))
        before = int(self.record(claim.id).get("asked_before", 0))
        many = self.redis.hlen(f"celeriac:children:{claim.id}") - before >= MOST
        refusal = None if mine else Fenced
        if mine and (many or "stop" in self.record(claim.id)):
            refusal = Stopped if "stop" in self.record(claim.id) else Conflict
        for _ in range(1 + twice):
            work = self.queue.submit(id=id, tenant=self.tenants[claim.id], parent=parent)
            if refusal:
                with pytest.raises(refusal):
                    self.do(work)
            else:
                assert self.do(work).id == id
        if not refusal:
            self.contexts[id], self.tenants[id] = None, self.tenants[claim.id]

    @rule(which=WHICH, approve=st.booleans(), twice=st.booleans())
    def somebody_decides(self, which: int, approve: bool, twice: bool) -> None:
        waiting = [id for id in self.contexts if self.record(id).get("reason") == "waiting_approval"]
        if (id := self.pick(waiting, which)) is None:
            return
        for _ in range(1 + twice):
            assert self.do(self.jobs_store.resume(id, None, approve=approve, calls=["1.c"])) == 0
        assert self.record(id)["place"] in {"ready", "rung"}

    @precondition(lambda self: self.runs)
    @rule(
        which=WHICH,
        how=st.sampled_from(["succeeded", *HOW]),
        paid=st.booleans(),
        twice=st.booleans(),
    )
    def run_ends(self, which: int, how: str, paid: bool, twice: bool) -> None:
        run = self.pick(self.runs, which)
        mine, claim = self.mine(run), run.claim
        self.ended[how] += mine
        stop = self.record(claim.id).get("stop")
        ends = how in {"succeeded", "failed"}
        settlement = self.settled(run.calls[-1], "settled", 3) if ends and paid and run.calls else None
        op = "finish" if ends else "park" if how in PARKS else how
        again = self.record(claim.id).get("released") == f"{op} {claim.worker} {claim.nonce}"
        answers = [run.answer] if again else []
        for _ in range(1 + twice):
            work = self.ending(claim, how, settlement)
            if mine or again:
                answers.append(self.do(work))
            else:
                with pytest.raises(Fenced):
                    self.do(work)
        assert all(answer == answers[0] for answer in answers)
        if not mine:
            return
        run.lost, run.answer = True, answers[0]
        if ends:
            assert answers[0].state == (stop if stop and how != "succeeded" else how)
            if (context := self.contexts[claim.id]) and how == "succeeded":
                assert answers[0].appended or context in self.forgotten
                if answers[0].appended:
                    self.turns[context].append(claim.id)
        elif how in PARKS:
            assert answers[0] == stop if stop else isinstance(answers[0], Parked)
        else:
            assert self.record(claim.id).get("state") == stop

    def ending(self, claim: Claim, how: str, settlement: Settlement | None) -> Coroutine[Any, Any, Any]:
        if how == "succeeded":
            turn = encode_turn([Message("user", claim.id), Message("assistant", "ok")]) if claim.context_id else b""
            return self.queue.end(claim, turn=turn, settlement=settlement)
        if how == "failed":
            error = JobError("bad_answer", "no")
            return self.queue.end(claim, state=State.FAILED, answer=None, error=error, settlement=settlement)
        if how == "give_back":
            return self.jobs_store.give_back(claim)
        if how == "children":
            return self.jobs_store.wait_for_children(claim, timedelta(minutes=5))
        if how == "approval":
            return self.jobs_store.wait_for_approval(claim, [Asked("1.c", "sell", "{}")], timedelta(minutes=1))
        if how == "budget":
            return self.jobs_store.wait_for_lane(claim, "$all", timedelta(minutes=1), most=(5, 0))
        return self.jobs_store.park(claim, how, timedelta(seconds=7), retry=how == "retry")

    # What must hold.

    @invariant()
    def everything_is_explained(self) -> None:
        """And each job is counted where it stands."""
        look = Look(self.redis)
        assert list(look.faults()) == []
        assert self.do(self.queue.miscounted(look)) == []

    @invariant()
    def a_run_that_lost_its_job_never_holds_it_again(self) -> None:
        for run in self.runs:
            mine = self.mine(run)
            assert not (run.lost and mine)
            run.lost = not mine

    @invariant()
    def every_job_is_there(self) -> None:
        assert {key.removeprefix("celeriac:job:") for key in self.redis.scan_iter("celeriac:job:*")} == set(
            self.contexts
        )

    @invariant()
    def every_call_stands_as_it_was_left(self) -> None:
        """Open with the run that holds the job; in doubt with any other, until its outcome is known."""
        for name, call in self.calls.items():
            stands = "doubt" if call.stands == "open" and call.run.lost else call.stands
            amount = {"settled": call.nanos, "released": 0}.get(stands, call.bound)
            text = self.redis.hget(f"celeriac:calls:{call.run.claim.id}", name)
            assert text is not None
            assert text.startswith(f"{stands} {call.bound} {amount} ")

    @invariant()
    def a_journal_only_grows(self) -> None:
        for id, steps in self.steps.items():
            assert self.valkey_bytes(f"celeriac:journal:{id}") == steps

    @invariant()
    def a_context_holds_one_turn_a_finished_job_in_order(self) -> None:
        for name, ids in self.turns.items():
            turns = decode_turns(self.valkey_bytes(f"celeriac:turns:{name}"))
            assert [message.text for message in turns if message.role == "user"] == ids

    def teardown(self) -> None:
        """Faults stop: everything ends."""
        try:
            if self.processes:
                self.everything_ends()
        finally:
            self.do(self.queue.stores.close())
            self.do(self.line.aclose())
            self.loop.close()

    def everything_ends(self) -> None:
        for process in self.processes:
            process.silent = True
        two = [self.start(QUEUES), self.start(QUEUES)]
        for _ in range(150):
            self.queue.later(5000)
            for process in two:
                self.beat(process)
            self.do(self.queue.fleet.upkeep())
            quarantined = self.redis.smembers("celeriac:quarantined")
            for queue in LISTS:
                fit = [p.name for p in two if (p.name in quarantined) == queue.endswith(".suspects")]
                while fit and (bell := self.redis.rpop(queue)):
                    claim = self.do(self.queue.try_claim(json.loads(bell)["headers"]["id"], fit[-1], self.name()))
                    if claim:
                        assert claim.journal == tuple(self.steps[claim.id])
                        self.do(self.ending(claim, "succeeded", None))
            if all(self.record(id)["place"] == "ended" for id in self.contexts):
                break
        # What was kept for a suspect is let go of.
        self.do(self.queue.fleet.upkeep())
        unfinished = {id: job for id in self.contexts if (job := self.record(id))["place"] != "ended"}
        assert not unfinished, "a job did not end"
        assert faults(self.redis) == []
        look = Look(self.redis)
        assert not [
            name for name in ("busy", "full", "kept", "left", "held", "ready", "stops", "line") if look.by[name]
        ]


def test_whatever_the_order_everything_is_explained_and_every_job_ends(valkey: Valkey, bells: dict[str, str]) -> None:
    """The invariants of the store hold after every step, and without further faults every job ends."""

    class Here(Machine):
        pass

    Here.valkey, Here.bells, Here.ended = valkey, bells, Counter()
    chosen = hypothesis_settings()
    by_hand = hypothesis_settings.get_current_profile_name() == "long"
    run_state_machine_as_test(
        Here,
        settings=hypothesis_settings(
            max_examples=chosen.max_examples if by_hand else 60,
            stateful_step_count=chosen.stateful_step_count if by_hand else 50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert sum(Here.ended.values()) >= 10, "hardly a run was played"
