"""Hypothesis drives the scripts in every order, with time under its hand; what must always hold is looked at each step."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from celeriac.contexts.store import decode_turns, encode_turn
from celeriac.errors import Fenced
from celeriac.jobs.model import Claim
from celeriac.llm.model import Message
from celeriac.settings import load_settings
from celeriac.stores import open_fleet, open_stores
from tests.conftest import Valkey
from tests.jobs.conftest import CLOCK, Queue

QUEUES = ("celeriac", "slow")


class Machine(RuleBasedStateMachine):
    """Three workers, two queues, three tenants, two contexts; bells are lost, doubled and late, runs fall silent."""

    valkey: Valkey
    bells: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def start(self) -> None:
        self.valkey.client().flushall()
        settings = load_settings(redis_url=self.valkey.url)
        stores = open_stores(settings, clock=CLOCK)
        fleet, self.line = open_fleet(settings, stores, name="test", clock=CLOCK)
        self.queue = Queue(stores, fleet, self.valkey.client(), self.bells)
        self.queue.later(0)
        self.jobs: dict[str, str | None] = {}  # id -> context
        self.taken: list[str] = []  # bells that a worker popped and has not answered
        self.runs: list[Claim] = []
        self.fenced: list[Claim] = []
        self.finished: list[Claim] = []
        self.slots: dict[str, int] = {}
        for i, queues in enumerate([QUEUES, QUEUES, ("celeriac",)]):
            self.do(self.queue.worker(f"w{i}", slots=2, queues=queues))
            self.slots[f"w{i}"] = 2

    @rule(
        tenant=st.sampled_from("ab"),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(["low", "normal", "high"]),
        context=st.sampled_from([None, None, "x", "y"]),
    )
    def submit(self, tenant: str, queue: str, priority: str, context: str | None) -> None:
        job = self.do(self.queue.submit(tenant=tenant, queue=queue, priority=priority, context_id=context))
        self.jobs[job.id] = context and f"{tenant}:{context}"

    @rule(worker=st.integers(0, 2), slots=st.integers(0, 4), taking=st.booleans())
    def heartbeat(self, worker: int, slots: int, taking: bool) -> None:
        self.do(self.queue.fleet.heartbeat(f"w{worker}", slots, taking=taking))

    @rule(ms=st.sampled_from([100, 3000, 8000, 70_000]))
    def later(self, ms: int) -> None:
        self.queue.later(ms)

    @rule()
    def upkeep(self) -> None:
        self.do(self.queue.fleet.upkeep())

    @rule(queue=st.sampled_from(QUEUES), lost=st.booleans(), doubled=st.booleans())
    def bell_is_taken(self, queue: str, lost: bool, doubled: bool) -> None:
        if bell := self.queue.redis.rpop(queue):
            self.taken += [json.loads(bell)["headers"]["id"]] * (0 if lost else 2 if doubled else 1)

    @rule(worker=st.integers(0, 2), which=st.integers(0, 50), answer_lost=st.booleans())
    def claim(self, worker: int, which: int, answer_lost: bool) -> None:
        if not self.taken:
            return
        id = self.taken.pop(which % len(self.taken))
        nonce = f"{id}.{len(self.runs)}.{self.queue.redis.incr('test:nonce')}"
        claim = self.do(self.queue.try_claim(id, f"w{worker}", nonce))
        if claim is not None:
            if answer_lost:
                again = self.do(self.queue.try_claim(id, f"w{worker}", nonce))
                assert again == claim
            assert id not in {run.id for run in self.runs}, "two live runs of one job"
            self.runs.append(claim)

    @rule(which=st.integers(0, 50), how=st.sampled_from(["finish", "give_back"]), twice=st.booleans())
    def run_ends(self, which: int, how: str, twice: bool) -> None:
        if not self.runs:
            return
        claim = self.runs.pop(which % len(self.runs))
        for _ in range(2 if twice else 1):
            if how == "finish":
                turn = encode_turn([Message("user", claim.id), Message("assistant", "ok")]) if claim.context_id else b""
                assert self.do(self.queue.finish(claim, turn=turn)) is (True if claim.context_id else None)
            else:
                self.do(self.queue.jobs.give_back(claim))
        (self.finished if how == "finish" else self.fenced).append(claim)

    @rule(which=st.integers(0, 50))
    def an_old_run_wakes(self, which: int) -> None:
        if not self.fenced:
            return
        claim = self.fenced[which % len(self.fenced)]
        with pytest.raises(Fenced):
            self.do(self.queue.finish(claim, answer="stale"))

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        if not hasattr(self, "queue"):
            return
        r, where = self.queue.redis, Counter[str]()
        for key in r.scan_iter("celeriac:ready:*"):
            where.update(r.zrange(key, 0, -1))
            queue, priority, tenant = key.split(":")[2:]
            assert r.zscore(f"celeriac:rotation:{queue}:{priority}", tenant) is not None, "a tenant lost its turn"
        for key in r.scan_iter("celeriac:rotation:*"):
            for tenant in r.zrange(key, 0, -1):
                assert r.exists(key.replace("rotation", "ready") + f":{tenant}"), "an empty tenant has a turn"
        for key in r.scan_iter("celeriac:rung:*"):
            where.update(r.zrange(key, 0, -1))
        held = [id for key in r.scan_iter("celeriac:held:*") for id in r.smembers(key)]
        where.update(held)
        for key in r.scan_iter("celeriac:line:*"):
            where.update(r.zrange(key, 0, -1))
        where.update(id for id in self.jobs if r.hget(f"celeriac:job:{id}", "place") == "ended")
        assert where == Counter(self.jobs.keys())
        assert sorted(held) == sorted(run.id for run in self.runs)

    @invariant()
    def the_totals_are_what_the_workers_offer(self) -> None:
        if not hasattr(self, "queue"):
            return
        r, totals = self.queue.redis, Counter[str]()
        for key in r.scan_iter("celeriac:worker:*"):
            worker = r.hgetall(key)
            free = max(0, int(worker["slots"]) - int(worker["running"])) if worker["taking"] == "1" else 0
            totals[worker["queues"]] += free
        assert {k: int(v) for k, v in r.hgetall("celeriac:free").items() if int(v)} == {
            k: v for k, v in totals.items() if v
        }

    @invariant()
    def the_index_by_state_is_what_the_records_say(self) -> None:
        if not hasattr(self, "queue"):
            return
        for tenant in "ab":
            listed = {job.id: job.state for job in self.do(self.queue.jobs.list(tenant, limit=500)).jobs}
            for key in self.queue.redis.scan_iter(f"celeriac:jobs:{tenant}:*"):
                for id in self.queue.redis.zrange(key, 0, -1):
                    assert listed.pop(id) == key.rpartition(":")[2]
            assert not listed

    @invariant()
    def a_context_holds_one_turn_a_finished_job_in_order(self) -> None:
        if not hasattr(self, "queue"):
            return
        for name in {context for context in self.jobs.values() if context}:
            turns = [t.encode() for t in self.queue.redis.lrange(f"celeriac:turns:{name}", 0, -1)]
            done = {claim.id for claim in self.finished}
            expected = [id for id, context in self.jobs.items() if context == name and id in done]
            assert [m.text for m in decode_turns(turns) if m.role == "user"] == expected

    def teardown(self) -> None:
        """Faults stop: everything ends."""
        if hasattr(self, "queue"):
            self.taken.clear()
            while self.runs:
                self.run_ends(0, "finish", False)
            for _ in range(200):
                self.queue.later(61_000)
                for worker in range(3):
                    self.do(self.queue.fleet.heartbeat(f"w{worker}", 4, taking=True))
                self.do(self.queue.fleet.upkeep())
                for queue in QUEUES:
                    while bell := self.queue.redis.rpop(queue):
                        claim = self.do(self.queue.try_claim(json.loads(bell)["headers"]["id"], "w0"))
                        if claim:
                            self.do(self.queue.finish(claim))
                            self.finished.append(claim)
                if len(self.finished) == len(self.jobs):
                    break
            assert len(self.finished) == len(self.jobs), "a job did not end"
            self.do(self.queue.stores.close())
            self.do(self.line.aclose())
        self.loop.close()


def test_whatever_the_order_every_job_is_in_one_place_and_ends(valkey: Valkey, bells: dict[str, str]) -> None:
    """The invariants of the store hold after every step, and without further faults every job ends."""

    class Here(Machine):
        pass

    Here.valkey, Here.bells = valkey, bells
    run_state_machine_as_test(
        Here,
        settings=hypothesis_settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
