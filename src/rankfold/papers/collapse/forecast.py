"""How well accuracy after compression is forecast: many small networks, forecast first, compressed afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression
from torch import nn

from rankfold.collapse import measure_layers
from rankfold.compress.planning.plan import Plan
from rankfold.papers.collapse.mnist import Case, flat, network, recipe
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed
from rankfold.papers.writing import COLOURS, Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.pipeline.collapse.forecast import Margins, accuracy_at, accuracy_curve_of, forecast, learned
from rankfold.pipeline.compression.repair import compressed_copy
from rankfold.run.progress import Progress
from rankfold.sites import Form, sites
from rankfold.spectrum import spectrum
from rankfold.train import evaluate, fit

NAME = "collapse-forecast"
BUDGETS = ("params=0.6", "params=0.45", "params=0.3", "params=0.2", "params=0.12", "params=0.07")


@dataclass(frozen=True)
class Asked:
    """One network, and how it is compressed."""

    case: Case
    budgets: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.case.title


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """The bundled digits: weight decay × width × depth × seeds; forecast on validation, compared on test."""
    request.only(NAME, SMALL - {"train_samples"})
    decays = request.decays or ((1e-4, 3e-3) if request.quick else (1e-5, 3e-4, 1e-3, 3e-3))
    seeds = request.seeds or ((0,) if request.quick else (0, 1))
    widths, hidden = ((24,), (2, 3)) if request.quick else ((32, 96), (2, 3, 4))
    epochs = request.epochs or (8 if request.quick else 40)
    budgets = BUDGETS[::2] if request.quick else BUDGETS
    asked = [
        Asked(Case("digits", decay, width, depth, seed, epochs, 10_000, 64, epochs), budgets)
        for decay in decays
        for width in widths
        for depth in hidden
        for seed in seeds
    ]
    found = computed(asked, compare, "collapse_forecast.compare", directory, request.jobs, tell)
    table = corrected(found)
    return Outcome(
        f"Forecast of accuracy against budget: {len(found)} networks on digits, {len(budgets)} budgets each",
        {"forecast": table},
        {"forecast": figure(table)},
        remarks(table),
        {"budgets": list(budgets), "epochs": epochs},
    )


def compare(asked: Asked, place: Path, progress: Progress) -> dict[str, Any]:
    """Train; forecast from training and validation data; then compress, and evaluate on test."""
    case, data = asked.case, flat(asked.case)
    model = network(case, data.train.inputs.shape[1], int(data.classes or 10))
    fit(model, data.train, None, recipe(case), progress=Tell(progress).training(case.title))
    model.eval()
    made = forecast(model, data.train, asked.budgets, labelled=data.validation)
    margins = Margins.of(model, data.validation)
    clusters = measure_layers(model, data.train, clusters=0)
    reached = [compressed_copy(model, each.plan, data.train, data.test)[1].accuracy for each in made]
    return {
        "original": evaluate(model, data.test, role="test").accuracy,
        "stable_rank": float(np.mean([spectrum(site.matrix(model)).stable_rank for site in sites(model)])),
        "class_variation": list(clusters.values())[-1].classes["whole"].normalised,
        "logits": margins.logits.tolist(),
        "labels": margins.labels.tolist(),
        "points": [
            {"budget": each.budget, "kept": each.kept_params, "energy": kept_energy(model, each.plan),
             "change": each.change, "forecast": each.accuracy, "reached": accuracy}
            for each, accuracy in zip(made, reached, strict=True)
        ],
    }  # fmt: skip


def kept_energy(model: nn.Module, plan: Plan) -> float:
    """Squared singular values that ``plan`` keeps over all of them, in the whole network: what is usually asked."""
    kept = total = 0.0
    for site in sites(model):
        values = spectrum(site.matrix(model))
        entry = plan[site.name]
        total += values.tail(0) ** 2
        kept += values.tail(0) ** 2 - (0.0 if entry.form == Form.KEEP else values.tail(entry.rank) ** 2)
    return kept / total


def corrected(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Every point, and what is learned from the networks of another shape or decay alone.

    ``learned``: the forecast with its correction; ``by_energy``: the increasing function of the kept energy that fits
    best; ``by_budget``: their mean at this budget.
    """
    rows, curves = [], []
    for number, value in enumerate(found):
        case = value["case"]["case"]
        curves.append(
            accuracy_curve_of(Margins.from_logits(torch.tensor(value["logits"]), torch.tensor(value["labels"])))
        )
        rows += [
            {key: case[key] for key in ("decay", "width", "hidden", "seed")}
            | {"network": number, "original": value["original"]}
            | {"stable_rank": value["stable_rank"], "class_variation": value["class_variation"]}
            | point
            for point in value["points"]
        ]
    table = pd.DataFrame(rows)
    parts = []
    for _, own in table.groupby(["decay", "width", "hidden"], sort=False):
        others = table.drop(own.index)
        correction = learned(
            [
                (curves[number], change, reached)
                for number, change, reached in zip(others["network"], others["change"], others["reached"], strict=True)
            ]
        )
        energy = IsotonicRegression(out_of_bounds="clip").fit(others["energy"], others["reached"])
        parts.append(
            own.assign(
                learned=[
                    accuracy_at(curves[number], correction.of(change))
                    for number, change in zip(own["network"], own["change"], strict=True)
                ],
                by_energy=energy.predict(own["energy"]),
                by_budget=own["budget"].map(others.groupby("budget")["reached"].mean()),
            )
        )
    return pd.concat(parts).sort_index().drop(columns="network")


