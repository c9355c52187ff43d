"""Figure 2 of the neural-rank-collapse paper: deep linear autoencoders trained on blobs and on their centroids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rankfold.collapse import Partition, chain, squared_error
from rankfold.collapse.centroid import centroids
from rankfold.collapse.theory.linear import linear_bounds, ridge
from rankfold.collapse.theory.transition import threshold_product
from rankfold.linalg import singular_values
from rankfold.papers.collapse.blobs import Cell, Size
from rankfold.papers.collapse.bounds import chain_remark
from rankfold.papers.collapse.descent import chain_network, minimise
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.run.progress import Progress

NAME = "nrc-figure-2"


VARIANCES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
QUICK = Size(3, 60, 6, 8, (1e-2, 1e-1), (0.1, 0.1**0.5), (0,), 400)
CI = Size(5, 200, 10, 20, (1e-3, 1e-2, 3e-2, 1e-1, 3e-1), tuple(v**0.5 for v in VARIANCES), (0,), 2000)


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train every cell twice, and put the products beside ridge and beside the threshold of factor decay."""
    request.only(NAME, SMALL - {"train_samples"})
    size = (QUICK if request.quick else CI).asked(request)
    found = computed(size.cells(), train, "nrc_figure_2.train", directory, request.jobs, tell)
    table = pd.DataFrame([_row(value) for value in found])
    chains = [row for value in found for row in value["chain"]]
    return Outcome(
        f"Neural rank collapse, figure 2: deep linear autoencoders, {size.blobs} blobs, {size.samples} points in "
        f"dimension {size.dimension}, four layers",
        {"figure-2": table, "chain": pd.DataFrame(chains)},
        {"figure-2": figure(table), "products": products(table)},
        remarks(table, chains),
        {"grid": vars(size), "loss": "mean of squared error + decay * (sum of squares of the factors)"},
    )


def train(case: Cell, place: Path, progress: Progress) -> dict[str, Any]:
    """Two linear chains without biases, one trained on the blobs and one on their centroids, and every closed form."""
    data = case.data
    x, blobs = data.points, Partition.of(data.blob)
    points, shares = centroids(x, blobs), blobs.counts.double() / case.samples
    chains: list[dict[str, Any]] = []
    trained = []
    norms = []
    for inputs, weights in ((x, None), (points, shares)):
        model = chain_network(case.widths, "identity", bias=False, seed=case.seed)
        alone = Partition.of(torch.arange(len(inputs))) if weights is not None else blobs

        def record(iterations: int, norm: float, model: nn.Sequential = model, alone: Partition = alone) -> None:
            if alone is blobs:
                found = chain(model, x, x, blobs, 2 * case.decay, squared_error)
                chains.extend(layer.to_dict() for layer in found.layers)

        norm, _ = minimise(
            model, inputs, inputs, case.decay, weights=weights, iterations=case.iterations, record=record
        )
        trained.append(product_of(model))
        norms.append(norm)
    mean = x.mT / case.samples**0.5  # columns, as section 5 has them; sums become means
    centred = (points * shares.sqrt().unsqueeze(1)).mT
    full, small = trained
    bounds = linear_bounds(mean, mean, blobs, case.decay)
    threshold, threshold_centroids = (
        threshold_product(inputs, inputs, 4, case.decay) for inputs in (x, centred.mT * case.blobs**0.5)
    )
    end = ridge(mean, mean, case.decay)
    scale = float(full.norm()) or 1.0
    return {
        "gradients": norms,
        "distance": float((full - small).norm()),
        "to_rank": float(singular_values(full)[case.blobs :].norm()),
        "rank": int((singular_values(full) > 1e-3).sum()),
        "norm": float(full.norm()),
        "ridge_distance": bounds.distance,
        "ridge_printed": bounds.printed,
        "ridge_sharper": bounds.sharper,
        "ridge_norm": bounds.norm,
        "threshold_distance": float((threshold - threshold_centroids).norm()),
        "against_ridge": float((full - end).norm()) / scale,
        "against_threshold": float((full - threshold).norm()) / scale,
        "threshold_norm": float(threshold.norm()),
        "ridge_end_norm": float(end.norm()),
        "chain": chains,
    }


def product_of(model: nn.Sequential) -> Tensor:
    """W_L ⋯ W_1."""
    whole: Tensor | None = None
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach()
            whole = weight if whole is None else weight @ whole
    assert whole is not None
    return whole


