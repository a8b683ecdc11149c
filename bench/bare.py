"""What a call costs with nothing around it: `AsyncOpenAI` over our transport, in a process of its own.

python -m bench.bare URL IN_FLIGHT CONVERSATIONS TALK      prints {"cpu_ms": ..., "seconds": ...}
"""

from __future__ import annotations

from typing import Any

import openai

from bench.talk import MAX_TOKENS, MODEL, Talk, main, measure
from celeriac.llm.transport import open_http


async def bare(url: str, in_flight: int, conversations: int, talk: Talk) -> dict[str, Any]:
    async with open_http(in_flight) as http:
        sdk = openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0, timeout=120, http_client=http)

        async def ask(messages: list[Any]) -> str:
            made = await sdk.chat.completions.create(model=MODEL, messages=messages, max_tokens=MAX_TOKENS)
            return made.choices[0].message.content or ""

        return await measure(ask, talk, in_flight, conversations)


if __name__ == "__main__":
    main(bare)
