"""Door: what a Celery message may ask for."""
