"""Entries of a Parquet file: a column each for row, column and value, found by name as in a text with a header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from rankfold.recover.tables.columns import Columns, asked, by_header, role_of
from rankfold.recover.tables.found import Empty, Found
from rankfold.recover.tables.layout import Wanted
from rankfold.recover.tables.names import name_of
from rankfold.recover.tables.triplets import Duplicates, Triplets

EMPTY = "the file has columns and no rows: it holds no entries"


def read_parquet(path: Path, wanted: Wanted, duplicates: Duplicates) -> Triplets:
    """The entries. Raises ``ValueError`` that names the row of the file."""
    with _opened(path) as file:
        header, columns = _header(file, wanted)
        table = file.read([header[at] for at in columns.needed])
    if not table.num_rows:
        raise ValueError(EMPTY)
    return _found(table, header, columns, 0).triplets(duplicates, remark(columns))


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
    header = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    if wanted.columns is None:
        _check_entries(file, header)
    return header, _columns(header, wanted)


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
    rows, row_names = _names(table, header[columns.row], "row", before)
    names, column_names = _names(table, header[columns.column], "column", before)
    values = np.ones(table.num_rows)
    if columns.value is not None:
        values = _numbers(table.column(header[columns.value]), header[columns.value], before, empty=True)
    there = ~np.isnan(values)
    times = None
    if columns.time is not None:
        times = _times(table.column(header[columns.time]), header[columns.time], before)
    lines = np.arange(before + 1, before + 1 + table.num_rows)
    if not there.all():
        rows, names, values, times = rows[there], names[there], values[there], None if times is None else times[there]
    return Found(rows, names, values, row_names, column_names, lines[there], times, Empty.of(lines[~there]))


def _columns(header: list[str], wanted: Wanted) -> Columns:
    if wanted.columns is not None:
        missing = [name for name in wanted.columns if name not in header]
        if missing:
            raise ValueError(f"there is no column {missing[0]}: the columns are {', '.join(header)}")
        return wanted.read(asked(header, wanted.columns, implicit=wanted.implicit, time=wanted.time))
    return wanted.read(by_header(header, implicit=wanted.implicit, time=wanted.time))


def _names(table: Any, name: str, what: str, before: int) -> tuple[np.ndarray, list[str]]:
    column = table.column(name)
    _nulls(column, f"the {what}", before)
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunk = coded.unify_dictionaries().combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    return chunk.indices.to_numpy().astype(np.int64), [name_of(value) for value in chunk.dictionary.to_pylist()]


def _numbers(column: Any, name: str, before: int, *, empty: bool = False) -> np.ndarray:
    """The numbers of a column; with ``empty`` NaN where there is none."""
    if not empty:
        _nulls(column, f"the value ({name})", before)
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f"the values in column {name} are not numbers ({_first(error)})") from None
    wrong = np.flatnonzero(np.isinf(values) if empty else ~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"row {before + wrong[0] + 1} of the file: the value is {values[wrong[0]]}: leave the row out")
    return np.asarray(values)


def _times(column: Any, name: str, before: int) -> np.ndarray:
    _nulls(column, f"the time ({name})", before)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return np.asarray(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()) / 1e6
    times = _numbers(column, name, before)
    return np.where(np.abs(times) >= 1e11, times / 1000, times)


def _nulls(column: Any, what: str, before: int) -> None:
    if column.null_count:
        at = int(np.argmax(pyarrow.compute.is_null(column).to_numpy()))
        raise ValueError(f"row {before + at + 1} of the file: {what} is missing: leave the row out")


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
