"""A Celery app with nothing to do: the stand-in for the worker. Celery and Flower themselves are the real ones."""

import os

from celery import Celery

app = Celery("stand_in", broker=os.environ["CELERIAC_BROKER_URL"], backend=os.environ["CELERIAC_REDIS_URL"])
app.conf.update(worker_pool="solo", broker_connection_retry_on_startup=True)
