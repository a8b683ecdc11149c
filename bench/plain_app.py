"""What Celeriac is compared with: a plain Celery app that asks the same model the same thing, in its best set-up.

One set of clients a process, made once; at most 100 connections in one HTTP pool, because httpx2's pool costs the more
the larger it is.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

from celery import Celery, signals

POOL = 100

app = Celery("plain", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
# As many results at once as there are threads: fewer would make them wait for a connection.
app.conf.update(broker_connection_retry_on_startup=True, redis_max_connections=2000)

_clients: Iterator[Any] | None = None
_making = threading.Lock()


def client() -> Any:
    global _clients
    with _making:
        if _clients is None:
            import httpx2
            import openai

            made = []
            for _ in range(-(-int(os.environ["BENCH_CONCURRENCY"]) // POOL)):
                limits = httpx2.Limits(max_connections=POOL, max_keepalive_connections=POOL)
                http = openai.DefaultHttpxClient(limits=limits, timeout=120)
                made.append(
                    openai.OpenAI(api_key="k", base_url=os.environ["BENCH_OPENAI"], max_retries=0, http_client=http)
                )
            _clients = itertools.cycle(made)
    return next(_clients)


@signals.celeryd_init.connect
def _import_before_forking(**_: Any) -> None:
    import openai  # noqa: F401  # its 40 MB are shared by the children of a prefork pool


@signals.worker_process_init.connect
def _open(**_: Any) -> None:
    client()


@app.task(name="plain.ask")
def ask(instructions: str, text: str) -> str:
    made = client().chat.completions.create(
        model="gpt-5.4-mini",
        messages=[{"role": "system", "content": instructions}, {"role": "user", "content": text}],
        max_tokens=1024,
    )
    return str(made.choices[0].message.content)
