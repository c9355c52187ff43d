"""From a file of text or Parquet to entries in files: read in chunks, named, sorted, written once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from rankfold.recover.mapped.entries import MappedEntries, read_mapped, stored, write
from rankfold.recover.mapped.sorting import CHUNK, records, spooled
from rankfold.recover.tables.columns import split_names
from rankfold.recover.tables.fast import Odd, fast_chunks
from rankfold.recover.tables.found import Empty, Found
from rankfold.recover.tables.layout import Fault, Wanted
from rankfold.recover.tables.lines import line_chunks
from rankfold.recover.tables.memory import affordable_names
from rankfold.recover.tables.names import in_order
from rankfold.recover.tables.parquet import parquet_chunks, parquet_columns, remark
from rankfold.recover.tables.reading import PARQUET, TEXT, check_file, duplicates_of, layout_of
from rankfold.recover.tables.triplets import Duplicates, one_of
from rankfold.run.claim import claimed
from rankfold.run.disk.files import check_room, digest_of

_ROOM = 4  # bytes on the disk for a byte of text, of which two thirds are free again in the end
Progress = Callable[[str, int, int], None]


def map_entries(
    file: str | Path,
    directory: str | Path,
    *,
    duplicates: Duplicates | None = None,
    columns: str | Sequence[str] | None = None,
    implicit: bool = False,
    header: bool | None = None,
    progress: Progress | None = None,
) -> MappedEntries:
    """Entries of a file, as `read_triplets` reads them, in memory-mapped files of ``directory``: for tables that do not
    fit into memory. What is there already is taken if it was made of a file of the same content in the same way.

    Args:
        file: text with an entry a line, or Parquet.
        directory: a folder for the entries alone, 12 bytes for each; three times that while it is written.
        duplicates: of one entry with two values: "refuse", "mean", "last" or "sum"; None: refuse, and sum with
            ``implicit``.
        columns: names in their place, of a header or in the order of the file.
        implicit: a value may be missing, then each line counts once.
        header: whether line 1 of a text is one; None: by what it looks like.
        progress: called as ``progress(what, done, total)``.

    Returns:
        ``MappedEntries``.

    Raises:
        ValueError: naming the line; also for a folder that is damaged or holds other files, while another process
            writes it, and for what is held as a whole: ``.npz`` and tables with a row of the matrix a line.
        OSError: no such file, or too little room on the disk.

    Cost: the file is read twice or thrice (its digest, odd quotes, entries), entries are written twice and read once;
    memory for the names, and 40 MB.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("ratings.csv").write_text("user,film,rating\\nann,a,4\\nbob,b,2\\n")
        >>> rf.recover.map_entries("ratings.csv", "entries").shape
        (2, 2)
    """
    duplicates = duplicates_of(duplicates, implicit)
    one_of(duplicates)
    path, folder = Path(file), Path(directory)
    columns = split_names(columns)
    wanted = Wanted(columns, implicit, header=header)
    check_mapped(path)
    made = json.dumps(
        ["read", digest_of(path), list(columns or ()), implicit, duplicates, *([] if header is None else [header])]
    )
    with claimed(folder, what="writing entries"):
        found = stored(folder, made)
        if found is None:
            check_room(folder, _ROOM * path.stat().st_size)
            try:
                _write(path, folder, wanted, duplicates, made, progress)
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not a text file in UTF-8: save it as UTF-8") from None
            except Fault as error:
                raise ValueError(f"{path}, {error}") from None
            except ValueError as error:
                told = str(error)
                raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from None
    form = parquet_columns(path, wanted) if path.suffix.lower() in PARQUET else layout_of(path, wanted)
    if found is None:
        return replace(read_mapped(folder), called=form.called)
    return replace(
        found,
        called=form.called,
        remarks=(*found.remarks, f"entries are taken from {folder}, as {path.name} is unchanged"),
    )


def check_mapped(path: Path) -> None:
    """Raises ``ValueError`` or ``FileNotFoundError`` where no entries can be mapped from ``path``; reads nothing."""
    check_file(path)
    if path.suffix.lower() == ".npz":
        raise ValueError(
            f"{path}: only text and Parquet can be read in parts, and .npz arrays are held as a whole: leave "
            "--memory out, or save the entries as one of these"
        )
    if path.suffix.lower() not in (*TEXT, *PARQUET):
        raise ValueError(
            f"{path}: entries are read from {', '.join((*TEXT, *PARQUET))} files: give the file such a name"
        )


def _write(
    path: Path, folder: Path, wanted: Wanted, duplicates: Duplicates, made: str, progress: Progress | None
) -> None:
    with tempfile.TemporaryFile(dir=folder) as spool:
        if path.suffix.lower() in PARQUET:
            told = remark(parquet_columns(path, wanted))
            names, empty = _spool(parquet_chunks(path, wanted, CHUNK), spool, progress)
        else:
            form = layout_of(path, wanted)
            if form.columns is None:
                raise ValueError(
                    "a table whose lines are rows of the matrix is held as a whole: write it with one entry in "
                    "each line, or say which columns are row, column and value (--columns)"
                )
            told = form.columns.remark()
            try:
                names, empty = _spool(fast_chunks(path, form), spool, progress)
            except Odd:
                names, empty = _spool(line_chunks(path, form, CHUNK), spool, progress)
        affordable_names((len(names[0]), len(names[1])), max(map(len, names)))
        (row_names, row_at), (column_names, column_at) = (_sorted(list(one)) for one in names)
        counts = np.zeros(len(row_names), dtype=np.int64)
        for chunk in spooled(spool):
            counts += np.bincount(row_at[chunk["row"]], minlength=len(counts))
        remarks = (told, *empty.remarks(int(counts.sum())))

        def numbered() -> Iterator[np.ndarray]:
            for chunk in spooled(spool):
                yield records(row_at[chunk["row"]], column_at[chunk["column"]], chunk["value"], chunk["line"])

        if progress is not None:
            progress("sorting entries", 0, 1)
        write(folder, numbered(), counts, (row_names, column_names), duplicates, made, remarks)
        if progress is not None:
            progress("sorting entries", 1, 1)


def _spool(
    chunks: Iterator[Found], spool: IO[bytes], progress: Progress | None
) -> tuple[tuple[dict[str, int], dict[str, int]], Empty]:
    """All entries one after the other; the numbers of the names of rows and of columns in them, and lines without a
    value."""
    spool.seek(0)
    spool.truncate()
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    empty = Empty()
    if progress is not None:
        progress("reading entries", 0, 1)
    for chunk in chunks:
        row_at = np.array([rows.setdefault(name, len(rows)) for name in chunk.row_names])
        column_at = np.array([columns.setdefault(name, len(columns)) for name in chunk.column_names])
        empty += chunk.empty
        spool.write(records(row_at[chunk.rows], column_at[chunk.columns], chunk.values, chunk.lines).tobytes())
    if progress is not None:
        progress("reading entries", 1, 1)
    return (rows, columns), empty


def _sorted(names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names in order, and where each of them goes."""
    order = in_order(names)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return tuple(names[number] for number in order), rank
