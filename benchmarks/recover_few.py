"""Hardly more entries than degrees of freedom: `python benchmarks/recover_few.py`.

Ten matrices 5,000 × 4,000 of rank 10 with two entries for each degree of freedom (Gaussian factors), the bound on the
rank twice it. Errors are relative, on rows and columns with at least as many entries as the rank. How often smaller
ones are found at other densities, beside alternating minimisation and the nuclear norm: `rankfold reproduce
recovery-phase`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from rankfold.recover import LowRank


def planted(m: int, n: int, r: int, over: float, seed: int) -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    cells = rng.choice(m * n, int(over * r * (m + n - r)), replace=False)
    rows, columns = cells // n, cells % n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns])
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(m, n)), left, right


def missed(found: Any, x: Any, left: np.ndarray, right: np.ndarray) -> float:
    """Relative error at 20,000 random places of rows and columns with at least as many entries as the rank."""
    rng, r = np.random.default_rng(1), left.shape[1]
    rows = rng.choice(np.flatnonzero(np.diff(x.indptr) >= r), 20_000)
    columns = rng.choice(np.flatnonzero(np.diff(x.tocsc().indptr) >= r), 20_000)
    truth = np.einsum("ij,ij->i", left[rows], right.T[columns])
    return float(np.linalg.norm(found.at(rows, columns) - truth) / np.linalg.norm(truth))


def found() -> None:
    good = 0
    for seed in range(10):
        x, left, right = planted(5000, 4000, 10, 2.0, seed)
        begun = time.process_time()
        one = LowRank(20).fit(x)
        error = missed(one, x, left, right)
        good += error < 1e-6
        spent = time.process_time() - begun
        print(f"  {seed}: rank {one.rank_}, error {error:.1e}, {spent:.1f} s of processor; {one.reason_}", flush=True)
    print(f"{good} of 10 found")


if __name__ == "__main__":
    with threadpool_limits(1):
        found()
