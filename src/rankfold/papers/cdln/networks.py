"""Table 1 and figure 21 of the C-DLN paper: accuracy, time, multiply-adds, memory and parameters of its networks.

Its times are headed "99 % test accuracy" beside test accuracies of 90 %: training accuracy is meant, and measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankfold.induce import fold_
from rankfold.papers import quick
from rankfold.papers.cdln.families import FAMILIES, VARIANTS, Case, Published, build
from rankfold.papers.request import TRAINING, Request
from rankfold.papers.runs import device, one_thread, restricted
from rankfold.papers.writing import Outcome, band, panels
from rankfold.pipeline import Tell
from rankfold.run.cells import Kept, run_cells
from rankfold.run.errors import UsageError
from rankfold.train import Progress, evaluate, fit
from rankfold.zoo import load_data

REACHED = 0.99  # training accuracy
WATCHED = 1000  # validation images after each epoch: all 5,000 would take as long as a short epoch
TITLES = {"plain": "Original", "dln": "DLN", "c-dln": "C-DLN", "c-dln-gradient": "C-DLN, gradient"}
FULL = Request(models=VARIANTS, seeds=(0, 1, 2, 3, 4))
QUICK = Request(models=VARIANTS, seeds=(0, 1))


def _reproduce(family: str, request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train each variant from each seed, on one thread each; the test split is seen once, by the final networks."""
    experiment, kind = f"cdln-{family}", FAMILIES[family]
    request.only(experiment, TRAINING - {"depths", "decays", "tolerance"})
    if request.setting == "relaxed":
        raise UsageError(f"{experiment} has no setting relaxed: there are stable and paper")
    asked = request.filled(replace(QUICK, epochs=kind.quick_epochs) if request.quick else FULL)
    unknown = sorted(set(asked.models or ()) - set(VARIANTS))
    if unknown:
        raise UsageError(f"{experiment} has no model {unknown[0]!r}: there are {', '.join(VARIANTS)}")
    base = kind.paper if asked.setting == "paper" else kind.stable
    base = replace(base, epochs=asked.epochs or base.epochs, precision=asked.precision or base.precision)
    source, width, depth = kind.data, kind.width, kind.depth
    if asked.quick:
        source, width, depth = quick.DATA, *((64, depth) if family == "mlp" else (16, 2))
        base = replace(base, batch_size=32, learning_rate=max(1e-3, base.learning_rate))
    cases = [
        Case(family, variant, replace(base, seed=seed), source, width, depth, asked.train_samples)
        for seed in asked.seeds or ()
        for variant in asked.models or ()
    ]
    kept = Kept(_train, directory / "runs", {}, "{}.json", words=_said)
    found = run_cells(cases, kept, asked.jobs, what="trainings", progress=tell.progress, say=tell.say)
    # of the cell, not of the table; cells of the first release have none
    runs = pd.DataFrame(found).drop(columns=["case", "cpu_seconds", "wall_seconds"], errors="ignore")
    curves = {variant: list(runs[runs.variant == variant].curve) for variant in asked.models or ()}
    table = summary(runs, kind.published)
    size = len(restricted(load_data(source), asked.train_samples, 0).train)
    return Outcome(
        f"C-DLN, table 1: {kind.title} on {source}, {size} training images, {asked.setting} setting, {base.epochs} "
        "epochs",
        {"table-1": table, "runs": runs.drop(columns="curve")},
        {"figure-21": _figure(curves)},
        _remarks(table, asked.quick or asked.train_samples is not None),
        {"asked": asked.to_dict(), "recipe": base.to_dict(), "train_images": size, "width": width},
    )


mlp = partial(_reproduce, "mlp")  # four matrices of width 784 on FashionMNIST
vit = partial(_reproduce, "vit")  # six blocks of width 512 on CIFAR-10: for a GPU


def _said(found: dict[str, Any]) -> str:
    when = "never reached" if found["seconds"] is None else f"after {found['seconds']:.1f} s"
    return f"test {100 * found['test']:.2f} %, {100 * REACHED:g} % of the training images {when}"


