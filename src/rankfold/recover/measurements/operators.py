"""Linear measurements of a matrix X (m, n), seen through products of thin factors so that X need never be formed.

Every operator offers ``push(left, right)``, the measurements of left @ right, and ``adjoint(y)``, a matrix that can be
multiplied from both sides. Measurements have the form that suits the operator (a masked matrix, a vector) and are
only added, scaled and multiplied with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import torch

from rankfold.linalg.brief import brief
from rankfold.recover.measurements.arrays import Array, like, numpy
from rankfold.recover.measurements.bits import drawn
from rankfold.recover.measurements.lazy import Block, Lazy

DENSE_BELOW = 250_000  # entries of X up to which a mask is quicker than indices, whatever is observed
DENSE_FROM = 0.1  # observed fraction from which it is so for larger ones
_GATHERED = 1 << 19  # numbers of a gathered block: two of them stay in the cache
BLOCK = 1 << 20  # entries that are multiplied at a time, at least as many as there are columns


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

    def stored(self, y: Any) -> Any:
        """``y`` for what is asked for many times: where it is computed anew each time, it goes into a file."""
        ...

    def apart(self, y: Any, size: int, rng: np.random.Generator) -> tuple[Operator, Any, tuple[Operator, Array]]:
        """The measurements without ``size`` of them that are drawn, and these."""
        ...


class Held:
    """Operators whose measurements are in memory."""

    count: Any
    part: Any

    def stored(self, y: Any) -> Any:
        return y

    def apart(self, y: Any, size: int, rng: np.random.Generator) -> tuple[Any, Any, tuple[Any, Array]]:
        bits = drawn(self.count, size, rng)
        held = np.concatenate([bits[these] for these in bits.chunks()])
        part, take = self.part(self.chosen(~held))
        judge, take_judge = self.part(self.chosen(held))
        return part, take(y), (judge, take_judge(y))

    def chosen(self, these: np.ndarray) -> np.ndarray:
        """What ``part`` is given for the measurements where ``these`` is true."""
        return np.flatnonzero(these)


def surrogate(operator: Operator, y: Array) -> Any:
    """A*(y) / scale, whose singular subspaces are near those of X (C-DLN, equation 6, rightly scaled)."""
    return operator.adjoint(y * (1.0 / operator.scale))


@dataclass(frozen=True, eq=False)
class Mask(Held):
    """Entries of a matrix small enough, or observed enough, to be held whole. Measurements: (m, n), 0 elsewhere."""

    mask: Array

    __repr__ = brief

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

    def chosen(self, these: np.ndarray) -> np.ndarray:
        return these

    def part(self, which: np.ndarray) -> tuple[Mask, Any]:
        flat = np.zeros(self.shape[0] * self.shape[1])
        flat[np.flatnonzero(numpy(self.mask).reshape(-1))[which]] = 1.0
        mask = like(flat.reshape(self.shape), self.mask)
        return Mask(mask), lambda y: y * mask


class Identity(Mask):
    """All entries: factorization. ``kind``: an array or tensor whose dtype and device to take; else float64 of
    NumPy."""

    __repr__ = brief

    def __init__(self, shape: tuple[int, int], kind: Array | None = None) -> None:
        super().__init__(like(np.ones(shape), np.empty(0) if kind is None else kind))

    def push(self, left: Array, right: Array) -> Array:
        return left @ right


class Entries(Held):
    """Entries of a large matrix, by rows. Measurements: (count,), in the order of ``rows`` and ``columns``.

    Indices must be sorted by row, then column (``entries`` sees to it). Memory: O(count), whatever the shape.
    ``kind``: an array or tensor whose dtype and device to compute with; by default float64 of NumPy.
    """

    def __init__(
        self, shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, kind: Array | None = None
    ) -> None:
        kind = np.empty(0) if kind is None else kind
        self.shape = shape
        self.rows, self.columns = rows.astype(np.int32, copy=False), columns.astype(np.int32, copy=False)
        self.count = len(rows)
        self.scale = self.count / (shape[0] * shape[1])
        starts = np.searchsorted(self.rows, np.arange(shape[0] + 1, dtype=np.int32))
        self._starts = starts.astype(np.int32) if self.count < 2**31 else starts
        self._kind = kind
        self.blocks = blocks(self._starts, max(BLOCK, shape[1]))
        if isinstance(kind, torch.Tensor):
            self._index = torch.as_tensor(rows).to(kind.device), torch.as_tensor(columns).to(kind.device)

    def indices(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, columns, where each row starts) of the entries of a block."""
        these, rows = block.entries, block.rows
        starts = self._starts[rows.start : rows.stop + 1]
        return self.rows[these], self.columns[these], starts - starts[0] if starts[0] else starts

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many entries each row and each column has."""
        columns = np.zeros(self.shape[1], dtype=np.int64)
        for block in self.blocks:
            columns += np.bincount(self.indices(block)[1], minlength=self.shape[1])
        return np.diff(self._starts), columns

    def ones(self, kind: Array) -> Array:
        """A measurement of 1 at each entry."""
        return like(np.ones(self.count), kind)

    def push(self, left: Array, right: Array) -> Array:
        transposed = right.T
        if isinstance(left, torch.Tensor):
            rows, columns = self._index
            return (left[rows] * transposed[columns]).sum(1)
        return products(left, np.ascontiguousarray(transposed), self.rows, self.columns)

    def adjoint(self, y: Array) -> Any:
        if isinstance(y, torch.Tensor):
            return torch.sparse_coo_tensor(
                torch.stack(self._index), y, self.shape, is_coalesced=True, check_invariants=False
            )
        return ByRows(self, lambda block: y[block.entries], y.dtype)

    def chosen(self, these: np.ndarray) -> np.ndarray:
        return these

    def part(self, which: np.ndarray) -> tuple[Entries, Any]:
        if which.dtype != bool:
            which = np.sort(which)
        kept = Entries(self.shape, self.rows[which], self.columns[which], self._kind)
        return kept, lambda y: y[which]


def blocks(starts: np.ndarray, most: int) -> list[Block]:
    """Whole rows, which start at ``starts``, with at most ``most`` entries together, or one row."""
    found, row, rows = [], 0, len(starts) - 1
    while row < rows:
        end = max(row + 1, int(np.searchsorted(starts, starts[row] + most, side="right")) - 1)
        entries = slice(int(starts[row]), int(starts[end]))
        found.append(Block(slice(row, end), entries, entries))
        row = end
    return found


def products(left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(count,): row by row of left (m, k) with right (n, k)."""
    out = np.empty(len(rows), dtype=left.dtype)
    step = max(1, _GATHERED // max(1, left.shape[1]))
    for start in range(0, len(rows), step):
        these = slice(start, start + step)
        np.einsum("ij,ij->i", left.take(rows[these], axis=0), right.take(columns[these], axis=0), out=out[these])
    return out


class ByRows:
    """A sparse matrix that is multiplied from either side, a block of rows at a time: ``of`` gives its values there."""

    __array_ufunc__ = None  # so that array @ this asks __rmatmul__

    def __init__(self, operator: Entries, of: Callable[[Block], np.ndarray], dtype: np.dtype) -> None:
        self.shape, self._operator, self._of, self._dtype = operator.shape, operator, of, dtype

    def both(self, right: np.ndarray | None, left: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(this @ right, left @ this), in one pass over the entries; nothing for None."""
        m, n = self.shape
        nothing = np.empty((0, 0))
        high = nothing if right is None else np.zeros((m, right.shape[1]), np.result_type(self._dtype, right))
        wide = nothing if left is None else np.zeros((n, left.shape[0]), np.result_type(self._dtype, left))
        turned = nothing if left is None else np.ascontiguousarray(left.T)
        for block in self._operator.blocks:
            _, columns, starts = self._operator.indices(block)
            size = (block.rows.stop - block.rows.start, n)
            part = scipy.sparse.csr_array((self._of(block), columns, starts), shape=size)
            if right is not None:
                high[block.rows] = part @ right
            if left is not None:
                wide += part.T @ turned[block.rows]
        return high, wide.T

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return self.both(other, None)[0]

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        return self.both(None, other)[1]


def both(image: Any, right: Array, left: Array) -> tuple[Array, Array]:
    """(image @ right, left @ image) of an adjoint, in one pass where it lies by rows."""
    return image.both(right, left) if isinstance(image, ByRows) else (image @ right, left @ image)


def entries(
    shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, values: np.ndarray, kind: Array | None = None
) -> tuple[Operator, Array]:
    """The operator of observed entries in its quicker form, and the measurements ``values`` (count,) in that form.

    ``kind``: an array or tensor whose dtype and device to take; by default float64 on the CPU. Each entry once
    (``triplets`` checks that). Raises ``ValueError`` for indices outside ``shape``.
    """
    kind = np.empty(0) if kind is None else kind
    rows, columns = (a if a.dtype.kind in "iu" else a.astype(np.int64) for a in map(np.asarray, (rows, columns)))
    inside(shape, rows, columns)
    cells = shape[0] * shape[1]
    if cells <= DENSE_BELOW or len(rows) >= DENSE_FROM * cells:
        mask, y = np.zeros(shape), np.zeros(shape)
        mask[rows, columns] = 1.0
        y[rows, columns] = values
        return (Identity(shape, kind) if mask.all() else Mask(like(mask, kind))), like(y, kind)
    if not _ordered(rows, columns):
        order = np.lexsort((columns, rows))
        rows, columns, values = rows[order], columns[order], np.asarray(values)[order]
    return Entries(shape, rows, columns, kind), like(np.asarray(values), kind)


def inside(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, least: int = 0) -> None:
    """Raises ``ValueError`` for the first index that no row or column has. ``least``: −1 where that is one of which
    nothing is known, as `Triplets.numbered` has it."""
    for name, index, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if len(index) and (index.min() < least or index.max() >= size):
            at = int(np.flatnonzero((index < least) | (index >= size))[0])
            unknown = ", which stands for one that is not known: leave it out" if index[at] == -1 else ""
            raise ValueError(f"entry {at}: its {name} must be from {least} to {size - 1}, got {index[at]}{unknown}")


def _ordered(rows: np.ndarray, columns: np.ndarray) -> bool:
    """Whether entries come by row, then column."""
    later = rows[1:] > rows[:-1]
    return bool((later | ((rows[1:] == rows[:-1]) & (columns[1:] > columns[:-1]))).all())


def known_entries(operator: Operator, y: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(rows, columns, values) where ``operator`` observes single entries with NumPy, else None."""
    if isinstance(y, (torch.Tensor, Lazy)):
        return None
    if isinstance(operator, Entries):
        return operator.rows, operator.columns, np.asarray(y, dtype=np.float64)
    if isinstance(operator, Mask):
        if isinstance(operator.mask, torch.Tensor):
            return None
        rows, columns = np.nonzero(operator.mask)
        return rows, columns, np.asarray(y[rows, columns], dtype=np.float64)
    return None


def entry_counts(operator: Operator) -> tuple[np.ndarray, np.ndarray] | None:
    """How many entries each row and each column has, where ``operator`` observes single entries; else None."""
    if isinstance(operator, Entries):
        return operator.counts()
    if isinstance(operator, Mask):
        mask = numpy(operator.mask)
        return mask.sum(1), mask.sum(0)
    return None
