"""What a reader of a file found: distinct names, and for each entry their numbers, its value, its time, its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankfold.recover.tables.names import distinct
from rankfold.recover.tables.triplets import Duplicates, Triplets, gathered


@dataclass(frozen=True, eq=False)
class Found:
    """``rows``, ``columns`` (count,): indices into the names, which are in the order of their first entry."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    row_names: Sequence[str]
    column_names: Sequence[str]
    lines: np.ndarray | None = None
    times: np.ndarray | None = None

    def triplets(self, duplicates: Duplicates, *remarks: str) -> Triplets:
        """Names sorted, each entry once. Raises ``ValueError`` for duplicates that are refused."""
        row_names, rows = distinct(self.row_names, self.rows)
        column_names, columns = distinct(self.column_names, self.columns)
        entries = Triplets(rows, columns, self.values, row_names, column_names, times=self.times)
        once = gathered(entries, duplicates, self.lines)
        return replace(once, remarks=(*remarks, *once.remarks))
