"""Table 1 (MLP rows) and figure 21, left, of the C-DLN paper: a fully connected network on FashionMNIST whose
penultimate layer is ordinary, a deep linear network, or a compressed one.

Not in the paper, found by counting: 784 units a layer give its 1.85, 3.08 and 1.30 million parameters. Its times are
headed "99 % test accuracy" beside test accuracies of 90 %: training accuracy is meant, and measured here.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankfold.files import write_atomically
from rankfold.induce import cdln_, fold_, overparametrize_
from rankfold.papers import quick
from rankfold.papers.request import TRAINING, Request
from rankfold.papers.writing import Outcome, band, panels
from rankfold.pipeline import Tell
from rankfold.train import Progress, Recipe, evaluate, fit
from rankfold.zoo import Data, load_data
from rankfold.zoo.fcn import FCN

NAME = "cdln-mlp"
LAYERS, PENULTIMATE, DEPTH = 4, "hidden.5", 3
RANK_PER_CLASS = 4  # the paper: r̂ = 4 d_y
REACHED = 0.99  # training accuracy
WATCHED = 1000  # validation images after each epoch: all 5,000 would take as long as a short epoch
VARIANTS = ("plain", "dln", "c-dln", "c-dln-gradient")  # the last is ours: subspaces from the gradient of the loss
TITLES = {"plain": "Original", "dln": "DLN", "c-dln": "C-DLN", "c-dln-gradient": "C-DLN, gradient"}
STABLE = Recipe(
    epochs=30, batch_size=128, optimizer="adam", learning_rate=4e-4, weight_decay=0.0, schedule="cosine", warmup=0.0
)
PAPER = replace(
    STABLE, epochs=40, optimizer="sgd", learning_rate=5e-3, momentum=0.0, nesterov=False, schedule="constant"
)
FULL = Request(models=VARIANTS, seeds=(0, 1, 2, 3, 4))
QUICK = Request(models=VARIANTS, seeds=(0, 1), epochs=25)
# accuracy (%) and its deviation, seconds and their deviation, multiply-adds, training memory (MB), parameters (M)
PUBLISHED = {
    "plain": (89.87, 0.216, 83.02, 20.87, 2.370e7, 25.80, 1.850),
    "dln": (90.20, 0.040, 95.82, 12.29, 3.940e7, 35.90, 3.080),
    "c-dln": (90.28, 0.104, 54.85, 2.950, 1.670e7, 21.60, 1.300),
}
Start = Literal["correlation", "gradient", "random"]


@dataclass(frozen=True)
class Case:
    """One training. ``rate_scale`` and ``start`` as in ``cdln_``."""

    variant: str
    recipe: Recipe
    data: str
    width: int
    train_samples: int | None = None
    start: Start = "correlation"
    rate_scale: float = 1.0

    @property
    def name(self) -> str:
        mark = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.variant}-seed{self.recipe.seed}-{mark}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train each variant from each seed, on one thread each; the test split is seen once, by the final networks."""
    request.only(NAME, TRAINING - {"depths", "decays", "tolerance"})
    if request.setting == "relaxed":
        raise ValueError(f"{NAME} has no setting relaxed: there are stable and paper")
    asked = request.filled(QUICK if request.quick else FULL)
    unknown = sorted(set(asked.models or ()) - set(VARIANTS))
    if unknown:
        raise ValueError(f"{NAME} has no model {unknown[0]!r}: there are {', '.join(VARIANTS)}")
    base = PAPER if asked.setting == "paper" else STABLE
    base = replace(base, epochs=asked.epochs or base.epochs, precision=asked.precision or base.precision)
    source, width = (quick.DATA, 64) if asked.quick else ("fashion-mnist", 784)
    base = replace(base, batch_size=32, learning_rate=max(1e-3, base.learning_rate)) if asked.quick else base
    cases = [
        Case(variant, replace(base, seed=seed), source, width, asked.train_samples)
        for seed in asked.seeds or ()
        for variant in asked.models or ()
    ]
    runs = pd.DataFrame(_all(cases, directory / "runs", asked.jobs, tell))
    curves = {variant: list(runs[runs.variant == variant].curve) for variant in asked.models or ()}
    table = summary(runs)
    size = len(_data(cases[0]).train)
    return Outcome(
        f"C-DLN, table 1: MLPs on {source}, {size} training images, {asked.setting} setting, {base.epochs} epochs",
        {"table-1": table, "runs": runs.drop(columns="curve")},
        {"figure-21": _figure(curves)},
        _remarks(table, runs, asked.quick or asked.train_samples is not None),
        {"asked": asked.to_dict(), "recipe": base.to_dict(), "train_images": size, "width": width},
    )


def _data(case: Case) -> Data:
    data = load_data(case.data)
    if case.train_samples is None or case.train_samples >= len(data.train):
        return data
    part = data.train.take(case.train_samples, torch.Generator().manual_seed(case.recipe.seed))
    return Data(data.name, part, data.validation, data.test, data.classes)


