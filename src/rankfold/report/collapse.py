"""The report of rank collapse: plain values in, one self-contained HTML page out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rankfold.report import quantities
from rankfold.report.svg import MUTED, SERIES, STYLE, inline
from rankfold.report.templates import templates

_COLUMNS = 4
_WIDTH = 10.4  # inches: the page's column
_LOWEST = 1e-6  # of a norm: what lies below is drawn there


@dataclass(frozen=True)
class CollapseData:
    """``layers``: what ``rankfold collapse --json`` gives for each layer; ``facts``: (name, text) at the head.

    ``transitions``: weight decays at which directions of the data die, descending; ``decay``: that of the network, or
    None. ``kinds``: what ``classes`` counts. ``conclusion`` is the paragraph; ``skipped`` and ``left_out`` are (name,
    reason).
    """

    title: str
    classes: int
    layers: Sequence[Mapping[str, Any]]
    facts: Sequence[tuple[str, str]]
    conclusion: str
    transitions: Sequence[float] = ()
    transitions_about: str = ""
    decay: float | None = None
    skipped: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    kinds: str = "classes"


def render_collapse(data: CollapseData) -> str:
    """The page: style and pictures inside, no script, nothing fetched; text is escaped."""
    environment = templates()
    environment.filters |= {"decimal": quantities.decimal, "percent": quantities.percent, "times": _ratio}
    figures = [
        (
            "Tails of singular values",
            "What is left of each weight behind rank k, over its norm (equation 22): a collapsed layer falls to 0 "
            f"at the number of {data.kinds} (dotted).",
            _tails(data),
        ),
        (
            "Clusters along the network",
            f"Variation within {data.kinds} and within the best clusters found, over all variation, of the features "
            "that enter each layer; beside it the layer's distance to rank K, over its norm.",
            _depth(data),
        ),
        (
            "Bounds against the truth",
            "Distance of each weight to rank K and what bounds it from above, over the norm of the weight: above 1 a "
            "bound is vacuous. Layers that are too small to have a rank above K are left out.",
            _bounds(data),
        ),
        (
            "When directions die",
            f"Predicted rank of a linear chain on these data against weight decay ({data.transitions_about}).",
            _steps(data),
        ),
    ]
    return environment.get_template("collapse.html.j2").render(
        data=data,
        figures=[(title, text, picture) for title, text, picture in figures if picture is not None],
    )


def _ratio(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return quantities.ABSENT
    return f"{value:.3g}×" if value < 1e4 else f"{value:.1e}×"


def _tails(data: CollapseData) -> Markup:
    rows = -(-len(data.layers) // _COLUMNS)
    columns = min(_COLUMNS, max(len(data.layers), 1))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns, 1.9 * max(rows, 1)), layout="constrained")
        axes = figure.subplots(max(rows, 1), columns, squeeze=False, sharey=True).flatten()
        for panel, layer in zip(axes, data.layers, strict=False):
            norm = layer["tails"][0] or 1.0
            panel.plot([value / norm for value in layer["tails"]], color=SERIES[0])
            panel.axvline(data.classes, color=MUTED, linestyle=":", linewidth=1)
            panel.set_ylim(-0.02, 1.05)
            panel.set_title(f"{layer['site']}  {'×'.join(map(str, layer['shape']))}", fontsize=8, loc="left")
        for panel in axes[len(data.layers) :]:
            panel.set_visible(False)
        return inline(figure, "tails", "Relative error behind each rank, a panel for each layer")


def _depth(data: CollapseData) -> Markup | None:
    known = [layer for layer in data.layers if layer["clusters"] is not None]
    if not known:
        return None
    lines: list[tuple[str, list[float]]] = [
        (f"within {data.kinds}", [_share(layer["clusters"]["classes"]) for layer in known]),
        ("within the best clusters", [_share(layer["clusters"]["best"]) for layer in known]),
        ("distance to rank K", [_beyond(layer, data.classes) for layer in known]),
    ]
    return _lines(
        known, lines, "depth", "Class variation, best variation and distance to rank K along the layers", log=False
    )


def _beyond(layer: Mapping[str, Any], classes: int) -> float:
    """The distance to rank K; of a matrix that is too small to have more it says nothing."""
    return layer["relative_distance_to_k"] if min(layer["shape"]) > classes else math.nan


def _share(views: Mapping[str, Any]) -> float:
    """Of the pooled or whole view, whichever neural collapse is measured on."""
    chosen = views.get("whole") or next(iter(views.values()), None)
    value = None if chosen is None else chosen["normalised"]
    return math.nan if value is None else value


def _bounds(data: CollapseData) -> Markup | None:
    known = [
        layer
        for layer in data.layers
        if layer["bound"] is not None and layer["bound"]["norm"] > 0 and min(layer["shape"]) > data.classes
    ]
    if not known:
        return None

    def over(key: str) -> list[float]:
        values = [layer["bound"][key] for layer in known]
        return [
            math.nan if value is None else max(value / layer["bound"]["norm"], _LOWEST)
            for value, layer in zip(values, known, strict=True)
        ]

    lines = [
        ("theorem 3.4, chain", over("bound")),
        ("chain, before the triangle inequality", over("joint")),
        ("rows of the layer", over("local")),
        ("distance to rank K", over("distance")),
    ]
    return _lines(known, lines, "bounds", "Distance to rank K and three upper bounds, logarithmic", log=True)


def _lines(
    layers: Sequence[Mapping[str, Any]],
    lines: Sequence[tuple[str, Sequence[float]]],
    identity: str,
    label: str,
    *,
    log: bool,
) -> Markup:
    marks, many = "os^D", len(layers) > 6
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.6 if many else 2.9), layout="constrained")  # long names take their part
        panel = figure.subplots()
        for number, (name, values) in enumerate(lines):
            panel.plot(range(len(values)), values, marker=marks[number], markersize=4, color=SERIES[number], label=name)
        if log:
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            if high < 100 * low:  # few powers of ten
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
        else:
            panel.set_ylim(bottom=0)
        names = [str(layer["site"]) for layer in layers]
        panel.set_xticks(range(len(names)), names, rotation=60 if many else 0, ha="right" if many else "center")
        figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=2)
        return inline(figure, identity, label)


def _steps(data: CollapseData) -> Markup | None:
    decays = sorted(value for value in data.transitions if 0 < value < math.inf)
    if not decays:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        panel = figure.subplots()
        own = data.decay if data.decay is not None and math.isfinite(data.decay) else decays[0]
        xs = [min(decays[0], own) / 10, *decays, max(decays[-1], own) * 10]
        ys = [*range(len(decays), -1, -1), 0]
        panel.step(xs, ys, where="post", color=SERIES[0])
        if data.decay is not None and math.isfinite(data.decay):
            panel.axvline(own, color=SERIES[1], linestyle="--", linewidth=1.2)
            panel.annotate("this network", (own, 0), (5, 4), textcoords="offset points", color=SERIES[1], fontsize=8)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("weight decay (torch's, coupled)")
        panel.set_ylabel("predicted rank")
        return inline(figure, "steps", "Predicted rank against weight decay")
