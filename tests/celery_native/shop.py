"""Another team's application: stock Celery, two URLs, and tasks that write down what they were told."""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery

URL = os.environ.get("SHOP_URL", "redis://127.0.0.1:1/0")

app = Celery("shop", broker=URL, backend=URL)
notes = redis.Redis.from_url(URL, decode_responses=True)


@app.task(name="shop.note")
def note(result: Any, about: str = "") -> Any:
    import json

    notes.rpush(f"shop:notes:{about}", json.dumps(result))
    return result


@app.task(name="shop.fetch")
def fetch(text: str) -> str:
    return text
