"""Entries that lie in files by row (CSR) and are read from there, never in memory as a whole.

A folder holds where each row starts, columns and values as plain numbers, the names as JSON, and a manifest with the
hashes of all of them and of the file that they came from. The manifest goes first and comes last: without it nothing
counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.sparse import csr_array as Csr
from typing_extensions import TypedDict

from rankfold.recover.mapped.sorting import CHUNK, by_row, records
from rankfold.recover.measurements.operators import BLOCK, Operator, blocks, entries
from rankfold.recover.measurements.streamed import Files, StreamedEntries
from rankfold.recover.tables.triplets import ROLES, Duplicates, Repeated, Triplets, once
from rankfold.run.claim import claimed
from rankfold.run.disk.files import digest_of, replacing, write_atomically

MANIFEST, NAMES, STARTS, COLUMNS, VALUES = "entries.json", "names.json", "starts.i8", "columns.i4", "values.f8"
TURNED = "by-column"
_KIND = "rankfold entries 1"


class Manifest(TypedDict):
    """What is in a folder: ``made`` says from what, and how it was asked for."""

    kind: str
    count: int
    rows: int
    columns: int
    low: float
    high: float
    made: str
    remarks: list[str]
    files: dict[str, str]


_ADAPTER = TypeAdapter(Manifest)


@dataclass(frozen=True, eq=False)
class MappedEntries:
    """Entries in the files of a ``directory``, by row, then column, each once; names of rows and columns are in memory.

    Made by `map_entries`. `LowRank` and the least squares of `ImplicitFeedback` are fitted to it as it is.
    """

    directory: Path
    files: Files
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    low: float
    high: float
    remarks: tuple[str, ...] = ()
    called: tuple[str, str] = ROLES

    def __repr__(self) -> str:
        m, n = self.shape
        return f"MappedEntries({str(self.directory)!r}, {len(self):,} entries of a {m:,} × {n:,} matrix)"

    @property
    def shape(self) -> tuple[int, int]:
        return self.files.shape

    def __len__(self) -> int:
        return len(self.files.values)

    def measurements(self, size: int = BLOCK) -> tuple[Operator, Any]:
        """The operator of the entries and their values; in memory where there are at most ``size`` of them."""
        if len(self) > size:
            operator = StreamedEntries(self.files, size=size)
            return operator, operator.values
        found = self.take(np.arange(len(self)))
        return entries(self.shape, found.rows, found.columns, found.values)

    def take(self, which: np.ndarray) -> Triplets:
        """The entries numbered ``which``, ascending, in memory."""
        rows = np.searchsorted(self.files.starts, which, side="right") - 1
        values = np.asarray(self.files.values[which], dtype=np.float64)
        return Triplets(rows, self.files.columns[which].astype(np.int64), values, self.row_names, self.column_names)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many entries each row and each column has. One pass."""
        return StreamedEntries(self.files).counts()

    def parts(self, size: int = BLOCK) -> Iterator[tuple[slice, Csr]]:
        """(rows, their entries) of all rows in turn, at most ``size`` entries at a time or one row."""
        for block in blocks(self.files.starts, size):
            yield block.rows, self[block.rows]

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Csr:
        """Some rows (b, n), in memory, as numpy picks them. ``IndexError`` for one that there is not."""
        starts, (m, n) = self.files.starts, self.shape
        picked = range(m)[rows] if isinstance(rows, slice) else None
        if picked and picked.step == 1:
            those = starts[picked.start : picked.stop + 1]
            where: Any = slice(int(those[0]), int(those[-1]))
            those = those - those[0]
        else:
            at = np.arange(m)[np.asarray(rows if picked is None else picked, dtype=np.int64)]
            sizes = starts[at + 1] - starts[at]
            those = np.concatenate(([0], np.cumsum(sizes)))
            where = np.repeat(starts[at] - those[:-1], sizes) + np.arange(those[-1])
        columns, values = np.array(self.files.columns[where]), np.array(self.files.values[where])
        return Csr((values, columns, those.astype(np.int32)), shape=(len(those) - 1, n))

    def turned(self) -> MappedEntries:
        """The same by column, then row, in a folder of the directory, written there when it is first asked for."""
        made = f"columns of {digest_of(self.directory / MANIFEST)}"
        folder = self.directory / TURNED
        with claimed(folder, what="sorting entries by column"):
            if _made(folder) != made:
                given = self._turned_records()
                write(folder, given, self.counts()[1], (self.column_names, self.row_names), "refuse", made, ())
        return read_mapped(folder)

    def _turned_records(self) -> Iterator[np.ndarray]:
        for block in blocks(self.files.starts, CHUNK):
            sizes = np.diff(self.files.starts[block.rows.start : block.rows.stop + 1])
            rows = np.repeat(np.arange(block.rows.start, block.rows.stop, dtype=np.int32), sizes)
            yield records(self.files.columns[block.entries], rows, self.files.values[block.entries], None)


