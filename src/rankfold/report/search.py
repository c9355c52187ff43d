"""The picture of a search: every network that was tried, the limit, the one that was chosen."""

from __future__ import annotations

import math

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from rankfold.report.plots import far_apart, percent_axis, power_axis
from rankfold.report.quantities import known, title
from rankfold.report.svg import MUTED, SERIES, STYLE, inline
from rankfold.report.values import FigureKind, SearchShown


def search(shown: SearchShown, kind: FigureKind, sought: str = "flops", called: str = "FLOPs") -> Markup | None:
    """The judging figure over what is kept of what was ``sought``; None where nothing can be drawn."""
    each = [(p.kept_of(sought), p.value, p) for p in shown.points if known(p.value)]
    points = [(kept, value, point) for kept, value, point in each if kept is not None]
    if not points:
        return None
    lines = [value for value in (shown.start, shown.limit) if value > 0]  # where a logarithm has a place for it
    values = [*lines, *(value for _, value, _ in points)]
    along = math.log10 if far_apart(values, kind) else float
    lines = lines if along is math.log10 else [shown.start, shown.limit]
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4))
        axes = figure.add_axes((0.14, 0.15, 0.83, 0.82))
        if shown.start in lines:
            axes.axhline(along(shown.start), color=MUTED, linewidth=1)
        if shown.limit in lines:
            axes.axhline(along(shown.limit), color=MUTED, linewidth=1, dashes=(4, 3))
        for met, mark, colour in ((True, "o", SERIES[0]), (False, "^", SERIES[1])):
            some = [(x, along(y)) for x, y, point in points if point.met is met]
            axes.scatter([x for x, _ in some], [y for _, y in some], s=20, marker=mark, color=colour, linewidths=0)
        chosen = [(x, along(y)) for x, y, point in points if point.chosen]
        axes.scatter(
            [x for x, _ in chosen], [y for _, y in chosen], s=110, facecolors="none", edgecolors=SERIES[0],
            linewidths=1.4,
        )  # fmt: skip
        percent_axis(axes.xaxis)
        if along is math.log10:
            power_axis(axes.yaxis, *axes.get_ylim())
        if kind.unit == "fraction":
            percent_axis(axes.yaxis)
        axes.set_xlabel(f"{called[0].upper()}{called[1:]} kept")
        axes.set_ylabel(kind.name.replace("_", " "))
        label = (
            f"{title(kind)} against kept {called} of {len(points)} networks that were tried; the table has the numbers"
        )
        return inline(figure, "search", label)
