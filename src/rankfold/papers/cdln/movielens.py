"""C-DLN on MovieLens 100K: four ways at rank 10 on a published split and our own (figure 6, right); α (figure 17)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankfold.papers.cdln.ablations import curves
from rankfold.papers.cdln.trainings import Trained
from rankfold.papers.request import Request
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell
from rankfold.recover import (
    AlternatingMinimization,
    Choice,
    CompressedDeepLinear,
    DeepLinear,
    Descent,
    Rules,
    Triplets,
    Watch,
    compressed_start,
    descend,
    entries,
    fit,
    read_triplets,
    triplets,
)
from rankfold.recover.choose import BURN_IN, DRAWS
from rankfold.recover.measurements.observed import observed
from rankfold.run.errors import UsageError

RANK, ALPHA = 10, 5.0  # the paper's
# The paper's η is 0.5, its ε and whether ratings are centred are not told. On centred ratings 0.5 is what `rate=None`
# takes; three times as much is stable still, for the wide network (α = 1) more. Uncentred ones stay at the saddle.
RATE, WIDE_RATE, SCALE = 1.7, 5.0, 1.5
STEPS, WIDE_STEPS, EVERY = 800, 160, 5
SPLITS = 5


ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Ratings:
    """What is learned from and what is judged by."""

    title: str
    learn: Triplets
    judge: Triplets

    @property
    def mean(self) -> float:
        return float(self.learn.values.mean())

    @property
    def centred(self) -> np.ndarray:
        """(users, items) in float32, less the mean, NaN where there is none."""
        x = np.full(self.learn.shape, np.nan, dtype=np.float32)
        x[self.learn.rows, self.learn.columns] = self.learn.values - self.mean
        return x

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of users and items that were learned from: (rows, columns, values) to judge by."""
        rows, columns = self.judge.numbered(self.learn.row_names, self.learn.column_names)
        both = (rows >= 0) & (columns >= 0)
        return rows[both], columns[both], self.judge.values[both]


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Test error against time on published splits, of which u1 is the one that the rates were tried on.

    ``seeds`` 0 to 4 are the splits u1 to u5. ``--quick``: small synthetic ratings.
    """
    request.only("cdln-movielens", {"quick", "seeds"})
    seeds = request.seeds or (0,)
    if not set(seeds) <= set(range(SPLITS)):
        raise UsageError(f"cdln-movielens has {SPLITS} splits: seeds from 0 to {SPLITS - 1}, got {max(seeds)}")
    table: list[dict[str, Any]] = []
    told: list[str] = []
    ratios: list[float] = []
    figures: dict[str, Any] = {}
    rank = 2 if request.quick else RANK
    for seed in seeds:
        ratings = _synthetic() if request.quick else movielens(seed + 1)
        rows, runs = _split(ratings, rank, request.quick, tell)
        table += [{"split": f"u{seed + 1}"} | row for row in rows]
        figures[f"training-u{seed + 1}"] = curves(runs, "relative residual", log=False)
        remark, ratio = _sooner(runs)
        told.append(f"u{seed + 1}: {remark}")
        ratios += [] if ratio is None else [ratio]
    if len(ratios) > 1:
        told.append(
            f"Over {len(ratios)} splits {np.mean(ratios):.0f} times sooner in the mean, {min(ratios):.0f} to "
            f"{max(ratios):.0f}; the networks' rates were tried on u1."
        )
    return Outcome(
        f"C-DLN, figure 6 (right): {'planted ratings' if request.quick else 'MovieLens 100K'} at rank {rank}",
        {"movielens": pd.DataFrame(table)},
        figures,
        told,
    )


def _split(ratings: Ratings, rank: int, quick: bool, tell: Tell) -> tuple[list[dict[str, Any]], dict[str, Trained]]:
    """Every method on one split: rows of the table, and the curves of the two networks."""
    x = ratings.centred
    rows, columns, values = ratings.known
    steps, wide = (200, 100) if quick else (STEPS, WIDE_STEPS)
    rate, wide_rate, scale = (None, None, None) if quick else (RATE, WIDE_RATE, SCALE)
    shared: dict[str, Any] = {"scale": scale, "momentum": 0.0, "every": EVERY, "tol": 0.0}
    methods: dict[str, Any] = {
        "wide": DeepLinear(max_iter=wide, rate=wide_rate, **shared),
        "compressed": CompressedDeepLinear(rank, alpha=ALPHA, prune=0.0, max_iter=steps, rate=rate, **shared),
        "compressed, momentum, held-out stop": CompressedDeepLinear(
            rank, scale=scale, rate=rate, prune=0.0, every=EVERY, max_iter=steps, validation_fraction=0.05
        ),
        "alternating": AlternatingMinimization(rank, tol=0.0, max_iter=20),
    }
    table = []
    for name, method in methods.items():
        begun = time.process_time()
        method.fit(x)
        row = {"seconds": time.process_time() - begun, "training": method.training_error_}
        missed = ratings.mean + method.at(rows, columns) - values
        table.append({"method": name, "test RMSE": _rmse(missed), "iterations": method.n_iter_} | row)
        tell.say(f"{ratings.title}, {name}: {table[-1]['test RMSE']:.4f} in {row['seconds']:.1f} s")
    begun = time.process_time()
    model, _, _ = fit(ratings.learn, Choice("ratings", rank))
    everyone = ratings.judge.numbered(ratings.learn.row_names, ratings.learn.column_names)
    row = {"test RMSE": _rmse(model.at(*everyone) - ratings.judge.values), "iterations": BURN_IN + DRAWS}
    table.append({"method": "our ratings model"} | row | {"seconds": time.process_time() - begun})
    runs = {}
    for name in ("wide", "compressed"):
        points = methods[name].history_
        runs[name] = Trained([point.iteration for point in points], [point.seconds for point in points])
        runs[name].errors = [point.training for point in points]
    return table, runs


def _rmse(missed: np.ndarray) -> float:
    return float(np.sqrt(np.mean(missed**2)))


def _sooner(runs: dict[str, Trained]) -> tuple[str, float | None]:
    """How many times sooner the compressed network is where the wide one ends, in a sentence and as a number."""
    wide, narrow = runs["wide"], runs["compressed"]
    reached = wide.errors[-1]
    at = narrow.first(reached * (1 + 1e-9))
    if at is None:
        return f"the compressed network does not reach the wide one's residual {reached:.3g} (paper: 5 times).", None
    ratio = wide.seconds[-1] / max(narrow.seconds[at], 1e-9)
    return f"the compressed network reaches the wide one's last residual {ratio:.1f} times sooner (paper: 5).", ratio


def alpha(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 17: the error on test ratings of u1 over iterations, for several α at one rate η and no early stop."""
    request.only("cdln-movielens-alpha", {"quick"})
    ratings = _synthetic() if request.quick else movielens(1)
    operator, y = observed(ratings.centred)
    rows, columns, values = ratings.known
    test = entries(operator.shape, rows, columns, (values - ratings.mean).astype(np.float32))
    to_rmse = float(np.linalg.norm(test[1])) / len(values) ** 0.5  # of a relative error
    rank, steps, scale = (2, 200, 0.5) if request.quick else (RANK, STEPS, SCALE)
    rules = Rules(tol=0.0, max_iter=steps, every=EVERY, patience=steps)  # the test ratings end nothing
    runs, rows_of_table = {}, []
    for each in ALPHAS:
        weights = compressed_start(operator, y, rank, 3, scale)
        watch = Watch(f"α = {each:g}", operator, y, rules, test, tell.progress)
        descend(operator, y, weights, Descent(RATE / 2, each), watch)
        errors = [to_rmse * point.validation for point in watch.history]
        runs[f"α = {each:g}"] = Trained(
            [p.iteration for p in watch.history], [p.seconds for p in watch.history], errors
        )
        at = int(np.nanargmin(errors))
        rows_of_table.append(
            {
                "α": each,
                "least test RMSE": errors[at],
                "iterations to it": watch.history[at].iteration,
                "last test RMSE": errors[-1],
                "last training": watch.history[-1].training,
                "diverged": "diverged" in watch.reason,
            }
        )
        tell.say(f"α = {each:g}: test RMSE {errors[at]:.4f} after {watch.history[at].iteration} iterations")
    table = pd.DataFrame(rows_of_table)
    return Outcome(
        f"C-DLN, figure 17: the discrepancy α on {ratings.title}, η = {RATE / 2:g}, rank {rank}",
        {"alpha": table},
        {"alpha": curves(runs, "test RMSE", log=False)},
        _alpha_remarks(table),
    )


