"""One part of greenq at a time, with a real broker."""
