"""The supervisor, and what a process needs of its machine: its child, limits, marks, leftovers."""
