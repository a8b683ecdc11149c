"""One job over HTTP, as any caller would send it: the proof that what was started works together."""

from __future__ import annotations

from time import monotonic
from typing import Any

import aiohttp

from celeriac.errors import NotStarted

QUESTION = "In one sentence: what is a job queue good for?"
PATIENCE = 120.0
#: Below the shim's own limit for `?wait=`, and short enough to notice a shim that has died.
WAIT = 15
ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})

Job = dict[str, Any]


async def first_job(shim_url: str, key: str | None) -> Job:
    """Submit one job and wait for its end. key: an API key, if the shim asks for one.

    Returns the job as the shim answers it. Raises `NotStarted` if the shim refuses it or it has not ended in time.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=WAIT + 15)
    deadline = monotonic() + PATIENCE
    try:
        async with aiohttp.ClientSession(shim_url, headers=headers, timeout=timeout) as session:
            job = await _asked(session, "POST", "/v1/jobs", json={"agent": "assistant", "input": QUESTION})
            while job["state"] not in ENDED:
                if monotonic() > deadline:
                    raise NotStarted(f"the first job, {job['id']}, is still {job['state']} after {PATIENCE:g} s")
                job = await _asked(session, "GET", f"/v1/jobs/{job['id']}", params={"wait": str(WAIT)})
            return job
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotStarted(f"the first job: the shim did not answer: {error or type(error).__name__}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise NotStarted(f"the first job: the shim's answer is not a job: {error!r}") from error


async def _asked(session: aiohttp.ClientSession, method: str, path: str, **request: Any) -> Job:
    async with session.request(method, path, **request) as response:
        if response.status >= 400:
            text = (await response.text())[:500]
            raise NotStarted(f"the first job: {method} {path} was answered {response.status}: {text}")
        body: Job = await response.json(content_type=None)
        return body


def told(job: Job) -> list[str]:
    """What a person wants to know of an ended job, a line each."""
    if job["state"] != "succeeded":
        error = job.get("error") or {}
        return [f"The first job, {job['id']}, {job['state']}: {error.get('message', 'without an error')}"]
    usage = job.get("usage") or {}
    asked = sum(usage.get(kind, 0) for kind in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))
    return [
        f"answer  {job.get('answer')}",
        f"tokens  {asked} in, {usage.get('output_tokens', 0)} out ({job.get('model')})",
        f"cost    ${job.get('cost_usd')}",
    ]
