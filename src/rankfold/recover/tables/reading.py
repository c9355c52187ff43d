"""Reading (row, column, value) entries from files, with every fault named by its line, row and column."""

from __future__ import annotations

import codecs
import errno
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rankfold.recover.tables.columns import role_of, split_names
from rankfold.recover.tables.fast import Odd, read_fast
from rankfold.recover.tables.layout import Fault, Layout, Wanted, layout
from rankfold.recover.tables.lines import line_chunks, read_lines
from rankfold.recover.tables.npz import from_arrays, read_arrays
from rankfold.recover.tables.parquet import parquet_chunks, parquet_columns, read_parquet
from rankfold.recover.tables.sides import Sides, read_side
from rankfold.recover.tables.triplets import EACH, Duplicates, Triplets, counted, once, one_of

TEXT = (".csv", ".tsv", ".txt", ".data", ".dat", ".base", ".test", ".train", ".ratings", ".rating")
ARRAYS = (".npz", ".npy")
PARQUET = (".parquet", ".pq")
_HEAD = 1 << 18  # bytes that say how a text lies
_PACKED = {
    rb"\x1f\x8b": "gzip", rb"BZh\d1AY&SY": "bzip2", rb"\xfd7zXZ": "xz", rb"PK\x03\x04": "zip",
    rb"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_PACKERS = (".gz", ".bz2", ".xz", ".zip", ".zst")


def read_triplets(
    file: str | Path,
    *,
    duplicates: Duplicates | None = None,
    columns: str | Sequence[str] | None = None,
    implicit: bool = False,
    time: bool = False,
    header: bool | None = None,
) -> Triplets:
    r"""Entries (row, column, value) of a file of text, of a Parquet file, or of an ``.npz``.

    Text may be delimited by comma, semicolon, tab, bar, ``::`` or space (``.csv`` and others, MovieLens' ``u.data``,
    ``ratings.dat``). An ``.npy`` is a matrix with NaN. An ``.npz`` holds ``rows``, ``columns``, ``values`` and perhaps
    ``shape``, a matrix ``X`` with NaN, or scipy's sparse format. Names of rows and columns are texts, kept as
    written. A first line without any number is a header: columns are found by customary names in it (user, item,
    rating, timestamp and others), and by the order row, column, value otherwise; the first of ``remarks`` tells. A
    table with a row of the matrix a line is read as such. An entry whose value is empty (or NA, ?, -) is left out, and
    the remarks count them.

    Args:
        file: to be read.
        duplicates: of one entry with two values: "refuse", "mean", "last" (with ``time`` the latest) or "sum"; None:
            refuse, with ``implicit`` sum.
        columns: names in their place, of a header or in the order of the file.
        implicit: a value may be missing, then each line counts once.
        time: read the column of times too: one that is called so, or the fourth of four names in ``columns``.
        header: whether line 1 of a text is one; None: by what it looks like.

    Returns:
        ``Triplets``.

    Raises:
        ValueError: naming the line.

    Cost: a million lines take about 0.3 s; a text with quotes in unusual places, blank lines or faults is read line by
    line, ten times slower.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("ratings.csv").write_text("user,film,rating\nann,a,4\nbob,b,2\n")
        >>> rf.recover.read_triplets("ratings.csv").values.tolist()
        [4.0, 2.0]
    """
    how = duplicates_of(duplicates, implicit)
    return read_wanted(Path(file), Wanted(split_names(columns), implicit, time, header), how)


def read_wanted(path: Path, wanted: Wanted, duplicates: Duplicates) -> Triplets:
    """What was asked of a file of any kind. Raises ``ValueError`` that begins with its path."""
    one_of(duplicates)
    kind = path.suffix.lower()
    check_file(path)
    try:
        if kind in ARRAYS:
            _check_times(f"{path} holds no times", wanted)
            found = from_arrays(read_arrays(path), duplicates)
        elif kind in PARQUET:
            found = read_parquet(path, wanted, duplicates)
        elif kind in TEXT:
            return _text(path, wanted, duplicates)
        else:
            raise ValueError(f"entries are read from {', '.join((*TEXT, *PARQUET, *ARRAYS[:-1]))} and {ARRAYS[-1]}")
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from None
    return found


def _check_times(fault: str, wanted: Wanted) -> None:
    """``ValueError`` where times are asked for, of a file that cannot hold any."""
    if wanted.time:
        option = "--split by-time" if wanted.implicit else "--time"
        raise ValueError(
            f"{fault}: leave {option} out (in Python time=True), or give text or Parquet with an entry a line and a "
            "column of times"
        )


def read_plays(
    file: str | Path,
    *,
    duplicates: Duplicates = "sum",
    columns: str | Sequence[str] | None = None,
    at_least: float | None = None,
    time: bool | None = None,
    header: bool | None = None,
) -> Triplets:
    """Implicit feedback of a file, as `read_triplets` reads it; counts of 0 are left out. ``at_least``: each line with
    a value from it on counts one, others are left out. ``time``: None reads a column of times where there is one in the
    header or in fourth place.

    Raises ``ValueError`` also for counts below zero, and where nothing is left.
    """
    path, names = Path(file), split_names(columns)
    one_of(duplicates)
    check_file(path)
    timed = _timed(path, Wanted(names, True, True, header)) if time is None else time
    # a refusal names lines; else what a line says is looked at before lines are put together
    found = read_wanted(path, Wanted(names, True, timed, header), "refuse" if duplicates == "refuse" else EACH)
    if at_least is not None:
        kept = found.take(np.flatnonzero(found.values >= at_least))
        if not len(kept):
            raise ValueError(
                f"{file}: no value reaches {at_least:g} (--at-least), as the largest is {found.values.max():g}"
            )
        remark = f"{len(kept)} of {len(found)} values are at least {at_least:g} and count one each"
        found = replace(kept, values=np.ones(len(kept)), remarks=(*found.remarks, remark))
    if duplicates == "sum":
        found = counted(found)  # also the time of a line that counts nothing says nothing
    found, repeated = once(found, duplicates, None)
    if repeated is not None:
        found = replace(found, remarks=(*found.remarks, repeated.remark(duplicates)))
    if (found.values < 0).any():
        at = int(np.flatnonzero(found.values < 0)[0])
        place = f"row {found.row_names[found.rows[at]]}, column {found.column_names[found.columns[at]]}"
        raise ValueError(
            f"{file}: the count at {place} is {found.values[at]:g}, and counts of implicit feedback must be at least 0"
        )
    found = counted(found)
    if not len(found):
        raise ValueError(f"{file}: every count is 0, and says that nothing was taken")
    return found


def duplicates_of(duplicates: Duplicates | None, implicit: bool) -> Duplicates:
    """What is done where nothing was asked for: entries of ``implicit`` feedback are summed, others refused."""
    return duplicates if duplicates is not None else "sum" if implicit else "refuse"


def _timed(path: Path, wanted: Wanted) -> bool:
    """Whether a file has a column that is called a time, or else one in fourth place with a time in the first entry.
    What is wrong with its other lines is for the reader to tell."""
    kind = path.suffix.lower()
    if kind not in (*TEXT, *PARQUET):
        return False
    try:
        form = None if kind in PARQUET else layout_of(path, wanted)
        columns = parquet_columns(path, wanted) if form is None else form.columns
        if columns is None or columns.time is None:
            return False
        names = columns.header or wanted.columns or ()
        if columns.time < len(names) and role_of(names[columns.time]) == "time":
            return True
        next(parquet_chunks(path, wanted, 1) if form is None else line_chunks(path, form, 1))
    except ValueError:  # no such column, no time in it, or what the reader will tell
        return False
    return True


def read_sides(
    rows: str | Path | None, columns: str | Path | None, entries: Triplets
) -> tuple[Sides | None, tuple[str, ...]]:
    """Side tables of the rows and of the columns of ``entries`` (`sides.read_side`), and remarks; None without any."""
    if rows is None and columns is None:
        return None, ()
    first, told = (None, ()) if rows is None else read_side(rows, entries.row_names, "row")
    second, more = (None, ()) if columns is None else read_side(columns, entries.column_names, "column")
    return Sides(first, second), (*told, *more)


def check_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` where ``path`` is nothing, and ``ValueError`` for a folder, or a packed text."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file of entries in it")
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
    if path.suffix.lower() in (*TEXT, *_PACKERS):
        with path.open("rb") as opened:
            begun = opened.read(16)
        packer = next((name for mark, name in _PACKED.items() if re.match(mark, begun)), None)
        if packer is not None:
            raise ValueError(f"{path} is packed by {packer}: unpack it, and give the file that was in it")
        if begun.startswith(b"PAR1\x15"):
            raise ValueError(f"{path} is a Parquet file: give it the ending .parquet")


def _text(path: Path, wanted: Wanted, duplicates: Duplicates) -> Triplets:
    try:
        form = layout_of(path, wanted)
        if form.columns is None:
            _check_times(f"{path}: a table with a row of the matrix in each line holds no times", wanted)
        remarks = _remarks(form)
        try:
            found = read_fast(path, form).triplets(duplicates, *remarks)
        except (Odd, ValueError):
            found = read_lines(path, form).triplets(duplicates, *remarks)
        return replace(found, called=form.called)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8 ({_undecodable(path)}): save it as UTF-8") from None
    except Fault as error:
        raise ValueError(f"{path}, {error}") from None


def layout_of(path: Path, wanted: Wanted) -> Layout:
    """How the entries of a text lie. Raises ``Fault`` or ``ValueError``."""
    return layout(head_of(path), wanted)


def _remarks(form: Layout) -> list[str]:
    if form.columns is not None:
        return [form.columns.remark()]
    names = (form.header or ())[1:]
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [
        f"read as a table: each line is a row of the matrix, {shown} its columns (with an entry a line instead, say "
        "which columns: --columns user,item,rating)"
    ]


def head_of(path: Path) -> str:
    """The first whole lines, at least two."""
    with path.open("rb") as opened:
        head = opened.read(_HEAD)
        while head.count(b"\n") < 2 and (more := opened.read(_HEAD)):
            head += more
        whole = not opened.read(1)
    if not whole and b"\n" in head:
        head = head[: head.rfind(b"\n") + 1]
    return head.decode("utf-8-sig")


def _undecodable(path: Path) -> str:
    decoder, at, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with path.open("rb") as opened:
        while block := opened.read(_HEAD):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                on = line + block[: error.start].count(b"\n")
                return f"byte {at - pending + error.start}, line {on}"
            at, line = at + len(block), line + block.count(b"\n")
    return "its end"
