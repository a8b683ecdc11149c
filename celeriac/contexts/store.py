"""Conversations: a list of turns and a hash beside it. Runs append in the script that ends them; here they are read,
encoded and deleted."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from celeriac import keys
from celeriac.connections import ALWAYS, Redis, Scripts, answering, pack, unpack
from celeriac.llm.model import Message

HERE: Final = Path(__file__).parent
#: The helpers that the scripts of the job store share with ours.
LUA: Final = (HERE / "turns.lua").read_text()


@dataclass(frozen=True, slots=True)
class Context:
    """messages: oldest first. version: how often it was changed. holder: the job that runs in it now, or None."""

    id: str
    messages: tuple[Message, ...]
    version: int
    holder: str | None


def encode_turn(messages: Iterable[Message]) -> bytes:
    """One turn as an element of the list: how many messages, and the messages."""
    turn = [message.said() for message in messages]
    return b"%d:%s" % (len(turn), pack(turn))


def decode_turns(turns: Iterable[bytes]) -> tuple[Message, ...]:
    """The messages of a list of turns. Raises ValueError for an element that is none."""
    return tuple(Message.read(said) for turn in turns for said in unpack(turn.partition(b":")[2]))


class ContextStore:
    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis = redis
        self._within = scripts.within
        self._delete = scripts.load(HERE / "delete.lua", ALWAYS)

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """The conversation, or None where this tenant has none of that name."""
        names = {"tenant": tenant, "context": context_id}
        async with answering(within=self._within), self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.spell("context", **names), ["version", "holder"])
            pipe.lrange(keys.spell("turns", **names), 0, -1)
            (version, holder), turns = await pipe.execute()
        if version is None and holder is None:
            return None
        return Context(context_id, decode_turns(turns), int(version or 0), holder.decode() if holder else None)

    async def delete(self, tenant: str, context_id: str) -> bool:
        """Forget the conversation. A job that runs in it ends and appends nothing. False: there was none."""
        return bool(await self._delete(tenant=tenant, context=context_id, request=secrets.token_hex(16)))
