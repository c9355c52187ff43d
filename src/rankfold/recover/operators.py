"""Linear measurements of a matrix X (m, n), seen through products of thin factors so that X need never be formed.

Every operator offers ``push(left, right)``, the measurements of left @ right, and ``adjoint(y)``, a matrix that can be
multiplied from both sides. Measurements have the form that suits the operator (a masked matrix, a vector) and are
only added, scaled and multiplied with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import torch

from rankfold.recover.arrays import Array, like, numpy

DENSE_BELOW = 250_000  # entries of X up to which a mask is quicker than indices, whatever is observed
DENSE_FROM = 0.1  # observed fraction from which it is so for larger ones
_BLOCK = 1 << 25  # bytes of one streamed block


class Operator(Protocol):
    """``shape`` (m, n) of X; ``count`` measurements; ``scale``: A*A ≈ scale · identity, so A*(y) / scale estimates
    X."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def count(self) -> int: ...

    @property
    def scale(self) -> float: ...

    def push(self, left: Array, right: Array) -> Array:
        """The measurements of left (m, k) @ right (k, n)."""
        ...

    def adjoint(self, y: Array) -> Any:
        """A*(y): (m, n), or what multiplies as such a matrix."""
        ...

    def part(self, which: np.ndarray) -> tuple[Any, Any]:
        """Only the measurements numbered ``which``, and a function that takes them from all measurements."""
        ...


def surrogate(operator: Operator, y: Array) -> Any:
    """A*(y) / scale, whose singular subspaces are near those of X (C-DLN, equation 6, rightly scaled)."""
    return operator.adjoint(y * (1.0 / operator.scale))


@dataclass(frozen=True, eq=False)
class Mask:
    """Entries of a matrix small enough, or observed enough, to be held whole. Measurements: (m, n), 0 elsewhere."""

    mask: Array

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.mask.shape[0]), int(self.mask.shape[1]))

    @property
    def count(self) -> int:
        return int(self.mask.sum())

    @property
    def scale(self) -> float:
        return float(self.mask.mean())

    def push(self, left: Array, right: Array) -> Array:
        product = left @ right
        product *= self.mask
        return product

    def adjoint(self, y: Array) -> Array:
        return y

    def part(self, which: np.ndarray) -> tuple[Mask, Any]:
        flat = np.zeros(self.shape[0] * self.shape[1])
        flat[np.flatnonzero(numpy(self.mask).reshape(-1))[which]] = 1.0
        mask = like(flat.reshape(self.shape), self.mask)
        return Mask(mask), lambda y: y * mask


class Identity(Mask):
    """All entries: factorization."""

    def __init__(self, shape: tuple[int, int], kind: Array) -> None:
        super().__init__(like(np.ones(shape), kind))

    def push(self, left: Array, right: Array) -> Array:
        return left @ right


