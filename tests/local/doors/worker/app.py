"""A Celery app with nothing to do: the stand-in for the worker. Celery and Flower themselves are the real ones."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from celery import Celery, signals

app = Celery("stand_in", broker=os.environ["CELERIAC_BROKER_URL"], backend=os.environ["CELERIAC_REDIS_URL"])
app.conf.update(worker_pool="solo", broker_connection_retry_on_startup=True)


class Probe(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@signals.worker_ready.connect
def ready(**_: object) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["CELERIAC_WORKER__HEALTH_PORT"])), Probe)
    threading.Thread(target=server.serve_forever, daemon=True).start()
