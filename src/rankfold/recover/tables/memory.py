"""Absurd sizes are refused before memory is asked for."""

from __future__ import annotations

import os

SPARSE = 1000  # rows or columns for each entry from which a shape is a mistake, beyond
MANY = 1_000_000  # of them
NAME = 200  # bytes of a row or column: its name, and some numbers


def affordable_names(shape: tuple[int, int], count: int) -> None:
    """Raises ``ValueError`` for a shape that no table has, or one too large for ``count`` entries or this machine."""
    m, n = shape
    if m < 1 or n < 1:
        raise ValueError(f"the shape must be two numbers of at least 1, got ({m}, {n})")
    for what, size in (("rows", m), ("columns", n)):
        if size > max(MANY, SPARSE * count):
            raise ValueError(
                f"the shape ({m}, {n}) has {size} {what} for {count} entries: is it right? Without a shape only "
                "rows and columns with entries are counted"
            )
    affordable(NAME * (m + n), f"{m} rows and {n} columns")


def affordable(size: int, what: str) -> None:
    """Raises ``ValueError`` where ``size`` bytes, for ``what``, are more than this machine has."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise ValueError(
            f"{what} would take {size / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f} GB of memory"
        )
