"""Which way of completing a matrix survives a bound on the rank that is too large? Five estimators, two bounds.

    python examples/complete_a_matrix.py [FILE.npz]

FILE.npz holds `X`, an array with NaN where nothing is known; without it a matrix of rank 4 is drawn. A tenth of
what is known is kept apart, and the estimators are judged by it.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from rankfold.recover import (
    AlternatingMinimization,
    CompressedDeepLinear,
    LowRank,
    NuclearNorm,
    ScaledGradientDescent,
)


def planted() -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((120, 4)) @ rng.standard_normal((4, 90))
    return np.where(rng.random(matrix.shape) < 0.3, matrix, np.nan)


def main() -> None:
    matrix = np.load(sys.argv[1])["X"] if len(sys.argv) > 1 else planted()
    rows, columns = np.nonzero(~np.isnan(matrix))
    held = np.random.default_rng(1).random(len(rows)) < 0.1
    learned = matrix.copy()
    learned[rows[held], columns[held]] = np.nan
    size = np.linalg.norm(matrix[rows[held], columns[held]])
    print(f"{matrix.shape[0]} × {matrix.shape[1]}, {len(rows)} known, {held.sum()} of them kept apart")
    for bound in (4, 12):
        for estimator in (
            LowRank(bound),
            CompressedDeepLinear(bound),
            AlternatingMinimization(bound, max_iter=20),
            ScaledGradientDescent(bound, max_iter=500),
            NuclearNorm(),
        ):
            begun = time.perf_counter()
            with np.errstate(all="ignore"):
                estimator.fit(learned)
            missed = estimator.at(rows[held], columns[held]) - matrix[rows[held], columns[held]]
            print(
                f"  bound {bound:2}  {type(estimator).__name__:24} rank {estimator.rank_:2}  held-out error "
                f"{np.linalg.norm(missed) / size:.1e}  {time.perf_counter() - begun:.2f} s"
                + ("" if estimator.converged_ else "  (not converged)")
            )


if __name__ == "__main__":
    main()
