"""The files of an analysis: one picture of all spectra, the table, and the numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from rankfold.pipeline.analysis import SiteAnalysis
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_replaceable
from rankfold.sites import SiteList

_FILES = "spectra.svg", "sites.csv", "sites.json"
_COLUMNS = 4
_WIDTH, _PANEL, _LEGEND = 12, 2.1, 0.5  # inches: of the picture, and heights of a row of panels and of the legend
_LOWEST = 1e-4  # of the largest: what lies below is not drawn
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "rankfold", "font.size": 8}


def write_analysis(rows: Sequence[SiteAnalysis], found: SiteList, directory: str | Path) -> tuple[Path, ...]:
    """Write ``spectra.svg``, ``sites.csv`` and ``sites.json`` (with every singular value); returns their paths.

    ``ValueError`` where one of them would replace a file that no analysis wrote."""
    directory = Path(directory)
    check_analysis(directory)
    contents = dict(zip(_FILES, (spectra_svg(rows), _csv(rows), _json(rows, found)), strict=True))
    for name, text in contents.items():
        write_atomically(directory / name, text.encode())
    return tuple(directory / name for name in contents)


def check_analysis(directory: Path) -> None:
    """``ValueError``, before any work, where an analysis would replace a file that no analysis wrote."""
    check_replaceable(directory, _FILES, lambda held: {"sites", "left_out"} <= set(held), "sites.json")


def spectra_svg(rows: Sequence[SiteAnalysis]) -> str:
    """A panel for each site, all on one scale: singular values over the largest, and the error after each rank."""
    height = max(1, ceil(len(rows) / _COLUMNS))
    drawn = [(_over_largest(row.spectrum.values), _over_largest(row.spectrum.tails())) for row in rows]
    lowest = min((value for curves in drawn for curve in curves for value in curve), default=0.1)
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _PANEL * height + _LEGEND))
        # margins in inches, not a layout engine: that one draws everything twice, which takes longer than the spectra
        figure.subplots_adjust(
            left=0.5 / _WIDTH,
            right=1 - 0.1 / _WIDTH,
            bottom=0.3 / (_PANEL * height + _LEGEND),
            top=1 - (_LEGEND + 0.2) / (_PANEL * height + _LEGEND),
            hspace=0.35,
            wspace=0.12,
        )
        first = None
        for number, (row, (values, tails)) in enumerate(zip(rows, drawn, strict=True)):
            panel = figure.add_subplot(height, _COLUMNS, number + 1, sharey=first)
            first = first or panel
            panel.semilogy(range(1, len(values) + 1), values, color="#1b6ca8", label="singular value / largest")
            panel.semilogy(range(len(tails)), tails, color="#c2571a", ls="--", label="error after this rank / norm")
            panel.set_ylim(lowest / 1.5, 1.5)
            panel.tick_params(labelleft=number % _COLUMNS == 0)
            panel.set_title(f"{row.site.name}  {'×'.join(map(str, row.site.shape))}", fontsize=8, parse_math=False)
            panel.grid(alpha=0.3)
        if first is not None:
            first.yaxis.set_minor_locator(NullLocator())  # of all: they share the axis
            figure.legend(*first.get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _over_largest(values: Tensor) -> list[float]:
    """Descending values over the first, without what is too small to draw; empty if all are zero."""
    if not len(values) or not values[0] > 0:
        return []
    relative = values / values[0]
    return relative[relative >= _LOWEST].tolist()


def _csv(rows: Sequence[SiteAnalysis]) -> str:
    buffer = io.StringIO()
    table = [row.to_dict() for row in rows]
    for values in table:
        values["shape"] = "×".join(map(str, values["shape"]))
    writer = csv.DictWriter(buffer, list(table[0]) if table else ["site"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def _json(rows: Sequence[SiteAnalysis], found: SiteList) -> str:
    values = {
        "sites": [row.to_dict() | {"spectrum": row.spectrum.values.tolist()} for row in rows],
        "left_out": [{"parameter": name, "reason": reason} for name, reason in found.left_out],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
