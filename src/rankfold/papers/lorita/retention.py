"""The measurement that tables 1a and 1b share: accuracy of trained networks, and how much of them must be retained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers.lorita.truncation import (
    FRACTIONS,
    MEASURES,
    RULES,
    Decomposed,
    Group,
    Measure,
    Point,
    Rule,
    curve,
    decomposed,
    drop_at,
    needed,
    one_group,
)  # fmt: skip
from rankfold.papers.runs import Trained, device, short
from rankfold.papers.writing import against, band, colour, panels
from rankfold.pipeline import Tell, analyse
from rankfold.run.disk.container import parsed
from rankfold.run.disk.files import write_atomically
from rankfold.run.mark import mark
from rankfold.spectrum import Spectrum
from rankfold.zoo import Data

DROP = 0.001  # of accuracy: what counts as "no drop"
PERCENTS = (5, 10, 15, 20, 25)

Runs = Mapping[tuple[str, int], Sequence[Trained]]
Published = Mapping[str, Mapping[int, float]]
Key = tuple[str, int, int]  # network, N, seed


@dataclass(frozen=True)
class Scope:
    """Which matrices are truncated (``where`` as in ``rankfold.sites``), and which of them are ranked together."""

    where: str | None = None
    group: Group = one_group
    rules: tuple[Rule, ...] = RULES
    measures: tuple[Measure, ...] = MEASURES
    fractions: tuple[float, ...] = FRACTIONS


@dataclass(frozen=True, eq=False)
class Measured:
    """``runs`` by network and N; ``curves`` on the test split and ``spectra`` by layer, for every network, N and seed:
    spectra of the matrices that are truncated.

    ``published``: accuracies by network and N; ``retained``: fractions of the singular values that the text names.
    """

    runs: Runs
    curves: Mapping[Key, list[Point]]
    spectra: Mapping[Key, dict[str, Spectrum]]
    published: Published
    retained: Published

    def lines(self, model: str, depth: int) -> list[list[Point]]:
        """The curves of all seeds."""
        return [self.curves[model, depth, run.case.recipe.seed] for run in self.runs[model, depth]]


def measure(runs: Runs, data: Data, scope: Scope, published: Published, retained: Published, tell: Tell) -> Measured:
    """Truncate every network at every fraction. The test split is seen here for the first time."""
    curves, spectra = {}, {}
    for (model, depth), group in runs.items():
        for run in group:
            key = (model, depth, run.case.recipe.seed)
            network = run.network()
            known = decomposed(network.to(device()), scope.where)
            rows, _ = analyse(network)
            spectra[key] = {row.site.name: row.spectrum for row in rows if row.site.name in known.matrices}
            curves[key] = _curve(known, run, data, scope, tell)
    return Measured(runs, curves, spectra, published, retained)


def _curve(known: Decomposed, run: Trained, data: Data, scope: Scope, tell: Tell) -> list[Point]:
    """The curve of one network, read back where it was measured before."""
    asked = [data.name, len(data.test), scope.where, scope.group.__name__]
    asked += [scope.rules, scope.measures, scope.fractions]
    file = run.weights.with_name(f"curve-{mark(asked)}.json")
    if file.exists():
        return [Point(**point) for point in parsed(file.read_bytes())]
    found = curve(known, data.test, scope.rules, scope.fractions, scope.group, scope.measures, progress=tell.progress)
    write_atomically(file, (json.dumps([asdict(point) for point in found]) + "\n").encode())
    return found


def tables(name: str, found: Measured, grid: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All of them by file name, the one to read first under ``name``; ``grid`` of all trainings."""
    first = {name: table(found), "drops": drops(found), "effective-ranks": ranks(found)}
    return first | {"points": points(found), "trainings": grid}


def table(found: Measured) -> pd.DataFrame:
    """A line for each network and N: means over the seeds.

    ``retained``: per cent of the singular values of each matrix, averaged over the matrices as the paper counts, that
    must be kept for a drop of at most 0.1 points; ``of all values`` counts those of all matrices together.
    """
    return pd.DataFrame([_row(found, model, depth) for model, depth in found.runs])


def _row(found: Measured, model: str, depth: int) -> dict[str, Any]:
    group, lines = found.runs[model, depth], found.lines(model, depth)
    test = [run.test for run in group]
    row = {
        "network": short(model),
        "N": depth,
        "weight decay": f"{group[0].case.recipe.weight_decay:g}",
        "seeds": len(group),
        "collapsed": sum(run.collapse is not None for run in group),
        "accuracy": fmean(test),
        "std": stdev(test) if len(test) > 1 else math.nan,
        "published": found.published.get(model, {}).get(depth, math.nan),
    }
    for rule in sorted({point.rule for point in lines[0]}):
        row[f"retained, {rule}"] = 100 * fmean(needed(line, rule, DROP) for line in lines)
    row["published retained"] = 100 * found.retained.get(model, {}).get(depth, math.nan)
    row["of all values, global"] = 100 * fmean(needed(line, "global", DROP, "values") for line in lines)
    return row