def _row(value: dict[str, Any]) -> dict[str, Any]:
    case = value["case"]
    kept = (
        "distance", "threshold_distance", "ridge_distance", "ridge_printed", "ridge_sharper", "against_threshold",
        "against_ridge", "rank", "to_rank", "norm", "threshold_norm", "ridge_norm",
    )  # fmt: skip
    return (
        {"variance": case["sigma"] ** 2}
        | {key: case[key] for key in ("decay", "seed")}
        | {key: value[key] for key in kept}
        | {
            "gradient": max(value["gradients"]),
            "vacuous": value["ridge_printed"] >= value["ridge_norm"],
            "cpu_seconds": value["cpu_seconds"],
        }
    )


def remarks(table: pd.DataFrame, chains: list[dict[str, Any]]) -> list[str]:
    """What the paper claims, and what was found."""
    low = table[table["norm"] > 1e-6]
    nearer = int((low["against_threshold"] < low["against_ridge"]).sum())
    growth = []
    for _, part in table.groupby(["decay", "seed"]):
        part = part[(part["distance"] > 1e-6)].sort_values("variance")
        if len(part) > 1:
            x, y = np.log(part["variance"].to_numpy()), np.log(part["distance"].to_numpy())
            growth.append(float(np.polyfit(x, y, 1)[0]))
    falls = []
    for _, part in table.groupby(["variance", "seed"]):
        values = part.sort_values("decay")["distance"].to_numpy()
        falls += [bool(values[-1] <= values[0] + 1e-9)] if len(values) > 1 else []
    over = int((table["ridge_distance"] > table["ridge_printed"] * (1 + 1e-9)).sum())
    over += int((table["ridge_distance"] > table["ridge_sharper"] * (1 + 1e-9)).sum())
    told = [
        "Published: the distance ‖W − W_C‖ of the products grows quadratically in σ and falls with λ.",
        f"Factor decay is the Schatten threshold, not ridge: of {len(low)} cells with a product above 0 the trained "
        f"product is nearer to the threshold in {nearer}; relative difference {low['against_threshold'].median():.2g} "
        f"against {low['against_ridge'].median():.2g} (medians). The closed form (21) has decay on the product.",
        f"The distance is no larger at the largest λ than at the smallest in {sum(falls)} of {len(falls)} columns"
        f"{'' if falls else ': there is one λ'}.",
        f"Theorem 5.3, printed and sharper, on ridge: {over} violations in {2 * len(table)} comparisons; the printed "
        f"bound is vacuous in {int(table['vacuous'].sum())} of {len(table)} cells.",
        chain_remark(chains),
    ]
    if growth:
        told.insert(
            2,
            f"Growth: the distance goes like (σ²)^s with s between {min(growth):.2f} and {max(growth):.2f} over "
            f"the values of λ, where it is above 1e-6 (quadratic in σ is s = 1).",
        )
    return told


def figure(table: pd.DataFrame) -> Figure:
    """Left: the distance over λ, a line for each σ²; right: over σ², a line for each λ; dashed: the closed forms."""
    mean = table.groupby(["variance", "decay"]).mean(numeric_only=True).reset_index()
    with panels(1, 2, (4.2, 3.4)) as (drawing, axes):
        for panel, along, other, name in (
            (axes[0, 0], "decay", "variance", "λ"),
            (axes[0, 1], "variance", "decay", "σ²"),
        ):
            for number, (value, part) in enumerate(mean.groupby(other)):
                label = f"{'σ²' if other == 'variance' else 'λ'} = {value:.2g}"
                for key, style in (("distance", "o-"), ("threshold_distance", "--"), ("ridge_distance", ":")):
                    shown = part[key].where(part[key] > 1e-8)
                    panel.plot(
                        part[along], shown, style, color=colour(number), label=label if key == "distance" else None
                    )
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel(name)
            panel.legend(fontsize=7)
        axes[0, 0].set_ylabel("‖W − W_C‖")
        axes[0, 0].set_title("solid: trained; dashed: threshold; dotted: ridge", fontsize=8, loc="left")
    return drawing


def products(table: pd.DataFrame) -> Figure:
    """Norm of the trained product beside those of the two closed forms: which of them factor decay follows."""
    with panels(1, 1, (4.2, 3.6)) as (drawing, axes):
        panel = axes[0, 0]
        top = float(table[["norm", "threshold_norm", "ridge_norm"]].to_numpy().max()) * 1.05
        panel.plot([0, top], [0, top], color="#bbbbbb", linewidth=1)
        panel.plot(
            table["threshold_norm"], table["norm"], "o", color=colour(0), label="Schatten threshold (factor decay)"
        )
        panel.plot(table["ridge_norm"], table["norm"], "s", color=colour(1), label="ridge, equation (21)")
        panel.set_xlabel("‖W‖ of the closed form")
        panel.set_ylabel("‖W‖ trained")
        panel.legend(fontsize=8)
    return drawing
