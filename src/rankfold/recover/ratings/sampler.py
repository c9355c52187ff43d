"""Ratings: biases, factors and who rated what, averaged over draws from their posterior (Gibbs sampling).

r_ui = μ + b_u + c_i + ⟨p_u, q_i⟩ + noise. The vectors (p_u, b_u) are normal around a mean that depends linearly on
which items the user rated (implicit feedback, as in SVD++), and likewise for items; means, covariances, the weights of
those features and the noise are drawn too (Salakhutdinov and Mnih 2008; Simm et al. 2017). So nothing is tuned but the
rank, and more rank does little harm. One sweep costs O(count k² + (users + items) k³).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

from rankfold.recover.measurements.threads import threads_for

Progress = Callable[[str, int, int], None]


@dataclass
class _Side:
    """One side (users or items): its ratings by row, the features of its rows, and the present draw."""

    ratings: scipy.sparse.csr_array  # (rows, others), residuals are written into its data
    ones: scipy.sparse.csr_array
    features: _Features
    draw: np.ndarray  # (rows, k + 1): factors, and the bias last
    prior: np.ndarray  # (rows, k + 1): its mean for each row
    mean: np.ndarray  # (k + 1,): for a row of which nothing is known


class _Features:
    """Rows scaled so that Σ f² ≤ 1: which of the others were rated, over the root of their number."""

    def __init__(self, ones: scipy.sparse.csr_array, strength: float) -> None:
        counts = np.maximum(np.diff(ones.indptr), 1)
        self.matrix = scipy.sparse.csr_array(scipy.sparse.diags_array(counts**-0.5) @ ones)
        self.transposed = scipy.sparse.csr_array(self.matrix.T)
        self.strength = strength
        rows, columns = self.matrix.shape
        self.dual = rows <= columns
        gram = (self.matrix @ self.transposed) if self.dual else (self.transposed @ self.matrix)
        self.factor = scipy.linalg.cho_factor(gram.toarray() + strength * np.eye(min(rows, columns)))

    def draw(self, target: np.ndarray, root: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(rows, k): features times a draw of their weights, for rows ``target`` of covariance root rootᵀ."""
        rows, columns = self.matrix.shape
        width = target.shape[1]
        noisy = target + rng.standard_normal((rows, width)) @ root.T
        weights = rng.standard_normal((columns, width)) @ root.T * self.strength**-0.5
        # (FᵀF + s) w = Fᵀ noisy + s · weights, by whichever of FFᵀ and FᵀF is smaller
        if self.dual:
            rest = scipy.linalg.cho_solve(self.factor, noisy - self.matrix @ weights)
            return self.matrix @ (weights + self.transposed @ rest)
        right = self.transposed @ noisy + self.strength * weights
        return self.matrix @ scipy.linalg.cho_solve(self.factor, right)


@dataclass(frozen=True, eq=False)
class Draws:
    """Posterior means: r_ui = clip(offset + left_u · right_i), (users + 1, w) and (w, items + 1); the last row and
    column are for those of whom nothing is known."""

    offset: float
    left: np.ndarray
    right: np.ndarray
    noise: float
    history: tuple[float, ...]


