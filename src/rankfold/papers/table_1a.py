"""Table 1a (MNIST rows) with figures 3 and 6: fully connected networks, N = 1, 2, 3, truncated without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers import quick
from rankfold.papers.published import FCN10_RETAINED, FCN_DECAYS, TABLE_1A
from rankfold.papers.request import Request
from rankfold.papers.runs import Case, Trained
from rankfold.papers.selection import tuned
from rankfold.papers.truncation import FRACTIONS, MEASURES, RULES, Point, curve, decomposed, drop_at, needed
from rankfold.papers.writing import COLOURS, Outcome, against, band, panels
from rankfold.pipeline import Tell, analyse
from rankfold.spectrum import Spectrum
from rankfold.train import Recipe
from rankfold.zoo import Data, load_data

NAME = "lorita-table-1a"
STABLE_DECAYS = (*FCN_DECAYS, 5e-4, 1e-3)  # the paper's grid ends before decay shapes a product of three
DROP = 0.001  # accuracy: "no drop"
FIGURE_6_LAYERS = 2

Runs = Mapping[tuple[str, int], Sequence[Trained]]
Key = tuple[str, int, int]  # model, N, seed


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train, select weight decay on validation, truncate; the test split is seen once, by the final networks."""
    request.only(NAME)
    asked = _defaults(request)
    models, depths, seeds = asked.models or (), asked.depths or (), asked.seeds or ()
    data = load_data(quick.DATA if asked.quick else "mnist")
    recipe = _recipe(asked)

    def case(model: str, depth: int, decay: float, seed: int) -> Case:
        return Case(
            model,
            depth,
            replace(recipe, weight_decay=decay, seed=seed),
            data.name,
            "random" if asked.setting == "paper" else "balanced",
            train_samples=asked.train_samples,
        )

    runs, grid = tuned(case, models, depths, asked.decays or (), seeds, directory / "runs", asked.jobs, tell)
    curves, spectra = _measured(runs, data, FRACTIONS[::4] if asked.quick else FRACTIONS, tell)
    table = pd.DataFrame([_row(runs[key], key, curves) for key in runs])
    drops = pd.DataFrame([line for key, group in runs.items() for line in _drops(key, group, curves)])
    ranks = pd.DataFrame(_rank_rows(spectra, depths))
    points = pd.DataFrame([_point(key, point) for key, line in curves.items() for point in line])
    about: dict[str, Any] = {
        "setting": asked.setting,
        "data": data.name,
        "recipe": recipe.to_dict(),
        "seeds": list(seeds),
    }
    about |= {"train_samples": asked.train_samples or len(data.train), "decays": list(asked.decays or ())}
    return Outcome(
        f"LoRITa, table 1a: fully connected networks on {data.name}, {asked.setting} setting, {recipe.epochs} epochs",
        {"table-1a": table, "drops": drops, "effective-ranks": ranks, "points": points, "trainings": grid},
        {"figure-3": _figure_3(curves, models, depths), "figure-6": _figure_6(spectra, models, depths)},
        _remarks(runs, table, ranks, grid),
        about,
    )


def _defaults(request: Request) -> Request:
    """The request with what it leaves open filled in."""
    if request.quick:
        standard: dict[str, Any] = {"models": (quick.FULLY_CONNECTED,), "depths": (1, 3), "decays": (1e-4, 1e-3)}
        standard |= {"seeds": (0,), "epochs": 6}
    else:
        decays = FCN_DECAYS if request.setting == "paper" else STABLE_DECAYS
        standard = {"models": ("fcn-6", "fcn-8", "fcn-10"), "depths": (1, 2, 3), "decays": decays}
        standard |= {"seeds": (0, 1, 2, 3, 4)}
    return replace(request, **{name: value for name, value in standard.items() if getattr(request, name) is None})


def _recipe(request: Request) -> Recipe:
    from rankfold.induce import LORITA, PAPER_FCN

    recipe = PAPER_FCN if request.setting == "paper" else LORITA
    if request.quick:
        recipe = replace(recipe, batch_size=32)
    return recipe if request.epochs is None else replace(recipe, epochs=request.epochs)


