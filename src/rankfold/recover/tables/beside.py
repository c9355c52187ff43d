"""Files beside the entries, pairs to predict and entries to judge by, have columns called as those of the entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankfold.recover.tables.columns import NO_VALUE, plain, split_names
from rankfold.recover.tables.layout import Wanted, first_fields
from rankfold.recover.tables.parquet import parquet_columns, parquet_header
from rankfold.recover.tables.reading import ARRAYS, PARQUET, check_file, head_of, layout_of, read_triplets, read_wanted
from rankfold.recover.tables.triplets import EACH, Triplets


def read_pairs(
    file: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    time: bool = False,
    header: bool | None = None,
    like: str | Path | None = None,
) -> Triplets:
    """Pairs (row, column) to predict, perhaps with times; a column of values is not read, and need not be there.
    Each line is a pair, in the order of the file, also where one is asked for twice.

    ``like``: the file of the entries. Where line 1 has the names of its columns, it is the header, and is read by them.
    """
    named = split_names(columns or _shared(file, like, (0, 1), time, header))
    wanted = Wanted(named or None, True, time, header, valued=False)
    return read_wanted(Path(file), wanted, EACH)


def read_test(
    file: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    time: bool = False,
    header: bool | None = None,
    like: str | Path | None = None,
) -> Triplets:
    """Entries to judge a result by; those given twice count by their mean. ``like``: as for `read_pairs`.

    Raises ``ValueError``, also for pairs.
    """
    named = columns or _shared(file, like, (0, 1, 2), time, header)
    try:
        return read_triplets(file, duplicates="mean", columns=named, time=time, header=header)
    except ValueError as error:
        if NO_VALUE not in str(error):
            raise
        raise ValueError(
            f"{file}: pairs without values cannot judge a result: give entries row, column, value as --test, or "
            f"predict the pairs with --predict {file}"
        ) from None


def _shared(
    file: str | Path, like: str | Path | None, needed: Sequence[int], time: bool, header: bool | None
) -> list[str] | None:
    """Names of row, column, value (and time) in the header of ``like``, where line 1 of ``file`` has those ``needed``;
    None where it has not. What is wrong with either file is told by its reader."""
    if like is None or header is False:
        return None
    try:
        first = _first(Path(file))
        names = _names(Path(like), Wanted(time=time, header=header), first)
    except (ValueError, OSError):
        return None
    there = {plain(name) for name in first}
    wanted = [*(names[at] for at in needed), *names[3:]] if len(names) > max(needed) else [""]
    return names if there.issuperset(map(plain, wanted)) else None


def _names(path: Path, wanted: Wanted, first: list[str]) -> list[str]:
    """The columns that are read, where the file names them: row, column, value, and the time where it is asked for.

    A table has in its corner what its rows are; what its columns are is said by the ``first`` line beside it."""
    kind = path.suffix.lower()
    if kind in ARRAYS:
        return []
    form = None if kind in PARQUET else layout_of(path, wanted)
    found = parquet_columns(path, wanted) if form is None else form.columns
    if found is not None:
        return [] if found.header is None else [found.header[at] for at in found.needed]
    corner = form.header[0] if form is not None and form.header else ""
    return first if corner and len(first) < 4 and plain(corner) == plain(first[0]) else []  # four may be a table too


def _first(path: Path) -> list[str]:
    """The fields of line 1, or the names of the columns."""
    check_file(path)
    if path.suffix.lower() in ARRAYS:
        return []
    return parquet_header(path) if path.suffix.lower() in PARQUET else first_fields(head_of(path))