class Entries:
    """Entries of a large matrix, by rows. Measurements: (count,), in the order of ``rows`` and ``columns``.

    Indices must be sorted by row, then column (``entries`` sees to it). Memory: O(count), whatever the shape.
    """

    def __init__(self, shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, kind: Array) -> None:
        self.shape = shape
        self.rows, self.columns = rows.astype(np.int32), columns.astype(np.int32)
        self.count = len(rows)
        self.scale = self.count / (shape[0] * shape[1])
        self._starts = np.searchsorted(rows, np.arange(shape[0] + 1)).astype(np.int32)
        self._order = np.lexsort((rows, columns)).astype(np.int32)
        self._column_starts = np.searchsorted(columns[self._order], np.arange(shape[1] + 1)).astype(np.int32)
        self._rows_by_column = self.rows[self._order]
        self._kind = kind
        if isinstance(kind, torch.Tensor):
            self._index = torch.as_tensor(rows).to(kind.device), torch.as_tensor(columns).to(kind.device)

    def push(self, left: Array, right: Array) -> Array:
        transposed = right.T
        if isinstance(left, torch.Tensor):
            rows, columns = self._index
            return (left[rows] * transposed[columns]).sum(1)
        transposed = np.ascontiguousarray(transposed)
        out = np.empty(self.count, dtype=left.dtype)
        step = max(1, _BLOCK // (64 * left.shape[1]))  # two gathered blocks that stay in the cache
        for start in range(0, self.count, step):
            these = slice(start, start + step)
            np.einsum(
                "ij,ij->i",
                left.take(self.rows[these], axis=0),
                transposed.take(self.columns[these], axis=0),
                out=out[these],
            )
        return out

    def adjoint(self, y: Array) -> Any:
        if isinstance(y, torch.Tensor):
            return torch.sparse_coo_tensor(
                torch.stack(self._index), y, self.shape, is_coalesced=True, check_invariants=False
            )
        return _ByRowsAndColumns(self, y)

    def part(self, which: np.ndarray) -> tuple[Entries, Any]:
        which = np.sort(which)
        kept = Entries(self.shape, self.rows[which], self.columns[which], self._kind)
        return kept, lambda y: y[which]


class _ByRowsAndColumns:
    """A sparse matrix that is quick to multiply from either side: its values once by rows and once by columns."""

    __array_ufunc__ = None  # so that array @ this asks __rmatmul__

    def __init__(self, operator: Entries, y: np.ndarray) -> None:
        self.shape = operator.shape
        m, n = operator.shape
        self._rows = scipy.sparse.csr_array((y, operator.columns, operator._starts), shape=(m, n))
        by_column = (y[operator._order], operator._rows_by_column, operator._column_starts)
        self._columns = scipy.sparse.csr_array(by_column, shape=(n, m))

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return self._rows @ other

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        return (self._columns @ np.ascontiguousarray(other.T)).T


class Measurements:
    """⟨A_i, X⟩ for matrices A_i given by the user: (count, m, n), an array, a memory-mapped file, or (count, m·n)
    sparse.

    They are read in blocks: a memory-mapped file is never in memory as a whole. Measurements: (count,).
    """

    def __init__(self, matrices: Any, kind: Array, shape: tuple[int, int] | None = None) -> None:
        if scipy.sparse.issparse(matrices):
            if shape is None or matrices.shape[1] != shape[0] * shape[1]:
                raise ValueError(
                    f"sparse measurements {matrices.shape} need the shape (m, n) of the matrix, m·n columns"
                )
        elif len(matrices.shape) != 3:
            raise ValueError(f"measurement matrices are an array (count, m, n), got shape {tuple(matrices.shape)}")
        self.shape = shape if shape is not None else (int(matrices.shape[1]), int(matrices.shape[2]))
        self.count = int(matrices.shape[0])
        self._matrices, self._kind = matrices, kind
        energy = sum(float((block**2).sum()) for _, block in self._blocks())
        self.scale = energy / (self.shape[0] * self.shape[1]) or 1.0

    def _blocks(self) -> Iterator[tuple[slice, Any]]:
        cells = self.shape[0] * self.shape[1]
        if scipy.sparse.issparse(self._matrices):
            yield slice(0, self.count), self._matrices
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


class Gaussian:
    """⟨A_i, X⟩ with A_i of independent N(0, 1/count) entries, drawn again from a seed in blocks whenever they are used.

    Memory: one block (32 MB). ``matrix(i)`` is the i-th A. Time: count · m · n normal numbers a pass, unless
    ``keep=True`` holds all of them. Measurements: (count,).
    """

    def __init__(
        self, shape: tuple[int, int], count: int, seed: int, kind: Array, *, keep: bool = False, which: Any = None
    ) -> None:
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


def entries(
    shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, values: np.ndarray, kind: Array | None = None
) -> tuple[Operator, Array]:
    """The operator of observed entries in its quicker form, and the measurements ``values`` (count,) in that form.

    ``kind``: an array or tensor whose dtype and device to take; by default float64 on the CPU. Each entry once
    (``triplets`` checks that). Raises ``ValueError`` for indices outside ``shape``.
    """
    kind = np.empty(0) if kind is None else kind
    rows, columns = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    for name, index, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if len(index) and (index.min() < 0 or index.max() >= size):
            at = int(np.flatnonzero((index < 0) | (index >= size))[0])
            raise ValueError(f"entry {at}: {name} {index[at]} is not within 0 … {size - 1}")
    cells = shape[0] * shape[1]
    if cells <= DENSE_BELOW or len(rows) >= DENSE_FROM * cells:
        mask, y = np.zeros(shape), np.zeros(shape)
        mask[rows, columns] = 1.0
        y[rows, columns] = values
        return (Identity(shape, kind) if mask.all() else Mask(like(mask, kind))), like(y, kind)
    order = np.lexsort((columns, rows))
    return Entries(shape, rows[order], columns[order], kind), like(np.asarray(values)[order], kind)
