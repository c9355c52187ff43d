"""Entries by row, whatever their order in a file: spooled, dealt into ranges of rows that fit into memory, and sorted
there. Three passes, each from end to end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from rankfold.recover.measurements.operators import blocks

RECORD = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8"), ("line", "<i8")])
CHUNK = 1 << 19  # entries in memory at a time; of one row all


def records(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, lines: np.ndarray | None) -> np.ndarray:
    found = np.empty(len(values), dtype=RECORD)
    found["row"], found["column"], found["value"] = rows, columns, values
    found["line"] = 0 if lines is None else lines
    return found


def spooled(spool: IO[bytes]) -> Iterator[np.ndarray]:
    """The records of a file, some at a time."""
    spool.seek(0)
    while data := spool.read(CHUNK * RECORD.itemsize):
        yield np.frombuffer(data, dtype=RECORD)


def by_row(given: Iterator[np.ndarray], counts: np.ndarray, place: Path) -> Iterator[np.ndarray]:
    """Records by row, then column, of equal ones in their order; ``counts`` (m,) of each row. All rows of a range come
    together. ``place``: a folder for what is kept on the way, a copy of all."""
    starts = np.concatenate(([0], np.cumsum(counts)))
    ranges = blocks(starts, CHUNK)
    sizes = np.array([block.rows.stop - block.rows.start for block in ranges])
    range_of = np.repeat(np.arange(len(ranges), dtype=np.int32), sizes)
    at = [block.entries.start for block in ranges]
    with tempfile.TemporaryFile(dir=place) as dealt:
        for chunk in given:
            to = range_of[chunk["row"]]
            order = np.argsort(to, kind="stable")
            edges = np.searchsorted(to[order], np.arange(len(ranges) + 1))
            for number in np.flatnonzero(np.diff(edges)):
                some = chunk[order[edges[number] : edges[number + 1]]]
                dealt.seek(at[number] * RECORD.itemsize)
                dealt.write(some.tobytes())
                at[number] += len(some)
        for block in ranges:
            dealt.seek(block.entries.start * RECORD.itemsize)
            size = (block.entries.stop - block.entries.start) * RECORD.itemsize
            found = np.frombuffer(dealt.read(size), dtype=RECORD)
            yield found[np.lexsort((found["column"], found["row"]))]