def sample(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    shape: tuple[int, int],
    *,
    rank: int,
    burn_in: int,
    draws: int,
    strength: float,
    seed: int,
    progress: Progress | None = None,
) -> Draws:
    """Gibbs sampling: ``burn_in`` sweeps thrown away, then ``draws`` averaged. Indices (count,), ratings (count,).

    ``strength`` s of the prior on the weights of the features: large means that who rated what says little.
    """
    rng = np.random.default_rng(seed)
    offset = float(ratings.mean())
    table = scipy.sparse.csr_array((ratings - offset, (users, items)), shape=shape)
    table.sort_indices()
    sides = [_side(table, rank, strength, rng), _side(scipy.sparse.csr_array(table.T), rank, strength, rng)]
    rows = np.repeat(np.arange(shape[0]), np.diff(table.indptr))
    order = np.argsort(table.indices, kind="stable")  # entries by rows → by columns
    precision = 1.0 / max(float(ratings.var()), 1e-12)
    values, columns = table.data.copy(), table.indices
    lefts, rights, history = [], [], []
    with threads_for(min(shape) ** 2):
        for sweep in range(burn_in + draws):
            for number, (side, other) in enumerate((sides, sides[::-1])):
                at = columns if number == 0 else rows
                rest = values - other.draw[at, -1]
                side.ratings.data = rest if number == 0 else rest[order]
                _resample(side, other.draw[:, :-1], precision, rng)
            p, q = sides[0].draw, sides[1].draw
            told = np.einsum("ij,ij->i", p[rows, :-1], q[columns, :-1]) + p[rows, -1] + q[columns, -1]
            missed = values - told
            shape_of, rate = 1.0 + 0.5 * len(values), 1.0 + 0.5 * float(missed @ missed)
            precision = float(rng.gamma(shape_of, 1.0 / rate))
            history.append(float(np.sqrt(np.mean(missed**2))))
            if sweep >= burn_in:
                lefts.append(_with_unknown(sides[0], bias_first=True) / draws)
                rights.append(_with_unknown(sides[1], bias_first=False).T)
            if progress is not None:
                progress("sampling", sweep + 1, burn_in + draws)
    left, right = np.concatenate(lefts, 1), np.concatenate(rights, 0)
    return Draws(offset, left, right, precision**-0.5, tuple(history))


def _side(ratings: scipy.sparse.csr_array, rank: int, strength: float, rng: np.random.Generator) -> _Side:
    ratings = ratings.copy()
    ratings.sort_indices()
    ones = scipy.sparse.csr_array((np.ones(ratings.nnz), ratings.indices, ratings.indptr), shape=ratings.shape)
    draw = 0.1 * rng.standard_normal((ratings.shape[0], rank + 1))
    draw[:, -1] = ratings.sum(1) / (np.diff(ratings.indptr) + 5.0)
    return _Side(ratings, ones, _Features(ones, strength), draw, np.zeros_like(draw), np.zeros(rank + 1))


def _resample(side: _Side, others: np.ndarray, precision: float, rng: np.random.Generator) -> None:
    """Hyperparameters given this side's rows, then every row given the other side's factors."""
    count, width = side.draw.shape
    covariance_root, precision_matrix, mean = _hyper(side.draw - side.prior + side.mean, rng)
    features = side.features.draw(side.draw - mean, covariance_root, rng)
    side.prior, side.mean = mean + features, mean
    known = np.concatenate([others, np.ones((len(others), 1))], 1)
    grams = (side.ones @ (known[:, :, None] * known[:, None, :]).reshape(len(known), -1)).reshape(count, width, width)
    systems = precision * grams + precision_matrix
    right = precision * (side.ratings @ known) + side.prior @ precision_matrix
    roots = np.linalg.cholesky(systems)
    # mean + noise of covariance systems⁻¹: one forward and one backward substitution
    forward = np.linalg.solve(roots, right[:, :, None]) + rng.standard_normal((count, width, 1))
    side.draw = np.linalg.solve(roots.transpose(0, 2, 1), forward)[:, :, 0]


def _hyper(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(root of the covariance, precision, mean) of ``rows`` from their normal–Wishart posterior (unit prior)."""
    count, width = rows.shape
    average = rows.mean(0)
    centred = rows - average
    weight, freedom = 2.0, width + count
    scatter = np.eye(width) + centred.T @ centred + weight * count / (weight + count) * np.outer(average, average)
    # Wishart(scatter⁻¹, freedom) by Bartlett's decomposition
    lower = np.tril(rng.standard_normal((width, width)), -1)
    lower[np.diag_indices(width)] = np.sqrt(rng.chisquare(freedom - np.arange(width)))
    root = np.linalg.cholesky(np.linalg.inv(scatter)) @ lower
    covariance_root = np.linalg.inv(root).T
    mean = count * average / (weight + count)
    mean = mean + covariance_root @ rng.standard_normal(width) / np.sqrt(weight + count)
    return covariance_root, root @ root.T, mean


def _with_unknown(side: _Side, bias_first: bool) -> np.ndarray:
    """(rows + 1, k + 2): factors and the two columns that carry the biases of both sides."""
    draw = np.vstack([side.draw, side.mean])
    one = np.ones((len(draw), 1))
    bias = draw[:, -1:]
    return np.concatenate([draw[:, :-1], bias, one] if bias_first else [draw[:, :-1], one, bias], 1)
