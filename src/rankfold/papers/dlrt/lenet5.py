"""LeNet5 on MNIST at low rank from the first step, beside what DLRT's authors logged, both counted truly.

The network of the DLRT paper: 20 and 50 filters of 5 × 5, 500 hidden units, 430,500 weights without biases, of which
the 5,000 of the last layer stay dense.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from rankfold.induce import Dlrt, dlrt_, fold_
from rankfold.induce.places import ranks_of
from rankfold.papers import quick
from rankfold.papers.dlrt.grounds import lenet5
from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, device, one_thread, restricted, time_remark
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell
from rankfold.run.progress import Progress
from rankfold.train import Recipe, evaluate, fit
from rankfold.zoo import load_data

# DLRT-Net, five seeds: θ, test accuracy and its deviation, the share removed as printed, and as the ranks give it.
# All 900 logged rows count r(m + 1) for a layer of rank r in place of r(m + n).
LOGGED = (
    (0.09, 98.16, 0.26, 91.3, 76.2), (0.11, 98.21, 0.44, 93.0, 82.1), (0.13, 97.87, 0.49, 94.3, 85.6),
    (0.15, 98.14, 0.33, 95.3, 88.5), (0.2, 98.12, 0.34, 97.0, 92.9), (0.3, 97.45, 0.48, 97.8, 95.9),
    (0.4, 95.97, 0.95, 98.3, 97.1), (0.45, 94.07, 0.49, 98.5, 97.5),
)  # fmt: skip
OURS, THEIRS = "rankfold", "DLRT-Net"
FULL = Request(seeds=(0, 1, 2, 3, 4), epochs=5)
QUICK = Request(seeds=(0, 1), epochs=6)
WINDOW, REACH = 20, 0.4  # steps; the share of all steps after which the budget holds


@dataclass(frozen=True)
class Line:
    """``removed``: the share of all weights that a budget leaves out; ``tolerance``: in its place. None of both: dense.
    ``factors``: trained themselves once the budget holds; ``start``: the rank, half of full rank where None."""

    removed: float | None = None
    tolerance: float | None = None
    factors: bool = True
    start: int | None = None
    convolutions: Literal["matrix", "tucker"] = "matrix"

    @property
    def words(self) -> str:
        if self.removed is None and self.tolerance is None:
            return "dense"
        told = f"tolerance {self.tolerance:g}" if self.removed is None else f"−{100 * self.removed:g} %"
        told += "" if self.factors else ", cores to the end"
        told += "" if self.start is None else f", from rank {self.start}"
        return told + (", convolutions in Tucker's form" if self.convolutions == "tucker" else "")


LINES = (
    Line(), Line(0.929), Line(0.95), Line(0.97), Line(0.929, factors=False), Line(0.95, factors=False),
    Line(0.929, start=4), Line(0.929, start=50), Line(0.929, convolutions="tucker"),
    Line(tolerance=0.15, start=4, factors=False), Line(tolerance=0.15, start=50, factors=False),
)  # fmt: skip
SMALL = (Line(), Line(0.5), Line(0.6), Line(0.5, start=4), Line(tolerance=0.3, factors=False))


@dataclass(frozen=True)
class Case:
    """One training of a line."""

    line: Line
    seed: int
    epochs: int
    data: str = "mnist"
    train_samples: int | None = None

    @property
    def title(self) -> str:
        known = self.line
        size = "dense" if known.removed is None else f"{known.removed:g}"
        size = size if known.tolerance is None else f"tolerance{known.tolerance:g}"
        start = "" if known.start is None else f"-rank{known.start}"
        return f"lenet5-{size}{'' if known.factors else '-cores'}{start}-{known.convolutions}-seed{self.seed}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """The epoch is selected on validation, among those within the budget; the test split is looked at for that one."""
    request.only("dlrt-lenet5", FIXED | {"seeds", "epochs", "train_samples"})
    asked = request.filled(QUICK if request.quick else FULL)
    seeds, epochs, data = asked.seeds or (), asked.epochs or 1, quick.DATA if request.quick else "mnist"
    cases = [
        Case(line, seed, epochs, data, asked.train_samples)
        for line in (SMALL if request.quick else LINES)
        for seed in seeds
    ]
    found = computed(cases, measure, "lenet5", directory, asked.jobs, tell, _said)
    runs = pd.DataFrame([_row(values) for values in found])
    table = summary(runs, logged=not request.quick)
    return Outcome(
        f"{'LeNet5' if data == 'mnist' else 'A small LeNet'} on {data} at low rank from the first step: {epochs} "
        f"epochs, {len(seeds)} seeds",
        {"lenet5": table, "runs": runs},
        {"lenet5": _figure(table)},
        [*remarks(table), time_remark(found)],
        {"asked": asked.to_dict()},
    )


def network(case: Case) -> nn.Module:
    """LeNet5, or a smaller one for digits of 8×8, drawn with the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        if case.data == "mnist":
            return lenet5()
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1),
            nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10),
        )  # fmt: skip


def weights(model: nn.Module) -> int:
    """Without biases, as the paper counts."""
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


