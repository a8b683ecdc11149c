"""Every Redis key, with what it holds and how long it lives. The scripts get the same spelling as Lua functions.

Braces name what the caller fills in. Names that are filled in (tenants, queues, agents, contexts) match
`settings.NAME`, so that none of them can hold a colon.
"""

from __future__ import annotations

import re
from typing import Final

PREFIX: Final = "celeriac:"

#: name -> (key, what it holds, lifetime)
KEYS: Final[dict[str, tuple[str, str, str]]] = {
    # A job.
    "job": ("job:{id}", "hash: the record of a job", "its life, then jobs.result_ttl, or jobs.dead_ttl"),
    "journal": ("journal:{id}", "list: the steps that a job has finished, packed", "as long as the record"),
    "calls": ("calls:{id}", "hash: call -> where it stands, bound, amount, when, facts", "as long as the record"),
    "children": ("children:{id}", 'hash: job that this one asked for -> its end, "" before', "as long as the record"),
    "answers": ("answers:{id}", "hash: job that this one asked for -> its answer, packed", "as long as the record"),
    "awaits": ("awaits:{id}", "set: those of them that have not ended", "while one has not, and the job neither"),
    "events": (
        "events:{id}",
        "stream: what a reader of the job is told; a channel of the same name has it as it comes",
        "as long as the record, at most an hour after the end",
    ),
    "idempotency": (
        "idempotency:{tenant}:{key}",
        "string: the job that a caller's key stands for",
        "as long as the record",
    ),
    "revoked": ("revoked:{id}", "string: Celery revoked this id, and it was no job", "as long as workers remember it"),
    # Where jobs wait.
    "seq": ("seq", "counter: submissions", "for ever"),
    "turn": ("turn", "counter: places in rotations, bells, and what was set aside", "for ever"),
    "picks": ("picks", "hash: queue or group of workers -> how often it was chosen for", "one entry each"),
    "ready": ("ready:{line}:{priority}:{tenant}", "zset: jobs by submission number", "while it holds a job"),
    "rotation": ("rotation:{line}:{priority}", "zset: tenants with ready jobs, by turn", "while it holds a tenant"),
    "lines": ("lines:{queue}", "set: the lines of agents with a limit", "while one of them holds a job"),
    "suspects": (
        "suspects:{queue}:{level}",
        "zset: ready jobs that crashed, by submission number",
        "while it holds a job",
    ),
    "rung": ("rung:{queue}", "zset: jobs whose bell is out, by when to ring again (ms)", "while it holds a job"),
    "parked": ("parked", "zset: parked jobs by when they go on (ms)", "while it holds a job"),
    "deadlines": ("deadlines", "zset: jobs by their deadline (ms)", "while it holds a job"),
    "untold": ("untold", "zset: ended jobs of which Celery is to be told, by when to ring (ms)", "until it was told"),
    "busy": ("busy", "hash: t:tenant, a:agent -> jobs rung or running", "entries leave at 0"),
    "limits": ("limits", "hash: t:tenant, t:*, a:agent -> most jobs at once", "until a worker registers with others"),
    "kept": ("kept", "set: t:tenant, a:agent whose next job at once is kept for a suspect", "while one waits for it"),
    "full": ("full", "set: tenants at their limit", "while one is"),
    "left": ("left:{tenant}", "set: rotations that a tenant at its limit left", "while it is at its limit"),
    # Bells and workers.
    "bell": ("bell:{queue}", "string: Celery's message for a job of this queue", "until another broker is used"),
    "protocol": ("protocol", "string: the newest protocol that a worker registered with", "for ever"),
    "workers": ("workers", "zset: worker by the end of its lease (ms)", "while one lives"),
    "dying": ("dying", "zset: workers that were given up, by when (ms)", "until their last job is taken"),
    "worker": ("worker:{worker}", "hash: what a worker offers and runs", "until it left, or its last job was taken"),
    "held": ("held:{worker}", "set: the jobs that a worker runs", "while it runs one"),
    "stops": ("stops:{worker}", "set: jobs that a worker is asked to stop", "while it runs one of them"),
    "quarantined": ("quarantined", "set: workers that run suspects only", "while there are suspects"),
    "free": ("free", "hash: group of workers (its queues) -> free slots", "while a group has workers"),
    "beats": ("beats", "counter: heartbeats; never goes back unless the store lost history", "for ever"),
    # Upkeep.
    "miscounted": ("miscounted", "string: a job was lost that may have been busy", "until upkeep has counted anew"),
    "recount": ("recount", "string: the totals were counted anew", "one lease"),
    "upkeep": ("upkeep", "string: the worker that does the upkeep", "under a second"),
    "durable": ("durable", "string: written with every write that waits for the disk", "for ever"),
    "room": ("room", "string: 1 while Redis has room for new work, else 0", "a second"),
    "round": ("round", "string: when the last upkeep was (ms)", "for ever"),
    "went_back": ("went_back", "string: how far parked jobs were looked at since the clock went back", "a few rounds"),
    "quiet": ("quiet", "string: nobody is given up until then (ms)", "one lease"),
    "ends": ("ends", "hash: end -> how many jobs ended so", "for ever"),
    "broken": ("broken", "zset: what made no sense and was set aside, in that order", "the newest 1,000"),
    "alarmed": ("alarmed", "string: the newest of them that was reported", "for ever"),
    # Lanes: a provider and one of its models.
    "lane": ("lane:{lane}", "hash: whether it is left alone, its last minute, its rates", "a day unused"),
    "overruns": (
        "overruns",
        "hash: lane -> how much more than its bound a call cost (thousandths), and whether it is closed for that",
        "until an operator opens the lane",
    ),
    "lane_changes": ("lane_changes", "stream: breakers that opened and closed", "the newest 1,000"),
    "probes": ("probes", "hash: call -> lane that it tries out", "until something is heard of it"),
    "lane_turns": ("lane_turns:{lane}", "hash: tenant -> its last place in the line", "while the line holds a job"),
    "lane_line": ("lane_line:{lane}", "zset: jobs that wait for it, tenants in turn", "while it holds a job"),
    "lanes": ("lanes", "set: lanes that jobs wait for", "while it holds a lane"),
    "lane_calls": (
        "lane_calls:{lane}:{hour}",
        "hash: how calls of an hour ended -> how many; of those that were answered also how long they took",
        "two days",
    ),
    # Money. A scope is spelt so that no colon is in it.
    "budgets": (
        "budgets",
        "hash: scope -> its caps, as `celeriac.costs.budgets` writes them",
        "until they are taken away",
    ),
    "use": (
        "use:{scope}:{window}",
        "hash: what calls admitted in a window cost, have in doubt and reserved; the alerts that were given",
        "35 days after the window",
    ),
    "used": ("used:{scope}", "hash: the same, ever", "for ever"),
    "promised": ("promised:{scope}", "counter: room that is kept for jobs that were woken", "seconds"),
    "windows": ("windows", "string: the time zone, and the windows that are open now", "for ever"),
    "usage": (
        "usage:{span}",
        "hash: series -> calls, tokens and cost of an hour or a day",
        "as its entries; days as totals",
    ),
    "mean_costs": (
        "mean_costs",
        "hash: agent -> how many jobs a mean is of, at most 50, and what one of them cost (nano-dollars)",
        "for ever, one an agent",
    ),
    "pace": (
        "pace",
        "hash: queue -> jobs that were chosen from it, when (ms), and how many a second lately",
        "for ever, one a queue",
    ),
    "usage_ever": (
        "usage",
        "hash: tenant, agent, provider, model -> calls, tokens and cost, ever; they never go down",
        "for ever, at most 1,000",
    ),
    "ledger": (
        "ledger:{day}",
        "stream: one entry for each outcome of a call, and for each correction",
        "days after its day",
    ),
    "doubts": (
        "doubts",
        "zset: calls in doubt, by when they were admitted (ms)",
        "entries leave with their age, or the doubt",
    ),
    "doubt_calls": (
        "doubt_calls",
        "hash: the same calls, whole, and whose they are",
        "entries leave with their age, or the doubt",
    ),
    "resolved": (
        "resolved:{id}:{call}",
        "string: what somebody said of a call that was in doubt",
        "as the ledger's entries",
    ),
    "alerts": ("alerts", "stream: caps of which a threshold was reached, or that soon will be", "the newest 1,000"),
    "told_alerts": (
        "told_alerts",
        "hash: of each sink the newest it was told of, who tells it more until when (ms), and how often that failed",
        "for ever, four a sink",
    ),
    "changes": ("changes", "stream: who changed a budget or resolved a doubt", "the newest 10,000"),
    # What callers look at.
    "jobs": ("jobs:{tenant}", "zset: a tenant's jobs by submission number", "entries leave with their record"),
    "jobs_in": ("jobs:{tenant}:{state}", "zset: the same in one state", "entries leave with the state or record"),
    "dead": ("dead:{tenant}", "zset: a tenant's dead letters by submission number", "entries leave with their record"),
    "tenants": ("tenants", "set: whose jobs are listed", "entries leave with the tenant's last record"),
    "dearest": (
        "dearest:{day}",
        "zset: tenant|agent|job -> what it cost (nano-dollars); of those that ended on a day (UTC) the dearest hundred",
        "35 days",
    ),
    "retention": ("retention", "zset: ended jobs by the end of their record (ms)", "entries leave when due"),
    "reader": (
        "reader:{process}",
        "channel: of a process that listens; it is to look what it listens to",
        "not stored",
    ),
    "ended": ("ended", "channel: the ids of jobs as they end", "not stored"),
    # Conversations.
    "context": (
        "context:{tenant}:{context}",
        "hash: version, holder, messages, bytes",
        "contexts.ttl after its last job",
    ),
    "turns": ("turns:{tenant}:{context}", "list: one element a turn, oldest first", "contexts.ttl after its last job"),
    "deleted": ("deleted:{tenant}:{context}", "string: the request that deleted the context last", "a minute"),
    "behind": ("behind", "zset: contexts with a line, by when to look at its holder (ms)", "while it holds a context"),
    "line": ("line:{tenant}:{context}", "zset: jobs behind the holder, by submission number", "while it holds a job"),
}


def spell(name: str, **parts: str) -> str:
    """The key called `name`."""
    return PREFIX + KEYS[name][0].format(**parts)


def lua(text: str = "") -> str:
    """The keys that `text` spells, as a Lua table of functions: `K.ready(line, priority, tenant)`."""
    lines = ["local K = {}"]
    used = set(re.findall(r"\bK\.(\w+)\(", text))
    for name, (template, _, _) in KEYS.items():
        if name not in used:
            continue
        parts = re.split(r"\{(\w+)\}", PREFIX + template)
        names = ", ".join(parts[1::2])
        spelt = " .. ".join(f"'{part}'" if i % 2 == 0 else part for i, part in enumerate(parts) if part)
        lines.append(f"function K.{name}({names}) return {spelt} end")
    return "\n".join(lines) + "\n"
