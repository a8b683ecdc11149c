"""Who changed a budget or resolved a doubt, and when: one stream for both, written with the change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from celeriac import keys
from celeriac.connections import answering

PAGE: Final = 200


async def changes(redis: Any, what: str, most: int) -> AsyncIterator[tuple[datetime, Mapping[str, str]]]:
    """At most so many changes of one kind, the newest first. Raises StoreUnavailable."""
    last = "+"
    while most > 0:
        async with answering():
            page = await redis.xrevrange(keys.spell("changes"), last, count=PAGE)
        for id, raw in page:
            entry = {name.decode(): value.decode() for name, value in raw.items()}
            if entry["what"] == what:
                yield datetime.fromtimestamp(int(id.partition(b"-")[0]) / 1000, UTC), entry
                most -= 1
                if most == 0:
                    return
        if len(page) < PAGE:
            return
        last = f"({page[-1][0].decode()}"
