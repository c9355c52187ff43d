"""Figures 1 and 20 of the C-DLN paper: how many directions of the penultimate weight training moves, and whether they
stay the same ones, in a deep linear network, an MLP, a VGG and a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from rankfold.papers import quick
from rankfold.papers.recorded import fit_recorded
from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, device, restricted, short
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.run.progress import Progress
from rankfold.sites import sites
from rankfold.train import Recipe
from rankfold.zoo import Data, load_data, resolve
from rankfold.zoo.networks.fcn import FCN
from rankfold.zoo.networks.vit import ViT

NAME = "cdln-updates"
RANK = 10  # r of the leading subspaces
ON_MNIST = ("dln", "mlp")
NETWORKS = (*ON_MNIST, "vgg16-bn", "vit-b")
QUICK = (*ON_MNIST, quick.CONVOLUTIONAL, quick.TRANSFORMER)
SGD = Recipe(
    batch_size=128, optimizer="sgd", learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=0.0,
    schedule="constant", warmup=0.0,
)  # fmt: skip
VGG = replace(SGD, learning_rate=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine")
VIT = replace(SGD, optimizer="adam", batch_size=512, learning_rate=1e-5, schedule="cosine")


@dataclass(frozen=True)
class Case:
    """One training; ``width`` of the fully connected networks, four matrices as in table 1."""

    network: str
    data: str
    epochs: int
    images: int | None
    seed: int
    width: int
    batch: int | None
    rate: float | None

    @property
    def title(self) -> str:
        return f"{short(self.network)}-{self.data}-epochs{self.epochs}-seed{self.seed}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train, and record the penultimate weight after every epoch. VGG and ViT-B want a GPU, or ``--train-samples``.

    ``models`` may name other built-in networks or functions of one's own, trained on CIFAR-10 as VGG is, transformers
    as ViT-B is.
    """
    request.only(NAME, FIXED | {"models", "epochs", "train_samples", "seeds"})
    small: dict[str, Any] = {"width": 64, "batch": 32, "rate": 0.02} if request.quick else {}
    shape = {"width": 784, "batch": None, "rate": None} | small
    cases = [
        Case(
            network,
            quick.DATA if request.quick else "mnist" if network in ON_MNIST else "cifar10",
            request.epochs or (4 if request.quick else 20),
            request.train_samples,
            seed,
            **shape,
        )
        for network in request.models or (QUICK if request.quick else NETWORKS)
        for seed in request.seeds or (0,)
    ]
    found = computed(cases, train, "cdln_updates.train", directory, request.jobs, tell)
    table = summary(found)
    return Outcome(
        "C-DLN, figures 1 and 20: singular values of the update W(t) − W(0) of the penultimate weight, and how far its "
        "leading subspaces move from epoch to epoch",
        {"updates": table, "epochs": _epochs(found)},
        {"figure-1": values_figure(found), "figure-20": distances_figure(found)},
        remarks(table),
        {"rank": RANK, "recipes": {"dln, mlp": SGD.to_dict(), "others": VGG.to_dict(), "transformers": VIT.to_dict()}},
    )


def build(case: Case, data: Data) -> nn.Module:
    """The network before training, a function of the case alone."""
    inputs, classes = next(iter(data.train.batches(1)))[0].numel(), data.classes or 10
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(case.seed)
        match case.network:
            case "dln":
                return deep_linear([inputs, case.width, case.width, case.width, classes])
            case "mlp":
                return FCN(inputs, classes, 4, case.width, batch_norm=False)
            case "vit-b":
                return ViT(12, 12, classes, width=768)
            case _:
                return resolve(case.network, generator=torch.Generator().manual_seed(case.seed)).model


