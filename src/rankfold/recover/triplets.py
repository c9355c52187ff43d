"""Reading (row, column, value) entries from files, with every fault named by its line, row and column."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse

Duplicates = Literal["refuse", "mean", "last"]
_TEXT = (".csv", ".tsv", ".txt", ".data", ".base", ".test")


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
    rows: Any, columns: Any, values: Any, *, shape: tuple[int, int] | None = None, duplicates: Duplicates = "refuse"
) -> Triplets:
    """Entries from arrays. With ``shape`` rows and columns are indices into it, else names of any kind.

    ``duplicates`` of one entry: ``refuse`` unless they agree, take the ``mean``, or the ``last``. Raises ``ValueError``
    that names row and column: values that are not finite, indices out of range, duplicates; and for arrays of unequal
    length.
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
    return _remarked(_once(found, duplicates))


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


def _once(found: Triplets, duplicates: Duplicates) -> Triplets:
    order = np.lexsort((np.arange(len(found)), found.columns, found.rows))
    rows, columns, values = found.rows[order], found.columns[order], found.values[order]
    first = np.r_[True, (np.diff(rows) != 0) | (np.diff(columns) != 0)]
    repeated = int(len(first) - first.sum())
    if not repeated:
        return found
    starts = np.flatnonzero(first)
    again = int(np.flatnonzero(~first)[0])
    place = f"row {found.row_names[rows[again]]}, column {found.column_names[columns[again]]}"
    ends = np.r_[starts[1:], len(first)]
    agree = np.maximum.reduceat(values, starts) == np.minimum.reduceat(values, starts)
    if duplicates == "refuse" and not agree.all():
        at = int(starts[np.flatnonzero(~agree)[0]])
        place = f"row {found.row_names[rows[at]]}, column {found.column_names[columns[at]]}"
        raise ValueError(
            f"the entry at {place} is given twice, as {values[at]:g} and {values[at + 1]:g}: "
            "remove one, or ask for the mean or the last of duplicates"
        )
    kept = values[ends - 1] if duplicates == "last" else np.add.reduceat(values, starts) / (ends - starts)
    how = {"refuse": "equal, kept once", "mean": "averaged", "last": "the last kept"}[duplicates]
    remark = f"{repeated} duplicate entries, the first at {place}: {how}"
    return replace(found, rows=rows[starts], columns=columns[starts], values=kept, remarks=(remark,))


def _remarked(found: Triplets) -> Triplets:
    remarks = list(found.remarks)
    for what, index, names in (("row", found.rows, found.row_names), ("column", found.columns, found.column_names)):
        empty = np.flatnonzero(np.bincount(index, minlength=len(names)) == 0)
        if len(empty):
            remarks.append(
                f"{len(empty)} {what}s have no entry, {names[empty[0]]} the first: they are predicted as an average one"
            )
    return replace(found, remarks=tuple(remarks))


def read_triplets(file: str | Path, *, duplicates: Duplicates = "refuse") -> Triplets:
    """Entries of a ``.csv`` (comma or semicolon, with or without a header), a tab-separated MovieLens file (``u.data``,
    ``u1.base``) or an ``.npz`` with ``rows``, ``columns``, ``values`` and perhaps ``shape``, a matrix ``X`` with NaN,
    or scipy's sparse format. Of more than three columns the first three count. Raises ``ValueError`` that names the
    line.
    """
    path = Path(file)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        try:
            return from_arrays(arrays, duplicates)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if path.suffix not in _TEXT:
        raise ValueError(f"{path}: entries are read from {', '.join(_TEXT)} and .npz files")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 (byte {error.start})") from None
    rows: list[str] = []
    columns: list[str] = []
    values: list[float] = []
    for line, fields in _lines(text):
        if len(fields) < 3:
            raise ValueError(f"{path}, line {line}: {len(fields)} of 3 fields; is the file cut short?")
        row, column, value = (field.strip() for field in fields[:3])
        try:
            number = float(value)
        except ValueError:
            if not values and line == 1:
                continue  # a header
            shown = f"{value!r} is not a number" if value else "the value is missing"
            raise ValueError(f"{path}, line {line}: {shown} (row {row}, column {column})") from None
        if not np.isfinite(number):
            raise ValueError(
                f"{path}, line {line}: the value is {value} (row {row}, column {column}): leave the line out"
            )
        if not row or not column:
            raise ValueError(f"{path}, line {line}: the {'row' if not row else 'column'} is missing")
        rows.append(row)
        columns.append(column)
        values.append(number)
    try:
        return triplets(np.array(rows), np.array(columns), values, duplicates=duplicates)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    head = text[:4096].split("\n", 1)[0]
    delimiter = max("\t,; |", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for fields in reader:
        if fields:
            yield reader.line_num, fields


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, without running any code in it. Raises ``ValueError`` for a damaged file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}): is the file cut short?") from None


def from_arrays(arrays: dict[str, np.ndarray], duplicates: Duplicates = "refuse") -> Triplets:
    """Entries of the arrays of an ``.npz``, in the forms of `read_triplets`. Raises ``ValueError``."""
    if "X" in arrays:
        x = arrays["X"]
        if x.ndim != 2:
            raise ValueError(f"X is a matrix, got shape {x.shape}")
        rows, columns = np.nonzero(~np.isnan(x.astype(np.float64)))
        return triplets(rows, columns, x[rows, columns], shape=(x.shape[0], x.shape[1]))
    if "format" in arrays and "data" in arrays:
        sparse = scipy.sparse.coo_array(_sparse(arrays))
        return triplets(sparse.coords[0], sparse.coords[1], sparse.data, shape=(sparse.shape[0], sparse.shape[1]))
    missing = [name for name in ("rows", "columns", "values") if name not in arrays]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; it has {', '.join(arrays) or 'nothing'}")
    shape = tuple(int(size) for size in arrays["shape"]) if "shape" in arrays else None
    return triplets(
        arrays["rows"],
        arrays["columns"],
        arrays["values"],
        shape=None if shape is None else (shape[0], shape[1]),
        duplicates=duplicates,
    )


def _sparse(arrays: dict[str, np.ndarray]) -> Any:
    kind, shape = arrays["format"].item(), tuple(arrays["shape"])
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind == "coo":
        return scipy.sparse.coo_array((arrays["data"], (arrays["row"], arrays["col"])), shape=shape)
    make = {"csr": scipy.sparse.csr_array, "csc": scipy.sparse.csc_array}.get(kind)
    if make is None:
        raise ValueError(f"sparse format {kind} is not read: save it as csr, csc or coo")
    return make((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
