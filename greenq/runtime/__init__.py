"""Where gevent, eventlet and native threads differ. Never contains policy."""
