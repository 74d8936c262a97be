"""What bytes mean. Never opens a socket, never reads a clock it was not given."""
