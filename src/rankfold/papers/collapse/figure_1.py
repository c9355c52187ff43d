"""Figure 1 of the neural-rank-collapse paper: Gaussian blobs, an autoencoder, weight decay λ against deviation σ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rankfold.collapse import Partition, chain, critical_decay, kmeans, scatter_of, squared_error
from rankfold.collapse.theory.gaussian import proposition_4_1, scatter_interval
from rankfold.papers.collapse.blobs import Cell, Size
from rankfold.papers.collapse.bounds import chain_remark
from rankfold.papers.collapse.descent import chain_network, minimise
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed
from rankfold.papers.writing import Outcome, panels
from rankfold.pipeline import Tell
from rankfold.run.progress import Progress
from rankfold.spectrum import spectrum

NAME = "nrc-figure-1"
MARGIN = 1.5  # cells nearer to the transition are not judged
BETWEEN = 0.05  # relative distance to rank K: from 0.1 on before the transition, below 0.01 after it


QUICK = Size(3, 60, 6, 8, (1e-3, 3e-2), (0.1, 0.3), (0,), 400)
CI = Size(5, 200, 10, 20, (1e-5, 1e-4, 1e-3, 1e-2, 3e-2), (0.01, 0.1, 0.3, 1.0), (0,), 3000)
FULL = Size(
    10, 1000, 50, 100, tuple(np.logspace(-5, -1, 9).tolist()), tuple(np.logspace(-2, 0, 9).tolist()), (0, 1, 2), 3000
)


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """The grid at the size that two cores do in minutes."""
    return _reproduce(NAME, QUICK if request.quick else CI, request, directory, tell)


def full(request: Request, directory: Path, tell: Tell) -> Outcome:
    """The grid at the size that we take for the paper's: 243 trainings of up to a minute of processor each."""
    return _reproduce(f"{NAME}-full", QUICK if request.quick else FULL, request, directory, tell)


def _reproduce(name: str, size: Size, request: Request, directory: Path, tell: Tell) -> Outcome:
    request.only(name, SMALL - {"train_samples"})
    size = size.asked(request)
    found = computed(size.cells(), train, "nrc_figure_1.train", directory, request.jobs, tell)
    table = pd.DataFrame([_row(value) for value in found])
    chains = [_flat(row) for value in found for moment in value["moments"] for row in moment["chain"]]
    return Outcome(
        f"Neural rank collapse, figure 1: {size.blobs} Gaussian blobs, {size.samples} points in dimension "
        f"{size.dimension}, four layers, hidden width {size.hidden}",
        {"figure-1": table, "layers": _layers(found), "chain": pd.DataFrame(chains)},
        {"figure-1": figure(table)},
        remarks(table, chains),
        {"grid": vars(size), "loss": "mean of squared error + decay * (sum of squares of all parameters)"},
    )


def train(case: Cell, place: Path, progress: Progress) -> dict[str, Any]:
    """One cell, to stationarity; the chain of theorem 3.4 at every record, at the end with the constant as printed."""
    data = case.data
    model = chain_network(case.widths, "tanh", bias=True, seed=case.seed)
    blobs = Partition.of(data.blob)
    moments: list[dict[str, Any]] = []

    def record(iterations: int, norm: float, constants: bool = False) -> None:
        bound = chain(model, data.points, data.points, blobs, 2 * case.decay, squared_error, constants=constants)
        moments.append(
            {"iterations": iterations, "gradient": norm, "chain": [layer.to_dict() for layer in bound.layers]}
        )

    norm, done = minimise(
        model, data.points, data.points, case.decay, iterations=case.iterations, record=record, every=500
    )
    moments.pop()  # the same again, with its constant
    record(done, norm, constants=True)
    with torch.no_grad():
        loss = float(squared_error(model(data.points), data.points).mean())
    spectra = [spectrum(layer.weight.detach()) for layer in model if isinstance(layer, torch.nn.Linear)]
    inputs = scatter_of(data.points, blobs).clusters("blobs")  # of an autoencoder the labels vary as much again
    best = scatter_of(data.points, kmeans(data.points, case.blobs, seed=case.seed)).clusters("k-means")
    covariance = case.sigma**2 * torch.eye(case.dimension, dtype=torch.float64)
    law = scatter_interval(case.samples, case.dimension, case.blobs, case.sigma)
    promise = proposition_4_1(blobs.counts.tolist(), [covariance] * case.blobs, 1.0)
    return {
        "gradient": norm,
        "iterations": done,
        "relative": [s.relative_tail(case.blobs) for s in spectra],
        "stable_ranks": [s.stable_rank for s in spectra],
        "numerical_ranks": [s.numerical_rank(1e-2) for s in spectra],
        "norms": [s.tail(0) for s in spectra],
        "loss": loss,
        "wcss_blobs": inputs.wcss,
        "wcss_best": min(best.wcss, inputs.wcss),
        "law": law,
        "proposition": [promise.bound, promise.probability],
        "moments": moments,
    }


