"""MovieLens 100K, the five published splits: `RANKFOLD_DATA=… python benchmarks/recover_movielens.py [--rank 20]`.

Nothing is chosen on the test files. For each split: root mean square error, seconds (wall and processor). Then the
paper's comparison on the first split: wide, compressed, alternating minimisation at rank 10, error against time (with
--networks).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from rankfold.recover import AlternatingMinimization, Choice, CompressedDeepLinear, DeepLinear, fit, read_triplets


def splits(rank: int) -> None:
    folder = Path(os.environ["RANKFOLD_DATA"]) / "ml-100k"
    errors = []
    for split in range(1, 6):
        learn, judge = read_triplets(folder / f"u{split}.base"), read_triplets(folder / f"u{split}.test")
        wall, processor = time.perf_counter(), time.process_time()
        model, _, _ = fit(learn, Choice("ratings", rank))
        rows, columns = judge.numbered(learn.row_names, learn.column_names)
        error = float(np.sqrt(np.mean((model.at(rows, columns) - judge.values) ** 2)))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        errors.append(error)
        print(f"u{split}: {error:.4f}  {wall:.1f} s ({processor:.1f} s of processor), rank {rank}", flush=True)
    print(f"mean: {np.mean(errors):.4f}")


def networks(rank: int = 10) -> None:
    """The paper's figure 6, right: the same error, how much sooner."""
    folder = Path(os.environ["RANKFOLD_DATA"]) / "ml-100k"
    learn, judge = read_triplets(folder / "u1.base"), read_triplets(folder / "u1.test")
    rows, columns = judge.numbered(learn.row_names, learn.column_names)
    known = (rows >= 0) & (columns >= 0)
    table = scipy.sparse.csr_array((learn.values, (learn.rows, learn.columns)), shape=learn.shape)
    x = table.toarray()
    x[x == 0] = np.nan
    estimators = {
        "wide": DeepLinear(scale=1e-2, rate=RATE, momentum=0.0, max_iter=WIDE_STEPS, every=10, tol=0),
        "compressed": CompressedDeepLinear(
            rank, rate=RATE, alpha=5.0, momentum=0.0, prune=0, max_iter=STEPS, every=10, tol=0
        ),
        "compressed, our settings": CompressedDeepLinear(rank, max_iter=STEPS, every=10, validation_fraction=0.05),
        "alternating": AlternatingMinimization(rank, max_iter=30, tol=0),
    }
    for name, estimator in estimators.items():
        wall, processor = time.perf_counter(), time.process_time()
        estimator.fit(x)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        told = estimator.at(rows[known], columns[known])
        error = float(np.sqrt(np.mean((told - judge.values[known]) ** 2)))
        print(
            f"{name}: {error:.4f} after {estimator.n_iter_} iterations, {wall:.1f} s ({processor:.1f} s of processor)"
        )


RATE, STEPS, WIDE_STEPS = 5000.0, 1000, 100

if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--networks", action="store_true")
    asked = parser.parse_args()
    networks() if asked.networks else splits(asked.rank)
