"""A house with something to see in it: tenants, jobs of every kind, money of past days; and Flowers to look at it."""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import httpx2

from celeriac.settings import SHIPPED_AGENTS
from tests.by_hand import crash
from tests.flower.conftest import Flower
from tests.processes import wait_until
from tests.story.conftest import House

T = TypeVar("T")

#: What is asked and answered, and is to be shown by no page.
SECRET: Final = "unmistakable"
QUESTION: Final = f"Where did the {SECRET} question go?"
ANSWER: Final = f"Into the {SECRET} answer."
KEYS: Final = {"acme": "key-of-acme-1234567", "beta": "key-of-beta-1234567"}

AGENTS: Final = """
[agents.chief]
description = "Answers, after asking."
lanes = ["openai/gpt-5-mini"]
asks = ["assistant"]

[agents.clerk]
description = "Gives money back, if it may."
lanes = ["openai/gpt-5-mini"]
tools = ["town_tools:refund"]

[agents.second-choice]
description = "Its first lane never answers."
lanes = ["openai/fault-503", "anthropic/claude-haiku-5-5"]
max_retries = 0

[agents.broken]
description = "Its lane takes no request of it."
lanes = ["openai/fault-400"]
max_retries = 0

[agents.unserved]
description = "No worker serves its queue."
lanes = ["openai/gpt-5-mini"]
queue = "unserved"
"""
TOOLS: Final = """
from celeriac.agents.tools import tool


@tool(approval=True)
async def refund(number: int) -> str:
    \"\"\"Give the money of an order back.\"\"\"
    return "refunded"
"""
REFUND: Final = {"calls": [{"name": "refund", "arguments": {"number": 7}}]}
ASK: Final = {"calls": [{"name": "ask_assistant", "arguments": {"question": "What is a leek?"}}]}


def aside(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Done in a thread: where a browser is driven, no event loop can be run."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments, **named).result()


class Town(House):
    def __init__(self) -> None:
        super().__init__()
        folder = Path(self._open.enter_context(TemporaryDirectory()))
        (folder / "agents.toml").write_text(SHIPPED_AGENTS.read_text() + AGENTS)
        (folder / "town_tools.py").write_text(TOOLS)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self.agents = {"CELERIAC_AGENTS_FILE": str(folder / "agents.toml")}
        self.the_worker = self.worker(**self.agents, PYTHONPATH=path)
        self.the_shim = self.shim(
            **self.agents, CELERIAC_SHIM__API_KEYS=json.dumps(KEYS), CELERIAC_SHIM__OPERATORS="acme"
        )
        self.always(text=ANSWER, output=900)

    def scripted(self, *behaviours: dict[str, Any]) -> None:
        aside(super().scripted, *behaviours)

    def always(self, **behaviour: Any) -> None:
        aside(super().always, **behaviour)

    def api(self, method: str, path: str, tenant: str = "acme", **request: Any) -> Any:
        answer = self.the_shim.http.request(method, path, headers={"X-API-Key": KEYS[tenant]}, **request)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.headers["Content-Type"] == "application/json" else answer.text

    def submit(self, tenant: str = "acme", **facts: Any) -> str:
        job = self.api("POST", "/v1/jobs", tenant, json={"agent": "assistant", "input": QUESTION} | facts)
        id: str = job["id"]
        return id

    def job(self, id: str, tenant: str = "acme", wait: float = 0) -> dict[str, Any]:
        job: dict[str, Any] = self.api("GET", f"/v1/jobs/{id}", tenant, params={"wait": wait})
        return job

    def ended(self, *ids: str, tenant: str = "acme") -> None:
        for id in ids:
            assert self.job(id, tenant, wait=60)["ended_at"], id

    def waiting(self, tenant: str = "acme") -> str:
        """A job that waits to be allowed a refund."""
        self.scripted(REFUND)
        id = self.submit(tenant, agent="clerk")
        wait_until(lambda: self.job(id, tenant)["reason"] == "waiting_approval", "the job to ask")
        return id

    def count(self, query: str) -> int:
        """How many jobs of all tenants match."""
        pages = (self.api("GET", f"/v1/jobs?{query}&limit=100", tenant) for tenant in KEYS)
        return sum(len(page["jobs"]) for page in pages)

    def dead(self, tenant: str = "acme") -> str:
        """A dead letter; started again it waits in a queue that nobody serves."""
        id = self.submit(tenant, agent="unserved")
        aside(crash, self.valkey, id, "unserved")
        wait_until(lambda: self.job(id, tenant)["dead"], "the job to be dead")
        return id

    def live(self) -> None:
        """What an ordinary day leaves."""
        self.scripted(ASK, {"text": "A plant.", "output": 300}, {"text": ANSWER, "output": 500})
        self.ended(chief := self.submit(agent="chief"))
        self.chief = chief
        acme = [self.submit() for _ in range(3)] + [self.submit(agent="second-choice")]
        beta = [self.submit("beta"), self.submit("beta", agent="reviewer")]
        self.broken = self.submit(agent="broken")
        self.ended(*acme, self.broken)
        self.ended(*beta, tenant="beta")
        self.paid = [chief, *acme]
        self.asks = self.waiting()
        self.letter = self.dead()
        self.queued = [self.submit("beta", agent="unserved") for _ in range(3)]
        for scope, caps in (
            ("all", [{"window": "month", "cap_usd": "500"}]),
            ("tenant:acme", [{"window": "day", "cap_usd": "0.02", "alert_at": [50, 80]}]),
            ("tenant:beta", [{"window": "day", "cap_usd": "100"}]),
            ("agent:broken", [{"window": "ever", "cap_usd": "1"}]),
        ):
            self.api("PUT", f"/v1/budgets/{scope}", json={"caps": caps})

    def past(self, days: int) -> None:
        """What former days cost, written as settled calls are added up."""
        redis = self.valkey.client()
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        models = [("openai", "gpt-5.4-mini", "assistant", "acme"), ("openai", "gpt-5-mini", "chief", "acme"),
                  ("anthropic", "claude-haiku-5-5", "second-choice", "beta")]  # fmt: skip
        for ago in range(1, days + 1):
            start = int((today - timedelta(days=ago)).timestamp())
            for n, (provider, model, agent, tenant) in enumerate(models):
                nanos = (1 + n) * (20_000_001 + 7_000_003 * (ago * (3 + n) % 7))
                series = f"{tenant},{agent},{provider},{model}"
                redis.hset(f"celeriac:usage:day.{start}", series, f"40 1 9000 0 0 0 800 0 {nanos} 0")

    def flower(self, cwd: Path, *options: str, prefix: str = "", **env: str) -> Flower:
        """Not waited for yet."""
        flower = Flower(self.valkey.url, cwd, *options, prefix=prefix, **self.agents, **env)
        self._open.callback(flower.stop)
        return flower


def data(flower: Flower, path: str, **params: Any) -> Any:
    answer = flower.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def act(flower: Flower, body: Any, **headers: str) -> httpx2.Response:
    return flower.http.post("/jobs/act", json=body, headers=headers)
