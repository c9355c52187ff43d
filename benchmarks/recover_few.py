"""Hardly more entries than degrees of freedom: `python benchmarks/recover_few.py [found|phase]`.

`found`: ten matrices 5,000 × 4,000 of rank 10 with two entries for each degree of freedom (Gaussian factors), the bound
on the rank twice it. `phase`: 500 × 400 of rank 5, from 1.1 to 4 entries for each degree of freedom, five matrices
each: how often the default (bound 10), alternating minimisation (rank known) and the nuclear norm come within 1 % on
the rows and columns that have enough entries of their own.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from rankfold.recover import AlternatingMinimization, LowRank, NuclearNorm


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


def phase() -> None:
    makers = {
        "default": lambda: LowRank(10),
        "alternating, rank known": lambda: AlternatingMinimization(5, max_iter=200),
        "nuclear norm": lambda: NuclearNorm(max_rank=20),
    }
    for over in (1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0):
        line = []
        for name, make in makers.items():
            errors = []
            for seed in range(5):
                x, left, right = planted(500, 400, 5, over, seed)
                with np.errstate(all="ignore"):
                    errors.append(missed(make().fit(x), x, left, right))
            line.append(f"{name} {sum(error < 0.01 for error in errors)}/5 (median {np.median(errors):.1e})")
        print(f"  {over:4} entries a degree of freedom: {'; '.join(line)}", flush=True)


if __name__ == "__main__":
    with threadpool_limits(1):
        for part in sys.argv[1:] or ("found", "phase"):
            {"found": found, "phase": phase}[part]()
