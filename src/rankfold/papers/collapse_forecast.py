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

from rankfold.collapse import measure_layers
from rankfold.papers.collapse_runs import cells, check
from rankfold.papers.nrc_mnist import Case, flat, network, recipe
from rankfold.papers.request import Request
from rankfold.papers.writing import COLOURS, Outcome, panels
from rankfold.pipeline import Tell
from rankfold.pipeline.collapse_forecast import Margins, accuracy_at, accuracy_curve_of, forecast, learned
from rankfold.pipeline.repair import compressed_copy
from rankfold.sites import sites
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
    check(request, NAME, "train_samples")
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
    found = cells(asked, compare, directory / "runs", request.jobs, tell)
    table = corrected(found)
    return Outcome(
        f"Forecast of accuracy against budget: {len(found)} networks on digits, {len(budgets)} budgets each",
        {"forecast": table},
        {"forecast": figure(table)},
        remarks(table),
        {"budgets": list(budgets), "epochs": epochs},
    )


def compare(asked: Asked, place: Path) -> dict[str, Any]:
    """Train; forecast from training and validation data; then compress, and evaluate on test."""
    case, data = asked.case, flat(asked.case)
    model = network(case, data.train.inputs.shape[1], int(data.classes or 10))
    fit(model, data.train, None, recipe(case))
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
            {"budget": each.budget, "kept": each.kept_params, "change": each.change, "forecast": each.accuracy,
             "reached": accuracy}
            for each, accuracy in zip(made, reached, strict=True)
        ],
    }  # fmt: skip


def corrected(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Every point; ``learned`` is the forecast with a correction from networks of another shape or decay."""
    margins = []
    for value in found:
        margins.append(Margins.from_logits(torch.tensor(value["logits"]), torch.tensor(value["labels"])))
    curves = [accuracy_curve_of(each) for each in margins]
    keys = [tuple(value["case"]["case"][key] for key in ("decay", "width", "hidden")) for value in found]
    rows = []
    for number, value in enumerate(found):
        others = [
            (margins[i], point["change"], point["reached"])
            for i, other in enumerate(found)
            if keys[i] != keys[number]
            for point in other["points"]
        ]
        correction = learned(others)
        for point in value["points"]:
            better = (
                accuracy_at(curves[number], correction.of(point["change"]))
                if point["change"] > 0
                else value["original"]
            )
            rows.append(
                dict(zip(("decay", "width", "hidden"), keys[number], strict=True))
                | {"seed": value["case"]["case"]["seed"], "original": value["original"]}
                | {"stable_rank": value["stable_rank"], "class_variation": value["class_variation"]}
                | point
                | {"learned": better}
            )
    return pd.DataFrame(rows)


def remarks(table: pd.DataFrame) -> list[str]:
    """Rank correlation and error, beside what simpler guesses reach."""
    told = []
    for name, column in (
        ("The forecast as it stands", "forecast"),
        ("With the correction learned on other networks", "learned"),
    ):
        error = (table[column] - table["reached"]).abs()
        rank = float(spearmanr(table[column], table["reached"]).statistic)
        told.append(
            f"{name}: rank correlation {rank:.3f} with the test accuracy reached, mean error {100 * error.mean():.2f} "
            f"points, {100 * error.quantile(0.9):.1f} at the 90th per cent."
        )
    simple = {
        "the kept fraction alone": table["kept"],
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
    within = []
    for _, part in table.groupby("budget"):
        if part["reached"].nunique() > 2:
            within.append(float(spearmanr(part["forecast"], part["reached"]).statistic))
    if within:
        told.append(
            f"At one budget, over networks, the rank correlation of the forecast is {np.mean(within):.3f} in the mean "
            "over budgets: which network bears it better."
        )
    return told


def figure(table: pd.DataFrame) -> Figure:
    """Accuracy reached against accuracy forecast, as it stands and corrected."""
    with panels(1, 2, (3.4, 3.2), sharex=True, sharey=True) as (drawing, axes):
        for panel, column, title in zip(axes[0], ("forecast", "learned"), ("as it stands", "corrected"), strict=True):
            panel.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1)
            for number, (budget, part) in enumerate(table.groupby("budget", sort=False)):
                colour = COLOURS[number % len(COLOURS)]
                fill = colour if number < len(COLOURS) else "none"
                panel.plot(
                    100 * part[column],
                    100 * part["reached"],
                    "o",
                    color=colour,
                    markerfacecolor=fill,
                    label=str(budget),
                )
            panel.set_xlabel("forecast accuracy, %")
            panel.set_title(title, fontsize=9)
        axes[0, 0].set_ylabel("test accuracy reached, %")
        axes[0, 0].legend(fontsize=7)
    return drawing
