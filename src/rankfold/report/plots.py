"""The report's pictures. No text of the user's is drawn: names stand in the page, where they are escaped."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from rankfold.report.quantities import decimal, known, percent, title
from rankfold.report.summary import error_ratio
from rankfold.report.svg import FILL, INK, MUTED, SERIES, STYLE, inline
from rankfold.report.values import CurvePoint, FigureKind, LayerRow, ReportData

MARKERS = "os^DvP"
MARKS = "●■▲◆▼✚"  # the same, for a legend in text
_FAINTEST = 1e-6  # of the largest singular value: what lies below is drawn there
_MOST_POINTS = 400  # of one spectrum
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def spectra(layers: Sequence[LayerRow]) -> list[Markup | None]:
    """A small picture for every layer: singular values over the largest, log scale, the kept rank marked.

    All share the vertical scale, so that they can be compared. None where there is nothing to draw.
    """
    curves = [_relative(row.spectrum) for row in layers]
    lowest = min((min(curve) for curve in curves if curve), default=-1.0)
    floor = min(-1, math.floor(lowest))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.0, 1.55))
        axes = figure.add_axes((0.13, 0.17, 0.84, 0.76))
        step = max(1, round(-floor / 3))
        axes.yaxis.set_major_locator(FixedLocator(range(0, floor - 1, -step)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: _power_of_ten(power)))
        axes.set_ylim(floor - 0.05 * abs(floor), 0.08 * abs(floor))
        return [
            _spectrum(figure, axes, row, curve, number) if curve else None
            for number, (row, curve) in enumerate(zip(layers, curves, strict=True))
        ]


def _spectrum(figure: Figure, axes: Axes, row: LayerRow, curve: list[float], number: int) -> Markup:
    count = len(curve)
    stride = math.ceil(count / _MOST_POINTS)
    indices = sorted({*range(0, count, stride), count - 1})
    line = axes.plot([i + 1 for i in indices], [curve[i] for i in indices], color=SERIES[0])
    drawn: list[Artist] = [*line]
    if count == 1:
        line[0].set_marker("o")
    ticks = {1, count}
    if row.rank is not None:
        drawn += axes.plot([row.rank] * 2, axes.get_ylim(), color=SERIES[1], linewidth=1.2)
        drawn.append(axes.axvspan(1, max(1, row.rank), color=FILL, linewidth=0))
        ticks = {tick for tick in ticks if abs(tick - row.rank) > 0.12 * count} | {row.rank}
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.set_xlim(1 - 0.02 * count, max(count, row.rank or 0) * 1.02 + (count == 1))
    result = "kept whole" if row.rank is None else f"rank {row.rank} of {row.full_rank} kept"
    picture = inline(
        figure,
        f"spectrum-{number}",
        f"Singular values of {row.name}: {count} from {decimal(row.spectrum[0])} to "
        f"{decimal(row.spectrum[count - 1])}, {result}",
    )
    for artist in drawn:
        artist.remove()
    return picture


def errors(layers: Sequence[LayerRow]) -> Markup | None:
    """Measured over predicted error of every layer, log scales, the diagonal drawn; layers by their number."""
    points = [
        (number, math.log10(row.predicted_error or 1), math.log10(row.measured_error or 1))
        for number, row in enumerate(layers, start=1)
        if error_ratio(row) is not None
    ]
    if not points:
        return None
    values = [value for _, *pair in points for value in pair]
    margin = 0.08 * (max(values) - min(values)) + 0.1
    low, high = min(values) - margin, max(values) + margin
    with rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(4.6, 4.2))
        axes = figure.add_axes((0.15, 0.13, 0.82, 0.84))
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(4, 3))
        axes.scatter([x for _, x, _ in points], [y for _, _, y in points], s=22, color=SERIES[0], linewidths=0)
        furthest = sorted(points, key=lambda point: abs(point[1] - point[2]))[-4:]
        for number, x, y in furthest:
            axes.annotate(str(number), (x, y), (4, 4), textcoords="offset points", fontsize=8, color=INK)
        for axis, limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
            limits(low, high)
            power_axis(axis, low, high)
        axes.set_xlabel("predicted relative error")
        axes.set_ylabel("measured relative error")
        return inline(figure, "errors", f"Measured against predicted error of {len(points)} layers")


def methods(curve: Sequence[CurvePoint]) -> list[tuple[str, str, int]]:
    """(method, mark in the legend, number of its colour), in the order of the curve's points."""
    names = dict.fromkeys(point.method for point in curve)
    return [(name, MARKS[i % len(MARKS)], i % len(SERIES) + 1) for i, name in enumerate(names)]