def read_mapped(directory: str | Path, *, check: bool = True) -> MappedEntries:
    """The entries in a folder that `map_entries` wrote. ``check``: by the hashes of its files, a pass over them;
    without it only their sizes.

    Raises ``ValueError`` for a folder that is damaged, or not one of these.
    """
    folder = Path(directory)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, and stored entries are a folder: map_entries(file, directory) makes one from it"
        )
    try:
        known = _ADAPTER.validate_json((folder / MANIFEST).read_bytes(), strict=True)
        if known["kind"] != _KIND or set(known["files"]) != {NAMES, STARTS, COLUMNS, VALUES}:
            raise ValueError(f"it is of the kind {known['kind']!r}")
        for name, digest in known["files"].items():
            if check and digest_of(folder / name) != digest:
                raise ValueError(f"{name} was changed since it was written")
        names = json.loads((folder / NAMES).read_bytes())
        starts = np.fromfile(folder / STARTS, dtype="<i8")
        mapped = [_mapped(folder / name, kind) for name, kind in ((COLUMNS, "<i4"), (VALUES, "<f8"))]
        if not len(starts) - 1 == known["rows"] or not starts[-1] == known["count"] == len(mapped[0]) == len(mapped[1]):
            raise ValueError("its files differ in length")
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: these are no entries that rankfold stored ({Path(error.filename).name} is missing)"
        ) from None
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        told = "its manifest cannot be read" if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"{folder}: damaged, or no entries that rankfold stored ({told}): remove it, and it is written again"
        ) from None
    columns, values = mapped
    files = Files((known["rows"], known["columns"]), starts, columns, values, folder)
    low, high, remarks = known["low"], known["high"], tuple(known["remarks"])
    return MappedEntries(folder, files, tuple(names["rows"]), tuple(names["columns"]), low, high, remarks)


def stored(directory: Path, made: str) -> MappedEntries | None:
    """What is in ``directory`` if it was ``made`` so, None where nothing is or something else was. Raises
    ``ValueError`` where it is damaged, and for a folder of other files."""
    if not (directory / MANIFEST).exists():
        foreign = sorted(p.name for p in directory.glob("*") if p.name not in _OURS and not p.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{directory} holds other files, such as {foreign[0]}: give another folder for the entries"
            )
        return None
    found = read_mapped(directory)
    return found if _made(directory) == made else None


def write(
    directory: Path,
    given: Iterator[np.ndarray],
    counts: np.ndarray,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    duplicates: Duplicates,
    made: str,
    remarks: Iterable[str],
) -> None:
    """Records in any order as the files of ``directory``, which is claimed; ``counts`` (m,): records of each row.

    Raises ``ValueError`` for duplicates that are refused.
    """
    (directory / MANIFEST).unlink(missing_ok=True)
    hashes = {COLUMNS: hashlib.sha256(), VALUES: hashlib.sha256()}
    kept, low, high, repeated, first = np.zeros(len(counts), dtype=np.int64), np.inf, -np.inf, 0, ""
    with ExitStack() as stack:
        opened = {}
        for name in hashes:
            path = stack.enter_context(replacing(directory / name))
            opened[name] = stack.enter_context(path.open("wb"))
        for chunk in by_row(given, counts, directory):
            some = Triplets(chunk["row"].astype(np.int64), chunk["column"].astype(np.int64), chunk["value"], *names)
            some, twice = once(some, duplicates, chunk["line"], whole=False)
            repeated, first = _added(repeated, first, twice)
            kept += np.bincount(some.rows, minlength=len(kept))
            low, high = min(low, float(some.values.min())), max(high, float(some.values.max()))
            for name, column in ((COLUMNS, some.columns.astype("<i4")), (VALUES, some.values.astype("<f8"))):
                data = column.tobytes()
                opened[name].write(data)
                hashes[name].update(data)
    told = (*remarks, *((Repeated(repeated, first).remark(duplicates),) if repeated else ()))
    rest = {
        STARTS: np.concatenate(([0], np.cumsum(kept))).astype("<i8").tobytes(),
        NAMES: json.dumps({"rows": names[0], "columns": names[1]}, ensure_ascii=False).encode(),
    }
    for name, data in rest.items():
        write_atomically(directory / name, data)
    digests = {name: one.hexdigest() for name, one in hashes.items()}
    digests |= {name: hashlib.sha256(data).hexdigest() for name, data in rest.items()}
    known = Manifest(
        kind=_KIND,
        count=int(kept.sum()),
        rows=len(names[0]),
        columns=len(names[1]),
        low=low,
        high=high,
        made=made,
        remarks=list(told),
        files=digests,
    )
    write_atomically(directory / MANIFEST, (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())


_OURS = (MANIFEST, NAMES, STARTS, COLUMNS, VALUES, TURNED)


def _added(count: int, first: str, more: Repeated | None) -> tuple[int, str]:
    return (count, first) if more is None else (count + more.count, first or more.place)


def _made(directory: Path) -> str | None:
    try:
        return _ADAPTER.validate_json((directory / MANIFEST).read_bytes(), strict=True)["made"]
    except (OSError, ValidationError):
        return None


def _mapped(path: Path, kind: str) -> np.ndarray:
    return np.memmap(path, dtype=kind, mode="r").view(np.ndarray)
