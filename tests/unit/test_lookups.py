"""A call in doubt whose answer was kept: what is booked of it when it is found, and what its lane hears of that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from celeriac.agents.calls import Calls, Lease
from celeriac.connections import patiently
from celeriac.costs.books import Account
from celeriac.costs.prices import Prices
from celeriac.errors import ModelError, ModelTimeout
from celeriac.jobs.lease import Fleet
from celeriac.jobs.model import Call, Claim, NewJob
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.model import Answer, Lane, Message, ModelRequest, Usage
from celeriac.llm.scripted import Line, Scripted
from celeriac.settings import Settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey

LANE = Lane("openai", "gpt-5-mini")
REQUEST = ModelRequest(LANE, (Message("user", "What is a leek?"),), max_output_tokens=1000, deadline=20.0, stored=True)
ANSWER = Answer("A plant.", Usage(input=10, output=70), LANE, LANE.model)
LOST = ModelTimeout("openai did not answer in time", in_doubt=True, request_id="req_7")


class Keeper(Scripted):
    """A model whose answers are kept. found: what is found of them, one a look; then nothing more. looks: what was
    looked up, under which name.
    """

    def __init__(self, *lines: Line, found: list[Answer | ModelError | None] | None = None) -> None:
        super().__init__(*lines)
        self.found = found or []
        self.looks: list[tuple[ModelRequest, str]] = []

    async def look_up(self, request: ModelRequest, response: str) -> Answer | None:
        self.looks.append((request, response))
        found = self.found.pop(0) if self.found else None
        if isinstance(found, ModelError):
            raise found
        return found

    @property
    def looked_up(self) -> list[str]:
        return [request.call for request, _ in self.looks]


class Desk:
    """Runs of one job, one after the other."""

    def __init__(self, stores: Stores, fleet: Fleet, valkey: Valkey, claim: Claim) -> None:
        self.stores, self.fleet, self.claim, self.redis = stores, fleet, claim, valkey.client()
        self.account: Account | None = None
        self.prices = Prices()

    def calls(self, model: Scripted, *, strict: bool = False) -> Calls:
        async def insist(write: Callable[[], Awaitable[Any]]) -> Any:
            return await patiently(write)

        return Calls(
            *(self.claim, model, self.stores.journal, self.prices, Lease()),
            caps={},
            account=self.account,
            strict=strict,
            insist=insist,
        )

    async def again(self) -> None:
        """The run lets go of the job, and another one takes it."""
        await self.stores.jobs.park(self.claim, "retry", timedelta(0))
        await self.fleet.upkeep()
        claim = await self.stores.jobs.claim(self.claim.id, "w1", new_nonce())
        assert isinstance(claim, Claim)
        self.claim = claim

    async def booked(self) -> list[Call]:
        job = await self.stores.jobs.get(self.claim.id, None)
        assert job is not None
        return list(job.calls)


@pytest.fixture
async def desk(stores: Stores, valkey: Valkey, settings: Settings) -> AsyncIterator[Desk]:
    fleet, line = open_fleet(settings, stores, name="line")
    await fleet.register("w1", ["celeriac"], 1, (), {"celeriac": ""})
    job = await stores.jobs.submit(NewJob(new_id(), "default", "clerk", "celeriac", (("user", "hi"),)))
    claim = await stores.jobs.claim(job.id, "w1", new_nonce())
    assert isinstance(claim, Claim)
    yield Desk(stores, fleet, valkey, claim)
    await line.aclose()


async def test_an_answer_that_is_found_costs_what_it_cost_when_it_was_asked_for(desk: Desk, tmp_path: Path) -> None:
    """And not what it would cost now; its bound is of that time too. What it was booked under is as it was."""
    file = tmp_path / "prices.toml"
    today = datetime.now(UTC).date()
    file.write_text(
        f'[[openai."gpt-5-mini"]]\nfrom = {today - timedelta(days=1)}\ninput = "100"\noutput = "100"\n'
        f'[[openai."gpt-5-mini"]]\nfrom = {today - timedelta(days=9)}\ninput = "1"\noutput = "1"\n'
    )
    desk.prices, desk.account = Prices(file), Account("default", "clerk")
    then = datetime.now(UTC) - timedelta(days=5)
    with pytest.raises(ModelTimeout):
        await desk.calls(Keeper(LOST)).answer(REQUEST)
    await desk.again()
    [doubt] = desk.claim.doubts
    assert abs(doubt.at - datetime.now(UTC)) < timedelta(seconds=30)
    assert "all" in doubt.books
    desk.claim = replace(desk.claim, doubts=(replace(doubt, at=then, bound=1),))
    calls = desk.calls(Keeper(found=[ANSWER]))
    settlement = calls.settlement(await calls.answer(REQUEST))
    assert settlement is not None
    assert (settlement.nanos, settlement.books) == (80 * 1000, doubt.books)
    assert settlement.heard is not None
    assert settlement.heard["over"] == -(-1000 * settlement.nanos // desk.prices.bound(REQUEST, then))
    await calls.close()