def _row(value: dict[str, Any]) -> dict[str, Any]:
    case = value["case"]
    predicted = critical_decay(4, case["sigma"] ** 2)
    ratio = case["decay"] / predicted
    worst, best = max(value["relative"]), min(value["relative"])
    side = "collapsed" if worst < BETWEEN else "full" if best > BETWEEN else "mixed"
    expected = "collapsed" if ratio > 1 else "full"
    near = 1 / MARGIN < ratio < MARGIN
    return {
        "sigma": case["sigma"],
        "decay": case["decay"],
        "seed": case["seed"],
        "predicted_transition": predicted,
        "decay_over_predicted": ratio,
        "distance_layer_2": value["relative"][1],
        "distance_least": best,
        "distance_most": worst,
        "state": side,
        "as_predicted": None if near else side == expected,
        "rank_layer_2": value["numerical_ranks"][1],
        "stable_rank_layer_2": value["stable_ranks"][1],
        "gradient": value["gradient"],
        "iterations": value["iterations"],
        "wcss_blobs": value["wcss_blobs"],
        "wcss_best": value["wcss_best"],
        "in_law": value["law"][0] <= value["wcss_blobs"] <= value["law"][1],
        "tcv_bound": value["proposition"][0],
        "cpu_seconds": value["cpu_seconds"],
    }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A layer's bounds with the theorem's constant in columns of their own; None where it was not measured."""
    promise = row.get("theorem") or dict.fromkeys(("constant", "variation", "cut", "difference", "value"))
    return {key: value for key, value in row.items() if key != "theorem"} | {
        f"theorem_{key}": value for key, value in promise.items()
    }


def _layers(found: list[dict[str, Any]]) -> pd.DataFrame:
    keys = ("relative", "stable_ranks", "numerical_ranks", "norms")
    return pd.DataFrame(
        [
            {key: value["case"][key] for key in ("sigma", "decay", "seed")}
            | {"layer": layer + 1}
            | {key: value[key][layer] for key in keys}
            for value in found
            for layer in range(len(value["relative"]))
        ]
    )


def remarks(table: pd.DataFrame, chains: list[dict[str, Any]]) -> list[str]:
    """What the paper claims, and what was found."""
    judged = table[table["as_predicted"].notna()]
    right = int(judged["as_predicted"].astype(bool).sum())
    drawn = int(((judged["distance_layer_2"] < BETWEEN) == (judged["decay_over_predicted"] > 1)).sum())
    wrong = judged[~judged["as_predicted"].astype(bool)]
    told = [
        'Published: "a distinct transition between matrices that have effectively rank K, depending both on λ and on '
        'the within-cluster variation of the data"; the figure itself is not at hand.',
        f"Of {len(table)} cells {len(judged)} are at least a factor {MARGIN} from the predicted transition "
        f"λ = .272 σ²; in layer 2, the one drawn, {drawn} of them fall on its predicted side, and {right} in all four "
        f"layers (relative distance to rank K below or above {BETWEEN}).",
    ]
    told.append(apart(judged))
    told += [
        f"Not in all layers: λ = {row.decay:.3g}, σ = {row.sigma:.3g}, seed {row.seed}: {row.state}, distances "
        f"{row.distance_least:.3g} to {row.distance_most:.3g}, gradient {row.gradient:.1e}."
        for row in wrong.itertuples()
    ]
    told.append(chain_remark(chains))
    inside = int(table["in_law"].sum())
    told.append(
        f"The blobs' variation lies inside the χ² law (level 1e-6) in {inside} of {len(table)} cells, and is below "
        f"proposition 4.1's bound (t = 1) in {int((2 * table['wcss_best'] <= table['tcv_bound']).sum())}."
    )
    return told


def apart(judged: pd.DataFrame) -> str:
    """Whether one bound on the distance tells the two sides of the predicted transition apart, in a sentence."""
    beyond, before = (judged[(judged["decay_over_predicted"] > 1) == side] for side in (True, False))
    empty = [side for side, cells in (("beyond", beyond), ("before", before)) if cells.empty]
    if empty:
        return (
            f"None of these cells lies {' or '.join(empty)} the predicted transition: there is nothing to tell apart."
        )
    most, least = beyond["distance_most"].max(), before["distance_least"].min()
    return (
        f"Over all layers of these cells the distance is at most {most:.3g} beyond the predicted transition, at least "
        f"{least:.3g} before it: {'any bound between the two' if most < least else 'no bound'} tells them apart."
    )


def figure(table: pd.DataFrame) -> Figure:
    """Relative distance to rank K of layer 2 over λ and σ, the mean over seeds, with the predicted transition."""
    mean = table.groupby(["decay", "sigma"])["distance_layer_2"].mean().unstack("sigma")
    decays, sigmas = mean.index.to_numpy(), mean.columns.to_numpy()
    with panels(1, 1, (5.2, 4.2)) as (drawing, axes):
        panel = axes[0, 0]
        shown = np.maximum(mean.to_numpy(), 1e-6)
        image = panel.imshow(
            shown, origin="lower", aspect="auto", cmap="viridis", norm=LogNorm(1e-4, 1), interpolation="nearest"
        )
        panel.grid(False)
        panel.set_xticks(range(len(sigmas)), [f"{s:.2g}" for s in sigmas])
        panel.set_yticks(range(len(decays)), [f"{d:.1g}" for d in decays])
        if len(decays) * len(sigmas) <= 40:
            for y, x in np.ndindex(shown.shape):
                colour = "black" if shown[y, x] > 0.05 else "white"
                panel.text(x, y, f"{mean.to_numpy()[y, x]:.2g}", ha="center", va="center", fontsize=8, color=colour)
        fine = np.geomspace(sigmas.min(), sigmas.max(), 200)
        line = [critical_decay(4, s**2) for s in fine]
        rows = np.interp(np.log(line), np.log(decays), np.arange(len(decays)), left=np.nan, right=np.nan)
        columns = np.interp(np.log(fine), np.log(sigmas), np.arange(len(sigmas)))
        panel.plot(columns, rows, color="#d62728", linewidth=2, label="predicted: λ = .272 σ²")
        panel.set_xlabel("σ of the blobs")
        panel.set_ylabel("weight decay λ")
        panel.legend(loc="lower right", frameon=True, fontsize=8)
        drawing.colorbar(image, ax=panel, label="distance of layer 2 to rank K / norm")
    return drawing
