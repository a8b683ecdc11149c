"""Door: the Celery worker process."""
