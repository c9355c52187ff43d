"""Ratings: biases, factors and who rated what, averaged over draws from their posterior (Gibbs sampling).

r_ui = μ + b_u + c_i + ⟨p_u, q_i⟩ + moment + noise. The vectors (p_u, b_u) are normal around a mean that depends
linearly on which items the user rated (implicit feedback, as in SVD++) and on side information, and likewise for items;
means, covariances, the weights of those features and the noise are drawn too (Salakhutdinov and Mnih 2008; Simm et al.
2017). So nothing is tuned but the rank, and more rank does little harm. One sweep costs O(count k² + (users + items)
k³).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array as Csr

from rankfold.recover.measurements.grams import Grams
from rankfold.recover.measurements.threads import threads_for
from rankfold.recover.ratings.features import Features
from rankfold.recover.ratings.moments import SPANS, Level, Moments

Progress = Callable[[str, int, int], None]
KEPT = 20  # draws that are kept one by one, for the spread of predictions
# The priors are of numbers near one. What is drawn has this deviation, that of MovieLens 100K, on which they were
# judged: those ratings are sampled as they are, and values in any other unit as well as they.
DEVIATION = 1.126


@dataclass(frozen=True)
class Known:
    """What is known beside the ratings: ``times`` (count,) in seconds, properties of users and of items as sparse
    features."""

    times: np.ndarray | None = None
    users: Csr | None = None
    items: Csr | None = None


@dataclass
class _Side:
    """One side (users or items): sums over its ratings, the features of its rows, and the present draw."""

    grams: Grams
    features: Features
    counts: np.ndarray  # (rows,): of entries
    draw: np.ndarray  # (rows, k + 1): factors, and the bias last
    prior: np.ndarray  # (rows, k + 1): its mean for each row
    covariance: np.ndarray  # (k + 1, k + 1): about it
    mean: np.ndarray  # (k + 1,): of a row without any features

    @property
    def unknown(self) -> np.ndarray:
        """(rows,): of which nothing is known."""
        return np.asarray(np.diff(self.features.matrix.indptr) == 0)

    def stranger(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, second moment about it) of a row of which nothing is known. Its mean is that of one without features:
        who is asked for and has no entry is mostly one that few ask for, and that is told by them. How far it may be
        from there is how far those who are known are, each as often as it has entries: nobody has seen its features."""
        apart = self.prior - self.mean
        return self.mean, self.covariance + (apart * self.counts[:, None]).T @ apart / self.counts.sum()


@dataclass(frozen=True, eq=False)
class Draws:
    """``lefts`` (draws, users + 1, k + 1) and ``rights`` (draws, items + 1, k + 1): factors, and the bias last; the
    last row, and those that are ``unknown`` (users + 1,), (items + 1,), are of whom nothing is known: their mean, about
    which they have the second moments ``apart`` (draws, k + 1, k + 1). These are in multiples of ``unit``, so that they
    stay within single precision, and all else is in units of the ratings. r_ui is the mean over draws of offset + unit
    · (p_u · q_i + b_u + c_i)."""

    offset: float
    unit: float
    lefts: np.ndarray
    rights: np.ndarray
    unknown: tuple[np.ndarray, np.ndarray]
    apart: tuple[np.ndarray, np.ndarray]
    noise: float
    history: tuple[float, ...]
    moments: Moments | None = None
    varying: tuple[np.ndarray, ...] = ()


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
    known: Known | None = None,
    progress: Progress | None = None,
) -> Draws:
    """Gibbs sampling: ``burn_in`` sweeps thrown away, then ``draws`` kept. Indices (count,), ratings (count,).

    ``strength`` s of the prior on the weights of the features: large means that who rated what says little.
    """
    known = known or Known()
    rng = np.random.default_rng(seed)
    offset, unit = _unit(ratings)
    order = np.lexsort((items, users))
    rows, columns, values = users[order], items[order], (ratings[order] - offset) / unit
    table = Csr((np.arange(1, len(values) + 1), (rows, columns)), shape=shape)
    turned = Csr(table.T)
    turned.sort_indices()
    by_column = turned.data - 1  # entries by rows → by columns
    sides = [
        _side(table, values, known.users, rank, strength, rng),
        _side(turned, values[by_column], known.items, rank, strength, rng),
    ]
    precision = DEVIATION**-2
    levels = [] if known.times is None else [Level(rows, known.times[order], span) for span in SPANS]
    moment = np.zeros(len(values))
    lefts = np.empty((draws, shape[0] + 1, rank + 1), np.float32)
    rights = np.empty((draws, shape[1] + 1, rank + 1), np.float32)
    apart = np.empty((2, draws, rank + 1, rank + 1))
    history = []
    with threads_for(min(shape) ** 2):
        for sweep in range(burn_in + draws):
            p, q = sides
            _resample(p, q.draw, values - moment - q.draw[columns, -1], precision, rng)
            _resample(q, p.draw, (values - moment - p.draw[rows, -1])[by_column], precision, rng)
            told = np.einsum("ij,ij->i", p.draw[rows, :-1], q.draw[columns, :-1])
            rest = values - told - p.draw[rows, -1] - q.draw[columns, -1]
            for level in levels:
                before = level.offsets[level.of]
                moment += level.resample(rest - moment + before, precision, rng) - before
            missed = rest - moment
            shape_of, rate = 1.0 + 0.5 * len(values), 1.0 + 0.5 * float(missed @ missed)
            precision = float(rng.gamma(shape_of, 1.0 / rate))
            history.append(unit * float(np.sqrt(np.mean(missed**2))))
            if sweep >= burn_in:
                for side, drawn, about in zip(sides, (lefts, rights), apart, strict=True):
                    mean, about[sweep - burn_in] = side.stranger()
                    drawn[sweep - burn_in] = np.vstack([np.where(side.unknown[:, None], mean, side.draw), mean])
                for level in levels:
                    level.keep(1 / draws)
            if progress is not None:
                progress("sampling", sweep + 1, burn_in + draws)
    moments = Moments(tuple(one.keys for one in levels), tuple(unit * one.total for one in levels)) if levels else None
    varying = tuple(unit * (unit * one.variances) for one in levels)
    unknown = np.append(sides[0].unknown, True), np.append(sides[1].unknown, True)
    noise = unit * precision**-0.5
    return Draws(offset, unit, lefts, rights, unknown, (apart[0], apart[1]), noise, tuple(history), moments, varying)