def remarks(table: pd.DataFrame) -> list[str]:
    """Rank correlation and error, beside what simpler guesses reach."""
    told = []
    for name, column in (
        ("The forecast as it stands, nothing learned", "forecast"),
        ("With the correction learned on networks of another shape or decay", "learned"),
        ("Instead, learned on the same: accuracy from the kept energy of the weights", "by_energy"),
        ("Instead: the others' mean at the same budget", "by_budget"),
    ):
        error = (table[column] - table["reached"]).abs()
        rank = float(spearmanr(table[column], table["reached"]).statistic)
        told.append(
            f"{name}: rank correlation {rank:.3f} with the test accuracy reached, mean error {100 * error.mean():.2f} "
            f"points, {100 * error.quantile(0.9):.1f} at the 90th per cent."
        )
    simple = {
        "the kept parameters alone": table["kept"],
        "the kept energy alone": table["energy"],
        "the stable rank alone (fewer is better)": -table["stable_rank"],
        "the class variation of the last features alone (fewer is better)": -table["class_variation"],
    }
    told.append(
        "Rank correlations of simpler guesses: "
        + ", ".join(f"{name} {float(spearmanr(v, table['reached']).statistic):.3f}" for name, v in simple.items())
        + "."
    )
    same = (table["original"] - table["reached"]).abs().mean()
    told.append(f"Guessing that nothing is lost is wrong by {100 * same:.2f} points in the mean.")
    within = {
        str(budget): {key: float(spearmanr(part[key], part["reached"]).statistic) for key in ("forecast", "energy")}
        for budget, part in table.groupby("budget")
        if part["reached"].nunique() > 2 and part["energy"].nunique() > 1
    }
    if within:
        told.append(
            "At one budget, over networks, which of them bears it better: rank correlation "
            + "; ".join(f"{name} {v['forecast']:.2f} (kept energy {v['energy']:.2f})" for name, v in within.items())
            + "."
        )
    return told


def figure(table: pd.DataFrame) -> Figure:
    """Accuracy reached against accuracy forecast, as it stands and corrected."""
    with panels(1, 2, (3.4, 3.2), sharex=True, sharey=True) as (drawing, axes):
        for panel, column, title in zip(axes[0], ("forecast", "learned"), ("as it stands", "corrected"), strict=True):
            panel.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1)
            for number, (budget, part) in enumerate(table.groupby("budget", sort=False)):
                fill = colour(number) if number < len(COLOURS) else "none"
                panel.plot(
                    100 * part[column],
                    100 * part["reached"],
                    "o",
                    color=colour(number),
                    markerfacecolor=fill,
                    label=str(budget),
                )
            panel.set_xlabel("forecast accuracy, %")
            panel.set_title(title, fontsize=9)
        axes[0, 0].set_ylabel("test accuracy reached, %")
        axes[0, 0].legend(fontsize=7)
    return drawing
