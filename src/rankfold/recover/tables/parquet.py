"""Entries of a Parquet file: a column each for row, column and value, found by name as in a text with a header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from rankfold.recover.tables import cells
from rankfold.recover.tables.columns import Columns, by_header, plain, role_of
from rankfold.recover.tables.found import Empty, Found
from rankfold.recover.tables.layout import Wanted
from rankfold.recover.tables.triplets import Duplicates, Triplets

EMPTY = "the file has columns and no rows: it holds no entries"


def read_parquet(path: Path, wanted: Wanted, duplicates: Duplicates) -> Triplets:
    """The entries. Raises ``ValueError`` that names the row of the file."""
    with _opened(path) as file:
        header, columns = _header(file, wanted)
        table = file.read([header[at] for at in columns.needed])
    if not table.num_rows:
        raise ValueError(EMPTY)
    found = _found(table, header, columns, 0).triplets(duplicates, remark(columns))
    return replace(found, called=columns.called)


def parquet_chunks(path: Path, wanted: Wanted, size: int) -> Iterator[Found]:
    """The same, at most ``size`` entries at a time: names are those of the chunk."""
    with _opened(path) as file:
        header, columns = _header(file, wanted)
        before = 0
        for batch in file.iter_batches(size, columns=[header[at] for at in columns.needed]):
            if batch.num_rows:
                yield _found(pa.Table.from_batches([batch]), header, columns, before)
            before += batch.num_rows
    if not before:
        raise ValueError(EMPTY)


def parquet_columns(path: Path, wanted: Wanted) -> Columns:
    """Which column is what. Raises ``ValueError``."""
    with _opened(path) as file:
        return _header(file, wanted)[1]


def parquet_header(path: Path) -> list[str]:
    """The names of the columns. Raises ``ValueError``."""
    with _opened(path) as file:
        return _named(file)


def remark(columns: Columns) -> str:
    """What was taken as what."""
    return columns.remark().replace("line 1 taken as a header: ", "")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read as Parquet ({_first(error)}): is the file cut short?") from None


def _header(file: Any, wanted: Wanted) -> tuple[list[str], Columns]:
    header = _named(file)
    if wanted.columns is None:
        _check_entries(file, header)
    return header, _columns(header, wanted)


def _named(file: Any) -> list[str]:
    return [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]


def _check_entries(file: Any, header: list[str]) -> None:
    """``ValueError`` for a table, a row of the matrix in each row of the file."""
    kinds = [file.schema_arrow.field(name).type for name in header]
    numbers = [
        name
        for name, kind in zip(header, kinds, strict=True)
        if pa.types.is_floating(kind) or pa.types.is_integer(kind)
    ]
    if len(header) > 4 and len(numbers) >= len(header) - 1 and not {"column", "value"} & set(map(role_of, header)):
        raise ValueError(
            f"{len(numbers)} columns of numbers ({', '.join(numbers[:2])}, …) are no entries, one in each row: "
            "write a table with a row of the matrix in each line as .csv, which is read as such; of entries name the "
            "columns, --columns row,column,value (in Python columns=…)"
        )


def _found(table: Any, header: list[str], columns: Columns, before: int) -> Found:
    """The entries of a ``table``, which ``before`` rows of its file precede."""
    rows, row_names = cells.names(table.column(header[columns.row]), "row", before)
    names, column_names = cells.names(table.column(header[columns.column]), "column", before)

    def fault(at: int, told: str, remedy: str) -> ValueError:
        place = f"(row {row_names[rows[at]]}, column {column_names[names[at]]})"
        return ValueError(f"row {before + at + 1} of the file: {told} {place}{remedy}")

    def read(at: int, what: Any) -> np.ndarray:
        found: np.ndarray = what(table.column(header[at]), header[at], fault)
        return found

    values = np.ones(table.num_rows) if columns.value is None else read(columns.value, cells.numbers)
    there = ~np.isnan(values)
    times = None if columns.time is None else read(columns.time, cells.times)
    lines = np.arange(before + 1, before + 1 + table.num_rows)
    if not there.all():
        rows, names, values, times = rows[there], names[there], values[there], None if times is None else times[there]
    return Found(rows, names, values, row_names, column_names, lines[there], times, Empty.of(lines[~there]))


def _columns(header: list[str], wanted: Wanted) -> Columns:
    if wanted.columns is None:
        return wanted.read(by_header(header, implicit=wanted.implicit, time=wanted.time))
    there = {plain(name) for name in header}
    missing = [name for name in wanted.columns if plain(name) not in there]
    if len(missing) > (not wanted.valued) or (missing and wanted.asked(header).header is None):
        raise ValueError(f"there is no column {missing[0]}: the columns are {', '.join(header)}")
    return wanted.asked(header)


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
