"""Truncation that sees data against truncation that does not: the motivation of the recovery-guarantees paper.

A trained network is brought to the same sizes by singular value truncation of the weights alone (as it is, and with
BatchNorm corrected on the images that the other ways see), by projection on the outputs, by sequential projection and
by its ReLU-aware form: layer by layer, end to end, before and after fine-tuning.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from rankfold.compress.methods.relu import gain_told
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.ranks.rules import Optimal
from rankfold.induce import LORITA
from rankfold.papers import quick
from rankfold.papers.lorita.squeezing import Budget, Way, place_of, squeeze
from rankfold.papers.request import GIVEN, TRAINING, Request
from rankfold.papers.runs import device, given, restricted, short
from rankfold.papers.selection import tuned
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell, calibration_part, layer_errors
from rankfold.train import Recipe
from rankfold.zoo import Data, default_data, load_data

NAME = "recovery-layers"
QUICK = Request(models=(quick.CONVOLUTIONAL,), depths=(1,), decays=(5e-4,), seeds=(0,), epochs=4, finetune_epochs=1)
FULL = Request(models=("fcn-6",), depths=(1,), decays=(1e-4,), seeds=(0, 1, 2), epochs=20, finetune_epochs=5)
RECIPE = replace(LORITA, warmup=0.1)
BLIND = Optimal(probes=0)  # between layers, too: the ranks are those of a plan that is made without data
TRUNCATIONS = (
    Way("truncation, without data", "truncate", BLIND, distilled=True),
    Way("truncation, BatchNorm corrected", "truncate", BLIND, repaired=True, distilled=True),
)
WITH_DATA = tuple(
    Way(name, method, Optimal(), repaired=True, distilled=True)
    for name, method in (("projection", "project"), ("sequential", "sequential"), ("ReLU-aware", "relu"))
)
WAYS = TRUNCATIONS + WITH_DATA
TRAINED = GIVEN | TRAINING - {"depths", "setting", "precision"}  # one recipe, and no products
KEPT, QUICK_KEPT = (0.7, 0.5, 0.4, 0.3), (0.5,)  # of the FLOPs; parameters follow


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train one network for each seed (or read ``weights``), compress it in five ways to each size, fine-tune it."""
    request.only(NAME, GIVEN if request.weights else TRAINED)
    asked = request.filled(QUICK if request.quick else FULL)
    model = asked.one_model(NAME)
    data = load_data(quick.DATA if asked.quick else default_data(model))
    networks, grid = _networks(model, asked, data, directory, tell)
    points, layers = [], []
    for seed, network in networks.items():
        part = restricted(data, asked.train_samples, seed)
        for keep in QUICK_KEPT if asked.quick else KEPT:
            for way in WAYS:
                found, errors = _compressed(network, part, way, keep, asked.finetune_epochs or 0, directory, tell)
                points.append({"seed": seed, "kept FLOPs": keep, "method": way.name} | found)
                layers += [{"seed": seed, "kept FLOPs": keep, "method": way.name} | error for error in errors]
    table, by_layer = pd.DataFrame(points), pd.DataFrame(layers)
    return Outcome(
        f"Truncation with and without data: {short(model)} on {data.name}, {len(networks)} "
        f"{'network' if len(networks) == 1 else 'networks'}, {asked.finetune_epochs} epochs of fine-tuning",
        {"points": _means(table), "layers": by_layer, "all-points": table}
        | ({} if grid.empty else {"trainings": grid}),
        {"accuracy-against-size": figure(table), "layers": layer_figure(by_layer)},
        sentences(table, by_layer),
        {
            "asked": asked.to_dict(),
            "train_images": len(part.train),
            "calibration_images": len(calibration_part(part.train, Calibration().samples, 0)),
        },
    )


def _networks(
    model: str, asked: Request, data: Data, directory: Path, tell: Tell
) -> tuple[dict[int, nn.Module], pd.DataFrame]:
    if asked.weights is not None:
        return {0: given(model, asked.weights)}, pd.DataFrame()
    recipe: Recipe = replace(RECIPE, epochs=asked.epochs or RECIPE.epochs)
    recipe = replace(recipe, batch_size=32) if asked.quick else recipe
    runs, grid = tuned(asked, recipe, data, directory / "runs", tell)
    return {run.case.recipe.seed: run.network() for run in next(iter(runs.values()))}, grid


