"""The report of a completed matrix: plain values in, one self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rankfold.report.svg import MUTED, SERIES, STYLE, inline
from rankfold.report.templates import templates

_WIDTH = 10.4  # inches: the page's column
_BINS = 60


@dataclass(frozen=True)
class FactorShown:
    """One factor: its part of the square of the predictions, and (name, weight) of rows and columns at either end."""

    share: float
    rows: Sequence[tuple[str, float]]
    columns: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class RecoveryData:
    """``tried``: (candidate, its method, rank asked for or None, held-out error, error of each fold), best first;
    ``residuals`` (count,): of ``residuals_of``; ``factors``: the largest first; ``facts``: (name, text) at the head;
    ``tables``: (file, its first lines, the names of its columns before the others)."""

    title: str
    facts: Sequence[tuple[str, str]]
    remarks: Sequence[str]
    tried: Sequence[tuple[str, str, int | None, float, Sequence[float]]]
    residuals: np.ndarray
    residuals_of: str
    factors: Sequence[FactorShown]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def learnt_from(folds: int) -> str:
    """Of which fits a held-out error is: not of the one to all entries."""
    if folds == 1:
        return "of a fit to the other entries"
    return f"of fits to {folds - 1} of {folds} parts of the entries"


def completed_told(report: Mapping[str, Any]) -> str:
    """What became of the gaps of a table."""
    cells, filled, file = report["completed"]["cells"], report["completed"]["filled"], report["file"]
    if not filled and cells > report["entries"]:
        return (
            f"completed.csv was not written: {file} has {cells:,} cells, too many for a table of text: name those that "
            "you want in --predict FILE"
        )
    bare = report["completed"].get("bare", 0)
    said = f"; {bare:,} of them are in rows or columns without any known cell, so that little is known of them"
    return (
        f"completed.csv is {file} with {filled:,} gaps filled{said if bare else ''}; its known cells stay as they were "
        "written"
    )


def render_recovery(data: RecoveryData) -> str:
    """The page: style and pictures inside, no script, nothing fetched; text is escaped."""
    environment = templates()
    figures = [
        (
            "Held-out error against rank",
            "Root mean square error on entries that were held out in turn. A line for each method, a dot for each "
            "fold. Dashed: methods that find their own rank, up to the one named.",
            _against_rank(data),
        ),
        ("Residuals", f"Given minus predicted, of {data.residuals_of}.", _residuals(data)),
    ]
    return environment.get_template("recovery.html.j2").render(data=data, figures=figures)


def _against_rank(data: RecoveryData) -> Markup:
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
        panel = figure.subplots()
        lines: dict[str, list[tuple[int | None, float, Sequence[float]]]] = {}
        for name, _, asked, error, folds in data.tried:
            line = name if asked is None else name.rsplit(", rank", 1)[0]
            lines.setdefault(line, []).append((asked, error, folds))
        for number, (line, found) in enumerate(lines.items()):
            colour, marker = SERIES[number % len(SERIES)], "os^D"[number // len(SERIES) % 4]
            ranked = sorted((rank, error, folds) for rank, error, folds in found if rank is not None)
            for _, error, _ in found if not ranked else ():
                panel.axhline(error, color=colour, linestyle="--", linewidth=1.2, label=line)
            if ranked:
                ranks, errors, _ = zip(*ranked, strict=True)
                panel.plot(ranks, errors, color=colour, marker=marker, label=line)
            for rank, _, folds in ranked:
                panel.plot([rank] * len(folds), folds, ".", color=MUTED, markersize=3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set_xlabel("rank")
        panel.set_ylabel("held-out error")
        panel.legend(fontsize=8, frameon=False)
        return inline(figure, "ranks", "Held-out error against rank")


def _residuals(data: RecoveryData) -> Markup:
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        panel = figure.subplots()
        values = np.asarray(data.residuals, dtype=np.float64)
        most = float(np.quantile(np.abs(values), 0.999)) or 1.0
        panel.hist(np.clip(values, -most, most), bins=_BINS, color=SERIES[0])
        panel.axvline(float(values.mean()), color=SERIES[1], linestyle="--", linewidth=1.2, label="mean")
        panel.set_xlabel("residual")
        panel.set_ylabel("entries")
        panel.legend(fontsize=8, frameon=False)
        return inline(figure, "residuals", "Histogram of residuals")
