"""What commands have in common that look into the stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from celeriac.settings import Settings
    from celeriac.stores import Stores

T = TypeVar("T")


def over_the_stores(work: Callable[[Stores, Settings], Awaitable[T]]) -> T:
    import asyncio

    from celeriac import logs
    from celeriac.settings import load_settings
    from celeriac.stores import open_stores

    settings = load_settings()
    logs.configure(settings.env, "WARNING", service="cli")

    async def run() -> T:
        stores = open_stores(settings, connections=2, name="celeriac-cli")
        try:
            return await work(stores, settings)
        finally:
            await stores.close()

    return asyncio.run(run())


def shown(value: Any, *, indent: bool = False) -> str:
    """As JSON; a duration in seconds."""
    from datetime import datetime

    import orjson

    from celeriac.jobs.model import rfc_3339

    def spelt(value: Any) -> Any:
        return rfc_3339(value) if isinstance(value, datetime) else value.total_seconds()

    option = orjson.OPT_PASSTHROUGH_DATETIME | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(value, default=spelt, option=option).decode()


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines, with the columns below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
