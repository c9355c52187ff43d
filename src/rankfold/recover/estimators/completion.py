"""Six ways to recover a low-rank matrix, as scikit-learn estimators. ``LowRank`` is the one to take."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from rankfold.recover.estimators.base import Recovery, allowed
from rankfold.recover.measurements.arrays import Array
from rankfold.recover.measurements.operators import Operator
from rankfold.recover.solvers.alternating import alternate
from rankfold.recover.solvers.deep_linear import Descent, compressed_start, descend, wide_start
from rankfold.recover.solvers.nuclear import penalties, soft_impute
from rankfold.recover.solvers.outcome import Recovered
from rankfold.recover.solvers.scaled_gd import scaled_descent
from rankfold.recover.solvers.search import Search, recover


@dataclass(eq=False, repr=False)
class LowRank(Recovery):
    """Completes a matrix, or recovers it from linear measurements, and finds its rank while it does so.

    Solved by Gauss–Newton; fast at any bound from the true rank to several times it. It fails where the measurements
    are few (below about 1.4 times the degrees of freedom r (m + n − r), measured on 300 × 240 of rank 4), where a row
    or column has fewer entries than the rank, or where they are missing not at random. An exact fit of the measurements
    proves nothing: where held-out ones contradict it, ``converged_`` is False and ``reason_`` says so.

    Args:
        max_rank: bound on the rank; by default the largest that the number of measurements could determine, at most
            100.
        tol: of the relative change at which it ends.
        max_iter: steps at most.
        validation_fraction: measurements kept apart to the end; with 0 some are set aside for finding the rank only: a
            twentieth or 200 of them, or, of few with noise, each in turn (cross-validation, ten times the cost).
        patience: steps without gain on validation after which it ends.
        random_state: seed.
        device: None for NumPy, or one of torch; for matrices and triplets.
        progress: called as ``progress(what, done, total)`` as the work goes on.
        rank: take exactly this one.

    Cost: 0.1 to 1 s of one core for some thousand rows and columns. Of entries in files (`map_entries`) memory for the
    factors and some 50 MB; without the second way for few entries, a falling ridge, which holds them all.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))
        >>> found = rf.recover.LowRank(max_rank=6).fit(np.where(rng.random(truth.shape) < 0.6, truth, np.nan))
        >>> found.rank_, bool(np.abs(found.reconstruct() - truth).max() < 1e-6)
        (2, True)
    """

    _streams = True

    max_rank: int | None = None
    _: KW_ONLY
    rank: int | None = None
    max_iter: int = 100

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        if self.rank is not None:
            bound = allowed(self.rank, operator.shape, 1)
        else:
            determined = _determined(operator, self.max_rank or 100)
            bound = min(allowed(self.max_rank, operator.shape, determined), determined)
        part, part_y, watch = self._watch(operator, y, seed)
        search = Search(bound, exact=self.rank is not None)
        return recover(part, part_y, search, watch.rules, seed=seed, held_out=watch.held_out, progress=self.progress)


@dataclass(eq=False, repr=False)
class CompressedDeepLinear(Recovery):
    """The compressed deep linear network of width ``rank`` (C-DLN): spectral start at scale ε, rates η and α η.

    ``rate=None`` takes the largest stable one. ``momentum=0`` is the paper's gradient descent; 0.9 needs about a tenth
    of the iterations. ``prune``: where the spectrum falls by this factor while the relative residual is below it too,
    the network is made narrower, since the rest would keep the error up; 0 is the paper's. ``rank``: an upper bound; by
    default a fifth of the smaller side. ``scale`` ε by default 0.01 for three factors, more for deeper networks.
    """

    rank: int | None = None
    _: KW_ONLY
    depth: int = 3
    scale: float | None = None
    rate: float | None = None
    alpha: float = 5.0
    momentum: float = 0.9
    prune: float = 1e-2
    max_iter: int = 20_000
    every: int = 20

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        scale = _checked_scale(self.depth, self.scale, self.momentum)
        rank = allowed(self.rank, operator.shape, max(1, min(operator.shape) // 5))
        part, part_y, watch = self._watch(operator, y, seed, every=self.every)
        weights = compressed_start(part, part_y, rank, self.depth, scale, seed)
        return descend(part, part_y, weights, Descent(self.rate, self.alpha, self.momentum, self.prune), watch)


@dataclass(eq=False, repr=False)
class DeepLinear(Recovery):
    """The wide deep linear network: factors as large as the matrix, orthogonal or small random start at scale ε."""

    _thin = False

    _: KW_ONLY
    depth: int = 3
    scale: float | None = None
    start: Literal["orthogonal", "random"] = "orthogonal"
    rate: float | None = None
    momentum: float = 0.0
    max_iter: int = 20_000
    every: int = 20

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        scale = _checked_scale(self.depth, self.scale, self.momentum)
        if self.start not in ("orthogonal", "random"):
            raise ValueError(f"start must be 'orthogonal' or 'random', got {self.start!r}")
        part, part_y, watch = self._watch(operator, y, seed, every=self.every)
        weights = wide_start(part.shape, self.depth, scale, self.start, seed, part_y)
        return descend(part, part_y, weights, Descent(self.rate, 1.0, self.momentum), watch)


@dataclass(eq=False, repr=False)
class AlternatingMinimization(Recovery):
    """Left and right factor of width ``rank`` solved for in turn. Wants the exact rank, or a ``ridge``."""

    rank: int = 10
    _: KW_ONLY
    ridge: float = 0.0
    max_iter: int = 500

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        if not self.ridge >= 0:
            raise ValueError(f"ridge must be at least 0, got {self.ridge}")
        rank = allowed(self.rank, operator.shape, 1)
        part, part_y, watch = self._watch(operator, y, seed)
        return alternate(part, part_y, rank, watch, ridge=self.ridge, seed=seed)


@dataclass(eq=False, repr=False)
class ScaledGradientDescent(Recovery):
    """Preconditioned gradient descent on factors of width ``rank``. Wants the exact rank, or ``damping``."""

    rank: int = 10
    _: KW_ONLY
    rate: float = 0.5
    damping: float = 0.0
    max_iter: int = 5000
    every: int = 10

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        rank = allowed(self.rank, operator.shape, 1)
        part, part_y, watch = self._watch(operator, y, seed, every=self.every)
        return scaled_descent(part, part_y, rank, watch, rate=self.rate, damping=self.damping, seed=seed)


@dataclass(eq=False, repr=False)
class NuclearNorm(Recovery):
    """SoftImpute: the nuclear norm as penalty, along a falling path of it.

    ``penalty``: the last one, by default a thousandth of the one that leaves nothing. With ``validation_fraction`` the
    path ends where held-out entries are met worse. ``path``: how many penalties; ``max_iter``: steps at each of them.
    """

    penalty: float | None = None
    _: KW_ONLY
    max_rank: int | None = None
    path: int = 20
    tol: float = 1e-4
    max_iter: int = 100
    patience: int = 3

    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        bound = allowed(self.max_rank, operator.shape, min(operator.shape))
        part, part_y, watch = self._watch(operator, y, seed)
        path = penalties(part, part_y, self.path)
        if self.penalty is not None:
            path = [weight for weight in path if weight > self.penalty] + [self.penalty]
        return soft_impute(part, part_y, path, bound, watch, tol=self.tol, steps=self.max_iter, seed=seed)


def _determined(operator: Operator, most: int) -> int:
    """The largest rank whose degrees of freedom are fewer than the measurements, at most ``most``."""
    m, n = operator.shape
    rank = 1
    while rank < min(m, n, most) and (rank + 1) * (m + n - rank - 1) < operator.count:
        rank += 1
    return rank


def _checked_scale(depth: int, scale: float | None, momentum: float) -> float:
    """ε: by default 0.01 for three factors as in the authors' code, and so that deeper networks leave it as soon."""
    if depth < 2:
        raise ValueError(f"depth must be at least 2 factors, got {depth}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale, the size ε of the start, must be above 0, got {scale}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
    # a value leaves ε^L after a time that grows as ε^(2 − L)
    return scale if scale is not None else 1e-2 ** (1 / max(depth - 2, 1))
