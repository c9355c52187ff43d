"""Planted problems of the recovery theorems: errors against samples, widths, rank and noise, beside their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rankfold.papers.recovery.trials import THEOREMS, Planted, Theorem, Trial
from rankfold.papers.request import FIXED, Request
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.run.cells import Kept, run_cells
from rankfold.run.progress import Progress

NAME = "recovery-planted"
SEEDS = (0, 1, 2, 3, 4)
# what is varied, in figures and tables, and how: factors of the base
GRIDS: dict[str, Sequence[float]] = {
    "rows": (0.5, 1, 2, 4, 8),
    "inputs": (0.5, 1, 2, 4),
    "outputs": (0.5, 1, 2, 4),
    "rank": (1 / 3, 2 / 3, 1, 5 / 3, 10 / 3),
    "sigma": (0.5, 1, 2, 4),
}
QUICK_FACTORS = (1.0, 2.0)
QUICK_BASE = {"rows": 100, "inputs": 8, "outputs": 10}
LABELS = {"rows": "samples N", "inputs": "inputs k", "outputs": "outputs m", "rank": "rank r", "sigma": "noise σ"}


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Draw, solve and compare; nothing is trained. ``seeds`` are those of the problems, ``jobs`` solve side by side."""
    request.only(NAME, FIXED | {"seeds"})
    seeds = request.seeds or (SEEDS[:2] if request.quick else SEEDS)
    problems = planned(request.quick)
    draws = [Draw(problem.theorem.name, problem.planted, seed) for problem in problems for seed in seeds]
    kept = Kept(solved, directory / "runs", {"kind": NAME}, "{}.json")
    found = run_cells(draws, kept, request.jobs, what="planted problems", progress=tell.progress, say=tell.say)
    trials = [Trial(**value["trial"]) for value in found]
    points = pd.DataFrame(
        [row(problem, trials[i * len(seeds) : (i + 1) * len(seeds)]) for i, problem in enumerate(problems)]
    )
    found_slopes = slopes(points)
    failed = [trial.sentence for trial in trials if trial.sentence]
    return Outcome(
        f"Recovery of planted low-rank layers: errors, theory and bounds, {len(seeds)} seeds",
        {"slopes": found_slopes, "points": points},
        {"errors": figure(points)},
        [*remarks(points, found_slopes), *failed],
        {"asked": request.to_dict(), "seeds": list(seeds), "unsolved": len(failed)},
    )


@dataclass(frozen=True)
class Problem:
    """One point of one panel."""

    theorem: Theorem
    varied: str
    planted: Planted


@dataclass(frozen=True)
class Draw:
    """One planted problem with its noise. The base of a theorem is a point of every panel, and solved once."""

    theorem: str
    planted: Planted
    seed: int

    @property
    def title(self) -> str:
        return f"theorem-{self.theorem}-seed{self.seed}"


def solved(draw: Draw, place: Path, progress: Progress) -> dict[str, Any]:
    """The trial as plain values; one thread is enough, the matrices are small."""
    (theorem,) = (each for each in THEOREMS if each.name == draw.theorem)
    return {"trial": vars(theorem.trial(draw.planted, draw.seed))}


def planned(quick: bool) -> list[Problem]:
    """Every theorem, every grid. Whole numbers stay whole."""
    problems = []
    for theorem in THEOREMS:
        base = replace(theorem.base, **QUICK_BASE) if quick else theorem.base
        for varied, factors in GRIDS.items():
            start = getattr(base, varied)
            for factor in QUICK_FACTORS if quick else factors:
                value = start * factor if varied == "sigma" else round(start * factor)
                problems.append(Problem(theorem, varied, replace(base, **{varied: value})))
    return problems


