"""Entries of a text line by line: slow, and able to name the line, row and column of every fault."""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rankfold.recover.tables.columns import Columns
from rankfold.recover.tables.found import Empty, Found
from rankfold.recover.tables.layout import (
    UNKNOWN,
    Fault,
    Layout,
    any_length,
    instead_of_a_number,
    number_of,
    stray_quote,
    too_few,
)
from rankfold.recover.tables.times import seconds


def read_lines(path: Path, form: Layout) -> Found:
    """The entries of a text in the given form. Raises ``Fault``. About 3 µs a line."""
    return next(line_chunks(path, form, sys.maxsize))


def line_chunks(path: Path, form: Layout, size: int) -> Iterator[Found]:
    """The same, about ``size`` entries at a time: names are those of the chunk."""
    chunk, empty = _Chunk(), True
    for line, fields in records(path, form):
        if form.header is not None and line == form.first:
            continue
        for row, column, value, when in _entries(line, fields, form):
            chunk.add(row, column, value, line, when)
        if len(chunk.values) >= size:
            yield chunk.found(form)
            chunk, empty = _Chunk(), False
    if chunk.row_at:
        yield chunk.found(form)
    elif empty:
        raise ValueError(f"there are no entries below the header {','.join(form.header or ())}")


class _Chunk:
    def __init__(self) -> None:
        self.row_at: dict[str, int] = {}
        self.column_at: dict[str, int] = {}
        self.rows, self.columns, self.numbers = array("q"), array("q"), array("q")
        self.values, self.times = array("d"), array("d")
        self.empty = Empty()

    def add(self, row: str, column: str, value: float, line: int, when: float) -> None:
        row_at = self.row_at.setdefault(row, len(self.row_at))
        column_at = self.column_at.setdefault(column, len(self.column_at))
        if np.isnan(value):
            self.empty += Empty(1, line)
            return
        self.rows.append(row_at)
        self.columns.append(column_at)
        self.values.append(value)
        self.numbers.append(line)
        self.times.append(when)

    def found(self, form: Layout) -> Found:
        timed = form.columns is not None and form.columns.time is not None
        return Found(
            np.array(self.rows),
            np.array(self.columns),
            np.array(self.values),
            list(self.row_at),
            list(self.column_at),
            np.array(self.numbers),
            np.array(self.times) if timed else None,
            Empty() if form.columns is None else self.empty,
        )


def _entries(line: int, fields: list[str], form: Layout) -> Iterator[tuple[str, str, float, float]]:
    if form.header is not None and fields == list(form.header):
        raise Fault(f"line {line}: this looks like the header again, as where files were joined: remove the line")
    if form.columns is not None:
        yield _entry(line, fields, form.columns, form.delimiter)
        return
    header = form.header or ()
    if len(fields) != len(header):
        raise Fault(f"line {line}: there are {len(fields)} fields, and {len(header)} in the header, line {form.first}")
    if not fields[0]:
        raise Fault(f"line {line}: the row has no name in column 1 of the table")
    for name, field in zip(header[1:], fields[1:], strict=True):
        number = np.nan if field.lower() in UNKNOWN else number_of(field)
        if number is None or np.isinf(number):
            remedy = instead_of_a_number(field) if number is None else ""
            more = "" if remedy else ": leave it empty where nothing is known"
            raise Fault(f"line {line}: {field!r} is not a number{remedy} (row {fields[0]}, column {name}){more}")
        yield fields[0], name, number, np.nan


def _entry(line: int, fields: list[str], columns: Columns, delimiter: str) -> tuple[str, str, float, float]:
    if len(fields) <= max(columns.needed):
        with any_length():
            raise Fault(too_few(line, fields, delimiter, columns.order()))
    if any(fields[columns.fields :]):
        raise Fault(
            f"line {line}: there are {len(fields)} fields, and {columns.fields} in line 1: is there a "
            f"{delimiter!r} within a name or a number?"
        )
    row, column = fields[columns.row], fields[columns.column]
    place = f"(row {row}, column {column})"
    for name in (row, column):
        if "\n" in name or "\r" in name:
            raise Fault(
                f"line {line}: a name goes on over several lines ({name.splitlines()[0][:40]!r} …): is there a "
                "stray quote before it?"
            )
    value = 1.0 if columns.value is None else _value(line, fields[columns.value], place, columns)
    if not row or not column:
        raise Fault(f"line {line}: the {'row' if not row else 'column'} is missing; {columns.order()}")
    when = np.nan if columns.time is None else _time(line, fields[columns.time], place)
    return row, column, value, when


def _time(line: int, text: str, place: str) -> float:
    when = seconds(text)
    if when is None:
        raise Fault(
            f"line {line}: {text!r} is not a time {place}: write seconds since 1970, or a date such as 2001-02-28"
        )
    return when


def _value(line: int, value: str, place: str, columns: Columns) -> float:
    """The number, NaN where there is none. Raises ``Fault`` for anything else."""
    if value.lower() in UNKNOWN:
        return np.nan
    number = number_of(value)
    if number is None:
        remedy = instead_of_a_number(value)
        raise Fault(f"line {line}: {value!r} is not a number{remedy} {place}; {columns.order()}")
    if not np.isfinite(number):
        raise Fault(f"line {line}: the value is {value} {place}: leave the line out")
    return number


def records(path: Path, form: Layout) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, stripped fields) of every line that is not blank. Quotes must close properly."""
    with any_length(), path.open(encoding="utf-8-sig", newline="") as opened:
        lines = (form.translated(line) for line in opened)
        reader = csv.reader(lines, delimiter=form.one, strict=True)
        begun = 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise Fault(_quoted(begun, str(error), form)) from None
            begun = reader.line_num + 1
            stripped = [field.strip() for field in fields]
            if any(stripped):
                yield reader.line_num, stripped


def _quoted(line: int, error: str, form: Layout) -> str:
    if "NUL" in error:
        return f"line {line}: it holds a zero byte: is this a text file in UTF-8?"
    if "expected after" in error or "unexpected end" in error:
        return f"line {line}: {stray_quote(form.delimiter)}"
    return f"line {line}: {error}"