def budget_curves(data: ReportData) -> list[tuple[str, Markup]]:
    """The judging figure over the kept fraction, of FLOPs and of parameters: (quantity, picture), one line for each
    method."""
    kind = data.judged
    start = data.before.get(kind.name) if data.curve_start is None else data.curve_start
    values = [value for value in (*(point.value for point in data.curve), start) if value is not None and known(value)]
    along = math.log10 if far_apart(values, kind) else float  # so that small values are told apart beside large ones
    values = [along(value) for value in values]
    bottom, top = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (top - bottom) + 0.005 * (1.0 if kind.unit == "fraction" else abs(top) or 1.0)
    pictures = []
    for quantity, key, attribute in (("FLOPs", "flops", "kept_flops"), ("parameters", "params", "kept_params")):
        points = [point for point in data.curve if known(getattr(point, attribute))]
        if not points:
            continue
        with rc_context(STYLE):
            figure = Figure(figsize=(4.6, 3.2))
            axes = figure.add_axes((0.16, 0.16, 0.81, 0.81))
            if start is not None and known(start):
                axes.axhline(along(start), color=MUTED, linewidth=1, dashes=(4, 3))
            for index, (name, _, _) in enumerate(methods(data.curve)):
                line = sorted((getattr(p, attribute), along(p.value)) for p in points if p.method == name)
                axes.plot(
                    [x for x, _ in line],
                    [y for _, y in line],
                    color=SERIES[index % len(SERIES)],
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=4.5,
                    linestyle=("-", "--", ":")[index // len(SERIES) % 3],
                )
            percent_axis(axes.xaxis)
            if kind.unit == "fraction":
                percent_axis(axes.yaxis)
            axes.set_ylim(bottom - margin, top + margin)
            if along is math.log10:
                power_axis(axes.yaxis, bottom - margin, top + margin)
            axes.set_xlabel(f"{quantity} kept")
            axes.set_ylabel(kind.name.replace("_", " "))
            label = f"{title(kind)} against kept {quantity}, {len(points)} points; the table below has the numbers"
            pictures.append((quantity, inline(figure, f"curve-{key}", label)))
    return pictures


def fine_tuning(history: Sequence[Mapping[str, Any]], best_epoch: int | None, judged: FigureKind) -> list[Markup]:
    """The judging figure on validation data, and losses (train dashed), over the epochs; the epoch that was kept is
    marked."""
    pictures: list[Markup] = []
    panels = (
        (f"validation {judged.name.replace('_', ' ')}", (f"validation_{judged.name}",)),
        ("loss", ("validation_loss", "train_loss")),
    )
    for heading, keys in panels:
        lines = {
            key: line
            for key in keys
            if (line := [(epoch["epoch"], epoch[key]) for epoch in history if known(epoch.get(key))])
        }
        if not lines:
            continue
        with rc_context(STYLE):
            figure = Figure(figsize=(4.6, 2.6))
            axes = figure.add_axes((0.14, 0.19, 0.83, 0.76))
            for key, line in lines.items():
                axes.plot(
                    [x for x, _ in line],
                    [y for _, y in line],
                    color=SERIES[0],
                    linestyle="--" if key == "train_loss" else "-",
                    marker="o" if len(line) < 40 else None,
                    markersize=3,
                )
            if best_epoch is not None:
                axes.axvline(best_epoch, color=SERIES[1], linewidth=1.2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            if heading != "loss" and judged.unit == "fraction":
                percent_axis(axes.yaxis)
            axes.set_xlabel("epoch")
            axes.set_ylabel(heading)
            label = f"{heading.capitalize()} over {len(history)} epochs of fine-tuning"
            pictures.append(inline(figure, f"fine-tuning-{len(pictures)}", label))
    return pictures


def _relative(values: Sequence[float]) -> list[float]:
    """log₁₀ of each value over the largest, at least that of the faintest that is drawn; empty without a largest."""
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)) or max(numbers) <= 0:
        return []
    return [math.log10(max(number / max(numbers), _FAINTEST)) for number in numbers]


def _power_of_ten(power: float) -> str:
    return "1" if power == 0 else f"10{str(round(power)).translate(_SUPERSCRIPTS)}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Positions of 10ᵏ, with more between them the fewer decades there are."""
    steps: Sequence[float] = (1,)
    if high - low < 2.5:
        steps = (1, 2, 5) if high - low > 0.6 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [tick for k in powers for s in steps if low <= (tick := k + math.log10(s)) <= high]


def far_apart(values: Sequence[float], kind: FigureKind) -> bool:
    """Whether small values would all lie at the foot of a linear axis: of figures that are above zero and no shares."""
    return bool(values) and kind.unit != "fraction" and min(values) > 0 and max(values) > 20 * min(values)


def power_axis(axis: Any, low: float, high: float) -> None:
    """Of values drawn by their log₁₀, between ``low`` and ``high``."""
    axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda power, _: f"{10**power:,.6g}"))


def percent_axis(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, _digits(axis))))


def _digits(axis: Any) -> int:
    """As few decimals of a percentage as tell every tick as it is: with fewer, labels would repeat."""
    ticks, most = [100 * tick for tick in axis.get_majorticklocs()], 6
    return next((d for d in range(most) if all(abs(tick - round(tick, d)) < 1e-9 for tick in ticks)), most)
