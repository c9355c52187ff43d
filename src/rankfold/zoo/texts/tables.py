"""Columns of a table in a file: CSV, values between tabs, Parquet or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    with _in_words(file):
        if file.suffix.lower() == PARQUET:
            import pyarrow.parquet

            return list(pyarrow.parquet.ParquetFile(file).schema_arrow.names)
        if file.suffix.lower() in JSON_LINES:
            return next((list(row) for _, row in _objects(file)), [])
        import pandas

        return list(pandas.read_csv(file, sep=SEPARATORS[file.suffix.lower()], nrows=0).columns)


def records(file: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row: text as it stands in CSV, what was written in the other kinds."""
    with _in_words(file):
        if file.suffix.lower() == PARQUET:
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=list(names)):
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
            import pandas

            read = pandas.read_csv(
                file, sep=SEPARATORS[file.suffix.lower()], usecols=list(names), dtype=str, keep_default_na=False,
                chunksize=_ROWS,
            )  # fmt: skip
            for part in read:
                yield from part[list(names)].itertuples(index=False, name=None)


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


@contextmanager
def _in_words(file: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, OSError, ZooError):
        raise  # said where files of text are read
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pandas", "pyarrow"):
            raise
        kind = "Parquet" if file.suffix.lower() == PARQUET else "a table"
        raise ZooError(f"{file}: cannot be read as {kind} ({str(error).splitlines()[0]})") from None
