"""May a request run, and when. Never touches the broker or the pool."""
