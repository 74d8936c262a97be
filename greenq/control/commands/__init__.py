"""The built-in remote commands, a module a topic. Never holds business logic."""
