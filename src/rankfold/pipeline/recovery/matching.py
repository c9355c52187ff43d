"""Names of another file that are those of the entries: how many are not, and where none is, what differs."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankfold.recover import MappedEntries, Triplets


def unknown(asked: Triplets, row_names: tuple[str, ...], column_names: tuple[str, ...]) -> dict[str, int]:
    """How many of the rows and of the columns that are ``asked`` for are not among the names."""
    rows, columns = asked.numbered(row_names, column_names)
    return {
        "unknown_rows": len(set(asked.rows[rows < 0].tolist())),
        "unknown_columns": len(set(asked.columns[columns < 0].tolist())),
    }


def shared(other: Triplets, entries: Triplets | MappedEntries) -> int:
    """How many cells of ``other`` are also among the ``entries``. Cost: one pass over these."""
    rows, columns = other.numbered(entries.row_names, entries.column_names)
    known, n = (rows >= 0) & (columns >= 0), entries.shape[1]
    cells = rows[known] * n + columns[known]
    if isinstance(entries, Triplets):
        return int(np.isin(cells, entries.rows * n + entries.columns).sum())
    found = 0
    for block, part in entries.parts():
        numbers = np.repeat(np.arange(block.start, block.stop, dtype=np.int64), np.diff(part.indptr))
        found += int(np.isin(cells, numbers * n + part.indices).sum())
    return found


def check_names(other: Triplets, names: tuple[tuple[str, ...], tuple[str, ...]], purpose: str) -> None:
    """Raises ``ValueError`` where none of the rows, or none of the columns, of ``other`` is among the ``names`` of the
    entries, with what seems to differ. ``purpose``: such as "to predict"."""
    numbered = other.numbered(*names)
    given = (other.row_names, other.column_names)
    for at, (what, found) in enumerate(zip(("row", "column"), numbered, strict=True)):
        if not len(found) or (np.asarray(found) >= 0).any():
            continue
        some, count = given[at][0], len(given[at])
        which = (
            f"the only {what} {purpose} is not among the entries"
            if count == 1
            else (f"none of the {count} {what}s {purpose} is among the entries")
        )
        raise ValueError(
            f"{which}, such as {some!r}, where those are such as {names[at][0]!r}{_hint(given, names, at)}"
        )


def _hint(given: Any, names: Any, at: int) -> str:
    mine, theirs, crossed = given[at], set(names[at]), set(names[1 - at])
    if any(name in crossed for name in mine):
        return ": rows and columns are swapped; say which is which in both files (--columns)"
    if {_bare(name) for name in mine} & {_bare(name) for name in theirs}:
        return ": they differ in leading zeros, and names are texts; write them alike in both files"
    if {name.casefold() for name in mine} & {name.casefold() for name in theirs}:
        return ": they differ in capitals; write them alike in both files"
    return ": are rows and columns in the same order in both files (--columns), and is line 1 a header in both?"


def _bare(name: str) -> str:
    return name.lstrip("0") or "0"
