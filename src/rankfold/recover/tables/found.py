"""What a reader of a file found: distinct names, and for each entry their numbers, its value, its time, its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankfold.recover.tables.names import distinct
from rankfold.recover.tables.triplets import Duplicates, Triplets, gathered


@dataclass(frozen=True)
class Empty:
    """How many lines have names and no value, and which is the first of them."""

    count: int = 0
    first: int = 0

    @classmethod
    def of(cls, lines: np.ndarray) -> Empty:
        return cls(len(lines), int(lines[0])) if len(lines) else cls()

    def __add__(self, later: Empty) -> Empty:
        return Empty(self.count + later.count, self.first or later.first)

    def remarks(self, entries: int) -> tuple[str, ...]:
        """A sentence where there are any, beside so many ``entries``. Raises ``ValueError`` where no entry is left."""
        if not self.count:
            return ()
        if not entries:
            raise ValueError(
                f"none of the {self.count} entries has a value (the first is line {self.first}): say which column "
                "holds the values, as --columns user,item,rating (in Python columns=[…])"
            )
        if self.count == 1:
            return (f"1 entry has no value and is left out (line {self.first})",)
        return (f"{self.count:,} entries have no value and are left out (the first is line {self.first})",)


@dataclass(frozen=True, eq=False)
class Found:
    """``rows``, ``columns`` (count,): indices into the names, which are in the order of their first entry; names of
    lines without a value are among them."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    row_names: Sequence[str]
    column_names: Sequence[str]
    lines: np.ndarray | None = None
    times: np.ndarray | None = None
    empty: Empty = Empty()

    def triplets(self, duplicates: Duplicates, *remarks: str) -> Triplets:
        """Names sorted, each entry once. Raises ``ValueError`` for duplicates that are refused."""
        told = self.empty.remarks(len(self.values))
        row_names, rows = distinct(self.row_names, self.rows)
        column_names, columns = distinct(self.column_names, self.columns)
        entries = Triplets(rows, columns, self.values, row_names, column_names, times=self.times)
        once = gathered(entries, duplicates, self.lines)
        return replace(once, remarks=(*remarks, *told, *once.remarks))
