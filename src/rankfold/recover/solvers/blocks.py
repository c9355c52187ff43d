"""The least squares of one row of a factor, or of one column: k × k systems, a batch of them at a time.

Σ over the known entries of a row of v vᵀ says how well that row is determined. It is what alternating minimisation
solves with, and what makes conjugate gradients quick where some rows have hardly more entries than unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankfold.recover.measurements.arrays import Array, contiguous, eye, namespace
from rankfold.recover.measurements.operators import Entries, Mask

LEAST = 1e-10  # of the mean of a system's diagonal, added to it: what is not determined stays small


def row_grams(operator: Mask | Entries, right: Array) -> Array:
    """(m, k, k): Σ over the entries of each row of r rᵀ, r the columns of ``right`` (k, n). Cost O(count k²)."""
    k = right.shape[0]
    return (_pattern(operator, right) @ _outer(right.T)).reshape(-1, k, k)


def column_grams(operator: Mask | Entries, left: Array) -> Array:
    """(n, k, k): the same of each column, from the rows of ``left`` (m, k)."""
    k = left.shape[1]
    return contiguous((_outer(left).T @ _pattern(operator, left)).T).reshape(-1, k, k)


def _pattern(operator: Mask | Entries, kind: Array) -> Array:
    return operator.mask if isinstance(operator, Mask) else operator.adjoint(operator.ones(kind))


def _outer(rows: Array) -> Array:
    """(n, k²): every row times itself."""
    return (rows[:, :, None] * rows[:, None, :]).reshape(rows.shape[0], -1)


@dataclass(frozen=True, eq=False)
class Blocks:
    """The inverse systems of all rows (m, k, k) and columns (n, k, k): of ``A*A`` on a tangent space its diagonal."""

    by_rows: Array
    by_columns: Array

    @classmethod
    def at(cls, operator: Mask | Entries, u: Array, v: Array, damping: float) -> Blocks:
        return cls(_inverses(row_grams(operator, v), damping), _inverses(column_grams(operator, u), damping))

    def __call__(self, gu: Array, gv: Array) -> tuple[Array, Array]:
        """Gradients (m, k) and (k, n) with each row and column by its own system."""
        return (self.by_rows @ gu[:, :, None])[:, :, 0], (self.by_columns @ gv.T[:, :, None])[:, :, 0].T


def _inverses(grams: Array, damping: float) -> Array:
    k = grams.shape[1]
    trace = grams.reshape(-1, k * k)[:, :: k + 1].sum(1)  # einsum takes as long as a third of the inverses
    least = damping + trace * (LEAST / k) + (trace <= 0.0)
    return namespace(grams).linalg.inv(grams + least[:, None, None] * eye(k, grams))
