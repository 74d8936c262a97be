"""Being asked: remote commands, their registry, the listener and the client. Never imports `worker`."""
