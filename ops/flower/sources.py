"""What the pages read: the stores, the agents and the prices. Nothing that they show is kept here."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from celeriac.accounts import receipt
from celeriac.agents.registry import read_agents
from celeriac.costs.prices import Prices
from celeriac.jobs.model import Account
from celeriac.settings import Settings
from celeriac.stores import Stores, open_stores

#: Seconds that the store gets for all that one request asks.
PATIENCE: Final = 5.0
#: Seconds for the last words to it, when Flower ends.
FAREWELL: Final = 2.0
CONNECTIONS: Final = 8


class Sources:
    """Reads the agents now: a wrong file stops the start. Raises Misconfigured."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = read_agents(settings.agents_file)
        self._stores: Stores | None = None
        self._prices: Prices | None = None

    @property
    def stores(self) -> Stores:
        """Opened when first asked for, on the event loop that runs then: Flower's."""
        if self._stores is None:
            self._stores = open_stores(self.settings, connections=CONNECTIONS, name="celeriac-flower", within=PATIENCE)
            # Flower tells nobody that it ends: it stops its loop from here too.
            atexit.register(self._close, asyncio.get_running_loop())
        return self._stores

    async def receipt(self, account: Account) -> Mapping[str, Any]:
        """As the API has it, not signed. In a thread: the first one reads the table of prices."""
        return await asyncio.to_thread(self._receipt, account)

    def _receipt(self, account: Account) -> Mapping[str, Any]:
        if self._prices is None:
            self._prices = Prices.of(self.settings)
        return receipt(account, self._prices)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._stores is not None and not loop.is_running() and not loop.is_closed():
            with suppress(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(self._stores.close(), FAREWELL))
            self._stores = None
