"""Reading (row, column, value) entries from files, with every fault named by its line, row and column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rankfold.recover.tables.columns import Columns, by_header
from rankfold.recover.tables.npz import from_arrays, read_arrays
from rankfold.recover.tables.triplets import Duplicates, Triplets, triplets

_TEXT = (".csv", ".tsv", ".txt", ".data", ".base", ".test")
_DELIMITERS = "\t;,| "  # the first that makes three fields of line 1: a comma may stand in numbers, a space in names


def read_triplets(file: str | Path, *, duplicates: Duplicates = "refuse") -> Triplets:
    """Entries of a text file (``.csv``: comma, semicolon, tab, bar or space; MovieLens' ``u.data``, ``u1.base``) or an
    ``.npz`` with ``rows``, ``columns``, ``values`` and perhaps ``shape``, a matrix ``X`` with NaN, or scipy's sparse
    format.

    A first line without any number is a header: columns are found by customary names in it (user, item, rating,
    timestamp and others, `columns.NAMES`), and by the order row, column, value otherwise; the first of ``remarks``
    tells. Raises ``ValueError`` that names the line.
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
    try:
        return _table(text, duplicates)
    except _Fault as error:
        raise ValueError(f"{path}, {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Fault(ValueError):
    """Of one line, which its message begins with."""


def _table(text: str, duplicates: Duplicates) -> Triplets:
    delimiter = _delimiter(text)
    lines = _lines(text, delimiter)
    first = next(lines, None)
    if first is None:
        raise ValueError("the file is empty: there are no entries")
    columns = _columns(*first, delimiter)
    rows: list[str] = []
    names: list[str] = []
    values: list[float] = []
    numbers: list[int] = []
    if columns.header is None:
        lines = _lines(text, delimiter)
    for line, fields in lines:
        row, name, value = _entry(line, fields, columns, delimiter)
        rows.append(row)
        names.append(name)
        values.append(value)
        numbers.append(line)
    if not values:
        raise ValueError(f"there are no entries below the header {','.join(columns.header or ())}")
    found = triplets(np.array(rows), np.array(names), values, duplicates=duplicates, lines=np.array(numbers))
    return replace(found, remarks=(columns.remark(), *found.remarks))


def _columns(line: int, fields: list[str], delimiter: str) -> Columns:
    if len(fields) < 3:
        raise _Fault(_too_few(line, fields, delimiter, "row, column, value"))
    if any(_number(field.replace(",", ".")) is not None for field in fields):
        return Columns(0, 1, 2, len(fields))
    try:
        return by_header(fields)
    except ValueError as error:
        raise _Fault(f"line {line}: {error}") from None


def _entry(line: int, fields: list[str], columns: Columns, delimiter: str) -> tuple[str, str, float]:
    """(row, column, value) of one line. Raises ``_Fault``."""
    if len(fields) <= max(columns.row, columns.column, columns.value):
        raise _Fault(_too_few(line, fields, delimiter, columns.order()))
    if any(fields[columns.fields :]):
        raise _Fault(
            f"line {line}: {len(fields)} fields where line 1 has {columns.fields}; is there a {delimiter!r} within a "
            "name or a number?"
        )
    row, column, value = fields[columns.row], fields[columns.column], fields[columns.value]
    number = _number(value)
    place = f"(row {row}, column {column})"
    if number is None:
        shown = f"{value!r} is not a number" if value else "the value is missing"
        if _number(value.replace(",", ".")) is not None:
            shown += ": decimals take a point"
        raise _Fault(f"line {line}: {shown} {place}; {columns.order()}")
    if not np.isfinite(number):
        raise _Fault(f"line {line}: the value is {value} {place}: leave the line out")
    if not row or not column:
        raise _Fault(f"line {line}: the {'row' if not row else 'column'} is missing; {columns.order()}")
    return row, column, number


def _too_few(line: int, fields: list[str], delimiter: str, order: str) -> str:
    whole = delimiter.join(fields)
    for other in _DELIMITERS:
        if other != delimiter and len(_split(whole, other)) >= 3:
            return (
                f"line {line}: {len(fields)} of 3 fields by the delimiter {delimiter!r} of line 1, though {other!r} "
                "makes three: keep to one delimiter, and write decimals with a point"
            )
    return f"line {line}: {len(fields)} of 3 fields; is the file cut short? {order[0].upper()}{order[1:]}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _delimiter(text: str) -> str:
    head = next((line for line in text[:65536].splitlines() if line.strip()), "")
    return next((one for one in _DELIMITERS if len(_split(head, one)) >= 3), max(",;\t| ", key=head.count))


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number, stripped fields) of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for fields in reader:
        stripped = [field.strip() for field in fields]
        if any(stripped):
            yield reader.line_num, stripped