def row(problem: Problem, trials: Sequence[Trial]) -> dict[str, Any]:
    """One point: means over the seeds, and the standard error of the measured mean."""
    measured = np.array([trial.measured for trial in trials])
    planted = problem.planted
    return {
        "theorem": problem.theorem.name,
        "varied": problem.varied,
        "value": getattr(planted, problem.varied),
        **{name: getattr(planted, name) for name in GRIDS},
        "MSE": measured.mean(),
        "standard error": measured.std(ddof=1) / math.sqrt(len(trials)) if len(trials) > 1 else math.nan,
        "ours": np.mean([trial.ours for trial in trials]),
        "paper": np.mean([trial.paper for trial in trials]),
        "violations": sum(trial.measured > trial.ours for trial in trials) if problem.theorem.name != "3.1" else 0,
    }


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """Exponents: slopes of log MSE over the log of what is varied, fitted alike to what was measured and to theory."""
    rows = []
    for key, group in points.groupby(["theorem", "varied"], sort=False):
        theorem, varied = (str(part) for part in key)
        at = np.log(group["value"].astype(float))
        fitted = {name: float(np.polyfit(at, np.log(group[name]), 1)[0]) for name in ("MSE", "ours", "paper")}
        rows.append(
            {
                "theorem": theorem,
                "varied": LABELS[varied],
                "from": group["value"].iloc[0],
                "to": group["value"].iloc[-1],
                "slope measured": fitted["MSE"],
                "slope of ours": fitted["ours"],
                "slope of the paper": fitted["paper"],
                "measured / ours": float((group["MSE"] / group["ours"]).mean()),
                "measured / paper": float((group["MSE"] / group["paper"]).mean()),
            }
        )
    return pd.DataFrame(rows)


def remarks(points: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """What the table says, in sentences with its numbers."""
    return [
        _exact(points[points["theorem"] == "3.1"], found[found["theorem"] == "3.1"]),
        *(
            _bounded(name, points[points["theorem"] == name], found[found["theorem"] == name])
            for name in ("4.4", "4.9")
        ),
        "The truth has exactly the rank r here. The rates of theorems 4.4 and 4.9 ask for a small nuclear norm only: "
        "they bound the worst case, and errors fall faster than they do. In 4.9 the bounds depend exponentially on the "
        "largest output over σ, so that they are smaller for more noise.",
    ]


def _exact(points: pd.DataFrame, found: pd.DataFrame) -> str:
    off = 100 * (points["MSE"] / points["ours"] - 1).abs()
    apart = (found["slope measured"] - found["slope of ours"]).abs().max()
    return (
        f"Theorem 3.1: the error is σ²r(k + m − r)/(N m) within {off.mean():.1f} % on average and {off.max():.1f} % at "
        f"most, and its slopes within {apart:.2f}; the paper's bound, with its constants, is "
        f"{_range(points['paper'] / points['MSE'])} times the error."
    )


def _bounded(name: str, points: pd.DataFrame, found: pd.DataFrame) -> str:
    violated = int(points["violations"].sum())
    held = "held in every trial" if not violated else f"was violated in {violated} trials"
    samples = found[found["varied"] == LABELS["rows"]].iloc[0]
    falls = [f"N^{samples[f'slope {of}']:.2f}" for of in ("measured", "of ours", "of the paper")]
    return (
        f"Theorem {name}: our bound {held} and is {_range(points['ours'] / points['MSE'])} times the error; the "
        f"paper's, its unknown constant taken as 1, {_range(points['paper'] / points['MSE'])} times. With more "
        f"samples N the error falls as {falls[0]}, our bound as {falls[1]}, the paper's as {falls[2]}."
    )


def _range(ratios: pd.Series) -> str:
    return f"{ratios.min():.3g} to {ratios.max():.3g}"


def figure(points: pd.DataFrame) -> Figure:
    """A row for each theorem, a column for what is varied; errors and bounds, both axes logarithmic."""
    with panels(len(THEOREMS), len(GRIDS), (2.3, 2.2)) as (drawn, axes):
        for line, theorem in enumerate(THEOREMS):
            for column, varied in enumerate(GRIDS):
                panel = axes[line, column]
                group = points[(points["theorem"] == theorem.name) & (points["varied"] == varied)]
                for number, (key, label) in enumerate(
                    (("MSE", "measured"), ("ours", theorem.ours), ("paper", theorem.paper))
                ):
                    style = {"marker": "o"} if key == "MSE" else {"linestyle": ("--", ":")[number - 1]}
                    panel.plot(group["value"], group[key], color=colour(number), label=label, **style)
                panel.set_xscale("log")
                panel.set_yscale("log")
                panel.set_xticks(group["value"])
                panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.yaxis.set_major_locator(LogLocator(numticks=6))
                panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
                panel.set_xlabel(LABELS[varied])
            axes[line, 0].set_ylabel(f"theorem {theorem.name}\nMSE")
            axes[line, 1].legend(fontsize=7, loc="center")
    return drawn
