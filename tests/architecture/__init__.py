"""What holds for the whole tree: floors, sizes, names, documents."""
