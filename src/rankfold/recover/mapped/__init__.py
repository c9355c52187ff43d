"""Entries that lie in files: written once, by row, and read a block at a time."""
