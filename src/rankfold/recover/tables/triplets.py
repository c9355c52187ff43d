"""Entries (row, column, value) of a matrix, each once, with the names of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from rankfold.linalg.brief import brief
from rankfold.recover.measurements.arrays import numpy
from rankfold.recover.measurements.observed import check_real
from rankfold.recover.measurements.operators import Operator, entries
from rankfold.recover.tables.memory import affordable_names
from rankfold.recover.tables.names import named
from rankfold.recover.tables.times import complete

ROLES = ("row", "column")
Duplicates = Literal["refuse", "mean", "last", "sum"]
EACH: Any = object()  # in the place of these, for our own readers: all entries stay, in the order of their lines


@dataclass(frozen=True, eq=False)
class Triplets:
    """``values`` (count,) at ``rows`` and ``columns`` (indices), whose names are ``row_names`` and ``column_names``.

    ``remarks``: what was done to them, in sentences. ``times`` (count,): seconds since 1970, where they were asked for.
    ``called``: what rows and columns are called in the file that they come from. ``before``: where entries with times
    were repeated, these and perhaps others as they were given.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    times: np.ndarray | None = None
    called: tuple[str, str] = ROLES
    before: Before | None = None

    __repr__ = brief

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row_names), len(self.column_names)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: np.ndarray) -> Triplets:
        """Only the entries numbered ``which``; the names stay."""
        times = None if self.times is None else self.times[which]
        return replace(self, rows=self.rows[which], columns=self.columns[which], values=self.values[which], times=times)

    def pairs(self) -> np.ndarray:
        """(count, 2), object: the names of row and column of each entry, as scikit-learn's search splits them."""
        row_names, column_names = (np.array(names, dtype=object) for names in (self.row_names, self.column_names))
        return np.column_stack([row_names[self.rows], column_names[self.columns]])

    def measurements(self) -> tuple[Operator, Any]:
        """The operator of the entries and their values, as an estimator of the matrix takes them."""
        return entries(self.shape, self.rows, self.columns, self.values)

    def numbered(self, row_names: tuple[str, ...], column_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) by the numbering of other names; those that are not among them get −1."""
        row_at = {name: index for index, name in enumerate(row_names)}
        column_at = {name: index for index, name in enumerate(column_names)}
        rows = np.array([row_at.get(name, -1) for name in self.row_names], dtype=np.int64)
        columns = np.array([column_at.get(name, -1) for name in self.column_names], dtype=np.int64)
        return rows[self.rows], columns[self.columns]


@dataclass(frozen=True, eq=False)
class Before:
    """Entries before those of one cell were made one in the way of ``duplicates``: a sum, and the latest time, do not
    tell what was known at some moment."""

    entries: Triplets
    duplicates: Duplicates


def triplets(
    rows: Any,
    columns: Any,
    values: Any,
    *,
    shape: tuple[int, int] | None = None,
    duplicates: Duplicates = "refuse",
    lines: np.ndarray | None = None,
    times: Any = None,
) -> Triplets:
    """Entries from arrays. With ``shape`` rows and columns are indices into it, else names of any kind: texts are kept
    as written, 7 and 7.0 are one name.

    ``duplicates`` of one entry: ``refuse`` unless they agree (then it is kept once), take the ``mean``, the ``last``
    (with ``times`` the latest) or the ``sum``; the time is the latest. ``lines`` (count,) of the file they come from,
    for messages; ``times`` (count,): seconds since 1970, or dates. Raises ``ValueError`` that names row and column:
    values that are missing (masked, NA, NaN) or not finite, indices out of range, duplicates that differ; a time
    that is missing; and for arrays of unequal length.
    """
    one_of(duplicates)
    sizes = [np.shape(each) for each in (rows, columns, values)]
    if not sizes[0] == sizes[1] == sizes[2] or len(sizes[0]) != 1:
        raise ValueError(
            f"rows, columns and values must be lists of equal length, got shapes {sizes[0]}, {sizes[1]} and {sizes[2]}"
        )
    if not sizes[0][0]:
        raise ValueError("there are no entries: give at least one")
    given = numbers(values)
    wrong = np.flatnonzero(~np.isfinite(given))
    if len(wrong):
        at = wrong[0]
        place = f"row {np.asarray(rows)[at]}, column {np.asarray(columns)[at]}"
        raise ValueError(f"the value at {place} is {given[at]}: leave the entry out")
    if shape is None:
        row_names, row_at = named(rows, "row")
        column_names, column_at = named(columns, "column")
    else:
        affordable_names(shape, len(given))
        row_at, column_at = _within(rows, shape[0], "row"), _within(columns, shape[1], "column")
        row_names, column_names = (tuple(str(i) for i in range(size)) for size in shape)
    when = None if times is None else complete(times, len(given))
    return gathered(Triplets(row_at, column_at, given, row_names, column_names, times=when), duplicates, lines)


def pairs_of(x: Any) -> np.ndarray:
    """Names of row and column (count, 2). Raises ``ValueError`` for another shape."""
    # NumPy would make texts of a list with texts among numbers
    pairs = np.asarray(x, dtype=object) if isinstance(x, list | tuple) else np.asarray(x)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"give pairs of row and column names as an array (count, 2), got shape {pairs.shape}")
    return pairs


def gathered(found: Triplets, duplicates: Duplicates, lines: np.ndarray | None = None) -> Triplets:
    """Each entry once, with remarks; with ``EACH`` as they are. ``lines`` (count,) of a file, for messages."""
    if duplicates is EACH:
        return _remarked(found)
    kept, repeated = once(found, duplicates, lines)
    told = (repeated.remark(duplicates),) if repeated is not None else ()
    return _remarked(replace(kept, remarks=(*kept.remarks, *told)))


def counted(found: Triplets) -> Triplets:
    """Without counts of 0, which say that nothing was taken, with a remark; the names stay."""
    there = np.flatnonzero(found.values != 0)
    none = len(found) - len(there)
    if not none:
        return found
    told = "1 count is 0 and is left out" if none == 1 else f"{none:,} counts are 0 and are left out"
    return replace(found.take(there), remarks=(*found.remarks, told))


def one_of(duplicates: str) -> None:
    """Raises ``ValueError`` where ``duplicates`` is no way of treating them."""
    if duplicates is not EACH and duplicates not in get_args(Duplicates):
        raise ValueError(f"duplicates must be 'refuse', 'mean', 'last' or 'sum', got {duplicates!r}")


def numbers(values: Any) -> np.ndarray:
    """``values`` as float64, NaN where they are masked, None or pandas' NA. Raises ``ValueError`` for anything else."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.float64), np.nan)
    array = numpy(values)
    check_real(array.dtype)
    if array.dtype.kind == "O":
        array = np.where(pd.isna(array), np.nan, array)
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"values must be numbers, and these are not: {error}") from None


