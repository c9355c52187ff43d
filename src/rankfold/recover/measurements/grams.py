"""Σ x xᵀ and Σ x r over the entries of every row, in batches of rows with about as many entries."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array as Csr

WIDER = 1.3  # the most entries of a row of a batch over the fewest
_BATCH = 1 << 23  # numbers gathered at a time


class Grams:
    """Of a table (rows, others). Memory: the indices of its entries twice, and 64 MB."""

    def __init__(self, table: Csr, width: int) -> None:
        counts = np.diff(table.indptr)
        order = np.argsort(counts, kind="stable")
        self.rows, self.others, self.entries = table.shape[0], table.shape[1], table.nnz
        self._batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        at = int(np.searchsorted(counts[order], 1))  # rows without entries have nothing to add
        while at < len(order):
            fewest = counts[order[at]]
            end = int(np.searchsorted(counts[order], max(WIDER * fewest, fewest + 3), side="right"))
            end = min(end, at + max(1, _BATCH // int(fewest * width)))
            rows = order[at:end]
            most = int(counts[rows[-1]])
            place = np.arange(most)[None, :] + table.indptr[rows][:, None].astype(np.int64)
            inside = np.arange(most)[None, :] < counts[rows][:, None]
            place = np.where(inside, place, self.entries)
            index = np.append(table.indices, self.others)[place]
            self._batches.append((torch.from_numpy(rows), torch.from_numpy(index), torch.from_numpy(place)))
            at = end

    def __call__(self, known: np.ndarray, rest: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, k, k) and (rows, k), float32, of ``known`` (others, k) and ``rest`` (entries,) by rows."""
        k = known.shape[1]
        vectors, values = torch.zeros(self.others + 1, k), torch.zeros(self.entries + 1)  # the last is for padding
        vectors[:-1], values[:-1] = torch.from_numpy(known), torch.from_numpy(rest)
        grams, right = torch.zeros(self.rows, k, k), torch.zeros(self.rows, k)
        for rows, index, place in self._batches:
            x = vectors[index.reshape(-1)].reshape(*index.shape, k)
            grams[rows] = torch.bmm(x.transpose(1, 2), x)
            right[rows] = torch.bmm(x.transpose(1, 2), values[place][:, :, None])[:, :, 0]
        return grams, right
