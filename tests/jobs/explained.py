"""What must hold between any two scripts: each key is one that `celeriac.keys` explains, lives as long as it says
there, and agrees with the records of the jobs."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis

from celeriac.costs.books import COLUMNS, WINDOWS
from celeriac.jobs.census import Counted, OfQueue
from celeriac.jobs.model import ENDS, SEEN_AS, Place, State
from celeriac.keys import KEYS, PREFIX

#: Keys that stay, and hold a number, a name or a text: their size does not grow with the work.
STAY: Final = {
    "seq",
    "turn",
    "protocol",
    "limits",
    "bell",
    "beats",
    "round",
    "alarmed",
    "free",
    "picks",
    "went_back",
    "miscounted",
    "lane_changes",
    "budgets",
    "windows",
    "used",
    "usage_ever",
    "alerts",
    "told_alerts",
    "changes",
    "ends",
}
#: Keys that age, whatever they hold.
AGE: Final = {
    "recount", "upkeep", "quiet", "room", "revoked", "deleted", "lane", "lane_calls", "use", "usage", "ledger",
    "promised", "dearest",
    "resolved",
}  # fmt: skip
COMPANY: Final = {2: 32, 3: 4, 4: 1}
#: Not the store's: the clock of these tests, and Celery's results, which age.
OTHERS: Final = re.compile(r"test:.*|celery-task-meta-.*|_kombu\..*")


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    parts: dict[str, str]
    ages: bool
    value: Any


def read(client: redis.Redis) -> tuple[dict[str, Key], list[str]]:
    """Everything in the store, and the keys that nobody explains."""
    patterns = {
        name: re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^:]+)", re.escape(PREFIX + template)))
        for name, (template, _, _) in KEYS.items()
    }
    names = sorted(name for name in client.scan_iter(count=1000) if not OTHERS.fullmatch(name))
    # Turns and steps may be compressed.
    lenient = redis.Redis(port=client.get_connection_kwargs()["port"], decode_responses=True, encoding_errors="replace")
    pipe = lenient.pipeline(transaction=False)
    for name in names:
        pipe.type(name)
        pipe.pttl(name)
    facts = pipe.execute()
    read_as = {
        "string": pipe.get,
        "hash": pipe.hgetall,
        "set": pipe.smembers,
        "list": lambda name: pipe.lrange(name, 0, -1),
        "zset": lambda name: pipe.zrange(name, 0, -1, withscores=True),
        "stream": pipe.xrange,
    }
    there = [
        (name, kind, ttl)
        for name, kind, ttl in zip(names, facts[::2], facts[1::2], strict=True)
        if kind != "none" and ttl != -2  # it may go between the two
    ]
    for name, kind, _ in there:
        read_as[kind](name)
    known: dict[str, Key] = {}
    strange: list[str] = []
    for (name, _, ttl), value in zip(there, pipe.execute(), strict=True):
        found = [(key, match) for key, pattern in patterns.items() if (match := pattern.fullmatch(name))]
        if len(found) == 1:
            known[name] = Key(found[0][0], found[0][1].groupdict(), ttl >= 0, value)
        elif found or f"{PREFIX}bell:{name}" not in names:
            strange.append(name)
    lenient.close()
    return known, strange


def faults(client: redis.Redis) -> list[str]:
    """What does not hold, in words; empty where all is well."""
    return list(Look(client).faults())


class Look:
    """One look at a store in which nothing happens meanwhile."""

    def __init__(self, client: redis.Redis) -> None:
        self.keys, self.strange = read(client)
        self.by: defaultdict[str, list[Key]] = defaultdict(list)
        for key in self.keys.values():
            self.by[key.name].append(key)
        self.jobs: dict[str, dict[str, str]] = {key.parts["id"]: key.value for key in self.by["job"]}
        self.workers: dict[str, dict[str, str]] = {key.parts["worker"]: key.value for key in self.by["worker"]}

    def census(self, now: int) -> Counted:
        """What the records say of the numbers of jobs. ended: by the records that are still there."""

        def queue_of(job: dict[str, str]) -> str:
            # Whoever serves one queue runs jobs of this one: the census does not look at each of them.
            serves = self.workers.get(job.get("worker", ""), {}).get("queues", "")
            return serves if serves and "," not in serves else job["queue"]

        places = Counter((queue_of(job), Place(job["place"])) for job in self.jobs.values())
        due = Counter(self.jobs[id]["queue"] for id, at in self.one("parked", ()) if at <= now)
        states = dict.fromkeys((State.QUEUED, State.RUNNING, State.PARKED), 0)
        for (_, place), number in places.items():
            if place != Place.ENDED:
                states[SEEN_AS[place]] += number
        return Counted(
            states=states,
            ended=Counter(job["state"] for job in self.jobs.values() if job["place"] == Place.ENDED),
            queues={
                queue: OfQueue(
                    *(places[queue, place] for place in (Place.READY, Place.RUNG, Place.RUNNING)), due[queue]
                )
                for queue, _ in places
            },
        )

    def miscounted(self, told: Counted, now: int) -> list[str]:
        """Where what a census told differs from the records."""
        records = self.census(now)
        wrong = [f"there are {records.states}, and the census says {told.states}"] * (records.states != told.states)
        for queue in records.queues.keys() | told.queues.keys():
            its, nothing = records.queues.get(queue), OfQueue(0, 0, 0, 0)
            if (its or nothing) != told.queues.get(queue, nothing):
                wrong.append(f"in {queue} are {its}, and the census says {told.queues.get(queue)}")
        return wrong + [
            f"{n} {end}, told {told.ended}" for end, n in records.ended.items() if n > told.ended.get(end, 0)
        ]

    def members(self, name: str) -> dict[tuple[str, ...], Any]:
        return {tuple(key.parts.values()): key.value for key in self.by[name]}

    def one(self, name: str, default: Any) -> Any:
        return self.by[name][0].value if self.by[name] else default

    def faults(self) -> Iterator[str]:
        for name in self.strange:
            yield f"{name} is no key of ours"
        yield from self.lifetimes()
        yield from self.places()
        yield from self.records()
        yield from self.indexes()
        yield from self.lines()
        yield from self.busy()
        yield from self.fleet()
        yield from self.contexts()
        yield from self.books()
        yield from self.money()

    def lifetimes(self) -> Iterator[str]:
        """Keys age, stay small, or follow a record; entries of the others are looked at one by one."""
        of_jobs = ("job", "journal", "calls", "children", "answers", "events")
        follow = {*of_jobs, "idempotency", "context", "turns"}
        for name, key in self.keys.items():
            if key.name in AGE and not key.ages:
                yield f"{name} never ages"
            if key.name not in AGE | follow and key.ages:
                yield f"{name} ages"
        if len(self.one("broken", ())) > 1000:
            yield "too many broken records are kept"
        untold = {id for id, _ in self.one("untold", ())}
        for name in of_jobs:
            for key in self.by[name]:
                job = self.jobs.get(key.parts["id"])
                if job is None:
                    yield f"{name} of {key.parts['id']} outlived its record"
                elif key.ages != (job["place"] == Place.ENDED and key.parts["id"] not in untold):
                    yield f"{name} of {key.parts['id']}, which is {job['place']}: ages is {key.ages}"
        for key in self.by["idempotency"]:
            job = self.jobs.get(key.value)
            if job is None or job.get("idempotency") != key.parts["key"] or job["tenant"] != key.parts["tenant"]:
                yield f"a key of {key.parts['tenant']} stands for {key.value}, which does not know it"
            elif key.ages != (job["place"] == Place.ENDED and key.value not in untold):
                yield f"the key of {key.value} does not live as long as its job"

    def level(self, job: dict[str, str]) -> int | None:
        crashes = int(job.get("crashes", 0))
        return min(crashes, 4) if crashes >= 2 else None

    def places(self) -> Iterator[str]:
        """Each job stands in exactly one place, the one that its record names."""
        stands: set[tuple[str, str]] = set()
        for id, job in self.jobs.items():
            level, queue = self.level(job), job["queue"]
            match Place(job["place"]):
                case Place.READY if level:
                    stands.add((id, f"suspects:{queue}:{level}"))
                case Place.READY:
                    stands.add((id, f"ready:{job['line']}:{job['priority']}:{job['tenant']}"))
                case Place.RUNG:
                    stands.add((id, f"rung:{queue}{'.suspects' if level else ''}"))
                case Place.RUNNING:
                    stands.add((id, f"held:{job.get('worker')}"))
                case Place.PARKED:
                    stands.add((id, "parked"))
                    if "lane" in job:
                        stands.add((id, f"lane_line:{job['lane']}"))
                case Place.BEHIND:
                    stands.add((id, f"line:{job['tenant']}:{job['context']}"))
                case Place.NEW:
                    yield f"{id} is in no place"
        found = Counter(
            (id, name.removeprefix(PREFIX))
            for name, key in self.keys.items()
            if key.name in {"suspects", "ready", "rung", "held", "parked", "line", "lane_line"}
            for id in (key.value if isinstance(key.value, set) else [entry for entry, _ in key.value])
        )
        for where in found - Counter(stands):
            yield f"{where[0]} is in {where[1]}, and its record says {self.jobs.get(where[0], {}).get('place')}"
        for where in Counter(stands) - found:
            yield f"{where[0]} is not in {where[1]}"

    def records(self) -> Iterator[str]:
        """What a record says in each place."""
        for id, job in self.jobs.items():
            place = job["place"]
            if (place == Place.ENDED) != (job.get("state") in ENDS):
                yield f"{id} is {place} and {job.get('state')}"
            if (place == Place.RUNNING) != ("nonce" in job) or ("nonce" in job) != ("worker" in job):
                yield f"{id} is {place}, held by {job.get('worker')} with {job.get('nonce')}"
            parked = place == Place.PARKED
            # Nobody knows when a budget without a window has money again.
            timeless = parked and job.get("lane", "").startswith("$") and "resume_at" not in job
            if parked != ("reason" in job) or parked != ("resume_at" in job or timeless):
                yield f"{id} is {place}, until {job.get('resume_at')}"
            if "stop" in job and place != Place.RUNNING:
                yield f"{id} is {place} and asked to stop"
            if "dead" in job and job.get("state") != "failed":
                yield f"{id} is a dead letter and {job.get('state', place)}"

    def indexes(self) -> Iterator[str]:
        """What callers look at, and what upkeep goes by."""
        expected: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for id, job in self.jobs.items():
            state = job.get("state") or SEEN_AS[Place(job["place"])]
            seq = float(job["seq"])
            expected[f"jobs:{job['tenant']}"][id] = seq
            expected[f"jobs:{job['tenant']}:{state}"][id] = seq
            if "dead" in job:
                expected[f"dead:{job['tenant']}"][id] = seq
            if job["place"] == Place.PARKED:
                # Who waits for a lane looks around later than the lane may be asked.
                waits = dict(self.one("parked", ())).get(id, 0.0) if "lane" in job else 0.0
                expected["parked"][id] = max(float(job.get("resume_at", 0)), waits)
                if "lane" in job:
                    expected[f"lane_line:{job['lane']}"][id] = float(job["lane_place"].rpartition(" ")[2])
            # Told once: from then on the request in the record counts.
            if "deadline" in job and job["place"] != Place.ENDED and "stop" not in job:
                expected["deadlines"][id] = float(job["deadline"])
        for name, key in self.keys.items():
            short = name.removeprefix(PREFIX)
            if key.name in {"jobs", "jobs_in", "dead", "parked", "lane_line", "deadlines"}:
                value = {id: at for id, at in key.value if not self.is_stopped(short, id)}
                if value != expected.pop(short, {}):
                    yield f"{short} holds {value}"
        for short, value in expected.items():
            if value:
                yield f"{short} lacks {value}"
        if (tenants := {job["tenant"] for job in self.jobs.values()}) != self.one("tenants", set()):
            yield f"tenants holds {self.one('tenants', set())}, and these have jobs: {tenants}"
        if lines := {key.parts["lane"] for key in self.by["lane_line"]} - self.one("lanes", set()):
            yield f"jobs wait for {lines}, and lanes does not hold them"
        if lines := {key.parts["lane"] for key in self.by["lane_turns"]} - self.one("lanes", set()):
            yield f"turns are kept for {lines}, and lanes does not hold them"
        untold = {id for id, _ in self.one("untold", ())}
        ended = {id: j for id, j in self.jobs.items() if j["place"] == Place.ENDED and id not in untold}
        kept = {f"{j['tenant']}|{j.get('state')}|{id}" for id, j in ended.items()}
        if {entry for entry, _ in self.one("retention", ())} != kept:
            yield "retention holds other jobs than those that ended"

    def is_stopped(self, index: str, id: str) -> bool:
        return index == "deadlines" and "stop" in self.jobs.get(id, {})

    def lines(self) -> Iterator[str]:
        """Whoever has a ready job has a turn, unless it is at its limit; nobody else has one."""
        rotations, left = self.members("rotation"), self.members("left")
        full, lines = self.one("full", set()), self.members("lines")
        turns = {(*where, tenant) for where, tenants in rotations.items() for tenant, _ in tenants}
        for where in self.members("ready"):
            line, priority, tenant = where
            if tenant in full:
                if f"{line}|{priority}" not in left.get((tenant,), ()) and where not in turns:
                    yield f"{tenant} is at its limit and will not come back to {line}"
            elif where not in turns:
                yield f"{tenant} has no turn in {line} {priority}"
            queue = line.partition("/")[0]
            if line != queue and line not in lines.get((queue,), ()):
                yield f"{line} is not known to {queue}"
        for where in turns - self.members("ready").keys():
            yield f"an empty line has a turn: {where}"
        if {tenant for (tenant,) in left} != full:
            yield f"at their limit: {full}, and left rotations: {set(left)}"

    def busy(self) -> Iterator[str]:
        """Jobs rung or running, by tenant and agent; limits hold."""
        busy: Counter[str] = Counter()
        for job in self.jobs.values():
            if job["place"] in {Place.RUNG, Place.RUNNING}:
                busy.update([f"t:{job['tenant']}", f"a:{job['agent']}"])
        counted = {whose: int(n) for whose, n in self.one("busy", {}).items()}
        if counted != dict(busy):
            yield f"busy says {counted}, and it is {dict(busy)}"
        limits = {whose: int(most) for whose, most in self.one("limits", {}).items()}

        def limit(whose: str) -> float:
            return limits.get(whose, limits.get("t:*", float("inf")) if whose.startswith("t:") else float("inf"))

        for whose, n in busy.items():
            if n > limit(whose):
                yield f"{whose} has {n} jobs at once"
        kept = self.one("kept", set())
        for tenant in self.one("full", set()):
            if busy[f"t:{tenant}"] + (f"t:{tenant}" in kept) < limit(f"t:{tenant}"):
                yield f"{tenant} is kept out below its limit"

    def fleet(self) -> Iterator[str]:
        """Slots, suspects, stops and totals follow from the records."""
        alive = {worker for worker, _ in self.one("workers", ())}
        dying = {worker for worker, _ in self.one("dying", ())}
        quarantined = self.one("quarantined", set())
        if alive | dying != self.workers.keys() or alive & dying:
            yield f"alive {alive}, dying {dying}, known {set(self.workers)}"
        if quarantined != {name for name, worker in self.workers.items() if "quarantine" in worker}:
            yield f"quarantined are {quarantined}"
        held, stops = self.members("held"), self.members("stops")
        free: Counter[str] = Counter()
        for name, worker in self.workers.items():
            ids = held.pop((name,), set())
            levels = [level for id in ids if (level := self.level(self.jobs.get(id, {})))]
            if (int(worker["running"]), int(worker.get("suspects", 0))) != (len(ids), len(levels)):
                yield f"{name} says {worker}, and it holds {len(ids)} with {len(levels)} suspects"
            if levels and len(levels) != len(ids):
                yield f"{name} runs suspects beside others"
            if levels and len(levels) > min(COMPANY[level] for level in levels):
                yield f"{name} runs {len(levels)} suspects of {levels} at once"
            if ("company" in worker) != bool(levels):
                yield f"{name} keeps company {worker.get('company')} with {len(levels)} suspects"
            if stops.pop((name,), set()) != {id for id in ids if "stop" in self.jobs.get(id, {})}:
                yield f"{name} is asked to stop other jobs than those that are to stop"
            if worker["taking"] == "1" and "quarantine" not in worker:
                free[worker["queues"]] += max(0, int(worker["slots"]) - int(worker["running"]))
        if held or stops:
            yield f"held or to stop by nobody: {held} {stops}"
        if {group: int(n) for group, n in self.one("free", {}).items() if int(n)} != dict(+free):
            yield f"free says {self.one('free', {})}, and it is {dict(free)}"

    def contexts(self) -> Iterator[str]:
        """Held by the one job that may run in it, or ageing."""
        contexts, lines = self.by["context"], self.members("line")
        holders = {tuple(key.parts.values()): key.value.get("holder") for key in contexts}
        expected = {
            (job["tenant"], job["context"]): id
            for id, job in self.jobs.items()
            if "context" in job and job["place"] not in {Place.ENDED, Place.BEHIND}
        }
        if {where: holder for where, holder in holders.items() if holder} != expected:
            yield f"contexts are held by {holders}, and it is {expected}"
        for where in lines:
            if not holders.get(where):
                yield f"jobs wait for {where}, which nobody holds"
        if (behind := {entry for entry, _ in self.one("behind", ())}) != {":".join(where) for where in lines}:
            yield f"it is looked whether the holders of {behind} are there, and jobs wait for {set(lines)}"
        for key in [*contexts, *self.by["turns"]]:
            if key.ages == bool(holders.get(tuple(key.parts.values()))):
                yield f"{key.name} {key.parts}: ages is {key.ages}"
        turns = self.members("turns")
        for key in contexts:
            said = turns.pop(tuple(key.parts.values()), [])
            if int(key.value.get("version", 0)) < len(said):
                yield f"context {key.parts} has more turns than changes"
            messages = sum(int(turn.partition(":")[0]) for turn in said)
            if int(key.value.get("messages", 0)) != messages:
                yield f"context {key.parts} says {key.value.get('messages')} messages, and there are {messages}"
        if turns:
            yield f"turns without a context: {turns}"

    def money(self) -> Iterator[str]:
        """The sums of a scope and a window are those of the calls booked there; the ledger's are those of the jobs."""
        expected: defaultdict[str, Counter[str]] = defaultdict(Counter)
        calls = [(id, text) for (id,), found in self.members("calls").items() for text in found.values()]
        kept = [(entry.split(" ")[0], text) for entry, text in self.one("doubt_calls", {}).items()]
        if {entry for entry, _ in self.one("doubts", ())} != set(self.one("doubt_calls", {})):
            yield "doubts and doubt_calls name different calls"
        gone = [(id, text) for id, text in kept if id not in self.jobs]
        doubts = Counter(id for id, text in calls if text.startswith("doubt "))
        if doubts != Counter(id for id, _ in kept if id in self.jobs):
            yield f"the calls in doubt are {doubts}, and doubts holds {kept}"
        for _, text in [*calls, *gone]:
            stands, _, amount, _, facts = text.split(" ", 4)
            booked = json.loads(facts).get("books")
            if booked is None or stands not in {"open", "doubt"}:
                continue
            starts, scopes, _ = booked.split("|")
            for scope in scopes.split(" "):
                spans = [f"{name}.{start}" for name, start in zip(WINDOWS, starts.split(" "), strict=False)]
                for where in (f"used:{scope}", *(f"use:{scope}:{span}" for span in spans)):
                    expected[where]["reserved" if stands == "open" else "in_doubt"] += int(amount)
        for key in (*self.by["used"], *self.by["use"]):
            where = ":".join((key.name, *key.parts.values()))
            for name in ("reserved", "in_doubt"):
                if int(key.value.get(name, 0)) != expected[where][name]:
                    yield f"{where}: {name} is {key.value}, and the calls make {expected[where][name]}"
            if int(key.value.get("cost", 0)) < 0:
                yield f"{where} has settled less than nothing"
        entries: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for key in self.by["ledger"]:
            for _, entry in key.value:
                entries[entry["job"]].update({name: int(entry[name]) for name in ("nanos", "in_doubt")})
        for id, job in self.jobs.items():
            if (entries[id]["nanos"], entries[id]["in_doubt"]) != (
                int(job.get("cost", 0)),
                int(job.get("in_doubt", 0)),
            ):
                yield f"{id}: the ledger has {entries[id]}, the job {job.get('cost')} and {job.get('in_doubt')}"
        for key in self.by["used"]:
            if key.parts["scope"] == "all":
                series = self.one("usage_ever", {}).values()
                counted = sum(
                    int(sums.split(" ")[COLUMNS.index("cost")]) for sums in series if len(sums.split(" ")) > 2
                )
                if counted != int(key.value.get("cost", 0)):
                    yield f"the usage has {counted}, and all scopes {key.value}"

    def books(self) -> Iterator[str]:
        """A job's sums are those of its calls; a call is open only while its run may still settle it."""
        calls, journals, awaits = self.members("calls"), self.members("journal"), self.members("awaits")
        below: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for job in self.jobs.values():
            for above, _ in json.loads(job.get("ancestors", "[]")):
                below[above].update({name: int(job.get(name, 0)) for name in ("cost", "in_doubt", "reserved")})
        for id, job in self.jobs.items():
            sums: Counter[str] = Counter()
            for text in calls.get((id,), {}).values():
                stands, _, amount, _, _ = text.split(" ", 4)
                sums[stands] += int(amount)
                if stands == "open" and job["place"] != Place.RUNNING:
                    yield f"{id} is {job['place']} and has an open call"
            for stands, name in (("settled", "cost"), ("doubt", "in_doubt"), ("open", "reserved")):
                if int(job.get(name, 0)) != sums[stands]:
                    yield f"{id}: {name} is {job.get(name)}, and its calls make {sums[stands]}"
            for name, nanos in below[id].items():
                if int(job.get(f"below_{name}", 0)) != nanos:
                    yield f"{id}: below_{name} is {job.get(f'below_{name}')}, and those that work for it have {nanos}"
            for child in awaits.get((id,), ()):
                if job["place"] == Place.ENDED or self.jobs.get(child, job)["place"] == Place.ENDED:
                    yield f"{id} is {job['place']} and waits for {child}"
            if int(job.get("steps", 0)) != len(journals.get((id,), [])):
                yield f"{id} made {job.get('steps')} steps, and {len(journals.get((id,), []))} are stored"
