"""Entries of a text by pyarrow, names encoded as they are read: a million lines in about 0.2 s and 60 MB.

Whatever looks odd (a line of another length, what is no number, quotes in unusual places) is left to `lines`, which
reads it all the same or names the fault: the answer is one, only the time differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from rankfold.recover.tables.columns import Columns
from rankfold.recover.tables.found import Empty, Found
from rankfold.recover.tables.layout import UNIT, UNKNOWN, Layout
from rankfold.recover.tables.times import of_numbers

_BLOCK = 1 << 22
_NAMES = pa.dictionary(pa.int32(), pa.string())


class Odd(Exception):
    """This text is for the reader of single lines."""


def read_fast(path: Path, form: Layout) -> Found:
    """The entries of a text in the given form. Raises ``Odd``."""
    if form.first != 1 or _odd_bytes(path, form):
        raise Odd
    try:
        table = _table(path, form)
        return _wide(table, form) if form.columns is None else _entries(table, form.columns, form.skip + 1)
    except (pa.ArrowException, OSError) as error:
        raise Odd from error


def fast_chunks(path: Path, form: Layout) -> Iterator[Found]:
    """The same of an entry a line, a few hundred thousand at a time: names are those of the chunk. Raises ``Odd``, also
    in the middle of a file."""
    columns = form.columns
    if form.first != 1 or columns is None or _odd_bytes(path, form):
        raise Odd
    line = form.skip + 1
    try:
        with path.open("rb") as opened:
            source, options = _options(path, opened, form)
            for batch in pyarrow.csv.open_csv(source, **options):
                if batch.num_rows:
                    yield _entries(pa.Table.from_batches([batch]), columns, line)
                line += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Odd from error


def _entries(table: Any, columns: Columns, first: int) -> Found:
    """The entries of lines, of which the ``first`` is given by its number."""
    if not table.num_rows or any(table.column(f"f{at}").null_count for at in columns.needed if at != columns.value):
        raise Odd
    rows, row_names = _encoded(table.column(f"f{columns.row}"))
    names, column_names = _encoded(table.column(f"f{columns.column}"))
    header = columns.header
    if header and header[columns.row] in row_names and header[columns.column] in column_names:
        raise Odd  # the header again, perhaps
    if columns.value is None:
        values = np.ones(table.num_rows)
    else:
        values = table.column(f"f{columns.value}").to_numpy()
        if np.isinf(values).any():
            raise Odd
    there, lines = ~np.isnan(values), np.arange(first, first + table.num_rows)
    times = None
    if columns.time is not None:
        times = of_numbers(table.column(f"f{columns.time}").to_numpy())
        if np.isnan(times).any():
            raise Odd
    if not there.all():
        rows, names, values, times = rows[there], names[there], values[there], None if times is None else times[there]
    return Found(rows, names, values, row_names, column_names, lines[there], times, Empty.of(lines[~there]))


def _wide(table: Any, form: Layout) -> Found:
    at, row_names = _encoded(table.column("f0"))
    if len(row_names) != len(at):
        raise Odd
    x = np.column_stack([table.column(f"f{number}").to_numpy() for number in range(1, form.fields)])
    if np.isinf(x).any():
        raise Odd
    rows, columns = np.nonzero(~np.isnan(x))
    if not len(rows):
        raise Odd
    names = list((form.header or ())[1:])
    return Found(at[rows], columns, x[rows, columns], row_names, names, _lines(form, len(at))[rows])


def _lines(form: Layout, count: int) -> np.ndarray:
    return np.arange(form.skip + 1, form.skip + 1 + count)


def _encoded(column: Any) -> tuple[np.ndarray, list[str]]:
    """Indices and names, stripped. Raises ``Odd`` for a name that is empty, or spans lines."""
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    names = [name.strip() for name in chunk.dictionary.to_pylist()]
    if any(not name or "\n" in name or "\r" in name for name in names):
        raise Odd
    return chunk.indices.to_numpy().astype(np.int64), names


def _table(path: Path, form: Layout) -> Any:
    with path.open("rb") as opened:
        source, options = _options(path, opened, form)
        return pyarrow.csv.read_csv(source, **options).unify_dictionaries()


def _options(path: Path, opened: IO[bytes], form: Layout) -> tuple[Any, dict[str, Any]]:
    """What pyarrow reads from, and how: names as numbers in a dictionary, in the types that are expected."""
    columns: Columns | None = form.columns
    names = [f"f{number}" for number in range(form.fields)]
    unknown = [way for word in UNKNOWN for way in {word, word.upper(), word.capitalize(), "NaN"}]
    if columns is None:
        kinds, kept = dict.fromkeys(names, pa.float64()) | {"f0": _NAMES}, names
    else:
        kinds = {names[columns.row]: _NAMES, names[columns.column]: _NAMES}
        kinds |= {names[at]: pa.float64() for at in (columns.value, columns.time) if at is not None}
        kept = [names[at] for at in columns.needed]
    source = pa.PythonFile(_Translated(opened, form.delimiter)) if len(form.delimiter) > 1 else str(path)
    return source, {
        "read_options": pyarrow.csv.ReadOptions(
            use_threads=False, column_names=names, skip_rows=form.skip, block_size=_BLOCK
        ),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=form.one, newlines_in_values=False),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=kinds, include_columns=kept, null_values=unknown, strings_can_be_null=False
        ),
    }


class _Translated:
    """A file whose delimiter of two characters is one that pyarrow takes."""

    closed = False

    def __init__(self, opened: IO[bytes], delimiter: str) -> None:
        self._opened, self._delimiter, self._kept = opened, delimiter.encode(), b""

    def read(self, size: int = -1) -> bytes:
        block = self._kept + self._opened.read(size if size > 0 else -1)
        self._kept = b""
        if size > 0 and block.endswith(self._delimiter[:1]) and len(block) > 1:  # its second half may follow
            whole = len(block) - len(block.rstrip(self._delimiter[:1]))
            if whole % 2:
                block, self._kept = block[:-1], block[-1:]
        return block.replace(self._delimiter, UNIT.encode())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def _odd_bytes(path: Path, form: Layout) -> bool:
    """Whether there are quotes that do not open and close a field of one line, blank lines, or zero bytes."""
    mark = re.escape(form.delimiter.encode())
    fields = re.compile(rb"(?:^|(?<=[\r\n])|" + mark + rb')"[^"\r\n]*"(?=[\r\n]|' + mark + rb"|$)")
    left = b""
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            block = left + block
            end = block.rfind(b"\n") + 1
            block, left = (block[:end], block[end:]) if end and len(block) < 64 * _BLOCK else (block, b"")
            if _odd_block(block, fields):
                return True
    return bool(left) and _odd_block(left, fields)


def _odd_block(block: bytes, fields: re.Pattern[bytes]) -> bool:
    if b"\0" in block or b"\n\n" in block or b"\n\r\n" in block:
        return True
    quotes = block.count(b'"')
    return bool(quotes) and 2 * len(fields.findall(block)) != quotes
