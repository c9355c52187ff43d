"""The report page of a completed matrix, put together from what was tried and what was fitted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from rankfold.pipeline.compression.outcome.page import environment
from rankfold.pipeline.recovery.writing import PREDICTIONS, TOP
from rankfold.recover import FactorModel, MappedEntries, Tried, Triplets
from rankfold.report.recovery import FactorShown, RecoveryData, completed_told, learnt_from, render_recovery

SHOWN, NAMES = 5, 5  # factors, and names at either side of each
LINES = 10  # of a table that lies in a file beside the page
MOST = 200_000  # residuals that are drawn


def page(
    entries: Triplets | MappedEntries,
    tried: Sequence[Tried],
    model: FactorModel,
    report: dict[str, Any],
    tables: Mapping[str, bytes],
) -> bytes:
    """HTML. ``report`` is what ``recover.json`` holds, ``tables`` what is in the files beside it."""
    rng = np.random.default_rng(0)
    which = np.arange(len(entries)) if len(entries) <= MOST else np.unique(rng.integers(0, len(entries), MOST))
    shown = entries.take(which)
    told = model.at(shown.rows, shown.columns, shown.times)
    of = f"{'all' if len(which) == len(entries) else 'a random sample of'} {len(which):,} entries that were fitted"
    facts = [
        *([("File", report["file"])] if report["file"] else []),
        ("Taken", report["chosen"]),
        ("Held-out error", f"{report['held_out_error']:.4g} (root mean square), {learnt_from(report['folds'])}"),
        *_expected(report),
        ("Rank", str(report["rank"])),
        ("Entries", f"{len(entries):,} of {entries.shape[0]:,} × {entries.shape[1]:,}"),
        ("Fit", report["how"]),
    ]
    if "completed" in report:
        facts.append(("Completed", completed_told(report)))
    if "test" in report:
        facts.append(("Test error", f"{report['test']['error']:.4g} on {report['test']['entries']:,} entries"))
        if "warning" in report["test"]:
            facts.append(("Warning", report["test"]["warning"]))
    data = RecoveryData(
        "A matrix completed",
        facts,
        [*entries.remarks, *([report["advice"]] if "advice" in report else [])],
        [(str(one.choice), one.choice.method, _asked(one), one.error, one.folds) for one in tried],
        shown.values - told,
        of,
        factors(model),
        [(name, _first_lines(tables[name])) for name in (TOP, PREDICTIONS) if name in tables],
        environment(),
    )
    return render_recovery(data).encode()


def _first_lines(content: bytes) -> list[list[str]]:
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")  # of a large table no more is decoded
    return list(islice(csv.reader(lines), LINES + 1))


def _expected(report: dict[str, Any]) -> list[tuple[str, str]]:
    if "expected_error" not in report:
        return []
    told = f"{report['expected_error']:.4g} of a new cell, by the fit to all entries, which knows more"
    return [("Expected error", told)]


def _asked(one: Tried) -> int | None:
    """The rank; None where the method finds its own, up to the one in its choice."""
    return None if one.choice.finds else one.choice.rank


def factors(model: FactorModel) -> list[FactorShown]:
    """The largest factors, orthogonal to each other, with the names that weigh most; biases are left out."""
    k, m, n = model.rank, len(model.row_names), len(model.column_names)
    q, a = np.linalg.qr(np.asarray(model.left[:m, :k], dtype=np.float64))
    p, b = np.linalg.qr(np.asarray(model.right[:k, :n], dtype=np.float64).T)
    u, s, vt = np.linalg.svd(a @ b.T)
    left, right, all_of_it = q @ u, p @ vt.T, float((s**2).sum()) or 1.0
    return [
        FactorShown(
            float(s[at] ** 2) / all_of_it,
            _largest(left[:, at] * s[at] ** 0.5, model.row_names),
            _largest(right[:, at] * s[at] ** 0.5, model.column_names),
        )
        for at in range(min(SHOWN, int((s > 1e-12 * s[:1].sum()).sum())))
    ]


def _largest(weights: np.ndarray, names: Sequence[str]) -> list[tuple[str, float]]:
    return [(names[at], float(weights[at])) for at in np.argsort(-np.abs(weights), kind="stable")[:NAMES]]
