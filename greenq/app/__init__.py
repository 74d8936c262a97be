"""What users import: the app, its tasks, results and settings. Never imports a room of the worker."""