@one_thread()
def _train(case: Case, place: Path, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    data = restricted(load_data(case.data), case.train_samples, case.recipe.seed)
    network = build(case, data).to(device())
    batch = next(iter(data.train.batches(case.recipe.batch_size)))
    moments = 2 if case.recipe.optimizer != "sgd" else int(case.recipe.momentum > 0)
    costs = training_costs(network, batch[0].to(device()), moments)
    curve: list[tuple[float, float, float]] = []  # seconds, training and validation accuracy
    clock = time.perf_counter if device().type == "cuda" else time.process_time
    began = clock()
    told = Tell(progress).training(case.title)

    def watch(now: Progress) -> None:
        if now.finished is not None:
            record = now.finished
            curve.append((clock() - began, record.train_accuracy or 0.0, record.validation_accuracy or 0.0))
        told(now)

    watched = data.validation.take(min(WATCHED, len(data.validation)), torch.Generator().manual_seed(0))
    fit(network, data.train, watched, case.recipe, progress=watch)
    fold_(network)
    reached = next((seconds for seconds, accuracy, _ in curve if accuracy >= REACHED), None)
    return {
        "variant": case.variant,
        "seed": case.recipe.seed,
        "test": evaluate(network, data.test, role="test").accuracy,
        "validation": evaluate(network, data.validation, role="validation").accuracy,
        "seconds": reached,
        "epochs": next((i for i, (_, accuracy, _) in enumerate(curve, 1) if accuracy >= REACHED), None),
        "seconds_per_epoch": curve[-1][0] / len(curve),
        **costs,
        "curve": curve,
    }


def training_costs(network: nn.Module, inputs: Tensor, moments: int = 2) -> dict[str, int]:
    """Of one training step on ``inputs``: multiply-adds of the forward pass for one sample, trained parameters, and
    bytes: parameters, gradients, ``moments`` of the optimizer, and what the forward pass keeps for the backward pass.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    own = {p.data_ptr() for p in trained}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), FlopCounterMode(display=False) as counter:
        output = network(inputs)  # alive, so that no storage is counted twice
    weights = sum(p.numel() * p.element_size() for p in trained)
    del output
    return {
        "macs": counter.get_total_flops() // 2 // len(inputs),
        "memory": (2 + moments) * weights + sum(kept.values()),
        "params": sum(p.numel() for p in trained),
    }


def summary(runs: pd.DataFrame, known: Mapping[str, Published]) -> pd.DataFrame:
    """Table 1: a row for each variant; means and deviations over the seeds, and the published row."""
    rows = []
    for variant in dict.fromkeys(runs.variant):
        part = runs[runs.variant == variant]
        published = known.get(variant, (float("nan"),) * 7)
        seconds = part.seconds.astype(float)
        rows.append(
            {
                "method": TITLES[variant],
                "seeds": len(part),
                "test %": 100 * part.test.mean(),
                "± test": 100 * part.test.std(),
                "s to 99 %": seconds.mean() if seconds.notna().all() else float("nan"),
                "± s": seconds.std() if seconds.notna().all() else float("nan"),
                "epochs to 99 %": part.epochs.astype(float).mean() if seconds.notna().all() else float("nan"),
                "s an epoch": part.seconds_per_epoch.mean(),
                "MACs": int(part.macs.iloc[0]),
                "memory MB": part.memory.iloc[0] / 1e6,
                "params M": part.params.iloc[0] / 1e6,
                "published test %": published[0],
                "published s": published[2],
                "published MACs": published[4],
                "published MB": published[5],
                "published params M": published[6],
            }
        )
    return pd.DataFrame(rows)


def _remarks(table: pd.DataFrame, smaller: bool) -> list[str]:
    rows = {row["method"]: row for row in table.to_dict("records")}
    said = []
    plain = rows.get(TITLES["plain"])
    for name in (TITLES["c-dln"], TITLES["c-dln-gradient"]):
        small = rows.get(name)
        if plain is None or small is None:
            continue
        difference = small["test %"] - plain["test %"]
        side = "above" if difference >= 0 else "below"
        said.append(f"{name} lies {abs(difference):.2f} points {side} the original on the test split.")
        both = pd.notna(plain["s to 99 %"]) and pd.notna(small["s to 99 %"])
        ratio = plain["s to 99 %"] / small["s to 99 %"] if both else float("nan")
        said.append(
            f"To 99 % of the training images the original takes {ratio:.2f} times the time of {name}."
            if both
            else f"Original or {name}: not every run reached 99 % of the training images; give more epochs."
        )
    if smaller:
        said.append("A smaller experiment than the published one: its accuracies do not compare.")
    clock = "by the clock, on a GPU" if device().type == "cuda" else "of processor time, one thread"
    said.append(
        f"Seconds are {clock}, validation after each epoch included; multiply-adds are of one sample; memory is "
        "counted, not measured: parameters, gradients, the optimizer's moments, activations."
    )
    if plain is not None and not smaller and plain["published MACs"] > 0:
        said.append(f"The published multiply-adds are {plain['published MACs'] / plain['MACs']:.1f} times as many.")
    return said


def _figure(curves: dict[str, list[list[tuple[float, float, float]]]]) -> Figure:
    """Figure 21, left: validation accuracy over time, with training accuracy beside it."""
    with panels(1, 2, size=(3.6, 2.8)) as (figure, axes):
        for number, (variant, runs) in enumerate(curves.items()):
            for column, (index, title) in enumerate(((2, "validation"), (1, "training"))):
                mean = [sum(point[0] for point in points) / len(points) for points in zip(*runs)]
                lines = [[(x, 100 * point[index]) for x, point in zip(mean, run)] for run in runs]
                band(axes[0, column], lines, number, TITLES[variant], markevery=5)
                axes[0, column].set_title(f"{title} accuracy", fontsize=9)
                axes[0, column].set_xlabel("seconds, mean over seeds")
        axes[0, 0].set_ylabel("%")
        axes[0, 1].legend(fontsize=8)
    return figure
