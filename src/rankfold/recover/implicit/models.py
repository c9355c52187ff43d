"""Models of implicit feedback: each scores all columns from what a row did, so that new rows need no new fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse import csr_array as Csr

from rankfold.recover.measurements.threads import threads_for
from rankfold.recover.tables.memory import affordable


class Model(Protocol):
    """``scores``: the history of some rows (b, n), weights of what they did, to scores of all columns (b, n)."""

    def scores(self, history: Csr) -> np.ndarray: ...

    def similar(self, column: int) -> np.ndarray:
        """(n,): how much alike other columns are. Raises ``ValueError`` where the model knows of no likeness."""
        ...


@dataclass(frozen=True, eq=False)
class Popularity:
    """The same for every row: how much each column was taken, lately if times have a ``half_life``."""

    weight: np.ndarray

    def scores(self, history: Csr) -> np.ndarray:
        return np.tile(self.weight, (history.shape[0], 1))

    def similar(self, column: int) -> np.ndarray:
        raise ValueError("popularity does not tell how alike columns are: fit als, regression or neighbours")


@dataclass(frozen=True, eq=False)
class ColumnWeights:
    """scores = history @ weights, (n, n): neighbours of a column, or its regression on the others."""

    weights: np.ndarray | Csr

    def scores(self, history: Csr) -> np.ndarray:
        return _dense(history @ self.weights)

    def similar(self, column: int) -> np.ndarray:
        return _dense(self.weights[[column]]).reshape(-1)


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)


@dataclass(frozen=True, eq=False)
class Factors:
    """scores = x V with x the factors of a row that fit its history best, given those of the columns V (k, n).

    Σ_seen α r (1 − x·v)² + Σ_others (x·v)² + λ ‖x‖², r the weights of the history.
    """

    columns: np.ndarray
    alpha: float
    regularization: float

    def rows(self, history: Csr) -> np.ndarray:
        """(b, k): one least squares each. Cost O(entries k² + b k³)."""
        v = self.columns.T
        k = v.shape[1]
        found = np.empty((history.shape[0], k), dtype=v.dtype)
        base = v.T @ v + self.regularization * np.eye(k, dtype=v.dtype)
        weighted = Csr((self.alpha * history.data, history.indices, history.indptr), shape=history.shape)
        right = weighted @ v
        with threads_for(0):
            for row in range(history.shape[0]):
                these = slice(history.indptr[row], history.indptr[row + 1])
                mine = v[history.indices[these]]
                gram = base + mine.T @ (mine * (weighted.data[these] - 1.0)[:, None])
                found[row] = scipy.linalg.solve(gram, right[row], assume_a="pos", check_finite=False)
        return found

    def scores(self, history: Csr) -> np.ndarray:
        return self.rows(history) @ self.columns

    def similar(self, column: int) -> np.ndarray:
        v = self.columns
        lengths = np.maximum(np.linalg.norm(v, axis=0), 1e-12)
        return np.asarray(v[:, column] @ v / lengths / lengths[column])


def popularity(plays: Csr, times: np.ndarray | None = None, half_life: float | None = None) -> Popularity:
    """How many rows took each column; with ``half_life`` (days) each of them counts half as much for every such time
    before the last. ``times`` (entries,) in the order of ``plays``: when the row took the column last."""
    weight = np.ones(plays.nnz)
    if half_life is not None:
        if times is None:
            raise ValueError("popularity with a half-life needs times")
        weight = 0.5 ** ((times.max() - times) / (86_400 * half_life))
    found = np.bincount(plays.indices, weight, minlength=plays.shape[1])
    # what nobody took of late: by how often ever, below all others
    return Popularity(found + 1e-9 * np.bincount(plays.indices, minlength=plays.shape[1]))


def neighbours(plays: Csr, count: int) -> ColumnWeights:
    """The ``count`` columns most alike each one: cosine of √weight, rows that took much weighing less (tf-idf)."""
    m, n = plays.shape
    per_row = np.diff(plays.indptr)
    rarity = np.log(n / (1.0 + np.minimum(per_row, n - 1)))
    weighted = Csr((np.sqrt(plays.data) * np.repeat(rarity, per_row), plays.indices, plays.indptr), shape=(m, n))
    lengths = np.sqrt(np.asarray((weighted.multiply(weighted)).sum(0)).reshape(-1))
    columns = Csr((weighted @ scipy.sparse.diags_array(1.0 / np.maximum(lengths, 1e-12))).T)
    other = Csr(columns.T)
    kept, step = [], max(1, (1 << 22) // n)
    for start in range(0, n, step):
        block = (columns[start : start + step] @ other).toarray()
        block[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        if count < n:
            small = np.partition(block, n - count, axis=1)[:, n - count]
            block[block < small[:, None]] = 0.0
        kept.append(Csr(block))
    return ColumnWeights(Csr(scipy.sparse.vstack(kept)))


def regression(plays: Csr, regularization: float) -> ColumnWeights:
    """Each column as a ridge regression on all others, in closed form (EASE; Steck 2019): I − P diag(P)⁻¹ with
    P = (XᵀX + λ I)⁻¹. Cost O(n³), memory 24 n² bytes. Raises ``ValueError`` where that is more than there is."""
    n = plays.shape[1]
    affordable(24 * n * n, f"the regression of {n} columns on each other")
    ones = Csr((np.ones(plays.nnz), plays.indices, plays.indptr), shape=plays.shape)
    gram = (ones.T @ ones).toarray()
    gram[np.diag_indices(n)] += regularization
    lengths = gram.diagonal().copy()
    factor, info = scipy.linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)
    # of a column that others make up rounding may leave a pivot that is not quite 0
    if info or (factor.diagonal() ** 2 <= n * np.finfo(np.float64).eps * lengths).any():
        raise ValueError(f"the regression of columns is singular: give more than {regularization:g} as regularization")
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices(n)] = 0.0
    return ColumnWeights(weights)
