"""Where results live. Never raises into a task."""
