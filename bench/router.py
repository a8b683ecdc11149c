"""What a call costs through LiteLLM's `Router`, in a process of its own and with the Python of `bench.environment`.

PYTHON -m bench.router URL IN_FLIGHT CONVERSATIONS TALK      prints {"cpu_ms": ..., "seconds": ..., "version": ...}

Two deployments at the same URL; everything else is as it comes: cooldowns, retries, the price of each call, its own
choice of an HTTP client.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

# Else it asks the network for a newer one of its tables, waits, and takes the one that it has.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from bench.talk import MAX_TOKENS, MODEL, Talk, main, measure


async def routed(url: str, in_flight: int, conversations: int, talk: Talk) -> dict[str, Any]:
    deployments = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": url, "api_key": name},
            "model_info": {"id": name},
        }
        for name in ("one", "other")
    ]
    router = litellm.Router(model_list=deployments)
    priced = True

    async def ask(messages: list[Any]) -> str:
        nonlocal priced
        made = await router.acompletion(model=MODEL, messages=messages, max_tokens=MAX_TOKENS)
        priced = priced and bool(made._hidden_params.get("response_cost"))
        return made.choices[0].message.content or ""

    return await measure(ask, talk, in_flight, conversations) | {"version": version("litellm"), "priced": priced}


if __name__ == "__main__":
    main(routed)
