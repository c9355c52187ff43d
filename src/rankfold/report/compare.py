"""Several results side by side: plain values in, one self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from rankfold.report import quantities, summary
from rankfold.report.budget import digest
from rankfold.report.plots import MARKERS, MARKS, percent_axis
from rankfold.report.svg import MUTED, SERIES, STYLE, inline
from rankfold.report.templates import templates
from rankfold.report.values import CurvePoint, FigureKind

STAGES = (("before", "before"), ("compressed", "compressed"), ("finetuned", "fine-tuned"))


@dataclass(frozen=True)
class LayerShown:
    """What became of a layer in one result. ``rank``: None where it is kept; ``kept``: share of its parameters."""

    form: str
    rank: int | None
    error: float | None
    kept: float | None


@dataclass(frozen=True)
class Compared:
    """One result. ``stages``: values of each stage as in ``ReportData``; ``intervals``: 95 % of the judging figure by
    stage, where its samples tell; ``layers`` by name; ``curve``: what compression alone reaches at other budgets;
    ``notes``: what a reader must know. ``made_from``: the fingerprint of the original; ``data``: what is in the data
    that it was judged on; both empty where that is not known."""

    name: str
    asked: str
    method: str
    judged_on: str
    figures: Sequence[FigureKind]
    stages: Mapping[str, Mapping[str, Any]]
    intervals: Mapping[str, tuple[float, float]]
    layers: Mapping[str, LayerShown]
    curve: Sequence[CurvePoint] = ()
    notes: Sequence[str] = field(default=())
    made_from: str = ""
    data: str = ""

    @property
    def judged(self) -> FigureKind:
        return self.figures[0]

    @property
    def last(self) -> str:
        """The stage that was saved."""
        return "finetuned" if "finetuned" in self.stages else "compressed"


def render_compared(results: Sequence[Compared]) -> str:
    """The page: style, picture and one script inside, nothing fetched; text is escaped."""
    environment = templates()
    environment.filters |= {"percent": quantities.percent, "decimal": quantities.decimal}
    script = Markup(files("rankfold.report").joinpath("pages", "compare.js").read_text(encoding="utf-8"))
    marks = [(MARKS[i % len(MARKS)], i % len(SERIES) + 1) for i in range(len(results))]
    return environment.get_template("compare.html.j2").render(
        results=list(zip(results, marks, strict=True)),
        rows=_rows(results),
        layers=_layers(results),
        picture=_picture(results),
        warnings=_warnings(results),
        script=script,
        digest=digest(script),
    )


def _rows(results: Sequence[Compared]) -> list[tuple[str, list[str], list[float | None]]]:
    """(label, a text for each result, the share that is kept where it is one)."""
    none: list[float | None] = [None] * len(results)
    rows = [("Asked", [r.asked for r in results], none), ("Method", [r.method for r in results], none)]
    rows.append(("Judged on", [r.judged_on for r in results], none))
    for kind in dict.fromkeys(kind for r in results for kind in r.figures):
        for stage, when in STAGES:
            texts = [_figure(r, kind, stage) for r in results]
            if any(text != quantities.ABSENT for text in texts):
                rows.append((f"{quantities.title(kind)} {when}", texts, none))
    for key, label, unit in (("params", "Parameters", ""), ("flops", "FLOPs", ""), ("bytes", "Bytes", "B")):
        after = [r.stages[r.last].get(key) for r in results]
        shares = [quantities.kept(a, r.stages["before"].get(key)) for a, r in zip(after, results, strict=True)]
        if any(map(quantities.known, after)):
            rows.append((label, [quantities.count(a, unit) for a in after], shares))
    return rows + _latencies(results)


def _figure(result: Compared, kind: FigureKind, stage: str) -> str:
    value = result.stages.get(stage, {}).get(kind.name)
    if kind not in result.figures or not quantities.known(value):
        return quantities.ABSENT
    text = quantities.of_figure(value, kind)
    interval = result.intervals.get(stage) if kind == result.judged else None
    if interval is None:
        return text
    low, high = (quantities.of_figure(end, kind) for end in interval)
    return f"{text} ({low} to {high})"


def _latencies(results: Sequence[Compared]) -> list[tuple[str, list[str], list[float | None]]]:
    tables = [summary.latency_rows(r.stages["before"], r.stages[r.last]) for r in results]
    batches = dict.fromkeys(batch for table in tables for batch, *_ in table)
    rows = []
    for batch in batches:
        pairs = [next((tuple(times) for b, *times in table if b == batch), (None, None)) for table in tables]
        shares = [quantities.kept(after, before) for before, after in pairs]
        clear = [share is None or quantities.apart(*pair) for share, pair in zip(shares, pairs, strict=True)]
        texts = [
            quantities.milliseconds(after) + ("" if told else ", not clearly different from before")
            for told, (_, after) in zip(clear, pairs, strict=True)
        ]
        shown = [share if told else None for share, told in zip(shares, clear, strict=True)]
        rows.append((f"Latency, batch {batch}", texts, shown))
    return rows


def _layers(results: Sequence[Compared]) -> list[tuple[str, list[LayerShown | None], bool]]:
    """(layer, what became of it in each result, whether the results differ there)."""
    names = dict.fromkeys(name for r in results for name in r.layers)
    rows = []
    for name in names:
        shown = [r.layers.get(name) for r in results]
        decided = {None if one is None else (one.form, one.rank) for one in shown}
        rows.append((name, shown, len(decided) > 1))
    return rows


def _picture(results: Sequence[Compared]) -> Markup | None:
    """The judging figure over the kept FLOPs: the curve of each result, and the result itself as a ring."""
    kind = results[0].judged
    alike = [(i, r) for i, r in enumerate(results) if r.judged == kind]
    drawn = 0
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.add_axes((0.11, 0.14, 0.86, 0.83))
        for index, result in alike:
            colour, mark = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            line = sorted((p.kept_flops, p.value) for p in result.curve if p.kept_flops is not None)
            if line:
                axes.plot(*zip(*line, strict=True), color=colour, marker=mark, markersize=4)
            share = quantities.kept(result.stages[result.last].get("flops"), result.stages["before"].get("flops"))
            value = result.stages[result.last].get(kind.name)
            if share is not None and value is not None and quantities.known(value):
                axes.scatter([share], [value], s=90, facecolors="none", edgecolors=colour, linewidths=1.6)
            drawn += len(line) + (share is not None)
        starts = {result.stages["before"].get(kind.name) for _, result in alike}
        for start in starts:
            if start is not None and quantities.known(start):
                axes.axhline(start, color=MUTED, linewidth=1, dashes=(4, 3))
        if not drawn:
            return None
        percent_axis(axes.xaxis)
        if kind.unit == "fraction":
            percent_axis(axes.yaxis)
        axes.set_xlabel("FLOPs kept")
        axes.set_ylabel(kind.name.replace("_", " "))
        label = f"{quantities.title(kind)} against kept FLOPs of {len(alike)} results; the tables have the numbers"
        return inline(figure, "compared", label)


def _warnings(results: Sequence[Compared]) -> list[str]:
    """What makes numbers of these results incomparable."""
    said = []
    if len({r.judged for r in results}) > 1:
        said.append("The results are judged by different figures; the picture shows those of the first one's kind.")
    if len({r.judged_on for r in results}) > 1 or len({r.data for r in results if r.data}) > 1:
        said.append("The figures are of different data: differences between results may be those of the data.")
    sizes, made = {r.stages["before"].get("params") for r in results}, {r.made_from for r in results if r.made_from}
    if len(sizes) > 1 or len({each.partition(":")[0] for each in made}) > 1:
        said.append("The results were made from different networks: shares are of each one's own original.")
    elif len(made) > 1:
        said.append("The results were made from one network with different weights, so that they began elsewhere.")
    return said
