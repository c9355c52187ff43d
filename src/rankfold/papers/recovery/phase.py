"""How many entries a matrix takes: how often four ways find it, against entries for each degree of freedom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, time_remark
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell
from rankfold.recover import AlternatingMinimization, LowRank, NuclearNorm
from rankfold.run.progress import Progress

NAME = "recovery-phase"
SEEDS = tuple(range(5))
OVER = (1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
SHAPE, RANK = (300, 240), 4
NEAR = 1e-2  # relative error that counts as found
WAYS: dict[str, Callable[[int], Any]] = {
    "default, rank at most 2r": lambda rank: LowRank(2 * rank),
    "default, rank r known": lambda rank: LowRank(rank=rank),
    "alternating, rank r known": lambda rank: AlternatingMinimization(rank, max_iter=200),
    "nuclear norm": lambda rank: NuclearNorm(max_rank=4 * rank),
}


@dataclass(frozen=True)
class Case:
    """One matrix with Gaussian factors, ``over`` entries for each degree of freedom, and one way of finding it."""

    way: str
    m: int
    n: int
    rank: int
    over: float
    seed: int

    @property
    def title(self) -> str:
        return f"{self.way.replace(' ', '-').replace(',', '')}-{self.over:g}-{self.seed}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Draw, hide, recover, compare; nothing is trained. ``seeds`` are those of the matrices."""
    request.only(NAME, FIXED | {"seeds"})
    seeds = request.seeds or (SEEDS[:2] if request.quick else SEEDS)
    m, n, rank = (60, 50, 2) if request.quick else (*SHAPE, RANK)
    grid = (1.2, 2.0, 4.0) if request.quick else OVER
    cases = [Case(way, m, n, rank, over, seed) for way in WAYS for over in grid for seed in seeds]
    found = computed(cases, recovered, "recovery.phase.recovered", directory, request.jobs, tell)
    table = pd.DataFrame(
        [
            {"way": case.way, "entries / freedom": case.over, "error": one["error"], "says": one["says"]}
            for case, one in zip(cases, found, strict=True)
        ]
    )
    rates = summary(table)
    return Outcome(
        f"How many entries a {m} × {n} matrix of rank {rank} takes, {len(seeds)} matrices at each point",
        {"rates": rates, "trials": table},
        {"phase": figure(rates)},
        [
            f"Found: a relative error of at most {NEAR:g} on the rows and columns with at least as many entries as the "
            "rank. Singular values are nearly equal (Gaussian factors), entries are drawn uniformly.",
            *limits(rates),
            claims(table),
            time_remark(found),
        ],
        {"seeds": list(seeds), "m": m, "n": n, "rank": rank},
    )


def recovered(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """The error of one recovery, and whether it said that it had converged."""
    rng = np.random.default_rng(case.seed)
    left, right = rng.standard_normal((case.m, case.rank)), rng.standard_normal((case.rank, case.n))
    count = int(case.over * case.rank * (case.m + case.n - case.rank))
    chosen = rng.choice(case.m * case.n, count, replace=False)
    rows, columns = chosen // case.n, chosen % case.n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns])
    x = scipy.sparse.csr_array((values, (rows, columns)), shape=(case.m, case.n))
    with threadpool_limits(1), np.errstate(all="ignore"):
        one = WAYS[case.way](case.rank).fit(x)
    enough = np.ix_(
        np.bincount(rows, minlength=case.m) >= case.rank, np.bincount(columns, minlength=case.n) >= case.rank
    )
    truth = (left @ right)[enough]
    error = float(np.linalg.norm(one.reconstruct()[enough] - truth) / np.linalg.norm(truth))
    return {"error": error, "says": bool(one.converged_)}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The share found, and the median error, of each way at each point."""
    rows = []
    for key, group in table.groupby(["way", "entries / freedom"], sort=False):
        way, over = key
        share, median = float((group["error"] <= NEAR).mean()), float(group["error"].median())
        rows.append({"way": way, "entries / freedom": over, "found": share, "median error": median})
    return pd.DataFrame(rows)


def limits(rates: pd.DataFrame) -> list[str]:
    """From where on each way finds at least eight of ten."""
    told = []
    for way, group in rates.groupby("way", sort=False):
        good = group["found"].to_numpy() >= 0.8
        last = len(good) - int(np.argmax(~good[::-1])) if (~good).any() else 0
        points = group["entries / freedom"].to_numpy()
        where = f"from {points[last]:g} on" if last < len(points) else f"not up to {points[-1]:g}"
        told.append(f"{way}: at least 8 of 10 {where}.")
    return told


def claims(table: pd.DataFrame) -> str:
    """How many results of each way were said to be converged and were not found."""
    wrong = table[table["says"] & (table["error"] > NEAR)]["way"].value_counts()
    told = ", ".join(f"{way}: {int(wrong.get(way, 0))}" for way in table["way"].unique())
    return (
        f"Said to be converged and not found, of {len(table) // table['way'].nunique()} each: {told} (the nuclear norm "
        "solved its own program then, whose minimum is another matrix)."
    )


def figure(rates: pd.DataFrame) -> Figure:
    """The share found against entries for each degree of freedom."""
    with panels(1, 1, size=(4.6, 3.0)) as (drawn, axes):
        for number, (way, group) in enumerate(rates.groupby("way", sort=False)):
            axes[0, 0].plot(group["entries / freedom"], group["found"], label=str(way), **look(number))
        axes[0, 0].set_xlabel("entries for each degree of freedom")
        axes[0, 0].set_ylabel("share found")
        axes[0, 0].legend(fontsize=7)
    return drawn
