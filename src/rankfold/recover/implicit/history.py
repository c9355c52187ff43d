"""What rows did, in files: weights of implicit feedback that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        found.eliminate_zeros()  # a count of 0 says that nothing was taken
        found.data = np.log2(1.0 + found.data)
        return found

    def parts(self) -> Iterator[Csr]:
        """All rows, some at a time."""
        for rows, _ in self.entries.parts():
            yield self[rows]

    @cached_property
    def taken(self) -> np.ndarray:
        """(n,): how many rows took each column. One pass, when it is first asked for."""
        found = np.zeros(self.shape[1], dtype=np.int64)
        for part in self.parts():
            found += np.bincount(part.indices, minlength=len(found))
        return found

    def turned(self) -> History:
        """Columns × rows, in files too."""
        return History(self.entries.turned())
