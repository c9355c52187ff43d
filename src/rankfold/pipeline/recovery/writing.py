"""What a recovery leaves behind: a report in JSON, tables in CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from safetensors import SafetensorError, safe_open

from rankfold.recover import FactorModel, MappedEntries, Triplets
from rankfold.recover.model import FACTORS, KIND
from rankfold.recover.tables.triplets import ROLES
from rankfold.run.disk.container import parsed
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_replaceable

REPORT, TOP, PREDICTIONS, COMPLETED = "recover.json", "top.csv", "predictions.csv", "completed.csv"
ALWAYS = (FACTORS, REPORT, "cross-validation.csv", "cross-validation.svg", "report.html")


def check_ours(out: Path, *more: str) -> None:
    """``ValueError``, before any work, where a recovery into ``out`` would replace what no recovery wrote.

    ``more``: names of files beside those that it always writes. Ours are all that lie beside a report or factors of
    ours.
    """
    if not _factored(out / FACTORS):
        check_replaceable(out, (*ALWAYS, *more), _is_report, REPORT)


def _is_report(held: Any) -> bool:
    return isinstance(held, dict) and {"method", "shape", "seed", "directory"} <= set(held)


def _factored(file: Path) -> bool:
    try:
        with safe_open(file, "np") as opened:
            return (opened.metadata() or {}).get("kind") == KIND
    except (OSError, SafetensorError):
        return False


def save_report(report: dict[str, Any], out: Path, files: Sequence[str] = ()) -> None:
    """``recover.json``, with the directory in it and the ``files`` that were written beside it; those that an earlier
    recovery wrote there by its own report, and this one did not, are removed."""
    report["directory"] = str(out)
    report["files"] = sorted({*files} - {REPORT})
    stale = _written_before(out) - {*files}
    write_atomically(out / REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    for name in stale:
        (out / name).unlink(missing_ok=True)


def _written_before(out: Path) -> set[str]:
    try:
        held = parsed((out / REPORT).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return set()
    named = held.get("files") if _is_report(held) else None
    return (
        {name for name in named if name in (*ALWAYS, TOP, PREDICTIONS, COMPLETED)} - {REPORT}
        if isinstance(named, list)
        else set()
    )


def best_columns(model: FactorModel, entries: Triplets | MappedEntries, top: int) -> bytes:
    """The ``top`` best columns of each row that it has no entry for, as CSV."""
    known: Any = entries
    if isinstance(entries, Triplets):
        known = scipy.sparse.csr_array((np.ones(len(entries)), (entries.rows, entries.columns)), shape=entries.shape)
    return table(
        (*entries.called, "predicted"),
        (
            (model.row_names[row], model.column_names[column], f"{value:.4g}")
            for row, at, told in model.best(top, known)
            for column, value in zip(at.tolist(), told.tolist(), strict=True)
        ),
    )


def predictions(model: FactorModel, asked: Triplets, called: tuple[str, str]) -> bytes:
    """A line for each pair that was asked for, in that order: row, column, the time in seconds since 1970 where times
    were read, prediction, for ratings its standard deviation, and which of the two names is unknown, where there are
    any."""
    rows, columns = asked.numbered(model.row_names, model.column_names)
    head, told = [*called], list[list[str]]()
    if asked.times is not None:
        head.append("time")
        told.append([f"{when:.16g}" for when in asked.times.tolist()])
    head.append("predicted")
    told.append(_digits(model.at(rows, columns, asked.times)))
    if model.spread is not None:
        head.append("uncertainty")
        told.append(_digits(model.uncertainty(rows, columns, asked.times)))
    new = 2 * (columns < 0) + (rows < 0)
    if new.any():
        head.append("unknown")
        told.append([("", "row", "column", "row and column")[which] for which in new])
    names = (asked.row_names[row] for row in asked.rows), (asked.column_names[column] for column in asked.columns)
    return table(head, zip(*names, *told, strict=True))


def _digits(values: np.ndarray) -> list[str]:
    return [f"{value:.7g}" for value in values.tolist()]


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    """CSV, quoted where it must be. The first two columns are called as in the file of the entries; row and column
    where that is the name of another one here."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head if len({*head}) == len(head) else (*ROLES, *head[2:]))
    writer.writerows(lines)
    return text.getvalue().encode()
