"""The job store: the truth about every job, and the queue it waits in."""
