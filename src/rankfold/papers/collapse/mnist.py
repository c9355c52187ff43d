"""Fully connected networks on MNIST under weight decay, with spectra, clusters and bounds recorded while they train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from rankfold.collapse import CollapseProbe, Partition, chain, cross_entropy, kmeans, scatter_of, transitions
from rankfold.collapse.losses import vectors
from rankfold.papers.collapse.descent import chain_network
from rankfold.papers.recorded import fit_recorded
from rankfold.papers.request import Request
from rankfold.papers.runs import restricted
from rankfold.pipeline import Tell
from rankfold.record import SpectrumRecorder
from rankfold.run.progress import Progress
from rankfold.train import Recipe, evaluate
from rankfold.zoo import Data, Split, load_data

TAIL_RANKS = (*range(11), 12, 14, 17, 20, 25, 30, 40, 50, 65, 80, 100, 130, 170, 220, 300, 500, 1000)
SGD = Recipe(learning_rate=0.05, momentum=0.9, nesterov=False, decay_vectors=True, schedule="cosine", warmup=0.0)
_PROBED = 1024  # training images on which clusters and bounds are recorded


@dataclass(frozen=True)
class Case:
    """``hidden`` layers of ``width`` with tanh, cross-entropy, SGD with coupled decay κ = 2·``decay`` on everything."""

    data: str
    decay: float
    width: int
    hidden: int
    seed: int
    epochs: int
    images: int
    batch: int
    every: int  # epochs between records

    @property
    def title(self) -> str:
        return f"{self.data}-decay{self.decay:.3g}-width{self.width}-hidden{self.hidden}-seed{self.seed}"


def shape_of(request: Request, small: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What all cases of an experiment share: ``small`` of a quick request, else ``usual``, and what is asked for;
    ``images`` as many as there are, at most."""
    shape = small if request.quick else usual
    images = restricted(load_data(shape["data"]), request.train_samples or shape["images"], 0).train
    return shape | {"epochs": request.epochs or shape["epochs"], "images": len(images)}


def flat(case: Case) -> Data:
    """The data of ``case`` with images as rows of numbers; ``images`` of the training split, the same for all."""
    data = restricted(load_data(case.data), case.images, 0)
    return Data(data.name, _rows(data.train), _rows(data.validation), _rows(data.test), data.classes)


def _rows(split: Split) -> Split:
    rows = torch.cat([split.normalize(part).flatten(1) for part in split.inputs.split(4096)])
    return Split(rows, split.labels, split.mean, split.std)


def recipe(case: Case) -> Recipe:
    """Constant momentum, a rate that falls to 0 over the run, so that the end is near a stationary point."""
    recipe = replace(SGD, epochs=case.epochs, batch_size=case.batch, seed=case.seed)
    return replace(recipe, weight_decay=2 * case.decay)


def network(case: Case, inputs: int, classes: int) -> nn.Sequential:
    """Its weights N(0, 1/inputs) in float32, a function of the case alone."""
    widths = (inputs, *(case.width,) * case.hidden, classes)
    return chain_network(widths, "tanh", bias=True, seed=case.seed).float()


def train(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """Train, record every ``every`` epochs, and look closely at the end. Resumable inside ``place``."""
    data = flat(case)
    classes = int(data.classes or 10)
    model = network(case, data.train.inputs.shape[1], classes)
    probe = CollapseProbe(data.train, samples=_PROBED, decay=2 * case.decay)
    told = Tell(progress).training(case.title)
    history, recorder = fit_recorded(
        model, data.train, None, recipe(case), place, every=case.every, probe=probe, progress=told
    )
    frame, tails = recorder.frame(1e-2), _tails(recorder)
    return {
        "frame": frame.astype(object).where(frame.notna(), None).to_dict("records"),
        "tails": tails,
        "validation": evaluate(model, data.validation, role="validation").accuracy,
        "train_loss": history.epochs[-1].train_loss,
        "train_seconds": history.seconds,
        "end": _end(model, data, case),
    }


def _tails(recorder: SpectrumRecorder) -> dict[str, dict[str, list[float]]]:
    """Site → epoch → relative tails at ``TAIL_RANKS`` (equation 22)."""
    values = recorder.singular_values()
    values = values[values["of"] == "weight"]
    found: dict[str, dict[str, list[float]]] = {}
    for (site, epoch), part in values.groupby(["site", "epoch"], sort=False):
        squares = torch.tensor(part["value"].to_numpy()).square()
        rest = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        tails = (rest / rest[0]).sqrt()
        found.setdefault(str(site), {})[f"{epoch:g}"] = [float(tails[rank]) for rank in TAIL_RANKS if rank < len(tails)]
    return found


def _end(model: nn.Sequential, data: Data, case: Case) -> dict[str, Any]:
    """On all training images in float64: the chain, and the best clusters beside those of the classes."""
    inputs, labels = data.train.inputs.double(), data.train.labels
    classes = int(data.classes or 10)
    partition, exact = Partition.of(labels), model.double()
    targets = vectors(labels, classes, inputs.dtype)
    bounds = chain(exact, inputs, targets, partition, 2 * case.decay, cross_entropy)
    clusters = []
    with torch.no_grad():
        value = inputs
        for layer in exact:
            if isinstance(layer, nn.Linear):
                by_class = scatter_of(value, partition).clusters("class")
                part = torch.randperm(len(value), generator=torch.Generator().manual_seed(0))[:2000]
                best = kmeans(value[part], classes, restarts=2)
                centres = scatter_of(value[part], best).means
                nearest = Partition.of(torch.cdist(value, centres).argmin(1))
                found = scatter_of(value, nearest).clusters("k-means")
                clusters.append({"class": by_class.to_dict(), "best": min(by_class, found, key=_wcss).to_dict()})
            value = layer(value)
    predicted = transitions(inputs, targets, case.hidden + 1, loss="cross-entropy")
    return {
        "chain": [layer.to_dict() for layer in bounds.layers],
        "clusters": clusters,
        "predicted_decays": [value / 2 for value in predicted.decays.tolist()],  # λ of λ‖Θ‖²
    }


def _wcss(clusters: Any) -> float:
    return clusters.wcss


def recorded(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Every record of every case: the recorder's columns, the case, the layer's number, the accuracy at the end."""
    tables = []
    for value in found:
        table = pd.DataFrame(value["frame"])
        sites = list(dict.fromkeys(table["site"]))
        table.insert(0, "layer", [sites.index(site) + 1 for site in table["site"]])
        for key in ("seed", "hidden", "width", "decay"):
            table.insert(0, key, value["case"][key])
        table["validation"] = value["validation"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def chains(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chain at every record (float32, on a sample) and at every end (float64, on all images), in one form."""
    rows = []
    for value in found:
        for row in value["frame"]:
            if row["chain_bound"] is not None:
                rows.append(
                    {
                        "distance": row["to_rank_k"],
                        "joint": row["chain_joint"],
                        "bound": row["chain_bound"],
                        "holds": bool(row["chain_holds"]),
                        "vacuous": row["chain_bound"] >= row["norm"],
                        "tightness": row["chain_bound"] / row["to_rank_k"] if row["to_rank_k"] > 0 else None,
                    }
                )
        rows += value["end"]["chain"]
    return rows
