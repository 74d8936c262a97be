"""The composition root: what a worker is made of, and the order of starting and stopping it."""