def _alpha_remarks(table: pd.DataFrame) -> list[str]:
    slow, fast = table.iloc[0], table[table["last test RMSE"].notna()].iloc[-1]
    rise = fast["last test RMSE"] - fast["least test RMSE"]
    return [
        f"At α = {fast['α']:g} the test error is least after {fast['iterations to it']} iterations and rises by "
        f"{rise:.3f} from there (paper: a large α overfits); at α = {slow['α']:g} it is least after "
        f"{slow['iterations to it']} (paper: a small one takes longer).",
        "The test ratings are looked at along the way, as in the figure: nothing here is a result on unseen ratings.",
    ]


def movielens(split: int) -> Ratings:
    """A published split, 1 to 5, from the folder ``ml-100k`` in RANKFOLD_DATA. ``ValueError`` where it is not."""
    folder = Path(os.environ.get("RANKFOLD_DATA", ".")) / "ml-100k"
    if not (folder / f"u{split}.base").exists():
        raise ValueError(f"{folder} has no u{split}.base: set RANKFOLD_DATA to the folder that holds ml-100k")
    return Ratings(
        f"MovieLens 100K, u{split}", read_triplets(folder / f"u{split}.base"), read_triplets(folder / f"u{split}.test")
    )


def _synthetic() -> Ratings:
    rng = np.random.default_rng(0)
    truth = 3 + rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30)) / 2
    rows, columns = np.nonzero(rng.random(truth.shape) < 0.5)
    values = np.clip(truth[rows, columns] + 0.3 * rng.standard_normal(len(rows)), 1, 5)
    every = triplets(rows, columns, values)
    held = rng.random(len(values)) < 0.2
    return Ratings("planted ratings", every.take(np.flatnonzero(~held)), every.take(np.flatnonzero(held)))
