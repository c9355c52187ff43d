"""What an experiment leaves behind: tables as CSV and Markdown, everything as JSON, figures as SVG."""

from __future__ import annotations

import io
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

from rankfold.run.disk.files import write_atomically

COLOURS = ("#1b6ca8", "#c2571a", "#3a7d44", "#7b4fa3", "#6b6b6b")
_MARKS = "os^Dv"
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rankfold",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "text.parse_math": False,
}
_PERCENT = 100.0


@dataclass(frozen=True)
class Outcome:
    """``tables`` by file name, the first of them the one to read; ``remarks`` say where ours differ from the paper's.

    ``figures`` by file name; ``about``: how it was trained and measured, for whoever reads the files later.
    """

    title: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    remarks: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        return next(iter(self.tables.values()))


def write(name: str, outcome: Outcome, directory: Path) -> None:
    """``result.json``, ``result.md``, one CSV for each table, one SVG for each figure."""
    for key, table in outcome.tables.items():
        write_atomically(directory / f"{key}.csv", table.to_csv(index=False, lineterminator="\n").encode())
    for key, figure in outcome.figures.items():
        write_atomically(directory / f"{key}.svg", svg(figure))
    values = {
        "experiment": name,
        "title": outcome.title,
        "about": dict(outcome.about),
        "remarks": list(outcome.remarks),
        "tables": {key: records(table) for key, table in outcome.tables.items()},
        "versions": {package: version(package) for package in ("rankfold", "torch")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    write_atomically(directory / "result.json", (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(directory / "result.md", page(outcome).encode())


def page(outcome: Outcome) -> str:
    """Title, table, remarks and figures, in Markdown."""
    parts = [f"# {outcome.title}", markdown(outcome.table), "\n".join(f"- {remark}" for remark in outcome.remarks)]
    parts += [f"![{key}]({key}.svg)" for key in outcome.figures]
    others = list(outcome.tables)[1:]
    if others:
        parts.append("More numbers: " + ", ".join(f"[{key}.csv]({key}.csv)" for key in others))
    return "\n\n".join(parts) + "\n"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is missing is null."""
    rows = json.dumps(table.to_dict("records"), default=lambda value: value.item())
    return json.loads(rows, parse_constant=lambda name: None)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; numbers as short as they can be read, – where there is none."""
    lines = [[str(column) for column in table.columns]] + [
        [_cell(value) for value in row] for row in table.itertuples(index=False)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table.columns]
    rows = [
        "| " + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)) + " |"
        for line in lines
    ]
    rule = (
        "|" + "|".join("-" * (w + 1) + ":" if n else "-" * (w + 2) for w, n in zip(widths, numeric, strict=True)) + "|"
    )
    return "\n".join([rows[0], rule, *rows[1:]])


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with rc_context(STYLE):
        _plain_ticks(figure)
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def _plain_ticks(figure: Figure) -> None:
    """Numbers at logarithmic axes: matplotlib's own are formulas, and text is not read as formulas here."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                low, high = sorted(axis.get_view_interval())
                if 0 < high < 50 * low:  # few powers of ten
                    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())


@contextmanager
def panels(
    rows: int, columns: int, size: tuple[float, float] = (3.1, 2.6), **kwargs: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure with ``rows`` × ``columns`` axes of ``size`` inches each, in the one style."""
    with rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns + 0.4, size[1] * rows + 0.4), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def colour(number: int) -> str:
    """Of the line of this number; after the last the first again."""
    return COLOURS[number % len(COLOURS)]


def look(number: int) -> dict[str, Any]:
    """Colour and mark of the line of this number: another pair for each of the first 25."""
    return {"color": colour(number), "marker": _MARKS[(number + number // len(COLOURS)) % len(_MARKS)]}


def band(axes: Axes, lines: Sequence[Sequence[tuple[float, float]]], number: int, label: str, **kwargs: Any) -> None:
    """The mean of several curves over the points they share, and thin the curves themselves."""
    for line in lines if len(lines) > 1 else ():
        axes.plot(*zip(*line, strict=True), color=colour(number), linewidth=0.5, alpha=0.45)
    grids: dict[float, list[float]] = {}
    for line in lines:
        for x, y in line:
            grids.setdefault(round(x, 6), []).append(y)
    mean = [(x, sum(ys) / len(ys)) for x, ys in sorted(grids.items()) if len(ys) == len(lines)]
    if mean:
        axes.plot(*zip(*mean, strict=True), label=label, **look(number), **kwargs)


def against(what: str, ours: float, published: float | None, seeds: int) -> str | None:
    """One sentence: our accuracy beside the published one; None where there is nothing to compare."""
    if published is None or math.isnan(ours):
        return None
    difference = _PERCENT * (ours - published)
    if abs(difference) < 0.05:
        how = "as published"
    else:
        side = "above" if difference > 0 else "below"
        how = f"{abs(difference):.1f} points {side} the published {_PERCENT * published:.1f} %"
    return f"{what}: {_PERCENT * ours:.2f} % over {seeds} seed{'s' if seeds > 1 else ''}, {how}."
