"""The HTML report of ``rankfold collapse``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rankfold.pipeline.collapse.conclusion import longest, roughness
from rankfold.pipeline.collapse.study import CollapseReport
from rankfold.pipeline.compression.outcome.page import environment
from rankfold.report.collapse import CollapseData, render_collapse
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_page


def collapse_data(found: CollapseReport, model: str, data: str) -> CollapseData:
    """What the page shows, as plain values."""
    known = found.decay > 0
    none = "none, so that there are no bounds" if found.decay == 0 else "not known; give that of the training"
    whose = ", estimated from gradients and weights" if found.decay_estimated else ""
    facts = [
        ("Data", f"{found.samples} training samples of {data}, {found.classes} {found.kinds}"),
        ("Weight decay", f"{found.decay:.3g}{whose}" if known else none),
        ("Residual", _residual(found)),
        ("Chain of bounds", f"{found.violations} violations; loss: {found.loss}" if known else "not computed"),
    ]
    values = found.to_dict()
    return CollapseData(
        title=f"Rank collapse of {model}",
        classes=found.classes,
        kinds=found.kinds,
        layers=values["layers"],
        facts=facts,
        conclusion=found.conclusion(),
        transitions=[] if found.transitions is None else found.transitions.decays.tolist(),
        transitions_about=_about(found),
        decay=found.decay if known else None,
        skipped=[(name, reason.removeprefix(f"{name}: ")) for name, reason in found.skipped.items()],
        left_out=_by_reason(found.left_out),
        notes=list(found.notes),
        environment=environment(),
    )


def _residual(found: CollapseReport) -> str:
    if math.isnan(found.residual):
        return "–"
    told = f"{found.residual:.3g} of the norm of the weights (0: a stationary point)"
    return f"{told}, at the decay that fits best" if math.isnan(found.decay) else told


def _about(found: CollapseReport) -> str:
    if found.transitions is None:
        return ""
    told = f"{found.transitions.layers} layers{longest(found)}; {found.transitions.about}"
    return f"{told}; {rough}" if (rough := roughness(found)) else told


def _by_reason(left_out: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """One row for each reason: a network has a vector or two for each of its layers."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out:
        names.setdefault(reason, []).append(name)
    return [
        (", ".join(found) if len(found) <= 3 else f"{', '.join(found[:2])} and {len(found) - 2} more", reason)
        for reason, found in names.items()
    ]


def write_collapse(found: CollapseReport, model: str, data: str, path: str | Path) -> Path:
    """Write the page to ``path``, whole or not at all; returns the path. ``ValueError`` for a file there that is no
    page of rankfold."""
    path = Path(path)
    check_page(path)
    write_atomically(path, render_collapse(collapse_data(found, model, data)).encode())
    return path
