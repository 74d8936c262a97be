"""The same tasks and the same client for greenq and for Celery."""
