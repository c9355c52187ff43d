"""What centroid warm-up saves: samples processed until a validation accuracy is reached, with and without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from rankfold.collapse.warmup import class_centroids, warm_up_
from rankfold.papers.collapse.mnist import Case, flat, network, shape_of
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed
from rankfold.papers.writing import Outcome, band, panels
from rankfold.pipeline import Tell
from rankfold.run.errors import UsageError
from rankfold.run.progress import Progress
from rankfold.train import evaluate

NAME = "collapse-warmup"
TARGETS = (0.8, 0.85, 0.9, 0.93, 0.95)


@dataclass(frozen=True)
class Asked:
    """``per_class`` centroids (0: no warm-up), ``steps`` of warm-up; validated every ``every`` steps of training."""

    case: Case
    per_class: int
    steps: int
    every: int

    @property
    def title(self) -> str:
        return f"{self.case.title}-centroids{self.per_class}-steps{self.steps}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """MNIST by default (digits with ``quick``): no warm-up, one centroid for each class, ten, and fifty."""
    request.only(NAME, SMALL)
    quickly = request.quick
    seeds = request.seeds or ((0, 1) if quickly else (0, 1, 2, 3, 4))
    if len(request.decays or ()) > 1:
        raise UsageError(f"{NAME} takes one weight decay, got {len(request.decays or ())}")
    decay = (request.decays or (1e-4,))[0]
    shape = shape_of(
        request,
        {"data": "digits", "width": 32, "images": 2000, "batch": 32, "epochs": 4},
        {"data": "mnist", "width": 256, "images": 10_000, "batch": 128, "epochs": 5},
    )
    settings = ((0, 0), (1, 20), (10, 20)) if quickly else ((0, 0), (1, 20), (1, 50), (10, 50), (50, 50))
    asked = [
        Asked(Case(decay=decay, hidden=3, seed=seed, every=shape["epochs"], **shape), per_class, steps, 5)
        for seed in seeds
        for per_class, steps in settings
    ]
    found = computed(asked, compare, "collapse_warmup.compare", directory, request.jobs, tell)
    table, curves = savings(found)
    return Outcome(
        f"Centroid warm-up on {shape['data']}, {shape['images']} training images, {len(seeds)} seeds",
        {"warmup": table, "curves": curves},
        {"warmup": figure(curves)},
        remarks(table),
        {"shape": shape, "settings": [list(s) for s in settings]},
    )


def compare(asked: Asked, place: Path, progress: Progress) -> dict[str, Any]:
    """Validation accuracy against samples processed; a centroid counts as a sample, k-means by its own passes."""
    case, data = asked.case, flat(asked.case)
    model = network(case, data.train.inputs.shape[1], int(data.classes or 10))
    inputs, labels = data.train.inputs, data.train.labels
    processed, curve = 0, []
    if asked.per_class:
        points = class_centroids(inputs, labels, asked.per_class, seed=case.seed)
        warm_up_(model, points, steps=asked.steps, weight_decay=2 * case.decay)
        processed = asked.steps * len(points.inputs)
        curve.append((processed, evaluate(model, data.validation, role="validation").accuracy))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=2 * case.decay)
    generator = torch.Generator().manual_seed(case.seed)
    step = 0
    for epoch in range(case.epochs):
        progress(asked.title, epoch, case.epochs)
        for part in torch.randperm(len(labels), generator=generator).split(case.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
            optimizer.step()
            processed, step = processed + len(part), step + 1
            if step % asked.every == 0:
                curve.append((processed, evaluate(model, data.validation, role="validation").accuracy))
    return {"curve": curve, "test": evaluate(model, data.test, role="test").accuracy}


def savings(found: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples to each target for every setting: means over the seeds, and the curves."""
    rows, curves = [], []
    for value in found:
        setting = {"per_class": value["case"]["per_class"], "steps": value["case"]["steps"]}
        seed = value["case"]["case"]["seed"]
        for target in TARGETS:
            reached = next((count for count, accuracy in value["curve"] if accuracy >= target), None)
            rows.append(setting | {"seed": seed, "target": target, "samples": reached, "test": value["test"]})
        curves += [setting | {"seed": seed, "samples": n, "accuracy": a} for n, a in value["curve"]]
    table = pd.DataFrame(rows)
    plain: Any = table[table["per_class"] == 0].set_index(["seed", "target"])["samples"].astype(float)
    table["samples"] = table["samples"].astype(float)
    before = [float(plain[row.seed, row.target]) for row in table.itertuples()]
    table["saved"] = 1 - table["samples"] / pd.Series(before)
    grouped = table.groupby(["per_class", "steps", "target"])
    summary = grouped.agg(
        samples=("samples", "mean"), saved=("saved", "mean"), least=("saved", "min"), most=("saved", "max"),
        reached=("samples", "count"), test=("test", "mean"),
    )  # fmt: skip
    return summary.reset_index().astype({"saved": float, "least": float, "most": float}), pd.DataFrame(curves)


def remarks(table: pd.DataFrame) -> list[str]:
    """What is saved, honestly."""
    told = ['Suggested: "approaches to perform a cheap warm-up training"; nothing was measured in the paper.']
    groups: Any = table[table["per_class"] > 0].groupby(["per_class", "steps"])
    for (per_class, steps), part in groups:
        saved = ", ".join(
            f"{100 * row.target:g} %: {100 * row.saved:+.0f} % ({100 * row.least:+.0f} to {100 * row.most:+.0f})"
            for row in part.itertuples()
            if row.saved == row.saved
        )
        told.append(f"{per_class} centroids per class, {steps} steps: samples saved until {saved or 'none reached'}.")
    ends: Any = table.groupby(["per_class", "steps"])["test"].first()
    told.append(
        "Test accuracy at the end: " + ", ".join(f"{k[0]}×{k[1]} {100 * v:.2f} %" for k, v in ends.items()) + "."
    )
    told.append("Samples of k-means itself are not counted; one centroid for each class needs none.")
    return told


def figure(curves: pd.DataFrame) -> Figure:
    """Validation accuracy against samples processed, a line for each seed."""
    with panels(1, 1, (5, 3.4)) as (drawing, axes):
        groups: Any = curves.groupby(["per_class", "steps"])
        for number, ((per_class, steps), part) in enumerate(groups):
            lines = [
                list(zip(each["samples"], 100 * each["accuracy"], strict=True)) for _, each in part.groupby("seed")
            ]
            label = "no warm-up" if per_class == 0 else f"{per_class} per class, {steps} steps"
            band(axes[0, 0], lines, number, label)
        axes[0, 0].set_xscale("log")
        axes[0, 0].set_xlabel("samples processed")
        axes[0, 0].set_ylabel("validation accuracy, %")
        axes[0, 0].set_ylim(60, 100)
        axes[0, 0].legend(fontsize=8)
    return drawing
