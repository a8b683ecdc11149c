"""Text on its way to whoever reads along, where the store does not take it."""

from __future__ import annotations

import asyncio

import pytest

from celeriac.agents.deltas import Deltas
from celeriac.errors import CeleriacError, Fenced, StoreFull, StoreUnavailable


class Readers:
    """What they were told, and from which character on. errors: what the next tellings meet."""

    def __init__(self, *errors: CeleriacError) -> None:
        self.errors = list(errors)
        self.told: list[tuple[int, str]] = []
        self.tries = 0

    async def say(self, at: int, text: str) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        self.told.append((at, text))


async def said(readers: Readers, *pieces: str) -> None:
    """All of a call; a job that waits for its readers for longer than that fails the test."""
    deltas = Deltas(readers.say)
    async with asyncio.timeout(5):
        for piece in pieces:
            deltas.take(piece)
            await asyncio.sleep(0)
        await deltas.close()
    deltas.take("too late")


@pytest.mark.parametrize("error", [StoreFull("full"), Fenced("gone")], ids=lambda error: error.code)
async def test_text_that_the_store_does_not_take_is_dropped(error: CeleriacError) -> None:
    """And the job goes on: a full Redis keeps its last memory for what is worth more, and another run tells itself."""
    readers = Readers(*[error] * 1000)
    await said(readers, "Leeks", " are", " planted.")
    assert (readers.tries, readers.told) == (1, [])


async def test_text_for_a_store_that_is_away_waits_for_it() -> None:
    """Nothing of it is missing in the middle."""
    readers = Readers(StoreUnavailable("away"))
    await said(readers, "Leeks", " are", " planted.")
    assert "".join(text for _, text in readers.told) == "Leeks are planted."
    assert [at for at, _ in readers.told] == [
        len("".join(t for _, t in readers.told[:n])) for n in range(len(readers.told))
    ]
