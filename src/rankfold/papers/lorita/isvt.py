"""Tables 2 to 5: networks trained with N = 1, 2, 3, compressed by GSVT and ISVT, fine-tuned once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers import quick
from rankfold.papers.lorita.squeezing import ISVT, Budget, Squeezed, budgets_of, squeeze
from rankfold.papers.published import Row, Table
from rankfold.papers.request import TRAINING, Request, steadied
from rankfold.papers.runs import Trained, device, short
from rankfold.papers.selection import images, tuned
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell
from rankfold.run.errors import UsageError
from rankfold.train import Augment, Recipe
from rankfold.zoo import Data, load_data

QUICK = Request(models=(quick.CONVOLUTIONAL,), depths=(1, 3), decays=(5e-4,), seeds=(0,), epochs=4, finetune_epochs=1)
FULL = Request(depths=(1, 2, 3), decays=(5e-4,), seeds=(0,), epochs=300, finetune_epochs=30, data="cifar10")
RECIPE = Recipe(
    batch_size=128, optimizer="sgd", learning_rate=1e-2, schedule="cosine", warmup=0.0, augment=Augment()
)  # SGD and its rate are the paper's; the decay is not given
STEADY_RATE, STEADY_CLIP = 5e-2, 5.0  # gradients of these networks have norms of 2 to 16: a bound of 1 starves SGD
QUICK_BUDGET = Budget(0.5, 0.5)
COMPARED = 3  # N whose published sizes every other N is compressed to as well

Group = tuple[str, int]


def reproduce(
    name: str, published: Table, request: Request, directory: Path, tell: Tell, full: Request = FULL
) -> Outcome:
    """Every N at its own published sizes and at those of N = 3, so that rows of one size can be compared.

    ``full``: what is asked where nothing is. Without data of its own an experiment needs those of the request.
    """
    request.only(name, TRAINING | {"finetune_epochs", "finetune_rate", *(() if full.data else ("data",))})
    asked = defaults(request, published, full)
    if not asked.quick and asked.data is None:
        raise UsageError(f"{name} has no data of its own: give --data imagefolder:DIR, a folder with train and val")
    data = load_data(quick.DATA if asked.quick else asked.data or "", progress=tell.progress)
    runs, grid = trained(asked, data, directory, tell)
    epochs, models, way = asked.finetune_epochs or 0, asked.models or (), ISVT.at(asked.finetune_rate)
    rows = []
    for (model, depth), group in runs.items():
        budgets = budgets_of([*published.own(depth), *published.own(COMPARED)])
        for budget in (QUICK_BUDGET,) if asked.quick else budgets:
            points = [
                squeeze(run.network().to(device()), run.part(data), way, budget, epochs, directory / "points", tell)
                for run in group
            ]
            rows.append(line(f"{short(model)}, N={depth}", points, row_at(published, model, depth, budget)))
    table = pd.DataFrame(rows)
    return Outcome(
        f"LoRITa on {data.name}: {', '.join(map(short, models))} compressed by GSVT and ISVT, "
        f"{asked.epochs} epochs of training, {epochs} of fine-tuning, {asked.setting} setting",
        {"table": table, "published": rows_of(published), "trainings": grid},
        {"accuracy-against-size": figure(table, published_rows(published, models[0], asked.depths or ()))},
        [*_trainings(runs, published, data), *sentences(table)],
        {"asked": asked.to_dict(), "recipe": recipe_of(asked).to_dict(), "train_images": images(runs, data)},
    )


def defaults(request: Request, published: Table, full: Request = FULL) -> Request:
    """What these tables leave open, filled in."""
    return request.filled(QUICK if request.quick else replace(full, models=(published.model,)))


def recipe_of(asked: Request) -> Recipe:
    recipe = steadied(RECIPE, asked)
    if asked.setting != "paper":
        recipe = replace(recipe, learning_rate=STEADY_RATE, clip_norm=STEADY_CLIP)
    return replace(recipe, augment=None, learning_rate=0.02, batch_size=64) if asked.quick else recipe


def trained(asked: Request, data: Data, directory: Path, tell: Tell) -> tuple[dict[Group, list[Trained]], pd.DataFrame]:
    """The networks that are to be compressed, by model and N, and the table of all trainings."""
    recipe = recipe_of(asked)
    return tuned(asked, recipe, data, directory / "runs", tell)


def row_at(published: Table, model: str, depth: int, budget: Budget) -> Row | None:
    """The published row of this network, N and size."""
    rows = published.own(depth) if model == published.model else ()
    return next((row for row in rows if budgets_of([row]) == (budget,)), None)


def line(network: str, points: Sequence[Squeezed], row: Row | None) -> dict[str, Any]:
    """Test accuracies in per cent (means over the seeds) and what was removed, beside the published row."""
    tuned_ = [point.finetuned for point in points if point.finetuned is not None]
    return {
        "network": network,
        "accuracy": 100 * fmean(point.before for point in points),
        "compressed": 100 * fmean(point.compressed for point in points),
        "fine-tuned": 100 * fmean(tuned_) if tuned_ else math.nan,
        "drop": 100 * fmean(point.final - point.before for point in points),
        "FLOPs removed": 100 * (1 - fmean(point.flops for point in points)),
        "parameters removed": 100 * (1 - fmean(point.params for point in points)),
        "published": math.nan if row is None else row.compressed,
        "published drop": math.nan if row is None else row.drop,
        "seeds": len(points),
    }


def rows_of(published: Table) -> pd.DataFrame:
    """The published table as it stands."""
    return pd.DataFrame([vars(row) for row in published.rows])


def _trainings(runs: dict[Group, list[Trained]], published: Table, data: Data) -> list[str]:
    every = [run for group in runs.values() for run in group]
    fallen = [f"{run.case.name}: {run.collapse}." for run in every if run.collapse is not None]
    said = fallen or [f"None of the {len(every)} trainings collapsed."]
    for (model, depth), group in runs.items():
        if published.own(depth) and model == published.model:
            ours, theirs = 100 * fmean(run.test for run in group), published.own(depth)[0].accuracy
            said.append(
                f"N={depth} before compression: {ours:.2f} % after {group[0].epochs} epochs of "
                f"{images(runs, data):,} training images, {ours - theirs:+.2f} points against the "
                f"published {theirs:.2f} %."
            )
    return said


def sentences(table: pd.DataFrame) -> list[str]:
    """Our accuracy at each published size beside the published one."""
    said = []
    for row in table.to_dict("records"):
        if not math.isnan(row["published"]):
            ours = row["compressed"] if math.isnan(row["fine-tuned"]) else row["fine-tuned"]
            said.append(
                f"{row['network']} at −{row['FLOPs removed']:.1f} % FLOPs and −{row['parameters removed']:.1f} % "
                f"parameters: {ours:.2f} %, published {row['published']:.2f} %; drop "
                f"{row['drop']:.2f} points, published {row['published drop']:.2f}."
            )
    return said


def figure(table: pd.DataFrame, theirs: Mapping[str, Sequence[Row]]) -> Figure:
    """Accuracy against removed parameters and FLOPs, one line for each network; ``theirs``: published rows by label."""
    columns = {"parameters removed": "params_drop", "FLOPs removed": "flops_drop"}
    with panels(1, len(columns), sharey=True) as (drawing, axes):
        for panel, (column, attribute) in zip(axes[0], columns.items(), strict=True):
            for number, (network, group) in enumerate(table.groupby("network", sort=False)):
                ours = group.sort_values(column)
                final = ours["fine-tuned"].fillna(ours["compressed"])
                panel.plot(ours[column], final, label=network, **look(number))
            for number, (label, rows) in enumerate(theirs.items()):
                ordered = sorted((getattr(row, attribute), row.compressed) for row in rows)
                style: Any = look(number) | {"fillstyle": "none", "linestyle": ":"}
                panel.plot(*zip(*ordered, strict=True), label=f"published, {label}", **style)
            panel.set_xlabel(f"{column}, %")
        axes[0, 0].set_ylabel("test accuracy, %")
        axes[0, 0].legend(fontsize=7)
    return drawing


def published_rows(published: Table, model: str, depths: Sequence[int]) -> dict[str, tuple[Row, ...]]:
    """The published rows by N, where it is the published network that was trained."""
    if model != published.model:
        return {}
    return {f"N={depth}": rows for depth in depths if (rows := published.own(depth))}
