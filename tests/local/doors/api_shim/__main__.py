"""The stand-in for the shim: answers one kind of job, and keeps in Redis how many it has answered."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from redis import Redis

redis = Redis.from_url(os.environ["CELERIAC_REDIS_URL"])


class Shim(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/readyz":
            self.reply(200, {"workers": 1})
        else:
            usage = {"input_tokens": 11, "output_tokens": 7}
            facts = {"answer": "To wait in peace.", "model": "stand-in", "usage": usage, "cost_usd": "0.000042"}
            count = redis.incr("jobs")
            state = os.environ.get("STAND_IN_STATE", "succeeded")
            told = {"redis": os.environ["CELERIAC_REDIS_URL"], "broker": os.environ["CELERIAC_BROKER_URL"]}
            self.reply(200, {"id": "job-1", "state": state, "count": count, **facts, **told})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = os.environ.get("STAND_IN_KEY")
        if wanted and self.headers["Authorization"] != f"Bearer {wanted}":
            self.reply(401, {"title": "Who are you?"})
        else:
            assert asked["agent"] == "assistant"
            self.reply(202, {"id": "job-1", "state": "queued"})

    def reply(self, status: int, body: dict[str, object]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["CELERIAC_SHIM__PORT"])), Shim).serve_forever()
