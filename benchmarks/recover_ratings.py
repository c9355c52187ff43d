"""MovieLens 100K, five splits, three seeds, beside myFM: `RANKFOLD_DATA=… python benchmarks/recover_ratings.py`.

For each split the way (plain, with time, with side tables, with both) is chosen anew by cross-validation of the
training file alone (two folds, rank 10), then fitted to it with three seeds and judged on the test file. Side tables:
age, gender, occupation of users; genres and year of items. Beside it myFM's SVD++ model (Bayesian factorization machine
with who rated what on both sides, rank 10, 100 sweeps) and the plain model. Processor seconds are of the fit and
prediction, one thread. myFM is timed where it can be imported.
"""

from __future__ import annotations

import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
from threadpoolctl import threadpool_limits

from rankfold.recover import Choice, Sides, Triplets, cross_validate, fit, read_side, read_triplets

FOLDER = Path(os.environ.get("RANKFOLD_DATA", ".")) / "ml-100k"
SEEDS = (0, 1, 2)
RANK, SWEEPS = 10, 100


def tables(place: Path) -> tuple[Path, Path]:
    """u.user and u.item with headers: age, gender, occupation; genres and year."""
    users = pd.read_csv(FOLDER / "u.user", sep="|", header=None, dtype=str)
    users.columns = ["user", "age", "gender", "occupation", "zip"]
    items = pd.read_csv(FOLDER / "u.item", sep="|", header=None, dtype=str, encoding="latin-1")
    items["year"] = items[2].str[-4:]
    items = items.drop(columns=[1, 2, 3, 4])
    items.columns = ["item", *[f"genre {number}" for number in range(items.shape[1] - 2)], "year"]
    users.to_csv(place / "users.csv", index=False)
    items.to_csv(place / "items.csv", index=False)
    return place / "users.csv", place / "items.csv"


def fitted(learn: Triplets, judge: Triplets, choice: Choice, sides: Sides, seed: int) -> tuple[float, float, float]:
    """(root mean square error, mean standardised square, processor seconds)."""
    begun = time.process_time()
    model, _, _ = fit(learn, choice, seed=seed, sides=sides)
    rows, columns = judge.numbered(model.row_names, model.column_names)
    missed = model.at(rows, columns, judge.times) - judge.values
    spent = time.process_time() - begun
    told = missed / model.uncertainty(rows, columns, judge.times)
    return float(np.sqrt(np.mean(missed**2))), float(np.mean(told**2)), spent


def myfm_fitted(learn: Triplets, judge: Triplets, seed: int) -> tuple[float, float]:
    from myfm import MyFMRegressor, RelationBlock

    begun = time.process_time()
    m, n = learn.shape
    table = scipy.sparse.csr_matrix((np.ones(len(learn)), (learn.rows, learn.columns)), shape=(m, n))
    blocks = []
    for one in (table, table.T.tocsr()):
        scaled = scipy.sparse.diags(1 / np.sqrt(np.maximum(np.diff(one.indptr), 1))) @ one
        own = scipy.sparse.hstack([scipy.sparse.eye(one.shape[0]), scaled])
        blocks.append(scipy.sparse.vstack([own, scipy.sparse.csr_matrix((1, own.shape[1]))]).tocsr())
    rows, columns = judge.numbered(learn.row_names, learn.column_names)

    def related(rows: np.ndarray, columns: np.ndarray) -> list[RelationBlock]:
        return [
            RelationBlock(np.where(rows < 0, m, rows), blocks[0]),
            RelationBlock(np.where(columns < 0, n, columns), blocks[1]),
        ]

    empty = [scipy.sparse.csr_matrix((len(one), 0)) for one in (learn, judge)]
    model = MyFMRegressor(rank=RANK, random_seed=seed)
    model.fit(
        empty[0],
        learn.values,
        X_rel=related(learn.rows, learn.columns),
        n_iter=SWEEPS,
        n_kept_samples=SWEEPS - 10,
        group_shapes=[m, n, n, m],
    )
    told = np.clip(model.predict(empty[1], X_rel=related(rows, columns)), 1, 5)
    return float(np.sqrt(np.mean((told - judge.values) ** 2))), time.process_time() - begun


def main() -> None:
    ours, plain, theirs, spent = [], [], [], {"ours": 0.0, "myFM": 0.0}
    with tempfile.TemporaryDirectory() as place:
        users, items = tables(Path(place))
        for split in range(1, 6):
            learn = read_triplets(FOLDER / f"u{split}.base", time=True)
            judge = read_triplets(FOLDER / f"u{split}.test", time=True)
            sides = Sides(read_side(users, learn.row_names)[0], read_side(items, learn.column_names, "column")[0])
            ways = [Choice("ratings", RANK, *way) for way in ((0, 0), (1, 0), (0, 1), (1, 1))]
            begun = time.process_time()
            tried = cross_validate(learn, ways, folds=2, seed=0, sides=sides)
            searched = time.process_time() - begun
            told = ", ".join(f"{one.choice} {one.error:.4f}" for one in tried)
            print(f"u{split}: chosen in {searched:.1f} s: {told}", flush=True)
            for seed in SEEDS:
                error, calibration, seconds = fitted(learn, judge, tried[0].choice, sides, seed)
                ours.append(error)
                spent["ours"] += seconds
                line = f"  seed {seed}: {error:.4f} ({seconds:.2f} s; mean (error / told deviation)² {calibration:.2f})"
                error, _, seconds = fitted(learn, judge, ways[0], sides, seed)
                plain.append(error)
                line += f", plain {error:.4f} ({seconds:.2f} s)"
                if find_spec("myfm"):
                    error, seconds = myfm_fitted(learn, judge, seed)
                    theirs.append(error)
                    spent["myFM"] += seconds
                    line += f", myFM {error:.4f} ({seconds:.2f} s)"
                print(line, flush=True)
    for name, errors in (("chosen", ours), ("plain", plain), ("myFM", theirs)):
        if errors:
            seeds = np.array(errors).reshape(5, -1).mean(0)
            print(f"{name}: mean {np.mean(errors):.4f}, of each seed {', '.join(f'{one:.4f}' for one in seeds)}")
    if theirs:
        print(f"processor time of the chosen fit over that of myFM: {spent['ours'] / spent['myFM']:.2f}")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
