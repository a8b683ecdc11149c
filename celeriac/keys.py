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
    "job": ("job:{id}", "hash: the record of a job", "its life, then jobs.result_ttl"),
    "seq": ("seq", "counter: submissions", "for ever"),
    "turn": ("turn", "counter: places in rotations, and bells", "for ever"),
    "ready": ("ready:{queue}:{priority}:{tenant}", "zset: jobs by submission number", "while it holds a job"),
    "rotation": ("rotation:{queue}:{priority}", "zset: tenants with ready jobs, by turn", "while it holds a tenant"),
    "rung": ("rung:{queue}", "zset: jobs whose bell is out, by when to ring again (ms)", "while it holds a job"),
    "bell": ("bell:{queue}", "string: Celery's message for a job of this queue", "until another broker is used"),
    "protocol": ("protocol", "string: the newest protocol that a worker registered with", "for ever"),
    "workers": ("workers", "zset: worker by the end of its lease (ms)", "while one lives"),
    "worker": ("worker:{worker}", "hash: queues, slots, running, taking, protocol, agents", "until it left"),
    "held": ("held:{worker}", "set: the jobs that a worker runs", "while it runs one"),
    "free": ("free", "hash: group of workers (its queues) -> free slots", "while a group has workers"),
    "recount": ("recount", "string: the totals were counted anew", "one lease"),
    "upkeep": ("upkeep", "string: the worker that does the upkeep", "under a second"),
    "jobs": ("jobs:{tenant}", "zset: a tenant's jobs by submission number", "entries leave with their record"),
    "jobs_in": ("jobs:{tenant}:{state}", "zset: the same in one state", "entries leave with the state or record"),
    "retention": ("retention", "zset: ended jobs by the end of their record (ms)", "entries leave when due"),
    "context": (
        "context:{tenant}:{context}",
        "hash: version, holder, messages, bytes",
        "contexts.ttl after its last job",
    ),
    "turns": ("turns:{tenant}:{context}", "list: one element a turn, oldest first", "contexts.ttl after its last job"),
    "line": ("line:{tenant}:{context}", "zset: jobs behind the holder, by submission number", "while it holds a job"),
    "ended": ("ended", "channel: the ids of jobs as they end", "not stored"),
}


def spell(name: str, **parts: str) -> str:
    """The key called `name`."""
    return PREFIX + KEYS[name][0].format(**parts)


def lua() -> str:
    """The same keys as a Lua table of functions, `K.ready(queue, priority, tenant)`."""
    lines = ["local K = {}"]
    for name, (template, _, _) in KEYS.items():
        parts = re.split(r"\{(\w+)\}", PREFIX + template)
        names = ", ".join(parts[1::2])
        text = " .. ".join(f"'{part}'" if i % 2 == 0 else part for i, part in enumerate(parts) if part)
        lines.append(f"function K.{name}({names}) return {text} end")
    return "\n".join(lines) + "\n"
