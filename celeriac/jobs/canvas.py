"""What Celery hangs on a task that became a job: callbacks, errbacks, chain, group and chord.

It comes with the submission, is kept in the job's record, and travels on every bell of the job, so that whichever task
ends the job finds it where Celery's tracer looks for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Canvas:
    """As in a task's request. callbacks, errbacks, chain: signatures as Celery writes them. chord: that of its body."""

    root_id: str
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: Any = None

    @property
    def waits(self) -> bool:
        """Whether something is to happen at the end, asked for the result or not."""
        return any((self.callbacks, self.errbacks, self.chain, self.chord))

    def chords(self) -> list[str]:
        """The groups of the chords that wait for this job, or for what comes after it in its chain."""
        ids = [self.group] if self.chord else []
        for step in self.chain or ():
            options = step.get("options") or {}
            if options.get("chord"):
                ids.append(options.get("group_id"))
        return [id for id in ids if id]

    def pack(self) -> str:
        """What the script puts into the template of a bell, by placeholder: JSON texts, and one inside a JSON text."""
        embed = {
            "callbacks": self.callbacks,
            "errbacks": self.errbacks,
            "chain": self.chain,
            "chord": self.chord,
        }
        return json.dumps(
            {
                "ROOT": json.dumps(self.root_id),
                "PARENT": json.dumps(self.parent_id),
                "GROUP": json.dumps(self.group),
                "INDEX": json.dumps(self.group_index),
                "EMBED": _escaped(json.dumps(embed)),
            }
        )

    @classmethod
    def unpack(cls, text: str | bytes) -> Canvas:
        """What `pack` packed."""
        parts: Mapping[str, str] = json.loads(text)
        embed = json.loads(json.loads(f'"{parts["EMBED"]}"'))
        root, parent, group, index = (json.loads(parts[name]) for name in ("ROOT", "PARENT", "GROUP", "INDEX"))
        return cls(root, parent, group, index, **embed)

    def options(self) -> dict[str, Any]:
        """As `send_task` takes it."""
        return {
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "chain": self.chain,
            "chord": self.chord,
        }


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]
