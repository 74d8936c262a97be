"""Connections to the broker: consuming, publishing, settling, mailboxes. Never knows what a task does."""
