"""Columns of a table in a file: CSV, values between tabs, Parquet or JSON lines."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rankfold.zoo.errors import ZooError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES, PARQUET = (".jsonl", ".json"), ".parquet"
_ROWS = 10_000  # that are read at once


def is_table(file: Path) -> bool:
    return file.suffix.lower() in (*SEPARATORS, *JSON_LINES, PARQUET)


def columns(file: Path) -> list[str]:
    """Their names; of JSON lines those of the first line. ``ZooError`` for a file that cannot be read."""
    if file.suffix.lower() == PARQUET:
        with _parquet(file) as opened:
            return list(opened.schema_arrow.names)
    if file.suffix.lower() in JSON_LINES:
        return next((list(row) for _, row in _objects(file)), [])
    with _separated(file) as read:
        return list(read(nrows=0).columns)


def records(file: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row: text as it stands in CSV, what was written in the other kinds."""
    if file.suffix.lower() == PARQUET:
        with _parquet(file) as opened:
            for batch in opened.iter_batches(columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    elif file.suffix.lower() in JSON_LINES:
        for number, row in _objects(file):
            lacking = next((name for name in names if name not in row), None)
            if lacking is not None:
                raise ZooError(
                    f'{file}, line {number}: each line must be a JSON object with "{lacking}", and there are '
                    f"{', '.join(row) or 'no names'}: rename the one that is meant"
                )
            yield tuple(row[name] for name in names)
    else:
        with _separated(file) as read:
            for part in read(dtype=str, keep_default_na=False, chunksize=_ROWS):
                yield from part[list(names)].itertuples(index=False, name=None)


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise ZooError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


@contextmanager
def _separated(file: Path) -> Iterator[Callable[..., Any]]:
    """All columns are read: of a choice, and of an index, pandas takes rows with more fields than names without a
    word, and a text with a comma that is not quoted would lose its end."""
    from pandas import errors, read_csv

    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.ParserWarning)
        try:
            yield partial(read_csv, file, sep=SEPARATORS[file.suffix.lower()], index_col=False)
        except (errors.ParserError, errors.EmptyDataError, errors.ParserWarning) as error:
            reason = str(error).strip().splitlines()[0]
            raise ZooError(
                f"{file}: cannot be read as a table ({reason}): texts with separators or lines in them need quotes"
            ) from None


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ZooError(f"{file}, line {number}: each line must be a JSON object with names and values")
            yield number, row