def _measured(
    runs: Runs, data: Data, fractions: Sequence[float], tell: Tell
) -> tuple[dict[Key, list[Point]], dict[Key, dict[str, Spectrum]]]:
    curves, spectra = {}, {}
    for (model, depth), group in runs.items():
        for run in group:
            key, network = (model, depth, run.case.recipe.seed), run.network()
            spectra[key] = {row.site.name: row.spectrum for row in analyse(network)[0]}
            curves[key] = curve(decomposed(network), data.test, fractions=fractions, progress=tell.progress)
    return curves, spectra


def _row(group: Sequence[Trained], key: tuple[str, int], curves: Mapping[Key, list[Point]]) -> dict[str, Any]:
    """A line of the table: means over the seeds; fractions retained are of the paper's measure, in per cent."""
    model, depth = key
    lines = [curves[(*key, run.case.recipe.seed)] for run in group]
    test = [run.test for run in group]
    return {
        "network": _short(model),
        "N": depth,
        "weight decay": f"{group[0].case.recipe.weight_decay:g}",
        "seeds": len(group),
        "collapsed": sum(run.collapse is not None for run in group),
        "accuracy": fmean(test),
        "std": stdev(test) if len(test) > 1 else math.nan,
        "published": TABLE_1A.get(model, {}).get(depth, math.nan),
        "retained, global": 100 * fmean(needed(line, "global", DROP) for line in lines),
        "published retained": 100 * (FCN10_RETAINED.get(depth, math.nan) if model == "fcn-10" else math.nan),
        "retained, local": 100 * fmean(needed(line, "local", DROP) for line in lines),
        "of all values, global": 100 * fmean(needed(line, "global", DROP, "values") for line in lines),
    }


def _drops(key: tuple[str, int], group: Sequence[Trained], curves: Mapping[Key, list[Point]]) -> list[dict[str, Any]]:
    """Points of accuracy lost at round fractions of the singular values: mean and worst over the seeds."""
    lines = [curves[(*key, run.case.recipe.seed)] for run in group]
    rows = []
    for rule in RULES:
        for measure in MEASURES:
            row: dict[str, Any] = {"network": _short(key[0]), "N": key[1], "rule": rule, "measure": measure}
            for percent in (5, 10, 15, 20, 25):
                drops = [100 * drop_at(line, rule, percent / 100, measure) for line in lines]
                row |= {f"{percent} %": fmean(drops), f"{percent} %, worst": max(drops)}
            rows.append(row)
    return rows


def _point(key: Key, point: Point) -> dict[str, Any]:
    model, depth, seed = key
    return {"network": _short(model), "N": depth, "seed": seed} | point.to_dict()


def _rank_rows(spectra: Mapping[Key, dict[str, Spectrum]], depths: Sequence[int]) -> list[dict[str, Any]]:
    """Effective rank of each layer, mean over the seeds, one column for each N."""
    rows = []
    for model in dict.fromkeys(key[0] for key in spectra):
        for layer in next(spectrum for key, spectrum in spectra.items() if key[0] == model):
            means = {
                depth: fmean(s[layer].effective_rank for (m, n, _), s in spectra.items() if (m, n) == (model, depth))
                for depth in depths
            }
            falls = all(means[a] > means[b] for a, b in zip(sorted(depths), sorted(depths)[1:]))
            row: dict[str, Any] = {"network": _short(model), "layer": layer}
            row |= {f"N={depth}": mean for depth, mean in means.items()} | {"falls": falls}
            rows.append(row)
    return rows


