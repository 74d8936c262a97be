"""Where requests run; a file's name is its `-P` name. Never decodes, acknowledges, stores or logs a task."""
