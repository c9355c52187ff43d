"""Weighted alternating least squares (Hu, Koren, Volinsky 2008), by the package ``implicit`` where it is installed."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array as Csr

from rankfold.recover.implicit.history import History
from rankfold.recover.implicit.models import Factors
from rankfold.recover.measurements.threads import threads_for


def installed() -> bool:
    """Whether the package ``implicit`` (extra ``implicit``) is there; without it the same is computed more slowly."""
    return find_spec("implicit") is not None


def als(plays: Csr | History, *, rank: int, alpha: float, regularization: float, iterations: int, seed: int) -> Factors:
    """Factors for Σ_seen α r (1 − x·v)² + Σ_others (x·v)² + λ (Σ‖x‖² + Σ‖v‖²), r what is stored in ``plays``.

    As ``implicit`` 0.7 has it: a cell that is not stored weighs 1, one that is stored weighs α r, and so a stored zero
    weighs nothing at all. Cost O(entries k² + (m + n) k³) an iteration without the package, O(entries k) with it.
    """
    if installed() and not isinstance(plays, History):  # the package holds all plays, and in both orders
        return _package(plays, rank, alpha, regularization, iterations, seed)
    rng = np.random.default_rng(seed)
    rows = Factors(rng.standard_normal((rank, plays.shape[1])) * 0.01, alpha, regularization)
    other = plays.turned() if isinstance(plays, History) else Csr(plays.T)
    for _ in range(iterations):
        columns = Factors(_fitted(rows, plays), alpha, regularization)
        rows = Factors(_fitted(columns, other), alpha, regularization)
    return rows


def _fitted(known: Factors, plays: Csr | History) -> np.ndarray:
    """(k, rows): the factors of all rows, given those of the columns."""
    if isinstance(plays, History):
        return np.concatenate([known.rows(part).T for part in plays.parts()], axis=1)
    return np.ascontiguousarray(known.rows(plays).T)


def _package(plays: Csr, rank: int, alpha: float, regularization: float, iterations: int, seed: int) -> Factors:
    from implicit.cpu.als import AlternatingLeastSquares

    given = scipy.sparse.csr_matrix(plays, dtype=np.float32)
    with warnings.catch_warnings(), threads_for(0):
        warnings.simplefilter("ignore")  # on threads of OpenBLAS, of which there is one now
        model = AlternatingLeastSquares(
            factors=rank,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            num_threads=1,
            random_state=seed,
        )
        model.fit(given, show_progress=False)
    return Factors(np.ascontiguousarray(model.item_factors.T), alpha, regularization)