def drops(found: Measured) -> pd.DataFrame:
    """Points of accuracy lost at round fractions of the singular values: mean and worst over the seeds."""
    rows = []
    for model, depth in found.runs:
        lines = found.lines(model, depth)
        for rule in sorted({point.rule for point in lines[0]}):
            for kind in MEASURES:
                row: dict[str, Any] = {"network": short(model), "N": depth, "rule": rule, "measure": kind}
                for percent in PERCENTS:
                    lost = [100 * drop_at(line, rule, percent / 100, kind) for line in lines]
                    row |= {f"{percent} %": fmean(lost), f"{percent} %, worst": max(lost)}
                rows.append(row)
    return pd.DataFrame(rows)


def points(found: Measured) -> pd.DataFrame:
    """Every point of every curve."""
    return pd.DataFrame(
        {"network": short(model), "N": depth, "seed": seed} | point.to_dict()
        for (model, depth, seed), line in found.curves.items()
        for point in line
    )


def ranks(found: Measured) -> pd.DataFrame:
    """Effective rank of each layer, mean over the seeds, one column for each N; ``falls``: from each N to the next."""
    rows = []
    for model in dict.fromkeys(model for model, _ in found.runs):
        depths = sorted(depth for name, depth in found.runs if name == model)
        for layer in next(values for key, values in found.spectra.items() if key[0] == model):
            means = {
                depth: fmean(s[layer].effective_rank for key, s in found.spectra.items() if key[:2] == (model, depth))
                for depth in depths
            }
            row: dict[str, Any] = {"network": short(model), "layer": layer}
            row |= {f"N={depth}": mean for depth, mean in means.items()}
            row["falls"] = all(means[a] > means[b] for a, b in pairwise(depths))
            rows.append(row)
    return pd.DataFrame(rows)


def remarks(found: Measured, grid: pd.DataFrame) -> list[str]:
    """What a reader must know, collapsed trainings first: where ours differ from the published numbers."""
    said = list(_collapsed(grid))
    for (model, depth), row in zip(found.runs, table(found).to_dict("records"), strict=True):
        published = found.published.get(model, {}).get(depth)
        said += filter(None, [against(f"{short(model)}, N={depth}", row["accuracy"], published, row["seeds"])])
        if not math.isnan(row["published retained"]):
            said.append(
                f"{short(model)}, N={depth}, global truncation: {row['retained, global']:.1f} % of the singular values "
                f"of a matrix must be retained on average for a drop of at most {100 * DROP:.1f} points "
                f"({row['of all values, global']:.1f} % of all values together); the paper has "
                f"{row['published retained']:.0f} %."
            )
    ranked = ranks(found)
    depths = [column for column in ranks(found).columns if column.startswith("N=")]
    for network, layers in ranked.groupby("network", sort=False) if len(depths) > 1 else ():
        rising = list(layers["layer"][~layers["falls"]])
        where = f"{len(layers) - len(rising)} of {len(layers)} layers" if rising else "every layer"
        but = f" (not in {', '.join(rising)})" if rising else ""
        said.append(f"{network}: effective rank falls from {' to '.join(depths)} in {where}{but}.")
    said.append(
        "In what the paper leaves open, ours differ: part of the training data is kept for validation, which chooses "
        "weight decay (the largest that loses no more accuracy than is tolerated) and epoch, where the paper reports "
        "the best test accuracy; epochs, batch size and schedule are ours, and in the stable setting the start."
    )
    return said


def _collapsed(grid: pd.DataFrame) -> Iterator[str]:
    fallen = grid[grid["collapse"] != ""]
    for run in fallen.to_dict("records"):
        where = f"{run['model']}, N={run['N']}, weight decay {run['weight_decay']:g}, seed {run['seed']}"
        yield f"{where}: {run['collapse']}."
    if fallen.empty:
        yield f"None of the {len(grid)} trainings collapsed."


def retention_figure(found: Measured, models: Sequence[str], rules: Sequence[Rule] = RULES) -> Figure:
    """Accuracy drop against retained singular values: a row for each rule, a column for each network."""
    with panels(len(rules), len(models), sharex=True, sharey=True) as (figure, axes):
        for column, model in enumerate(models):
            for row, rule in enumerate(rules):
                panel = axes[row, column]
                for number, depth in enumerate(depth for name, depth in found.runs if name == model):
                    lines = [
                        _on_grid([(100 * point.retained, 100 * point.drop) for point in line if point.rule == rule])
                        for line in found.lines(model, depth)
                    ]
                    band(panel, lines, number, f"N={depth}")
                    known = found.retained.get(model, {}).get(depth)
                    if rule == "global" and known is not None:
                        label = f"paper: no drop, N={depth}"
                        panel.axvline(100 * known, color=colour(number), linestyle=":", linewidth=1.2, label=label)
                panel.set_xlim(0, 41)
                panel.set_ylim(-2, 42)
                panel.set_title(f"{short(model)}, {rule} truncation", fontsize=9)
                panel.legend(fontsize=8)
            axes[-1, column].set_xlabel("retained singular values, %")
        for row in range(len(rules)):
            axes[row, 0].set_ylabel("drop of test accuracy, points")
    return figure


def _on_grid(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At every whole per cent the point that retains most within it: a grid that all seeds share."""
    grid: dict[float, float] = {}
    for x, y in line:
        grid[float(math.ceil(x - 1e-6))] = y
    return sorted(grid.items())