def _compressed(
    network: nn.Module, data: Data, way: Way, keep: float, epochs: int, directory: Path, tell: Tell
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    budget = Budget(keep, 1.0)
    network = network.to(device())
    point = squeeze(network, data, way, budget, epochs, directory / "points", tell)
    plan = Plan.load(place_of(network, data, way, budget, epochs, directory / "points") / "plan.json")
    measured = layer_errors(network, plan, data.validation)
    tuned_ = math.nan if point.finetuned is None else 100 * point.finetuned
    found = {
        "before": 100 * point.before,
        "compressed": 100 * point.compressed,
        "fine-tuned": tuned_,
        "FLOPs removed": 100 * (1 - point.flops),
        "parameters removed": 100 * (1 - point.params),
        "layer error, median": median(measured.values()) if measured else math.nan,
    }
    errors = [
        {"site": e.site, "form": e.form.value, "rank": e.rank, "predicted": e.predicted_error, "held-out": value,
         "certificate": e.certificate}
        for e in plan.changed if (value := measured.get(e.site)) is not None
    ]  # fmt: skip
    return found, errors


def _means(points: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds, in the order of the sizes and ways."""
    means = points.drop(columns="seed").groupby(["kept FLOPs", "method"], sort=False).mean().reset_index()
    means["seeds"] = points["seed"].nunique()
    return means


def sentences(points: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """What seeing data gains at each size, and what the ReLU-aware weighting adds to each layer."""
    means: list[dict[str, Any]] = _means(points).to_dict("records")  # type: ignore[assignment]
    said = []
    for keep in dict.fromkeys(row["kept FLOPs"] for row in means):
        rows = [row for row in means if row["kept FLOPs"] == keep]
        parts = [f"{row['method']} {row['compressed']:.2f} %" for row in rows]
        tuned_ = [f"{row['fine-tuned']:.2f}" for row in rows]
        fine = "" if "nan" in tuned_ else f"; fine-tuned {', '.join(tuned_)} %"
        said.append(f"At {100 * (1 - keep):.0f} % of the FLOPs removed: {', '.join(parts)}{fine}.")
    told = map(gain_told, layers.loc[layers["method"] == WITH_DATA[-1].name, "certificate"])
    gains = [100 * gain for gain in told if gain is not None]
    if gains:
        said.append(
            f"ReLU-aware: behind the activation the loss of a layer falls by {fmean(gains):.1f} % on average "
            f"({min(gains):.1f} to {max(gains):.1f} %, {len(gains)} layers), on the rows it was fitted to."
        )
    held = layers.assign(ratio=layers["held-out"] / layers["predicted"].clip(lower=1e-9))
    with_data = held[held["method"].isin([way.name for way in WITH_DATA])]
    if len(with_data):
        said.append(
            f"Held-out errors of layers are {with_data['ratio'].median():.2f} times the predicted ones in the median "
            "of the methods that use data."
        )
    return said


def figure(points: pd.DataFrame) -> Figure:
    """Accuracy against removed FLOPs, before and after fine-tuning, one line for each way."""
    means = _means(points)
    with panels(1, 2, sharey=True) as (drawing, axes):
        for panel, stage in zip(axes[0], ("compressed", "fine-tuned"), strict=True):
            for number, way in enumerate(WAYS):
                line = means[means["method"] == way.name].sort_values("FLOPs removed")
                panel.plot(line["FLOPs removed"], line[stage], label=way.name, **look(number))
            panel.set_xlabel("FLOPs removed, %")
            panel.set_title(stage, fontsize=9)
        axes[0, 0].set_ylabel("test accuracy, %")
        axes[0, 0].legend(fontsize=7)
    return drawing


def layer_figure(layers: pd.DataFrame) -> Figure:
    """Held-out error of every layer at the smallest size; BatchNorm has no part in it."""
    smallest = layers[layers["kept FLOPs"] == layers["kept FLOPs"].min()]
    order = list(dict.fromkeys(smallest["site"]))
    with panels(1, 1, (6.0, 2.6)) as (drawing, axes):
        panel = axes[0, 0]
        for number, way in enumerate((TRUNCATIONS[0], *WITH_DATA)):
            line = smallest[smallest["method"] == way.name].groupby("site")["held-out"].mean()
            at = [place for place, site in enumerate(order) if site in line.index]
            panel.plot(at, [line[order[place]] for place in at], label=way.name, linewidth=0.8, **look(number))
        panel.set_xticks(range(len(order)), order, rotation=90, fontsize=6)
        panel.set_ylabel("relative error, held out")
        panel.legend(fontsize=7)
    return drawing