def _within(given: Any, size: int, what: str) -> np.ndarray:
    index = np.asarray(given)
    if index.dtype.kind == "f" and np.all(np.isfinite(index)) and np.all(index == np.floor(index)):
        index = index.astype(np.int64)
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"with shape=, {what}s must be whole numbers, got {index.dtype}")
    wrong = np.flatnonzero((index < 0) | (index >= size))
    if len(wrong):
        raise ValueError(f"entry {wrong[0]}: its {what} must be from 0 to {size - 1}, got {index[wrong[0]]}")
    return index.astype(np.int64)


@dataclass(frozen=True)
class Repeated:
    """How many entries were one too many, and where the first of them stands."""

    count: int
    place: str

    def remark(self, duplicates: Duplicates) -> str:
        how = {"refuse": "equal, kept once", "mean": "averaged", "last": "the last kept", "sum": "summed"}[duplicates]
        many = "1 duplicate entry" if self.count == 1 else f"{self.count} duplicate entries, the first"
        return f"{many} at {self.place}: {how}"


def once(
    found: Triplets, duplicates: Duplicates, lines: np.ndarray | None, whole: bool = True
) -> tuple[Triplets, Repeated | None]:
    """Each entry once, by row, then column where any is repeated, else as they are. ``whole``: these are all entries,
    so that a refusal may count the others that differ."""
    cells = found.rows * found.shape[1] + found.columns
    ordered = np.sort(cells)
    if not (ordered[1:] == ordered[:-1]).any():
        return found, None
    if found.times is None or duplicates == "refuse":  # a refusal names lines as they come
        order = np.argsort(cells, kind="stable")
    else:  # the last is the last in time, and of one moment the last line
        order = np.lexsort((found.times, cells))
    rows, columns, values = found.rows[order], found.columns[order], found.values[order]
    first = np.r_[True, (np.diff(rows) != 0) | (np.diff(columns) != 0)]
    repeated = int(len(first) - first.sum())

    def place(at: int) -> str:
        return f"row {found.row_names[rows[at]]}, column {found.column_names[columns[at]]}"

    starts = np.flatnonzero(first)
    ends = np.r_[starts[1:], len(first)]
    differ = np.flatnonzero(~first & np.r_[False, np.diff(values) != 0])
    if duplicates == "refuse" and len(differ):
        one, two = int(differ[0]) - 1, int(differ[0])
        numbers = order if lines is None else lines[order]
        what = "entry" if lines is None else "line"
        others = len(set(cells[order[differ]].tolist())) - 1
        more = f", and so {'is 1 other' if others == 1 else f'are {others} others'}" if whole and others else ""
        raise ValueError(
            f"the entry at {place(two)} is given twice, as {values[one]:g} ({what} {numbers[one]}) and "
            f"{values[two]:g} ({what} {numbers[two]}){more}: remove one, or take their mean, the last, or their sum "
            "(--duplicates mean; in Python duplicates='mean')"
        )
    sums = np.add.reduceat(values, starts)
    kept = {"last": values[ends - 1], "sum": sums}.get(duplicates, sums / (ends - starts))
    if duplicates == "refuse":
        kept = values[starts]
    times = None if found.times is None else np.maximum.reduceat(found.times[order], starts)  # the latest
    before = None if times is None else Before(found, duplicates)
    kept_once = replace(found, rows=rows[starts], columns=columns[starts], values=kept, times=times, before=before)
    return kept_once, Repeated(repeated, place(int(np.flatnonzero(~first)[0])))


def _remarked(found: Triplets) -> Triplets:
    """With a remark on rows and columns that have no entry."""
    remarks = list(found.remarks)
    for what, index, names in (("row", found.rows, found.row_names), ("column", found.columns, found.column_names)):
        empty = np.flatnonzero(np.bincount(index, minlength=len(names)) == 0)
        if len(empty) == 1:
            remarks.append(f"1 {what} has no entry, {names[empty[0]]}: it is predicted like an average one")
        elif len(empty):
            remarks.append(
                f"{len(empty)} {what}s have no entry (the first is {names[empty[0]]}): they are predicted like "
                "an average one"
            )
    return replace(found, remarks=tuple(remarks))