@one_thread()
def measure(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """Train, fold and count. A budget counts biases, the share removed does not."""
    line, data = case.line, restricted(load_data(case.data), case.train_samples, case.seed)
    model = network(case).to(device())
    dense, everything = weights(model), sum(p.numel() for p in model.parameters())
    batch, window = (128, WINDOW) if len(data.train) > 4096 else (16, WINDOW // 4)
    recipe = Recipe(
        epochs=case.epochs, batch_size=batch, learning_rate=0.05, nesterov=False, weight_decay=0.0, seed=case.seed
    )
    make = None
    if line != Line():
        dlrt_(model, line.start, convolutions=line.convolutions)
        reach = max(1, round(REACH * case.epochs * max(1, len(data.train) // batch) / window))
        how: dict[str, Any] = {"window": window, "reach": reach, "factors": line.factors, "tolerance": line.tolerance}
        if line.removed is not None:
            how["budget"] = ((1 - line.removed) * dense + everything - dense) / everything
        make = functools.partial(Dlrt, **how)
    history = fit(
        model, data.train, data.validation, recipe, progress=Tell(progress).training(case.title), optimizer=make
    )
    ranks = ranks_of(model)
    small = fold_(model, keep=True).eval() if make else model.eval()
    return {
        "removed": 1 - weights(small) / dense, "ranks": ranks, "best epoch": history.best_epoch,
        "validation": evaluate(small, data.validation, role="validation").accuracy,
        "test": evaluate(small, data.test, role="test").accuracy,
    }  # fmt: skip


def _said(values: dict[str, Any]) -> str:
    return f"validation {100 * values['validation']:.2f} %, {100 * values['removed']:.1f} % of the weights removed"


def _row(values: dict[str, Any]) -> dict[str, Any]:
    case = values["case"]
    return {
        "network": Line(**case["line"]).words, "seed": case["seed"], "removed %": 100 * values["removed"],
        "validation %": 100 * values["validation"], "test %": 100 * values["test"],
        "ranks": ", ".join(map(str, values["ranks"].values())), "best epoch": values["best epoch"],
    }  # fmt: skip


def summary(runs: pd.DataFrame, *, logged: bool) -> pd.DataFrame:
    """Means over the seeds with their deviations; with ``logged`` the authors' own lines below."""
    rows: list[Mapping[str, Any]] = []
    for name in dict.fromkeys(runs.network):
        part = runs[runs.network == name]
        rows.append(
            {
                "by": OURS, "network": name, "seeds": len(part), "removed %": part["removed %"].mean(),
                "printed %": float("nan"), "test %": part["test %"].mean(), "± test": part["test %"].std(),
                "validation %": part["validation %"].mean(), "ranks, first seed": part.ranks.iloc[0],
            }
        )  # fmt: skip
    for theta, test, spread, printed, removed in LOGGED if logged else ():
        rows.append(
            {
                "by": THEIRS, "network": f"tolerance {theta:g}", "seeds": 5, "removed %": removed, "printed %": printed,
                "test %": test, "± test": spread,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def remarks(table: pd.DataFrame) -> list[str]:
    """What was found beside what was logged, and what a start rank does."""
    ours = {line["network"]: line for line in table[table.by == OURS].to_dict("records")}
    said = []
    for name, line in ours.items():
        for theirs in table[table.by == THEIRS].to_dict("records"):
            if line["removed %"] and abs(theirs["removed %"] - line["removed %"]) < 1:
                said.append(
                    f"{name}: {line['test %']:.2f} % on test with {line['removed %']:.1f} % of the weights removed; "
                    f"they logged {theirs['test %']:.2f} % with {theirs['removed %']:.1f} %, printed as "
                    f"{theirs['printed %']:.1f} %."
                )
    for name, few in ours.items():
        many = ours.get(name.replace("from rank 4", "from rank 50"), few)
        if many is not few:
            size = (100 - few["removed %"]) / (100 - many["removed %"]) - 1
            said.append(
                f"{name}: {few['test %'] - many['test %']:+.2f} points beside a start at rank 50, {100 * size:+.1f} % "
                "of its weights."
            )
    said.append(
        "Weights are counted without biases, r(m + n) for a matrix of rank r; the epoch is selected on validation. The "
        "authors' printed shares count r(m + 1)."
    )
    return said


def _figure(table: pd.DataFrame) -> Figure:
    with panels(1, 1, (5.0, 3.4)) as (figure, axes):
        for number, (by, column, label) in enumerate(
            (
                (OURS, "removed %", OURS),
                (THEIRS, "removed %", f"{THEIRS}, true"),
                (THEIRS, "printed %", f"{THEIRS}, printed"),
            )
        ):
            part = table[(table.by == by) & (table["removed %"] > 0)]
            if len(part):
                axes[0][0].errorbar(
                    part[column], part["test %"], yerr=part["± test"].fillna(0), capsize=2, label=label,
                    linestyle="none", **look(number),
                )  # fmt: skip
        axes[0][0].set_xlabel("weights removed, %")
        axes[0][0].set_ylabel("right answers on test, %")
        axes[0][0].legend()
        return figure
