"""The texts that every script of the job store stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from celeriac.connections import CLOCK, Durability, Redis, Scripts
from celeriac.jobs import model

HERE: Final = Path(__file__).parent
#: Before `submit.lua` and `replay.lua`.
ENTER: Final = (HERE / "enter.lua").read_text()
#: Before whatever tells a caller when a job will start.
OUTLOOK: Final = (HERE / "outlook.lua").read_text()


def scripts(
    redis: Redis,
    context_helpers: str,
    books_helpers: str,
    clock: str = CLOCK,
    durability: Durability = "process",
    *,
    fenced: bool = True,
    within: float | None = None,
) -> Scripts:
    """Scripts behind the helpers of the job store. context_helpers, books_helpers: those of contexts and of money,
    which it does not know.

    fenced: False for the drill alone, which shows what is lost without. within: seconds for each script, or None.
    """
    switches = f"local UNFENCED = {str(not fenced).lower()}\n"
    lines, telling, ends = ((HERE / name).read_text() for name in ("lines.lua", "telling.lua", "ends.lua"))
    helpers = context_helpers + lines + telling + books_helpers + ends
    return Scripts(redis, switches + model.lua() + helpers, clock, durability, within=within)
