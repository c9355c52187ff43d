"""A picture of a recording: singular values and subspace distances of every site over the epochs."""

import io
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rankfold.record.recording import Recording, Track
from rankfold.run.disk.files import write_atomically
from rankfold.spectrum import Spectrum

_MOST_LINES = 24
_FAINTEST = 1e-7  # of the largest value in a panel: what lies below is not drawn
_STYLE: Any = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "rankfold"}


def draw(recording: Recording, path: Path, where: str | None) -> None:
    chosen = {
        site: track
        for site, track in recording.tracks.items()
        if track.rows and (where is None or fnmatchcase(site, where))
    }
    if not chosen:
        raise ValueError(
            f"there is nothing to draw: no site{'' if where is None else f' named like {where!r}'} was recorded"
        )
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 0.6 + 1.8 * len(chosen)), layout="constrained")
        grid = figure.subplots(len(chosen), 3, sharex=True, squeeze=False)
        for row, (site, track) in zip(grid, chosen.items(), strict=True):
            epochs = [found.epoch for found in track.rows]
            _values(row[0], epochs, [found.weight for found in track.rows])
            _values(row[1], epochs, [found.update for found in track.rows])
            rank = min(recording.rank, *track.shape)
            _distances(row[2], epochs, track)
            for axes, label in zip(row, ("σ of W", "σ of W(t) − W(0)", f"distance, r = {rank}"), strict=True):
                axes.set_ylabel(label)
            title = f"{site}  ({track.kind} {track.shape[0]}×{track.shape[1]})"
            row[0].set_title(title, loc="left", fontsize=8).set_parse_math(False)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        grid[0][1].set_title("dark: the largest singular value", loc="left", fontsize=8)
        grid[0][2].set_title("subspaces of consecutive records", loc="left", fontsize=8)
        grid[0][2].legend(fontsize=7, frameon=False)
        figure.savefig(buffer, format=path.suffix.lstrip(".") or "svg", dpi=100)
    write_atomically(path, buffer.getvalue())


def _values(axes: Axes, epochs: Sequence[float], spectra: Sequence[Spectrum | None]) -> None:
    """One line for each index, the leading ones and then ever fewer, dark to bright; log scale."""
    count = max((len(found) for found in spectra if found is not None), default=0)
    if count == 0:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
        return
    values = np.array([[np.nan] * count if found is None else found.values.numpy() for found in spectra])
    top = np.nanmax(values)
    if not top > 0:
        axes.text(0.5, 0.5, "zero throughout", transform=axes.transAxes, ha="center")
        return
    values[values < _FAINTEST * top] = np.nan  # zeros too: a logarithm has no place for them
    indices = np.unique(np.geomspace(1, count, _MOST_LINES).round().astype(int)) - 1
    marker = "o" if len(epochs) == 1 else ""
    for index in indices[::-1]:
        shade = 0.9 * np.log1p(index) / max(np.log1p(count - 1), 1)
        axes.plot(epochs, values[:, index], color=colormaps["viridis"](shade), linewidth=1, marker=marker, markersize=3)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # one decade: evenly; a few: 1, 2, 5, …; many: powers of ten
    few = LogLocator(subs=(1, 2, 5)) if high < 1000 * low else LogLocator()
    axes.yaxis.set_major_locator(MaxNLocator(5) if high < 10 * low else few)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _distances(axes: Axes, epochs: Sequence[float], track: Track) -> None:
    for name, style in (("left", "-"), ("right", "--")):
        distances = [getattr(found, f"{name}_distance") for found in track.rows]
        axes.plot(epochs, distances, style, linewidth=1, marker=".", label=name)
    axes.set_ylim(bottom=0)
