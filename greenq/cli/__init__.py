"""The command line; the only room that imports click. Never does what a library caller could not."""
