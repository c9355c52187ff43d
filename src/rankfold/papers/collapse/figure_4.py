"""Figures 4 and 5 of the neural-rank-collapse paper: the soft rank over width and over depth, for several λ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers import quick
from rankfold.papers.collapse.bounds import chain_remark
from rankfold.papers.collapse.mnist import Case, chains, recorded, shape_of, train
from rankfold.papers.request import SMALL, Request
from rankfold.papers.runs import computed, time_remark
from rankfold.papers.writing import Outcome, band, panels
from rankfold.pipeline import Tell

NAMES: dict[str, str] = {"width": "nrc-figure-4", "hidden": "nrc-figure-5"}
WIDTHS, HIDDEN = (64, 128, 256, 512, 1024), (2, 3, 4, 5, 6, 7, 8)
DECAYS = (3e-4, 1e-3, 3e-3)
MEASURES = {
    "stable_rank": "stable rank",
    "numerical_rank": "values ≥ 1 % of the largest",
    "effective_rank": "effective rank",
}


def width(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Four hidden layers of width 64 to 1024."""
    shapes = [{"width": value, "hidden": 4} for value in ((16, 32) if request.quick else WIDTHS)]
    return _reproduce("nrc-figure-4", "width", shapes, request, directory, tell)


def depth(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Two to eight hidden layers of one width: 256, in ``nrc-figure-5-full`` 1568 as in the paper."""
    return _depth("nrc-figure-5", 256, request, directory, tell)


def depth_full(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Width 1568, twice the input dimension: days on two cores, made for a GPU or a cluster."""
    return _depth("nrc-figure-5-full", 1568, request, directory, tell)


def _depth(name: str, of: int, request: Request, directory: Path, tell: Tell) -> Outcome:
    hidden, of = ((2, 3), 24) if request.quick else (HIDDEN, of)
    return _reproduce(name, "hidden", [{"width": of, "hidden": value} for value in hidden], request, directory, tell)


def _reproduce(
    name: str, along: str, shapes: list[dict[str, Any]], request: Request, directory: Path, tell: Tell
) -> Outcome:
    request.only(name, SMALL)
    decays, seeds = request.decays or ((1e-3, 5e-3) if request.quick else DECAYS), request.seeds or (0,)
    shape = shape_of(
        request,
        {"data": quick.DATA, "epochs": 10, "images": 500, "batch": 64, "every": 5},
        {"data": "mnist", "epochs": 50, "images": 10_000, "batch": 128, "every": 10},
    )
    # the largest λ first: it is what is claimed about, and small networks before large ones
    cases = [
        Case(decay=decay, seed=seed, **shape, **each)
        for decay in sorted(decays, reverse=True)
        for each in shapes
        for seed in seeds
    ]
    found = computed(cases, train, "nrc_mnist.train", directory, request.jobs, tell)
    table = middle(found, along)
    figure_name = NAMES[along].removeprefix("nrc-")
    return Outcome(
        f"Neural rank collapse, {figure_name.replace('-', ' ')}: soft rank of the middle layer over "
        f"{'width' if along == 'width' else 'depth'}, {shape['data']}, {shape['epochs']} epochs",
        {figure_name: table, "records": recorded(found)},
        {figure_name: figure(table, along)},
        remarks(table, along, found),
        {"shape": shape, "decays": list(decays), "loss": "mean cross-entropy + λ‖Θ‖², torch weight_decay = 2λ"},
    )


def middle(found: list[dict[str, Any]], along: str) -> pd.DataFrame:
    """The last record of the middle matrix of every network, and the mean over its hidden square ones."""
    table = recorded(found)
    rows = []
    groups: Any = table.groupby(["decay", along, "seed"])
    for (decay, value, seed), part in groups:
        last = part[part["epoch"] == part["epoch"].max()]
        layers = int(last["layer"].max())
        square = last[(last["layer"] > 1) & (last["layer"] < layers)]
        centre = last[last["layer"] == (layers + 1) // 2].iloc[0]
        rows.append(
            {"decay": decay, along: value, "seed": seed}
            | {measure: float(centre[measure]) for measure in MEASURES}
            | {f"mean_{measure}": float(square[measure].mean()) for measure in MEASURES}
            | {
                "tail_k": centre["to_rank_k"] / centre["norm"],
                "norm": centre["norm"],
                "validation": centre["validation"],
            }
        )
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame, along: str, decay: float, measure: str) -> float:
    """(largest − least) / least of a measure, averaged over seeds, along width or depth at one λ. NaN where the least
    is 0, that of a zero matrix."""
    means = table[table["decay"] == decay].groupby(along)[measure].mean()
    return float(means.max() / means.min() - 1) if means.min() > 0 else math.nan


def _said(spread: float) -> str:
    return "not defined, as a matrix is zero" if math.isnan(spread) else f"{spread:.1%}"


def remarks(table: pd.DataFrame, along: str, found: list[dict[str, Any]]) -> list[str]:
    """What the paper claims, and what was found."""
    word = "width" if along == "width" else "depth"
    told = [
        f'Published: "the rank depends only very mildly on the {word}", more sharply so for larger λ; the rank falls '
        "with λ. How the soft rank is defined there is not at hand: three readings are given."
    ]
    least, most = table[along].min(), table[along].max()
    for decay in sorted(table["decay"].unique(), reverse=True):
        spreads = [
            f"{label} {_said(spread(table, along, decay, prefix + measure))}"
            for prefix, measures in (
                ("", MEASURES),
                ("mean_", {"stable_rank": "mean stable rank of all hidden matrices"}),
            )
            for measure, label in measures.items()
        ]
        told.append(f"λ = {decay:g}, {word} {least} to {most}: largest over least − 1: {', '.join(spreads)}.")
    return [*told, chain_remark(chains(found)), time_remark(found)]


def figure(table: pd.DataFrame, along: str) -> Figure:
    """A panel for each reading of the soft rank, a line for each λ; over width, dashed, what there could be."""
    with panels(1, len(MEASURES), (3.1, 2.9)) as (drawing, axes):
        for panel, (measure, label) in zip(axes[0], MEASURES.items(), strict=True):
            for number, (decay, part) in enumerate(table.groupby("decay")):
                lines = [
                    list(zip(each[along].astype(float), each[measure], strict=True)) for _, each in part.groupby("seed")
                ]
                band(panel, lines, number, f"λ = {decay:g}")
            ticks = sorted(table[along].unique())
            if along == "width":
                panel.set_xscale("log", base=2)
                panel.plot(ticks, ticks, color="#bbbbbb", linewidth=1, linestyle="--", label="full rank")
            panel.set_xticks(ticks, [str(value) for value in ticks])
            panel.set_yscale("log")
            # from the least rank there is, so that a few per cent look like a few per cent
            most = 1.2 * float(table[along].max()) if along == "width" else 2 * float(table[list(MEASURES)].max().max())
            panel.set_ylim(1, max(100.0, most))
            panel.set_title(label, fontsize=9)
            panel.set_xlabel("width" if along == "width" else "hidden layers")
        axes[0, 0].legend(fontsize=8)
    return drawing
