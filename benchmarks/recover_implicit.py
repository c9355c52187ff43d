"""Implicit feedback beside the package ``implicit``: `RANKFOLD_DATA=… python benchmarks/recover_implicit.py`.

MovieLens 100K, ratings of 4 and 5 as plays. Two splits, by time (the latest tenth of all plays, rows and the rest known
from before) and the last play of each user. ALS, BPR and item neighbours of the package, and rankfold's candidates, are
chosen by NDCG@10 on the part before the last, fitted again to all but the last part and judged on it once. Processor
time is that of each search and its last fit, one thread.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from rankfold.recover import Candidate, candidates, choose, held_out, read_plays
from rankfold.recover.implicit.candidates import trained, weights
from rankfold.recover.implicit.ranking import Ranking, paired
from rankfold.recover.implicit.search import ranked

SEEDS = (0, 1, 2)


class Scores:
    """A model of the package, as ours are called."""

    def __init__(self, score: Callable[[Any], np.ndarray]) -> None:
        self.score = score

    def scores(self, history: Any) -> np.ndarray:
        return self.score(history)


def packaged(kind: str, settings: dict[str, Any], entries: Any, seed: int) -> Scores:
    from implicit.bpr import BayesianPersonalizedRanking
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

    plays = scipy.sparse.csr_matrix(weights(entries), dtype=np.float32)
    if kind == "neighbours":
        make = {"cosine": CosineRecommender, "tf-idf": TFIDFRecommender, "bm25": BM25Recommender}[settings["by"]]
        model = make(K=settings["K"], num_threads=1)
        model.fit(plays, show_progress=False)
        return Scores(lambda history: (history @ csr_array(model.similarity)).toarray())
    make = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}[kind]
    model = make(num_threads=1, random_state=seed, **settings)
    model.fit(plays, show_progress=False)
    rows = {tuple(plays[row].indices): row for row in range(plays.shape[0])}

    def score(history: Any) -> np.ndarray:
        at = [rows[tuple(history[[row]].indices)] for row in range(history.shape[0])]
        return model.user_factors[at] @ model.item_factors.T

    return Scores(score)


def grids() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    als = itertools.product((16, 64), (1.0, 10.0, 30.0), (1.0, 5.0))
    yield "als", [{"factors": f, "regularization": r, "alpha": a} for f, r, a in als]
    bpr = itertools.product((16, 64), (0.02, 0.1), (0.002, 0.02), (50, 150))
    yield (
        "bpr",
        [{"factors": f, "learning_rate": r, "regularization": w, "iterations": i} for f, r, w, i in bpr],
    )
    yield "neighbours", [{"by": by, "K": k} for by in ("cosine", "tf-idf", "bm25") for k in (20, 50, 150)]


def theirs(entries: Any, split: str, seed: int) -> tuple[dict[str, Ranking], float]:
    rest, test = held_out(entries, split, seed=seed)
    learn, validation = held_out(rest, split, seed=seed + 1)
    found, total = {}, 0.0
    for kind, grid in grids():
        begun = time.process_time()
        scores = [ranked(packaged(kind, one, learn, seed), learn, validation, 10).ndcg.mean() for one in grid]
        best = grid[int(np.argmax(scores))]
        found[kind] = ranked(packaged(kind, best, rest, seed), rest, test, 10)
        spent = time.process_time() - begun
        total += spent
        print(f"    implicit {kind:10} {_told(found[kind])}  {spent:5.1f} s  {best}", flush=True)
    return found, total


def ours(entries: Any, split: str, seed: int) -> tuple[Ranking, float]:
    begun = time.process_time()
    found = choose(entries, candidates(entries), split=split, seed=seed)
    spent = time.process_time() - begun
    for one in found.tested:
        print(f"    rankfold {one.candidate!s:38} {_told(one.ranking)}", flush=True)
    print(f"    rankfold's search and fits: {spent:.1f} s")
    return found.tested[0].ranking, spent


def _told(one: Ranking) -> str:
    figures = one.figures()
    return f"NDCG@10 {figures['ndcg']:.4f} recall {figures['recall']:.4f} MAP {figures['map']:.4f}"


def main() -> None:
    warnings.simplefilter("ignore")
    entries = read_plays(Path(os.environ["RANKFOLD_DATA"]) / "ml-100k" / "u.data", at_least=4)
    for split in ("by-time", "leave-one-out"):
        for seed in SEEDS:
            print(f"  {split}, seed {seed}")
            mine, spent = ours(entries, split, seed)
            others, total = theirs(entries, split, seed)
            name = max(others, key=lambda one: others[one].ndcg.mean())
            mean, error = paired(mine, others[name])
            print(
                f"    against the best of them ({name}): NDCG {mean:+.4f}, paired standard error {error:.4f}; "
                f"{spent / total:.2f} of their time",
                flush=True,
            )


def one_by_one() -> None:
    """Each of our methods alone, to see which are worth having."""
    entries = read_plays(Path(os.environ["RANKFOLD_DATA"]) / "ml-100k" / "u.data", at_least=4)
    rest, test = held_out(entries, "leave-one-out")
    for one in (Candidate("als", 64), Candidate("regression", regularization=150.0), Candidate("neighbours")):
        print(f"  {one}: {_told(ranked(trained(rest, one), rest, test, 10))}")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
        one_by_one()
