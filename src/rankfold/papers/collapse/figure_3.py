"""Figure 3 of the neural-rank-collapse paper: tails of singular values and cluster variation on MNIST, over λ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from rankfold.papers import quick
from rankfold.papers.collapse.bounds import chain_remark
from rankfold.papers.collapse.mnist import TAIL_RANKS, Case, chains, recorded, shape_of, train
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed, time_remark
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell

NAME = "nrc-figure-3"
DECAYS = (1e-5, 1e-4, 5e-4, 1e-3)


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Four values of λ; 10,000 images for 300 epochs unless asked otherwise (all images: ``train_samples`` 55000)."""
    request.only(NAME, SMALL)
    decays, seeds = request.decays or DECAYS, request.seeds or (0,)
    shape = shape_of(
        request,
        {"data": quick.DATA, "width": 24, "epochs": 20, "images": 1000, "batch": 64, "every": 5},
        {"data": "mnist", "width": 256, "epochs": 300, "images": 10_000, "batch": 256, "every": 10},
    )
    if request.quick:
        decays = request.decays or (1e-4, 5e-3)
    cases = [Case(decay=decay, hidden=3, seed=seed, **shape) for seed in seeds for decay in decays]
    found = computed(cases, train, "nrc_mnist.train", directory, request.jobs, tell)
    table = recorded(found)
    return Outcome(
        f"Neural rank collapse, figure 3: {shape['data']}, three hidden layers of {shape['width']}, "
        f"{shape['epochs']} epochs on {shape['images']} images",
        {"figure-3": summary(table, found), "records": table},
        {"figure-3": figure(found, seeds[0]), "distance": following(table)},
        remarks(table, found),
        {"shape": shape, "decays": list(decays), "loss": "mean cross-entropy + λ‖Θ‖², torch weight_decay = 2λ"},
    )


def summary(table: pd.DataFrame, found: list[dict[str, Any]]) -> pd.DataFrame:
    """The last record of every layer beside its first."""
    rows = []
    ends = {(v["case"]["decay"], v["case"]["seed"]): v["end"] for v in found}
    groups: Any = table.groupby(["decay", "seed", "layer"])
    for (decay, seed, layer), part in groups:
        first, last = part.iloc[0], part.iloc[-1]
        end = ends[decay, seed]
        rows.append(
            {
                "decay": decay,
                "seed": seed,
                "layer": layer,
                "tail_k_first": first["to_rank_k"] / first["norm"],
                "tail_k_last": last["to_rank_k"] / last["norm"],
                "stable_rank": last["stable_rank"],
                "numerical_rank": last["numerical_rank"],
                "norm": last["norm"],
                "wcss_class": end["clusters"][layer - 1]["class"]["wcss"],
                "normalised_class": end["clusters"][layer - 1]["class"]["normalised"],
                "wcss_best": end["clusters"][layer - 1]["best"]["wcss"],
                "nc1": last["nc1"],
                "cdnv": last["cdnv"],
                "bound": end["chain"][layer - 1]["bound"],
                "distance": end["chain"][layer - 1]["distance"],
                "validation": last["validation"],
            }
        )
    return pd.DataFrame(rows)


def remarks(table: pd.DataFrame, found: list[dict[str, Any]]) -> list[str]:
    """What the paper claims, and what was found."""
    end = summary(table, found)
    hidden = end[end["layer"] <= 3]  # the last layer has rank at most K anyway
    lighter = int((hidden["tail_k_last"] < hidden["tail_k_first"]).sum())
    told = [
        "Published: while training a bulk of singular values keeps its mass and the tail lightens, the more so the "
        "larger λ; the variation within classes falls after the first epochs, and at the end as a function of λ.",
        f"The tail behind rank K is lighter at the end than at the start in {lighter} of {len(hidden)} hidden layers.",
    ]
    hidden_records: Any = table[table["layer"] <= 3].groupby(["decay", "seed", "layer"])
    falling = [falls(part["epoch"], part["to_rank_k"] / part["norm"]) for _, part in hidden_records]
    told.append(f"In epochs: the tail behind rank K {in_words(falling, 'steps between records')}.")
    told.append(f"The whole tail curve, at every rank: {in_words(_curves(found), 'steps between records')}.")
    for name, column, layers in (
        ("the tail behind rank K", "tail_k_last", (1, 2, 3)),
        ("the normalised class variation entering a layer", "normalised_class", (2, 3, 4)),
        ("the raw class variation entering a layer", "wcss_class", (2, 3, 4)),
    ):
        lines: Any = end[end["layer"].isin(layers)].groupby(["layer", "seed"])
        told.append(
            f"In λ: {name} {in_words([falls(part['decay'], part[column]) for _, part in lines], 'steps of the grid')}."
        )
    pairs = _followed(table)
    if len(pairs) > 3:
        ranks = [
            f"{part['variation'].corr(part['tail'], method='spearman'):.2f} in layer {layer}"
            for layer, part in pairs.groupby("layer")
        ]
        told.append(
            "Over all records after the start and all λ, the distance to rank K over the norm and the normalised class "
            f"variation of what enters the layer have the rank correlation {', '.join(ranks)}; "
            f"{pairs['variation'].corr(pairs['tail'], method='spearman'):.2f} with these layers in one."
        )
    return [*told, chain_remark(chains(found)), time_remark(found)]


