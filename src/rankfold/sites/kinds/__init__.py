"""Kinds of layers, a file each: how one is read as matrices."""
