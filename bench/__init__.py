"""Measure greenq beside an installed Celery; `scripts/bench` runs it, README.md says how to read it."""
