"""Makes a worker's event loop block when it is told to: `celery -A worker.app worker -I celeriac.drill.blocking`.

Nothing of ours imports it. On SIGUSR2 the loop sleeps, as a careless tool would make it, for DRILL_BLOCK_SECONDS.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Final

from celery.signals import worker_ready

SECONDS: Final = "DRILL_BLOCK_SECONDS"


def block_the_loop() -> None:
    time.sleep(float(os.environ[SECONDS]))


@worker_ready.connect
def _listen(sender: Any, **_: Any) -> None:
    loop = sender.pool.loop
    signal.signal(signal.SIGUSR2, lambda *_: loop.call_soon_threadsafe(block_the_loop))
