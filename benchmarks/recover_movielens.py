"""MovieLens 100K, the five published splits: `RANKFOLD_DATA=… python benchmarks/recover_movielens.py [--rank 20]`.

Nothing is chosen on the test files. For each split: root mean square error, seconds (wall and processor). With
--networks the paper's comparison on the first split instead: wide, compressed, alternating minimisation at rank 10, and
the seconds to the same error on a twentieth of the training file that is held out of all of them alike.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from rankfold.papers.cdln.movielens import RATE, SCALE, STEPS, WIDE_RATE, WIDE_STEPS, movielens
from rankfold.recover import AlternatingMinimization, Choice, CompressedDeepLinear, DeepLinear, fit


def splits(rank: int) -> None:
    errors = []
    for split in range(1, 6):
        ratings = movielens(split)
        learn, judge = ratings.learn, ratings.judge
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
    ratings = movielens(1)
    x, mean = ratings.centred, ratings.mean
    rows, columns, values = ratings.known
    # held-out entries are watched, none of them ends a run
    shared: dict[str, Any] = {"tol": 0.0, "validation_fraction": 0.05, "patience": 10**9}
    descent: dict[str, Any] = {"scale": SCALE, "momentum": 0.0, "every": 5, **shared}
    estimators: dict[str, Any] = {
        "compressed": CompressedDeepLinear(rank, alpha=5.0, rate=RATE, prune=0.0, max_iter=STEPS, **descent),
        "compressed, momentum": CompressedDeepLinear(
            rank, rate=RATE, prune=0.0, max_iter=STEPS, **descent | {"momentum": 0.9}
        ),
        "alternating": AlternatingMinimization(rank, max_iter=30, **shared),
        "alternating, ridge": AlternatingMinimization(rank, ridge=5.0, max_iter=30, **shared),
        "wide": DeepLinear(max_iter=WIDE_STEPS, rate=WIDE_RATE, **descent),
    }
    scale = float(np.std(ratings.learn.values))  # of relative errors, nearly
    for name, estimator in estimators.items():
        processor, wall = time.process_time(), time.perf_counter()
        estimator.fit(x)
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        told = np.clip(mean + estimator.at(rows, columns), 1, 5)
        error = float(np.sqrt(np.mean((told - values) ** 2)))
        best = min(estimator.history_, key=lambda point: point.validation)
        share = processor / wall  # a history has wall time
        print(
            f"{name}: held-out error {scale * best.validation:.4f} at best, after {best.iteration} iterations, "
            f"{share * best.seconds:.2f} s of processor; at the end, {estimator.n_iter_} iterations and "
            f"{processor:.1f} s, test error {error:.4f}",
            flush=True,
        )
        estimator.share_ = share
    wide = estimators.pop("wide")
    reached = min(wide.history_, key=lambda point: point.validation)
    for name, estimator in estimators.items():
        first = next((point for point in estimator.history_ if point.validation <= reached.validation), None)
        if first is None:
            print(f"{name} never reaches the wide network's {scale * reached.validation:.4f}")
            continue
        spent = estimator.share_ * max(first.seconds, 1e-9)
        print(
            f"{name} has the wide network's {scale * reached.validation:.4f} after {spent:.2f} s of processor, "
            f"{wide.share_ * reached.seconds / spent:.0f} times sooner"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--networks", action="store_true")
    asked = parser.parse_args()
    networks() if asked.networks else splits(asked.rank)