def _all(cases: list[Case], directory: Path, jobs: int, tell: Tell) -> list[dict[str, Any]]:
    waiting = [case for case in cases if not (directory / f"{case.name}.json").exists()]
    if len(waiting) < len(cases):
        tell.say(f"{len(cases) - len(waiting)} of {len(cases)} trainings are read back from {directory}")
    if jobs == 1:
        for number, case in enumerate(waiting):
            found = _train(case, directory, tell)
            tell.say(f"{number + 1} of {len(waiting)}, {case.name}: test {100 * found['test']:.2f} %, {_when(found)}")
    elif waiting:
        done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_train)(case, directory, Tell()) for case in waiting
        )
        for number, found in enumerate(done, start=1):
            tell.say(
                f"{number} of {len(waiting)}, {found['variant']}: test {100 * found['test']:.2f} %, {_when(found)}"
            )
    return [json.loads((directory / f"{case.name}.json").read_text(encoding="utf-8")) for case in cases]


def _when(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return f"{100 * REACHED:g} % of the training images never reached"
    return f"{100 * REACHED:g} % of the training images after {found['seconds']:.1f} s"


def build(case: Case, data: Data) -> nn.Module:
    """The network before training: the same first weights for every variant of a seed."""
    seed, inputs = case.recipe.seed, next(iter(data.train.batches(1)))[0].numel()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = FCN(inputs, data.classes or 10, LAYERS, case.width, batch_norm=False)
    generator = torch.Generator().manual_seed(seed)
    if case.variant == "dln":
        overparametrize_(network, DEPTH, PENULTIMATE, start="orthogonal", inner="paper", generator=generator)
    elif case.variant.startswith("c-dln"):
        rank = min(RANK_PER_CLASS * (data.classes or 10), case.width // 4)
        start: Start = "gradient" if case.variant == "c-dln-gradient" else case.start
        given = None if start == "random" else data.train
        cdln_(
            network, PENULTIMATE, rank, depth=DEPTH, data=given, start=start, rate_scale=case.rate_scale,
            generator=generator,
        )  # fmt: skip
    return network


def _train(case: Case, directory: Path, tell: Tell) -> dict[str, Any]:
    torch.set_num_threads(1)
    data = _data(case)
    network = build(case, data)
    batch = next(iter(data.train.batches(case.recipe.batch_size)))
    costs = training_costs(network, batch[0])
    curve: list[tuple[float, float, float]] = []  # CPU seconds, training and validation accuracy
    began = time.process_time()
    told = Tell(tell.progress).training(case.name)

    def watch(progress: Progress) -> None:
        if progress.finished is not None:
            record = progress.finished
            curve.append((time.process_time() - began, record.train_accuracy, record.validation_accuracy or 0.0))
        told(progress)

    watched = data.validation.take(min(WATCHED, len(data.validation)), torch.Generator().manual_seed(0))
    fit(network, data.train, watched, case.recipe, progress=watch)
    fold_(network)
    reached = next((seconds for seconds, accuracy, _ in curve if accuracy >= REACHED), None)
    found = {
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
    write_atomically(directory / f"{case.name}.json", (json.dumps(found) + "\n").encode())
    return found


def training_costs(network: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Of one training step on ``inputs``: multiply-adds of the forward pass for one sample, trained parameters, and
    bytes: parameters, gradients, both moments of Adam, and what the forward pass keeps for the backward pass.
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
        "memory": 4 * weights + sum(kept.values()),
        "params": sum(p.numel() for p in trained),
    }


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Table 1: a row for each variant; means and deviations over the seeds, and the published row."""
    rows = []
    for variant in dict.fromkeys(runs.variant):
        part = runs[runs.variant == variant]
        published = PUBLISHED.get(variant, (float("nan"),) * 7)
        seconds = part.seconds.astype(float)
        rows.append(
            {
                "method": TITLES[variant],
                "seeds": len(part),
                "test %": 100 * part.test.mean(),
                "± test": 100 * part.test.std(),
                "CPU s to 99 %": seconds.mean() if seconds.notna().all() else float("nan"),
                "± s": seconds.std() if seconds.notna().all() else float("nan"),
                "epochs to 99 %": part.epochs.astype(float).mean() if seconds.notna().all() else float("nan"),
                "CPU s an epoch": part.seconds_per_epoch.mean(),
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


def _remarks(table: pd.DataFrame, runs: pd.DataFrame, smaller: bool) -> list[str]:
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
        both = pd.notna(plain["CPU s to 99 %"]) and pd.notna(small["CPU s to 99 %"])
        ratio = plain["CPU s to 99 %"] / small["CPU s to 99 %"] if both else float("nan")
        said.append(
            f"To 99 % of the training images the original takes {ratio:.2f} times the CPU time of {name}."
            if both
            else f"Original or {name}: not every run reached 99 % of the training images; give more epochs."
        )
    if smaller:
        said.append("A smaller experiment than the published one: its accuracies do not compare.")
    said.append(
        "Seconds are CPU time of one thread, validation after each epoch included, on this machine; multiply-adds are "
        "of one sample (the published ones are 12.8 times as many); memory is counted, not measured: parameters, "
        "gradients, moments of Adam, activations."
    )
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
                axes[0, column].set_xlabel("CPU seconds, mean over seeds")
        axes[0, 0].set_ylabel("%")
        axes[0, 1].legend(fontsize=8)
    return figure
