"""Beside user code: running a task and naming its outcome. Never acknowledges, never knows its pool."""
