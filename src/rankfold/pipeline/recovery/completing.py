"""A matrix completed: candidates compared by cross-validation, the best one fitted to all entries and judged once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.pipeline.recovery.advice import other_ranks
from rankfold.pipeline.recovery.drawing import candidates_drawn
from rankfold.pipeline.recovery.matching import check_names, shared, unknown
from rankfold.pipeline.recovery.page import page
from rankfold.pipeline.recovery.writing import (
    ALWAYS,
    COMPLETED,
    PREDICTIONS,
    TOP,
    best_columns,
    predictions,
    save_report,
)
from rankfold.recover import Choice, FactorModel, MappedEntries, Sides, Tried, Triplets, cross_validate, fit
from rankfold.recover.model import FACTORS
from rankfold.recover.solvers.outcome import Progress
from rankfold.recover.tables.filling import MOST, Table
from rankfold.run.disk.files import write_atomically

CELLS = 20_000  # without an entry, over which the error that is expected is averaged


def complete(
    entries: Triplets,
    candidates: Sequence[Choice],
    out: Path,
    *,
    judge: Triplets | None = None,
    asked: Triplets | None = None,
    sides: Sides | None = None,
    table: Table | None = None,
    folds: int = 5,
    seed: int = 0,
    top: int = 0,
    jobs: int = 1,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose among ``candidates``, fit to all ``entries``, judge by ``judge`` and write factors, errors, predictions of
    the pairs ``asked``, the ``top`` best unseen columns of every row, and the ``table`` that the entries come from,
    where they do, with its gaps filled, into ``out``. Returns what ``recover.json`` holds.

    Raises ``ValueError`` where the values never vary: that is implicit feedback, or nothing to learn.
    """
    low, high = float(entries.values.min()), float(entries.values.max())
    learnable(len(entries), (low, high), (entries.row_names, entries.column_names), judge, asked)
    tried = cross_validate(entries, candidates, folds=folds, seed=seed, sides=sides, jobs=jobs, progress=progress)
    best = tried[0]
    model, rank, remark = fit(entries, best.choice, seed=seed, sides=sides, progress=progress)
    write_atomically(out / FACTORS, model.to_bytes())  # before anything else can fail
    how = (rank, remark)
    return written(
        entries, tried, model, how, out, judge=judge, asked=asked, table=table, seed=seed, top=top, source=source
    )


def learnable(
    count: int,
    seen: tuple[float, float],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    judge: Triplets | None,
    asked: Triplets | None,
) -> None:
    """Raises ``ValueError`` where the values ``seen``, from the least to the largest, never vary, and where none of the
    rows or columns to judge by, or to predict, has a name among ``names``."""
    if count > 1 and seen[0] == seen[1]:
        raise ValueError(
            f"every value is {seen[0]:g}, and nothing can be learnt from values that never vary: if the entries "
            "say who did what, add --implicit"
        )
    for other, purpose in ((judge, "to judge by"), (asked, "to predict")):
        if other is not None:
            check_names(other, names, purpose)


def written(
    entries: Triplets | MappedEntries,
    tried: Sequence[Tried],
    model: FactorModel,
    how: tuple[int, str],
    out: Path,
    *,
    judge: Triplets | None,
    asked: Triplets | None,
    table: Table | None = None,
    seed: int,
    top: int,
    source: str,
) -> dict[str, Any]:
    """What is to be seen of a ``model`` of that rank, fitted so, into ``out``. Returns what ``recover.json`` holds."""
    best = tried[0]
    report: dict[str, Any] = {
        "file": source,
        "entries": len(entries),
        "shape": list(entries.shape),
        "remarks": list(entries.remarks),
        "chosen": str(best.choice),
        "method": best.choice.method,
        "rank": how[0],
        "held_out_error": best.error,
        "folds": len(best.folds),
        "how": how[1],
        "tried": [
            {"choice": str(one.choice), "error": one.error, "folds": list(one.folds), "rank": one.rank} for one in tried
        ],
        "seed": seed,
    }
    expected = expected_error(model, entries)
    if expected is not None:
        report["expected_error"] = expected
    advice = other_ranks(tried, min(entries.shape))
    if advice:
        report["advice"] = advice
    if judge is not None:
        report["test"] = judged(model, judge, entries)
    tables: dict[str, bytes] = {}
    if top:
        tables[TOP] = best_columns(model, entries, top)
        if (equal := tables[TOP].count(f",{model.high:.4g}\n".encode())) > 1:
            report["top_cut"] = {"predictions": equal, "to": model.high}
    if asked is not None:
        tables[PREDICTIONS] = predictions(model, asked, entries.called)
        report["predicted"] = {"pairs": len(asked), **unknown(asked, model.row_names, model.column_names)}
    if table is not None:
        cells = entries.shape[0] * entries.shape[1]
        report["completed"] = {"cells": cells, "filled": 0}
        if cells <= MOST:
            told = report["completed"]
            tables[COMPLETED], told["filled"], told["bare"] = table.filled(model)
    lines = "choice,error,rank\n" + "".join(f'"{one.choice}",{one.error:.6g},{one.rank}\n' for one in tried)
    tables["cross-validation.csv"] = lines.encode()
    for name, content in tables.items():
        write_atomically(out / name, content)
    write_atomically(out / "cross-validation.svg", candidates_drawn(tried))
    write_atomically(out / "report.html", page(entries, tried, model, report, tables))
    save_report(report, out, (*ALWAYS, *tables))
    return report


def expected_error(model: FactorModel, entries: Triplets | MappedEntries) -> float | None:
    """The root of the mean predictive variance over cells without an entry, whose row and column are drawn as often as
    they have entries, at times at which the row has some; None for a model that does not know its uncertainty."""
    if model.spread is None or not isinstance(entries, Triplets):
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(entries), CELLS)
    rows, columns = entries.rows[drawn], rng.choice(entries.columns, CELLS)
    n = entries.shape[1]
    new = ~np.isin(rows * n + columns, entries.rows * n + entries.columns)
    if not new.any():
        return None
    times = None if entries.times is None else entries.times[drawn[new]]
    return float(np.sqrt(np.mean(model.uncertainty(rows[new], columns[new], times) ** 2)))


def judged(model: FactorModel, judge: Triplets, entries: Triplets | MappedEntries) -> dict[str, Any]:
    """Errors of the predictions for other entries, those of unknown rows and columns among them; how many of them are
    among the ``entries`` of the fit, and a warning where any is."""
    rows, columns = judge.numbered(model.row_names, model.column_names)
    missed = model.at(rows, columns, judge.times) - judge.values
    told: dict[str, Any] = {
        "entries": len(judge),
        "error": math.sqrt(float((missed**2).mean())),
        "absolute_error": float(abs(missed).mean()),
        **unknown(judge, model.row_names, model.column_names),
        "also_fitted": (both := shared(judge, entries)),
    }
    if both:
        which = f"all {both:,}" if both == len(judge) else f"{both:,} of the {len(judge):,}"
        told["warning"] = (
            f"{which} test entries are cells that were also fitted: their error is smaller than that of new ones, so "
            "leave them out of one of the two files"
        )
    return told
