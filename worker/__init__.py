"""Door: the Celery worker process."""

import gc
from typing import Final

#: How seldom the garbage collector looks, as `gc.set_threshold` takes it: only when much has come together. At its
#: default it looks whenever there are 700 objects more than before, which is a job or two, and hundreds of times while
#: the SDKs are imported: a tenth of the CPU of jobs, and a third of a start.
COLLECT: Final = (50_000, 20, 10)
gc.set_threshold(*COLLECT)
