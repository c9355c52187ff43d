"""From the values of a report to one HTML file that needs nothing else."""

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rankfold.report import budget, quantities, summary
from rankfold.report.templates import templates
from rankfold.report.values import ReportData


def render(data: ReportData) -> str:
    """The report as one HTML page: style, pictures and one script inside, nothing fetched; text is escaped.

    The script moves the slider over other budgets; the page names its digest and lets no other run.

    Costs about a tenth of a second for each layer (its picture).
    """
    from rankfold.report import plots  # brings matplotlib: sizes and percentages are read without it
    from rankfold.report.search import search

    environment = templates()
    environment.filters |= {
        "integer": quantities.integer,
        "percent": quantities.percent,
        "decimal": quantities.decimal,
        "milliseconds": quantities.milliseconds,
        "times": quantities.times,
        "dotted": _dotted,
    }
    searched = data.judged if data.search is None or data.search.figure is None else data.search.figure
    return environment.get_template("report.html.j2").render(
        data=data,
        reached=summary.reached(data),
        quality=summary.quality(data),
        judged=quantities.title(data.judged),
        figure_text=lambda value: quantities.of_figure(value, data.judged),
        searched=quantities.title(searched),
        searched_text=lambda value: quantities.of_figure(value, searched),
        predictions=summary.predictions(data.layers),
        result=_result_rows(data),
        layers=_layer_rows(data, plots.spectra(data.layers)),
        figures={
            "errors": plots.errors(data.layers),
            "curves": plots.budget_curves(data),
            "search": None if data.search is None else search(data.search, searched, data.sought, data.called),
            "fine_tuning": plots.fine_tuning(data.history, data.best_epoch, data.judged),
        },
        methods=plots.methods(data.curve),
        budget=_slider(data),
    )


def _dotted(name: str) -> Markup:
    """A long name may go on in another line behind a dot."""
    return Markup(".<wbr>").join(name.split("."))


def _slider(data: ReportData) -> dict[str, Any] | None:
    """The slider over other budgets; None where one plan alone is known."""
    if len(data.offers) < 2:
        return None
    text = budget.script()
    return {
        "payload": budget.payload(data), "script": text, "digest": budget.digest(text), "start": budget.nearest(data),
        "called": data.called, "offer": data.offers[budget.nearest(data)], "rows": budget.first_rows(data),
    }  # fmt: skip


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the report to `path`, whole or not at all; the folder is made if it is missing. Returns the path."""
    path = Path(path)
    page = render(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        unfinished = Path(folder) / path.name
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    return path


def _result_rows(data: ReportData) -> list[dict[str, Any]]:
    """Rows of the table of results: label, one text for each stage, the fraction kept by the last stage."""
    stages = [data.before, data.compressed] + ([data.finetuned] if data.finetuned is not None else [])
    shown: list[tuple[str, str, Any, bool]] = [
        (quantities.title(kind), kind.name, partial(quantities.of_figure, kind=kind), False) for kind in data.figures
    ]
    shown += [
        ("Loss", "loss", quantities.decimal, False),
        ("Parameters", "params", quantities.count, True),
        ("FLOPs", "flops", quantities.count, True),
        ("Bytes", "bytes", lambda value: quantities.count(value, "B"), True),
    ]
    rows = [_result_row(label, [stage.get(key) for stage in stages], text, sized) for label, key, text, sized in shown]
    rows += [
        _result_row(f"Latency, batch {batch}", times, quantities.milliseconds, True)
        for batch, *times in summary.latency_rows(*stages)
    ]
    for label, key in (("Prefill of a prompt", "prefill_ms"), ("Decode of a token", "decode_ms")):
        rows.append(_result_row(label, [stage.get(key) for stage in stages], quantities.milliseconds, True))
    return [row for row in rows if any(text != quantities.ABSENT for text in row["texts"])]


def _result_row(label: str, values: list[Any], text: Any, sized: bool) -> dict[str, Any]:
    measured = [value for value in values[1:] if quantities.known(value)]
    share = quantities.kept(measured[-1], values[0]) if sized and measured else None
    clear = share is None or quantities.apart(values[0], measured[-1])
    return {
        "label": label, "texts": [text(value) for value in values], "kept": share if clear else None,
        "note": "" if clear else "no clear difference",
    }  # fmt: skip


def _layer_rows(data: ReportData, pictures: Sequence[Markup | None]) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "shape": "×".join(map(str, row.shape)),
            "params_kept": quantities.kept(row.params_after, row.params_before),
            "flops_kept": quantities.kept(row.flops_after, row.flops_before),
            "ratio": summary.error_ratio(row),
            "exact": row.rank is not None and summary.exact(row),
            "picture": picture,
        }
        for row, picture in zip(data.layers, pictures, strict=True)
    ]
