"""Measurements ⟨A_i, X⟩ by matrices A_i, given or drawn again from a seed, a block of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch

from rankfold.recover.measurements.arrays import Array, like
from rankfold.recover.measurements.observed import by_rows
from rankfold.recover.measurements.operators import Held

_BLOCK = 1 << 25  # bytes of one streamed block


class Measurements(Held):
    """⟨A_i, X⟩ for matrices A_i given by the user: (count, m, n), an array, a memory-mapped file, or (count, m·n)
    sparse.

    They are read in blocks: a memory-mapped file is never in memory as a whole. Measurements: (count,). ``kind``: an
    array or tensor whose dtype and device to compute with; by default float64 of NumPy.
    """

    def __init__(self, matrices: Any, kind: Array | None = None, shape: tuple[int, int] | None = None) -> None:
        kind = np.empty(0) if kind is None else kind
        if scipy.sparse.issparse(matrices):
            if shape is None or matrices.shape[1] != shape[0] * shape[1]:
                raise ValueError(
                    f"sparse measurements of shape {matrices.shape} need shape=(m, n), that of the matrix, with "
                    "m·n columns"
                )
        elif len(matrices.shape) != 3:
            raise ValueError(f"measurement matrices must be an array (count, m, n), got shape {tuple(matrices.shape)}")
        self.shape = shape if shape is not None else (int(matrices.shape[1]), int(matrices.shape[2]))
        self.count = int(matrices.shape[0])
        self._matrices, self._kind = matrices, kind
        if scipy.sparse.issparse(matrices):  # as an array: powers of scipy's matrices are products
            numbers = np.float64 if isinstance(kind, torch.Tensor) else kind.dtype
            self._matrices = by_rows(matrices).astype(numbers, copy=False)
            self._whole = _of_kind(self._matrices, kind)
            energy = float((self._matrices.data**2).sum())
        else:
            energy = sum(float((block**2).sum()) for _, block in self._blocks())
        self.scale = energy / (self.shape[0] * self.shape[1]) or 1.0

    def _blocks(self) -> Iterator[tuple[slice, Any]]:
        cells = self.shape[0] * self.shape[1]
        if scipy.sparse.issparse(self._matrices):
            yield slice(0, self.count), self._whole
            return
        step = max(1, _BLOCK // (8 * cells))
        whole = isinstance(self._matrices, torch.Tensor) or not isinstance(self._matrices, np.memmap)
        if whole and type(self._matrices) is type(self._kind) and self._matrices.dtype == self._kind.dtype:
            step = self.count  # nothing to convert: one product
        for start in range(0, self.count, step):
            these = slice(start, min(self.count, start + step))
            yield these, like(self._matrices[these], self._kind).reshape(-1, cells)

    def push(self, left: Array, right: Array) -> Array:
        return _pushed(self._blocks(), self.count, left, right)

    def adjoint(self, y: Array) -> Array:
        return _pulled(self._blocks(), self.shape, y)

    def part(self, which: np.ndarray) -> tuple[Measurements, Any]:
        which = np.sort(which)
        shape = self.shape if scipy.sparse.issparse(self._matrices) else None
        return Measurements(self._matrices[which], self._kind, shape), lambda y: y[which]


def _of_kind(table: scipy.sparse.csr_array, kind: Array) -> Any:
    """The same, as what multiplies arrays or tensors of ``kind``."""
    if not isinstance(kind, torch.Tensor):
        return table
    rows = np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))
    index = torch.from_numpy(np.stack([rows, table.indices.astype(np.int64)])).to(kind.device)
    return torch.sparse_coo_tensor(
        index, like(table.data, kind), table.shape, is_coalesced=True, check_invariants=False
    )


def _pushed(blocks: Iterator[tuple[slice, Array]], count: int, left: Array, right: Array) -> Array:
    """⟨A_i, left right⟩ for all i, a block of A_i (rows) at a time."""
    x = (left @ right).reshape(-1)
    y = like(np.zeros(count), x)
    for these, block in blocks:
        y[these] = block @ x
    return y


def _pulled(blocks: Iterator[tuple[slice, Array]], shape: tuple[int, int], y: Array) -> Array:
    """Σ y_i A_i, a block at a time."""
    x = like(np.zeros(shape[0] * shape[1]), y)
    for these, block in blocks:
        x += block.T @ y[these]
    return x.reshape(shape)


class Gaussian(Held):
    """⟨A_i, X⟩ with A_i of independent N(0, 1/count) entries, drawn again from a seed in blocks whenever they are used.

    Memory: one block (32 MB). ``matrix(i)`` is the i-th A. Time: count · m · n normal numbers a pass, unless
    ``keep=True`` holds all of them. Measurements: (count,). ``kind``: an array or tensor whose dtype and device to
    compute with; by default float64 of NumPy.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        count: int,
        seed: int,
        kind: Array | None = None,
        *,
        keep: bool = False,
        which: Any = None,
    ) -> None:
        kind = np.empty(0) if kind is None else kind
        self.shape, self.seed = shape, seed
        self._total, self._kind, self._keep = count, kind, keep
        self._which = np.arange(count) if which is None else np.asarray(which)
        self.count = len(self._which)
        self.scale = self.count / count
        self._rows = max(1, _BLOCK // (8 * shape[0] * shape[1]))
        self._kept: dict[int, Array] = {}

    def matrix(self, i: int) -> Array:
        """A_i (m, n)."""
        return self._draw(i // self._rows)[i % self._rows].reshape(self.shape)

    def _draw(self, block: int) -> Array:
        if block in self._kept:
            return self._kept[block]
        rows = min(self._rows, self._total - block * self._rows)
        rng = np.random.default_rng([self.seed, block])
        drawn = rng.standard_normal((rows, self.shape[0] * self.shape[1])) / np.sqrt(self._total)
        values = like(drawn, self._kind)
        if self._keep:
            self._kept[block] = values
        return values

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        block_of = self._which // self._rows
        start = 0
        for block in np.unique(block_of):
            inside = self._which[block_of == block] - block * self._rows
            drawn = self._draw(int(block))
            yield slice(start, start + len(inside)), drawn if len(inside) == len(drawn) else drawn[inside]
            start += len(inside)

    def push(self, left: Array, right: Array) -> Array:
        return _pushed(self._blocks(), self.count, left, right)

    def adjoint(self, y: Array) -> Array:
        return _pulled(self._blocks(), self.shape, y)

    def part(self, which: np.ndarray) -> tuple[Gaussian, Any]:
        which = np.sort(which)
        kept = Gaussian(self.shape, self._total, self.seed, self._kind, keep=self._keep, which=self._which[which])
        kept._kept = self._kept
        return kept, lambda y: y[which]
