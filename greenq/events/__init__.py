"""Telling the world: what watchers hear. Never slows a task down."""
