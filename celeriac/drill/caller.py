"""The service that the drill plays: it submits jobs over HTTP, waits for their ends, and writes down what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from zlib import crc32

import aiohttp

from celeriac.drill.history import LABEL, History, Post, Seen, seen_of

#: Seconds that one answer may take, beside the time that the shim was asked to wait.
PATIENCE: Final = 15.0
#: Long polls at once.
WATCHERS: Final = 24
#: Seconds of one long poll.
POLL: Final = 2.0
#: Submissions at once.
SUBMITTERS: Final = 16
#: One job in so many belongs to a conversation, of about so many turns.
CONVERSE, TURNS = 4, 6
#: Seconds until a submission that was not answered is sent again, with the same key.
AGAIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class Wish:
    """A job to submit. due: seconds after the start of the load."""

    label: str
    due: float
    agent: str
    context: str | None = None
    model: str | None = None


class Caller:
    """Open while inside. key: the tenant's API key. agent: for jobs that name none."""

    def __init__(self, url: str, history: History, *, key: str = "", agent: str = "drill") -> None:
        self._url = url
        self._history = history
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._agent = agent
        self._open: set[str] = set()
        self._missing: set[str] = set()
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._watchers = [asyncio.create_task(self._watch()) for _ in range(WATCHERS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._http.close()

    @property
    def open(self) -> frozenset[str]:
        """Jobs whose end was not seen yet."""
        return frozenset(self._open)

    # Submitting.

    def wishes(
        self, scenario: str, jobs: int, over: float, rng: random.Random, *, alone: bool = False, **facts: Any
    ) -> list[Wish]:
        """So many jobs, spread over so many seconds. alone: none is in a conversation. facts: of each job."""
        agent = facts.pop("agent", self._agent)
        stamp = f"{LABEL}{scenario}-{rng.randrange(16**6):06x}"
        conversations = max(1, jobs // CONVERSE // TURNS)
        return [
            Wish(
                label=f"{stamp}-{number}",
                due=over * number / max(1, jobs),
                agent=agent,
                context=f"{stamp}-c{rng.randrange(conversations)}" if number % CONVERSE == 0 and not alone else None,
                **facts,
            )
            for number in range(jobs)
        ]

    async def submit_all(self, wishes: list[Wish], *, patience: float = 60.0) -> None:
        """Submit each when it is due; those of one conversation one after the other."""
        began = time.monotonic()
        turns: dict[str, asyncio.Lock] = {}
        free = asyncio.Semaphore(SUBMITTERS)

        async def one(wish: Wish) -> None:
            await asyncio.sleep(max(0.0, began + wish.due - time.monotonic()))
            turn = turns.setdefault(wish.context, asyncio.Lock()) if wish.context else contextlib.nullcontext()
            async with turn, free:
                await self.submit(wish, patience=patience)

        async with asyncio.TaskGroup() as group:
            for wish in wishes:
                group.create_task(one(wish))

    async def submit(self, wish: Wish, *, patience: float = 60.0) -> str:
        """Submit until it is accepted or refused for good, as a careful client does: always with the same key.

        Answers the job's id, "" if it was not accepted within `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            post, final = await self._post(wish)
            self._history.posts.append(post)
            if post.job_id:
                self._expect(post.job_id)
            if final or time.monotonic() > deadline:
                return post.job_id if post.outcome == "accepted" else ""
            await asyncio.sleep(AGAIN)

    async def _post(self, wish: Wish) -> tuple[Post, bool]:
        body = {
            "agent": wish.agent,
            "input": f"{wish.label} says hello",
            "context_id": wish.context,
            "metadata": {"drill": wish.label},
            "stream": crc32(wish.label.encode()) % 3 == 0,  # one in three can be read along
            **({"model": wish.model} if wish.model else {}),
        }
        at = time.time()
        try:
            async with self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": wish.label}) as answer:
                said = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return Post(wish.label, at, "unknown"), False
        if status == 202:
            return Post(wish.label, at, "accepted", said["id"], status), True
        if said.get("maybe_accepted"):
            return Post(wish.label, at, "maybe", said["job_id"], status), False
        return Post(wish.label, at, "refused", status=status), status not in (429, 503)

    def _expect(self, job_id: str) -> None:
        if job_id not in self._open:
            self._open.add(job_id)
            self._due.put_nowait(job_id)

    # Watching.

    async def _watch(self) -> None:
        while True:
            job_id = await self._due.get()
            seen = await self._get(job_id, wait=POLL)
            if seen is not None and seen.has_ended:
                self._history.seen.append(seen)
                self._open.discard(job_id)
            else:
                # Those that are not there, too: a store that was put back may know them later.
                await asyncio.sleep(0.05)
                self._due.put_nowait(job_id)

    async def _get(self, job_id: str, wait: float = 0) -> Seen | None:
        """None: it is not there, or nobody answers."""
        try:
            async with self._http.get(f"/v1/jobs/{job_id}", params={"wait": wait} if wait else {}) as answer:
                (self._missing.add if answer.status == 404 else self._missing.discard)(job_id)
                return seen_of(await answer.json(), time.time()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def all_ended(self, patience: float) -> bool:
        """Wait until each accepted job's end was seen. False: not within so many seconds."""
        deadline = time.monotonic() + patience
        while any(id not in self._missing or not self._forgiven(post) for id, post in self._unended()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    def _unended(self) -> list[tuple[str, Post]]:
        return [(id, post) for id, post in self._history.accepted.items() if id in self._open]

    def _forgiven(self, post: Post) -> bool:
        return any(rewind.lost(post.at) for rewind in self._history.rewinds)

    def look_again(self) -> None:
        """The store may have forgotten ends that were seen: wait for all of them again."""
        for job_id in self._history.accepted:
            self._expect(job_id)

    async def status_of(self, path: str) -> tuple[int, dict[str, str]]:
        """How this page answers now, and its headers; 0 where nobody answers."""
        try:
            async with self._http.get(path) as answer:
                return answer.status, dict(answer.headers)
        except (aiohttp.ClientError, TimeoutError):
            return 0, {}

    # The end.

    async def read_everything(self) -> None:
        """Write down how each job and each conversation stands. Raises TimeoutError if the shim does not answer."""
        history = self._history
        ids = history.known | await self._listed({post.label for post in history.posts})
        some = asyncio.Semaphore(WATCHERS)

        async def job(id: str) -> None:
            async with some:
                if (seen := await self._surely(f"/v1/jobs/{id}")) is not None:
                    history.final[id] = seen_of(seen, time.time())

        async def context(id: str) -> None:
            async with some:
                said = await self._surely(f"/v1/contexts/{id}") or {"messages": []}
                history.turns[id] = [(turn["role"], turn["content"]) for turn in said["messages"]]

        await asyncio.gather(*map(job, ids))
        await asyncio.gather(*map(context, {job.context for job in history.final.values() if job.context}))

    async def _listed(self, labels: set[str]) -> set[str]:
        """The ids of all jobs with these labels: those that nobody named to us, too."""
        found: set[str] = set()
        cursor: str | None = None
        oldest = min((post.at for post in self._history.posts), default=0.0)
        while True:
            query = {"limit": "200", **({"cursor": cursor} if cursor else {})}
            page = await self._surely("/v1/jobs", query) or {"jobs": [], "cursor": None}
            jobs = [seen_of({**job, "calls": None}, 0.0) for job in page["jobs"]]
            found |= {job.id for job in jobs if job.label in labels}
            cursor = page["cursor"]
            if cursor is None or (jobs and jobs[-1].created < oldest - 5):
                return found

    async def _surely(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any] | None:
        """The answer, or None for 404; asked again until there is one."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                    async with self._http.get(path, params=query or {}) as answer:
                        if answer.status == 200:
                            said: dict[str, Any] = await answer.json()
                            return said
                        if answer.status == 404:
                            return None
                        if answer.status < 500:
                            raise RuntimeError(f"{path} answers {answer.status}")
                await asyncio.sleep(0.2)
