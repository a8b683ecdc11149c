"""The fault-injecting provider itself: what other tests rely on."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from celeriac.drill.process import ProviderProcess

CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


async def ask(provider: ProviderProcess, body: object = CHAT, key: str = "k", **headers: str) -> tuple[int, object]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{provider.openai_url}/chat/completions", json=body, headers={"x-api-key": key, **headers}
        ) as answer,
    ):
        return answer.status, await answer.json()


async def test_a_script_is_followed_in_order_and_by_model(provider: ProviderProcess) -> None:
    """A behaviour for one model waits for it; `times` repeats it."""
    await provider.script({"model": "other", "status": 500}, {"status": 429, "times": 2})
    assert [(await ask(provider))[0] for _ in range(3)] == [429, 429, 200]
    assert (await ask(provider, CHAT | {"model": "other"}))[0] == 500


async def test_a_mistyped_fault_is_refused(provider: ProviderProcess) -> None:
    """A fault that never happens would let its test pass."""
    with pytest.raises(ValueError, match="unknown fault"):
        await provider.script({"fault": "htlm"})
    with pytest.raises(ValueError, match="unknown fields"):
        await provider.default(dely=1)


async def test_only_what_was_run_is_billed(provider: ProviderProcess) -> None:
    """Refused calls are free; an answer that could not be written is not."""
    for model in ("small", "fault-429", "fault-500", "fault-html"):
        async with aiohttp.ClientSession() as http:
            await http.post(
                f"{provider.openai_url}/chat/completions", json=CHAT | {"model": model}, headers={"x-api-key": "k"}
            )
    bill = await provider.bill(lines=True)
    assert [line["model"] for line in bill["lines"]] == ["small", "fault-html"]
    assert (bill["calls"], bill["written"]) == (2, 2)


async def test_a_call_says_who_asked_and_what(provider: ProviderProcess) -> None:
    """While it is in flight, and on the bill: the drill finds the process that made it, and the job that it was for."""
    await provider.script({"hang": True})
    call = asyncio.create_task(ask(provider, key="key-of-worker-0007"))
    await provider.until(lambda state: state["in_flight"] == 1)
    async with asyncio.timeout(5):
        while not (lines := await provider.open()):  # noqa: ASYNC110  # it is in another process
            await asyncio.sleep(0.01)
    assert [(line["key"], line["about"]) for line in lines] == [("0007", "hi")]
    assert (await provider.bill(lines=True))["lines"] == lines
    call.cancel()
    await provider.until(lambda state: state["in_flight"] == 0)
    assert await provider.open() == []


async def test_a_call_without_a_key_is_refused(provider: ProviderProcess) -> None:
    """As with the real ones."""
    assert (await ask(provider, key=""))[0] == 401