def deep_linear(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers without bias, semi-orthogonal at the start."""
    layers = [nn.Linear(n, m, bias=False) for n, m in pairwise(widths)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(nn.Flatten(), *layers)


def train(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """Train and record; the site is the one before the last."""
    data = restricted(load_data(case.data), case.images, case.seed)
    images = data.train
    network = build(case, data).to(device())
    base = SGD if case.network in ON_MNIST else VIT if isinstance(network, ViT) else VGG
    recipe = replace(
        base,
        epochs=case.epochs,
        batch_size=case.batch or base.batch_size,
        learning_rate=case.rate or base.learning_rate,
        seed=case.seed,
    )
    site = [each.name for each in sites(network)][-2]
    told = Tell(progress).training(case.title)
    history, recorder = fit_recorded(network, images, data.validation, recipe, place, where=site, progress=told)
    values, frame = recorder.singular_values(), recorder.frame()
    updates = values[values["of"] == "update"]
    return {
        "site": site,
        "m": int(frame["m"].iloc[0]),
        "n": int(frame["n"].iloc[0]),
        "values": {f"{epoch:g}": part["value"].tolist() for epoch, part in updates.groupby("epoch")},
        "distances": frame[["epoch", "left_distance", "right_distance", "gap"]].to_dict("list"),
        "validation": history.epochs[-1].validation_accuracy if history.epochs else None,
        "images": len(images),
    }


def summary(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row for each network, at the end of its training."""
    rows = []
    for value in found:
        last = np.array(list(value["values"].values())[-1])
        distances = np.array(value["distances"]["left_distance"][1:], dtype=float)
        rank = min(RANK, value["m"], value["n"])
        rows.append(
            {
                "network": short(value["case"]["network"]),
                "seed": value["case"]["seed"],
                "site": value["site"],
                "values": len(last),
                "≥ 5 % of the largest": int((last >= 0.05 * last[0]).sum()),
                f"energy of {RANK}": float((last[:RANK] ** 2).sum() / (last**2).sum()),
                "distance, first": float(distances[0]) if len(distances) else float("nan"),
                "distance, most later": float(np.nanmax(distances[1:], initial=0.0)),
                "distance, last": float(distances[-1]) if len(distances) else float("nan"),
                "distance, random": rank * (1 - rank / value["m"]),
                "validation": value["validation"],
                "data": value["case"]["data"],
                "images": value["images"],
                "epochs": value["case"]["epochs"],
            }
        )
    return pd.DataFrame(rows)


def _epochs(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Every epoch: the leading values of the update, distances, and the gap behind the subspace."""
    rows = []
    for value in found:
        d = value["distances"]
        for number, epoch in enumerate(d["epoch"]):
            spectrum = value["values"][f"{epoch:g}"]
            rows.append(
                {"network": short(value["case"]["network"]), "seed": value["case"]["seed"], "epoch": epoch}
                | {key: d[key][number] for key in ("left_distance", "right_distance", "gap")}
                | {f"update σ_{i + 1}": spectrum[i] for i in range(min(RANK + 1, len(spectrum)))}
            )
    return pd.DataFrame(rows)


def remarks(table: pd.DataFrame) -> list[str]:
    told = [
        'Published: "gradient descent only updates a small portion of the singular values, while the others remain '
        'small and almost unchanged"; the distance of consecutive subspaces "is very small throughout training".'
    ]
    for row in table.to_dict("records"):
        told.append(
            f"{row['network']} ({row['epochs']} epochs, {row['images']} images of {row['data']}): "
            f"{row['≥ 5 % of the largest']} of {row['values']} values of the update reach a twentieth of the largest, "
            f"ten carry {row[f'energy of {RANK}']:.1%} of its square; subspaces of ten dimensions move by "
            f"{row['distance, first']:.2g} in the first epoch, by at most {row['distance, most later']:.2g} in a later "
            f"one, by {row['distance, last']:.2g} in the last (random ones: {row['distance, random']:.2g})."
        )
    return [*told, "Weights that begin orthogonal have no leading subspace: its first distance says nothing."]


def values_figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Figure 1: singular values of the update against their index, darker towards the end."""
    with panels(1, len(found), (2.7, 2.4)) as (figure, axes):
        for column, value in enumerate(found):
            panel, spectra = axes[0, column], list(value["values"].values())[1:]
            for number, spectrum in enumerate(spectra):
                shade = 0.25 + 0.75 * (number + 1) / len(spectra)
                panel.plot(range(1, len(spectrum) + 1), spectrum, color=colormaps["Blues"](shade), linewidth=1)
            panel.set_xscale("log")
            panel.axvline(RANK, color=colour(1), linewidth=0.8, linestyle=":")
            panel.set_title(f"{short(value['case']['network'])}, {value['site']}", fontsize=9)
            panel.set_xlabel("index")
        axes[0, 0].set_ylabel("σ of W(t) − W(0)")
    return figure


def distances_figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Figure 20: distance of consecutive leading subspaces, of columns (U) and, dashed, of rows (V)."""
    with panels(1, 1, (4.6, 3.0)) as (figure, axes):
        for number, value in enumerate(found):
            d = value["distances"]
            for side, line in (("left", "-"), ("right", "--")):
                name = f"{short(value['case']['network'])}, {'columns' if side == 'left' else 'rows'}"
                points = np.array(d[f"{side}_distance"][1:], dtype=float)
                axes[0, 0].plot(d["epoch"][1:], points, line, color=colour(number), label=name)
        axes[0, 0].set_ylim(0, RANK)
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0, 0].set_xlabel("epoch")
        axes[0, 0].set_ylabel(f"distance of leading subspaces, r = {RANK}")
        axes[0, 0].legend(fontsize=7)
    return figure
