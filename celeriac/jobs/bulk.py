"""Many jobs at once, each by a script of its own: what was done before a failure stays done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import timedelta

from celeriac.errors import Conflict
from celeriac.jobs.store import JobStore, Replayed


async def replay_each(
    jobs: JobStore,
    ids: Iterable[str],
    tenant: str,
    *,
    fresh: bool = False,
    expires_in: timedelta | None = None,
) -> AsyncIterator[tuple[str, Replayed | str]]:
    """Start each of these jobs anew. Answers for each what became of it, or why it was refused.

    Raises StoreFull, StoreUnavailable: asked again, it goes on where it was.
    """
    for id in ids:
        try:
            replayed = await jobs.replay(id, tenant, fresh=fresh, expires_in=expires_in)
        except Conflict as error:
            yield id, str(error)
        else:
            yield id, replayed or f"there is no job {id}"