def _remarks(runs: Runs, table: pd.DataFrame, ranks: pd.DataFrame, grid: pd.DataFrame) -> list[str]:
    remarks = []
    collapsed = grid[grid["collapse"] != ""]
    for line in collapsed.to_dict("records"):
        where = f"{line['model']}, N={line['N']}, weight decay {line['weight_decay']:g}, seed {line['seed']}"
        remarks.append(f"{where}: {line['collapse']}.")
    if collapsed.empty:
        remarks.append(f"None of the {len(grid)} trainings collapsed.")
    for (model, depth), row in zip(runs, table.to_dict("records"), strict=True):
        sentence = against(
            f"{_short(model)}, N={depth}", row["accuracy"], TABLE_1A.get(model, {}).get(depth), row["seeds"]
        )
        if sentence:
            remarks.append(sentence)
        if not math.isnan(row["published retained"]):
            remarks.append(
                f"{_short(model)}, N={depth}, global truncation: {row['retained, global']:.0f} % of the "
                f"singular values must be retained for a drop of at most 0.1 points, averaged over the matrices as the "
                f"paper counts ({row['of all values, global']:.0f} % of all of them together); the "
                f"paper has {row['published retained']:.0f} %."
            )
    for network, layers in ranks.groupby("network", sort=False):
        rising = list(layers["layer"][~layers["falls"]])
        columns = [column for column in ranks.columns if column.startswith("N=")]
        if len(columns) > 1:
            order = " to ".join(columns)
            where = "every layer" if not rising else f"{len(layers) - len(rising)} of {len(layers)} layers"
            but = f" (not in {', '.join(rising)})" if rising else ""
            remarks.append(f"{network}: effective rank falls from {order} in {where}{but}.")
    remarks.append(
        "Ours differ in what the paper leaves open: part of the training data is kept for validation, which chooses "
        "weight decay (the largest within one standard error of the best) and epoch, where the paper reports the best "
        "test accuracy; and in the recipe, except in the paper's setting."
    )
    return remarks


def _figure_3(curves: Mapping[Key, list[Point]], models: Sequence[str], depths: Sequence[int]) -> Figure:
    """Accuracy drop against retained singular values: local above, global below, one column for each network."""
    with panels(2, len(models), sharex=True, sharey="row") as (figure, axes):
        for column, model in enumerate(models):
            for row, rule in enumerate(RULES):
                panel = axes[row, column]
                for number, depth in enumerate(depths):
                    lines = [
                        [(100 * point.retained, 100 * point.drop) for point in line if point.rule == rule]
                        for (m, n, _), line in curves.items()
                        if (m, n) == (model, depth)
                    ]
                    band(panel, [_on_grid(line) for line in lines], number, f"N={depth}")
                    if rule == "global" and model == "fcn-10" and depth in FCN10_RETAINED:
                        x = 100 * FCN10_RETAINED[depth]
                        panel.axvline(x, color=COLOURS[number], linestyle=":", linewidth=1.2, label=f"paper, N={depth}")
                panel.set_xlim(0, 41)
                panel.set_ylim(-2, 40)
                panel.set_title(f"{_short(model)}, {rule} truncation", fontsize=9)
                panel.legend(fontsize=8)
                if row == 1:
                    panel.set_xlabel("retained singular values, %")
                if column == 0:
                    panel.set_ylabel("drop of test accuracy, points")
    return figure


def _on_grid(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At every whole per cent, the point that retains most within it: a grid that all seeds share."""
    grid: dict[float, float] = {}
    for x, y in line:
        grid[float(math.ceil(x - 1e-6))] = y
    return sorted(grid.items())


def _figure_6(spectra: Mapping[Key, dict[str, Spectrum]], models: Sequence[str], depths: Sequence[int]) -> Figure:
    """Singular values over the largest, of the first two layers; the paper draws fcn-8."""
    model = "fcn-8" if "fcn-8" in models else models[-1]
    with panels(1, FIGURE_6_LAYERS, sharey=True) as (figure, axes):
        layers = list(next(s for (m, *_), s in spectra.items() if m == model))[:FIGURE_6_LAYERS]
        for column, layer in enumerate(layers):
            panel = axes[0, column]
            for number, depth in enumerate(depths):
                lines = [
                    list(enumerate((s[layer].values / s[layer].spectral_norm).clamp_min(1e-6).tolist(), start=1))
                    for (m, n, _), s in spectra.items()
                    if (m, n) == (model, depth) and s[layer].spectral_norm > 0
                ]
                band(panel, lines, number, f"N={depth}", markevery=8)
            panel.set_yscale("log")
            panel.set_ylim(1e-6, 2)
            panel.set_title(f"{_short(model)}, layer {column} ({layer})", fontsize=9)
            panel.set_xlabel("index")
            panel.legend(fontsize=8)
        axes[0, 0].set_ylabel("singular value / largest")
    return figure


def _short(model: str) -> str:
    return model.rpartition(":")[2]
