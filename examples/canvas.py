"""Several agents at work for one result, from a service that speaks Celery and has no code of ours.

Each chapter is summarised by a job of its own, side by side (a chord's header); another job reads all summaries (its
body), and a last one looks the result over (the rest of the chain). Beside it goes a group, one of whose members we
change our mind about.

    python examples/canvas.py redis://localhost:6379/0 http://localhost:8000
"""

import json
import sys
import urllib.request

from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError

CHAPTERS = (
    "Leeks are planted in spring, and earthed up as they grow.",
    "They are harvested from autumn on; frost does not hurt them.",
    "In the kitchen they are washed well, and cooked in butter.",
)


def main(redis: str, shim: str) -> None:
    app = Celery(broker=redis, backend=redis)
    app.conf.task_routes = {"celeriac.submit": {"queue": "celeriac.submit"}}

    def ask(agent, text, **facts):
        return app.signature("celeriac.submit", args=[{"agent": agent, "input": text, **facts}])

    def answer(result):
        """Celery has a summary of the job. What its agent said never goes through a broker: it is asked for by id."""
        with urllib.request.urlopen(f"{shim}/v1/jobs/{result.id}") as reply:
            return json.load(reply)["answer"]

    # previous="input": the answers before it are put before its own input.
    review = chain(
        chord(
            (ask("summariser", chapter) for chapter in CHAPTERS),
            ask("assistant", "Make one paragraph of these.", previous="input"),
        ),
        ask("reviewer", "What is missing?", previous="input"),
    ).apply_async()

    questions = group(ask("assistant", f"Name {count} dishes with leeks.") for count in (1, 2, 3)).apply_async()
    # Whatever it is doing: waiting, parked or running. A chord with a cancelled member fails, a group goes on.
    questions[2].revoke()

    print("summary of the job:", review.get(timeout=120))
    print("what it says:", answer(review))
    for question in questions:
        try:
            print(question.get(timeout=120)["state"], "for $", question.get()["cost_usd"])
        except TaskRevokedError:
            print("cancelled")


if __name__ == "__main__":
    main(*sys.argv[1:])
