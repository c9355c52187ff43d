"""The report in words: what was asked, what was reached, and how far predictions held."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rankfold.report.quantities import count, kept, known, moved, of_figure, percent, speed, times
from rankfold.report.values import FigureKind, LayerRow, ReportData


def reached(data: ReportData) -> str:
    """One sentence: what was kept of FLOPs, parameters and bytes, and the measured speed."""
    before, after = data.before, data.compressed
    parts = []
    for key, name, unit in (("flops", "FLOPs", ""), ("params", "parameters", ""), ("bytes", "bytes", "B")):
        share = kept(after.get(key), before.get(key))
        if share is not None:
            parts.append(f"{percent(share)} of the {name} ({count(after[key], unit)})")
    speeds = [f"{speed(old, new)} at batch {batch}" for batch, old, new in latency_rows(before, after) if old and new]
    if not parts and not speeds:
        return "Sizes were not measured."
    sentence = f"{_listed(parts)} kept" if parts else ""
    return "; ".join(part for part in (sentence, _listed(speeds)) if part) + "."


def quality(data: ReportData) -> str:
    """One sentence: the judging figure before, after compression, after fine-tuning."""
    kind = data.judged
    start = data.before.get(kind.name)
    stages: list[tuple[str, Any]] = [
        (f"{_of(state[kind.name], kind)} {when}", state[kind.name])
        for state, when in (
            (data.before, "before"),
            (data.compressed, "after compression"),
            (data.finetuned or {}, "after fine-tuning"),
        )
        if state.get(kind.name) is not None
    ]
    if not stages:
        return "Not measured: no labelled data were given."
    difference = ""
    if len(stages) > 1 and known(start) and known(stages[-1][1]):
        difference = f" ({moved(stages[-1][1] - start, kind)})"
    return ", ".join(text for text, _ in stages) + difference + "."


def _of(value: Any, kind: FigureKind) -> str:
    """A figure that was measured, which a network that computes nonsense has too."""
    return of_figure(value, kind) if known(value) else f"no finite number ({value})"


def predictions(layers: Sequence[LayerRow]) -> str:
    """One sentence on predicted against measured error; empty where nothing can be compared."""
    ratios = [(row, ratio) for row in layers if (ratio := error_ratio(row)) is not None]
    if not ratios:
        return ""
    worst, most = max(ratios, key=lambda pair: abs(math.log(pair[1])))
    middle = median(ratio for _, ratio in ratios)
    return (
        f"Measured error is {times(middle)} the prediction in the median of {len(ratios)} layers; "
        f"furthest from it is {worst.name} with {times(most)}."
    )


def error_ratio(row: LayerRow) -> float | None:
    """Measured over predicted error; None unless both are positive, and where what was measured is rounding."""
    predicted, measured = row.predicted_error, row.measured_error
    if not known(predicted) or not known(measured) or not predicted or not measured or exact(row):
        return None
    return measured / predicted if measured > 0 and predicted > 0 else None


def exact(row: LayerRow) -> bool:
    """Whether nothing but rounding was measured."""
    return known(row.measured_error) and row.measured_error is not None and row.measured_error <= row.rounding


def latency_rows(*states: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """(batch size, milliseconds of each state or None), by batch size; for every batch size that any state has."""
    tables = [{str(batch): ms for batch, ms in ((s or {}).get("latency_ms") or {}).items()} for s in states]
    batches = {batch for table in tables for batch in table}
    ordered = sorted(batches, key=lambda batch: (0, int(batch)) if batch.isdigit() else (1, 0))
    return [(batch, *(table.get(batch) for table in tables)) for batch in ordered]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
