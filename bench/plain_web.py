"""A minimal FastAPI application in front of Celery: the usual way to hand a job over. Two spellings of the same.

`/threaded` is what FastAPI asks for where a call blocks, `/blocking` costs less CPU and stops the loop meanwhile.
"""

from __future__ import annotations

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

from bench.plain_app import app as queue

app = FastAPI()
celery: Celery = queue


class Job(BaseModel):
    input: str


def _submit(job: Job) -> dict[str, str]:
    return {"id": str(celery.send_task("plain.ask", args=["Be brief.", job.input]).id)}


@app.post("/threaded", status_code=202)
def threaded(job: Job) -> dict[str, str]:
    return _submit(job)


@app.post("/blocking", status_code=202)
async def blocking(job: Job) -> dict[str, str]:
    return _submit(job)
