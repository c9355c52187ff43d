"""What rows did, in files: weights of implicit feedback that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array as Csr

from rankfold.recover.mapped.entries import MappedEntries


@dataclass(frozen=True, eq=False)
class History:
    """r = log₂(1 + count), rows × columns, of counts in files; ``history[rows]`` are some rows in memory."""

    entries: MappedEntries

    @property
    def shape(self) -> tuple[int, int]:
        return self.entries.shape

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Csr:
        found = self.entries[rows]
        found.data = np.log2(1.0 + found.data)
        return found

    def parts(self) -> Iterator[Csr]:
        """All rows, some at a time."""
        for rows, _ in self.entries.parts():
            yield self[rows]

    def turned(self) -> History:
        """Columns × rows, in files too."""
        return History(self.entries.turned())
