"""The files of a study of robustness: one picture of all networks, a table, and the numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankfold.pipeline.robustness.study import Robustness
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_replaceable

_FILES = "robustness.svg", "robustness.csv", "robustness.json"
COLOURS, MARKS = ("#1b6ca8", "#c2571a", "#3a7d44", "#7b4fa3", "#6b6b6b"), "os^Dv"
TITLES = {"linf": "largest change of an input", "l2": "Euclidean norm of the change"}
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "rankfold", "font.size": 8, "text.parse_math": False}


def write_robustness(found: Mapping[str, Robustness], directory: str | Path) -> tuple[Path, ...]:
    """Write ``robustness.svg``, ``robustness.csv`` and ``robustness.json`` of networks by name; returns their paths.

    ``ValueError`` where one of them would replace a file that no study of robustness wrote."""
    directory = Path(directory)
    check_study(directory)
    values = {name: each.to_dict() for name, each in found.items()}
    told = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    contents = dict(zip(_FILES, (robustness_svg(found), _csv(found), told), strict=True))
    for name, text in contents.items():
        write_atomically(directory / name, text.encode())
    return tuple(directory / name for name in contents)


def check_study(directory: Path) -> None:
    """``ValueError``, before any work, where a study would replace a file that no study of robustness wrote."""
    check_replaceable(directory, _FILES, _is_study, "robustness.json")


def _is_study(held: Any) -> bool:
    return isinstance(held, dict) and all({"clean", "attacks", "layers"} <= set(each) for each in held.values())


def robustness_svg(found: Mapping[str, Robustness]) -> str:
    """Accuracy over the radius, for each norm; of each layer the largest singular value and the condition number."""
    norms = list(dict.fromkeys(attack.norm for each in found.values() for attack in each.attacks))
    with rc_context(_STYLE):
        figure = Figure(figsize=(2.9 * (len(norms) + 2), 2.8), layout="constrained")
        panels = figure.subplots(1, len(norms) + 2, squeeze=False)[0]
        for axes, norm in zip(panels, norms, strict=False):
            _accuracies(axes, found, norm)
        for axes, what, title in zip(
            panels[len(norms) :], ("largest", "condition"), ("σ₁", "condition number"), strict=True
        ):
            _layers(axes, found, what, title)
        panels[0].set_ylabel("right answers, %")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(found), frameon=False
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _accuracies(axes: Axes, found: Mapping[str, Robustness], norm: str) -> None:
    for number, (name, each) in enumerate(found.items()):
        points = [(0.0, each.clean), *((a.radius, a.accuracy) for a in each.attacks if a.norm == norm)]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, [100 * y for y in ys], label=name, **_look(number))
    axes.set_ylim(-2, 102)
    axes.set_xlabel(f"{norm}: {TITLES[norm]}")
    axes.grid(alpha=0.3)


def _layers(axes: Axes, found: Mapping[str, Robustness], what: str, title: str) -> None:
    """Layers by their number in the first network that has most of them."""
    for number, each in enumerate(found.values()):
        values = [getattr(layer, what) for layer in each.layers]
        places = [(i, v) for i, v in enumerate(values, start=1) if 0 < v < inf]
        if places:
            axes.plot(*zip(*places, strict=True), **_look(number))
    axes.set_yscale("log")
    axes.set_xlabel("layer, in the order of the modules")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKS[number % len(MARKS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _csv(found: Mapping[str, Robustness]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("network", "norm", "radius", "accuracy", "samples", "steps", "params"))
    for name, each in found.items():
        writer.writerow((name, "", 0, each.clean, each.samples, each.steps, each.params))
        for attack in each.attacks:
            writer.writerow((name, attack.norm, attack.radius, attack.accuracy, each.samples, each.steps, each.params))
    return buffer.getvalue()
