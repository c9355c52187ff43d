"""Entries (row, column, value) of a matrix, each once, with the names of rows and columns."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Duplicates = Literal["refuse", "mean", "last"]


@dataclass(frozen=True, eq=False)
class Triplets:
    """``values`` (count,) at ``rows`` and ``columns`` (indices), whose names are ``row_names`` and ``column_names``.

    ``remarks``: what was done to them, in sentences.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row_names), len(self.column_names)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: np.ndarray) -> Triplets:
        """Only the entries numbered ``which``; the names stay."""
        return replace(self, rows=self.rows[which], columns=self.columns[which], values=self.values[which])

    def numbered(self, row_names: tuple[str, ...], column_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) by the numbering of other names; those that are not among them get −1."""
        row_at = {name: index for index, name in enumerate(row_names)}
        column_at = {name: index for index, name in enumerate(column_names)}
        rows = np.array([row_at.get(name, -1) for name in self.row_names], dtype=np.int64)
        columns = np.array([column_at.get(name, -1) for name in self.column_names], dtype=np.int64)
        return rows[self.rows], columns[self.columns]


def triplets(
    rows: Any,
    columns: Any,
    values: Any,
    *,
    shape: tuple[int, int] | None = None,
    duplicates: Duplicates = "refuse",
    lines: np.ndarray | None = None,
) -> Triplets:
    """Entries from arrays. With ``shape`` rows and columns are indices into it, else names of any kind.

    ``duplicates`` of one entry: ``refuse`` unless they agree (then it is kept once), take the ``mean``, or the
    ``last``. ``lines`` (count,) of the file they come from, for messages. Raises ``ValueError`` that names row and
    column: values that are not finite, indices out of range, duplicates that differ; and for arrays of unequal length.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    values = np.asarray(values, dtype=np.float64)
    if not rows.shape == columns.shape == values.shape or rows.ndim != 1:
        raise ValueError(
            f"rows {rows.shape}, columns {columns.shape} and values {values.shape}: as many of each, in a list"
        )
    if not len(values):
        raise ValueError("there are no entries")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        at = wrong[0]
        raise ValueError(f"the value at row {rows[at]}, column {columns[at]} is {values[at]}: leave the entry out")
    if shape is None:
        row_names, row_at = _named(rows)
        column_names, column_at = _named(columns)
    else:
        row_at, column_at = _within(rows, shape[0], "row"), _within(columns, shape[1], "column")
        row_names, column_names = (tuple(str(i) for i in range(size)) for size in shape)
    found = Triplets(row_at, column_at, values, row_names, column_names)
    return _remarked(_once(found, duplicates, lines))


def _within(index: np.ndarray, size: int, what: str) -> np.ndarray:
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"with a shape, {what}s are whole numbers, got {index.dtype}")
    wrong = np.flatnonzero((index < 0) | (index >= size))
    if len(wrong):
        raise ValueError(f"entry {wrong[0]}: {what} {index[wrong[0]]} is not within 0 … {size - 1}")
    return index.astype(np.int64)


def _named(names: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Distinct names, in numeric order where all are whole numbers, and the index of each entry among them."""
    with suppress(OverflowError):  # whole numbers beyond 64 bits stay text
        names = names.astype(np.int64) if all(str(name).strip().lstrip("-").isdigit() for name in names) else names
    distinct, at = np.unique(names, return_inverse=True)
    return tuple(str(name) for name in distinct), at.astype(np.int64)


def _once(found: Triplets, duplicates: Duplicates, lines: np.ndarray | None) -> Triplets:
    order = np.lexsort((np.arange(len(found)), found.columns, found.rows))
    rows, columns, values = found.rows[order], found.columns[order], found.values[order]
    first = np.r_[True, (np.diff(rows) != 0) | (np.diff(columns) != 0)]
    repeated = int(len(first) - first.sum())
    if not repeated:
        return found

    def place(at: int) -> str:
        return f"row {found.row_names[rows[at]]}, column {found.column_names[columns[at]]}"

    starts = np.flatnonzero(first)
    ends = np.r_[starts[1:], len(first)]
    differ = np.flatnonzero(~first & np.r_[False, np.diff(values) != 0])
    if duplicates == "refuse" and len(differ):
        one, two = int(differ[0]) - 1, int(differ[0])
        numbers = order if lines is None else lines[order]
        what = "entry" if lines is None else "line"
        raise ValueError(
            f"the entry at {place(two)} is given twice, as {values[one]:g} ({what} {numbers[one]}) and "
            f"{values[two]:g} ({what} {numbers[two]}): remove one, or take the mean or the last of them "
            "(--duplicates mean; in Python duplicates='mean')"
        )
    kept = values[ends - 1] if duplicates == "last" else np.add.reduceat(values, starts) / (ends - starts)
    how = {"refuse": "equal, kept once", "mean": "averaged", "last": "the last kept"}[duplicates]
    many = "1 duplicate entry" if repeated == 1 else f"{repeated} duplicate entries, the first"
    remark = f"{many} at {place(int(np.flatnonzero(~first)[0]))}: {how}"
    return replace(found, rows=rows[starts], columns=columns[starts], values=kept, remarks=(remark,))


def _remarked(found: Triplets) -> Triplets:
    remarks = list(found.remarks)
    for what, index, names in (("row", found.rows, found.row_names), ("column", found.columns, found.column_names)):
        empty = np.flatnonzero(np.bincount(index, minlength=len(names)) == 0)
        if len(empty) == 1:
            remarks.append(f"1 {what} has no entry, {names[empty[0]]}: it is predicted as an average one")
        elif len(empty):
            remarks.append(
                f"{len(empty)} {what}s have no entry, {names[empty[0]]} the first: they are predicted as an average one"
            )
    return replace(found, remarks=tuple(remarks))