@dataclass(frozen=True)
class Falls:
    """Of one series: how many of its steps go down, and the rank correlation with what it is drawn against."""

    down: int
    steps: int
    correlation: float


def falls(along: pd.Series, values: pd.Series) -> Falls:
    """``values`` over ``along``, in any order; −1 is a series that never rises. NaN for a constant or a single one."""
    ordered = pd.DataFrame({"along": along.astype(float), "values": values.astype(float)}).sort_values("along")
    steps = np.diff(ordered["values"].to_numpy())
    return Falls(int((steps < 0).sum()), len(steps), float(ordered["along"].corr(ordered["values"], method="spearman")))


def in_words(found: list[Falls], steps: str) -> str:
    """Several series together; the mean is of those that have a correlation."""
    down, total = sum(each.down for each in found), sum(each.steps for each in found)
    known = [each.correlation for each in found if not np.isnan(each.correlation)]
    if not total:
        return f"has a single value in each of {len(found)} series, and no {steps} to fall in"
    if not known:
        return f"falls in {down} of {total} {steps}, and is constant in each of {len(found)} series"
    return (
        f"falls in {down} of {total} {steps}, rank correlation {np.mean(known):.3f} in the mean of {len(known)} series"
    )


def _curves(found: list[dict[str, Any]]) -> list[Falls]:
    """tail(k) over the epochs, for every hidden layer and rank k that is kept, where it is not 0 or 1 by definition."""
    series = []
    for value in found:
        for curves in list(value["tails"].values())[:3]:
            epochs = pd.Series([float(epoch) for epoch in curves])
            for rank in range(1, len(next(iter(curves.values())))):
                tails = pd.Series([tail[rank] for tail in curves.values()])
                if tails.iloc[0] > 0:
                    series.append(falls(epochs, tails))
    return series


def _followed(table: pd.DataFrame) -> pd.DataFrame:
    part = table[(table["layer"] >= 2) & (table["layer"] <= 3) & (table["epoch"] > 0)]
    return pd.DataFrame(
        {
            "decay": part["decay"],
            "layer": part["layer"],
            "variation": part["normalised_wcss"].astype(float),
            "tail": (part["to_rank_k"] / part["norm"]).astype(float),
        }
    ).dropna()


def figure(found: list[dict[str, Any]], seed: int) -> Figure:
    """Columns: λ. Rows: tail curves of the hidden layers, darker towards the end; below, class variation."""
    shown = [value for value in found if value["case"]["seed"] == seed]
    with panels(4, len(shown), (2.9, 2.1), sharex="row") as (drawing, axes):
        for column, value in enumerate(shown):
            for row, (_site, curves) in enumerate(list(value["tails"].items())[:3]):
                panel = axes[row, column]
                for number, (_, tail) in enumerate(curves.items()):
                    shade = 0.25 + 0.75 * number / max(len(curves) - 1, 1)
                    panel.plot(TAIL_RANKS[: len(tail)], tail, color=colormaps["Blues"](shade), linewidth=1)
                panel.axvline(10, color="#c2571a", linewidth=0.8, linestyle=":")
                panel.set_xscale("symlog", linthresh=10)
                panel.set_xticks([0, 10, 100], ["0", "10", "100"])
                panel.set_ylim(0, 1.02)
                if row == 2:
                    panel.set_xlabel("k")
                if row == 0:
                    panel.set_title(f"λ = {value['case']['decay']:g}", fontsize=9)
                if column == 0:
                    panel.set_ylabel(f"layer {row + 1}: tail(k)")
            frame, panel = pd.DataFrame(value["frame"]), axes[3, column]
            for number, (_, part) in enumerate(frame.groupby("site", sort=False)):
                panel.plot(
                    part["epoch"], part["normalised_wcss"], color=colour(number), linewidth=1.2, label=f"z{number}"
                )
            panel.set_xlabel("epoch")
            panel.set_ylim(0, 1)
        axes[3, 0].set_ylabel("class variation / total")
        axes[3, 0].legend(fontsize=7, ncols=2)
    return drawing


def following(table: pd.DataFrame) -> Figure:
    """The distance of a hidden layer to rank K against the variation: colours are λ, marks are layers."""
    pairs = _followed(table)
    with panels(1, 1, (4.4, 3.4)) as (drawing, axes):
        panel = axes[0, 0]
        for number, (decay, part) in enumerate(pairs.groupby("decay")):
            for mark, (layer, points) in zip("os^D", part.groupby("layer"), strict=False):
                label = f"λ = {decay:g}, layer {layer}"
                panel.plot(points["variation"], points["tail"], mark, color=colour(number), label=label, alpha=0.7)
        panel.set_xlabel("class variation of the features that enter / total")
        panel.set_ylabel("distance to rank K / norm")
        panel.legend(fontsize=7)
    return drawing