def _unit(ratings: np.ndarray) -> tuple[float, float]:
    """(their mean, the unit in which their deviation is `DEVIATION`); of equal ones 1."""
    largest = float(np.abs(ratings).max())
    if ratings.min() == ratings.max():  # the deviation may be what the mean is rounded by
        return float(ratings[0]), 1.0
    shares = ratings / largest  # whose squares are finite
    return largest * float(shares.mean()), largest * float(shares.std()) / DEVIATION or 1.0


def _side(
    table: Csr, values: np.ndarray, side: Csr | None, rank: int, strength: float, rng: np.random.Generator
) -> _Side:
    ones = Csr((np.ones(table.nnz), table.indices, table.indptr), shape=table.shape)
    draw = 0.1 * rng.standard_normal((table.shape[0], rank + 1))
    counts = np.diff(table.indptr)
    draw[:, -1] = np.bincount(np.repeat(np.arange(len(counts)), counts), values, len(counts)) / (counts + 5.0)
    features = Features(ones, strength, side)
    start = np.zeros_like(draw), np.eye(rank + 1), np.zeros(rank + 1)
    return _Side(Grams(table, rank + 1), features, counts, draw, *start)


def _resample(side: _Side, others: np.ndarray, rest: np.ndarray, precision: float, rng: np.random.Generator) -> None:
    """Hyperparameters given this side's rows, then every row given the other side's factors."""
    count, width = side.draw.shape
    covariance_root, precision_matrix, mean = _hyper(side.draw - side.prior + side.mean, rng)
    features = side.features.draw(side.draw - mean, covariance_root, rng)
    side.prior, side.mean, side.covariance = mean + features, mean, covariance_root @ covariance_root.T
    known = np.concatenate([others[:, :-1], np.ones((len(others), 1))], 1)
    grams, right = side.grams(known, rest)
    systems = precision * grams + torch.from_numpy(precision_matrix).float()
    right = precision * right + torch.from_numpy(side.prior @ precision_matrix).float()
    side.draw = drawn(systems, right, torch.from_numpy(rng.standard_normal((count, width)))).double().numpy()


def drawn(systems: torch.Tensor, right: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """(rows, k): normal around systems⁻¹ right, of covariance systems⁻¹; in double precision where single is too
    coarse."""
    roots, failed = torch.linalg.cholesky_ex(systems)
    if failed.any():
        # sums of single precision may be indefinite by as much as they are rounded: so much is added to the diagonal
        rounding = torch.finfo(systems.dtype).eps * systems.diagonal(dim1=1, dim2=2).sum(1).double()
        systems, right = systems.double(), right.double()
        systems = systems + torch.where(failed > 0, rounding, 0.0)[:, None, None] * torch.eye(right.shape[1]).double()
        roots = torch.linalg.cholesky(systems)
    # mean + noise of covariance systems⁻¹: one forward and one backward substitution
    forward = torch.linalg.solve_triangular(roots, right[:, :, None], upper=False)
    forward += normals[:, :, None].to(forward.dtype)
    return torch.linalg.solve_triangular(roots.transpose(1, 2), forward, upper=True)[:, :, 0]


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
