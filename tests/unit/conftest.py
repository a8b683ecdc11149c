"""What several of these tests ask for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import settings

from celeriac.agents import calls

#: Whatever else holds: how long an example takes on a busy machine says nothing of what is tested.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


class Waits(list[float]):
    """How long each call means to wait, in its slot, for a lane. It waits until `over`, by no clock."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.append(seconds)
        await self.over.wait()


@pytest.fixture
async def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    made = Waits()
    monkeypatch.setattr(calls, "IN_PLACE", 60.0)
    monkeypatch.setattr(calls, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": made.sleep})))
    return made
