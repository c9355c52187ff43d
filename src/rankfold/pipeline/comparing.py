"""What finished directories of ``compress`` hold, read for a page that compares them. Builds and runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from shlex import quote
from typing import Any, NotRequired

from typing_extensions import TypedDict

from rankfold.compress.planning.plan import Entry, Plan
from rankfold.costs.times import spread_over
from rankfold.objectives import Figure
from rankfold.pipeline.compression.outcome.page import searched
from rankfold.pipeline.compression.request import PLACE
from rankfold.report import CurvePoint, FigureKind
from rankfold.report.compare import Compared, LayerShown, render_compared
from rankfold.run.disk.container import FAULTS, checked, read_object, said
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_page
from rankfold.sites import Form
from rankfold.store import MANIFEST, StoreError, read_manifest

RESULT, TRAINING = "result.json", "metrics.jsonl"  # the second: of trainings alone
_Z = 1.96  # 95 % of a normal distribution


class _Stored(TypedDict):
    """What is read of ``result.json``; what the first release did not write may be missing."""

    before: dict[str, Any]
    compressed: dict[str, Any]
    finetuned: dict[str, Any] | None
    split: str
    remarks: list[str]
    latencies: dict[str, dict[str, float] | None]
    spreads: NotRequired[dict[str, dict[str, tuple[float, float]] | None]]
    scores: NotRequired[dict[str, Any]]
    curve: NotRequired[list[dict[str, Any]]]


def write_comparison(directories: Sequence[str | Path], file: str | Path) -> Path:
    """Write one page that puts the results in ``directories`` side by side; returns its path.

    Raises ``StoreError``, one line: nothing to compare, a directory that ``compress`` has not finished, a damaged file;
    ``ValueError`` where the page would replace a file that is none.
    """
    if len(directories) < 2:
        raise StoreError(
            "give at least two directories that compress wrote: a single one is shown by its own report.html"
        )
    check_page(Path(file))
    names = _names([Path(directory) for directory in directories])
    page = render_compared([read_compared(Path(d), name) for d, name in zip(directories, names, strict=True)])
    write_atomically(Path(file), page.encode())
    return Path(file)


def read_compared(directory: Path, name: str = "") -> Compared:
    """One result as the page shows it; ``StoreError`` as above."""
    own = (directory / RESULT).is_file()
    run = directory if own or (directory / TRAINING).is_file() else directory.parent  # or of the factors in it
    if (run / TRAINING).is_file():
        raise StoreError(
            f"{directory}: rankfold train wrote it, and results of rankfold compress are compared here: judge it with "
            f"rankfold evaluate {quote(str(directory))}, or compress {run / 'model.safetensors'} and compare that"
        )
    if not (directory / RESULT).is_file():
        raise StoreError(
            f"{directory}: there is no finished result of rankfold compress (no {RESULT}): finish the run, or give "
            "another directory"
        )
    again = "run compress again with --restart"
    try:
        found = read_object(directory / RESULT, "the result of a run", again)
        if "needs" in found:
            raise StoreError(
                f"{directory}: it was written block by block (compress with --memory), which keeps no report: "
                "evaluate it (rankfold evaluate), or compress without --memory to compare it here"
            )
        stored = checked(_Stored, _known(found))
        plan = Plan.load(directory / "plan.json")
        figures, stages = _figures(stored), _stages(stored)
        return Compared(
            name or str(directory), _asked(plan, found), _method(directory, plan, stored),
            _judged_on(directory, stored), figures, stages, _intervals(stored, figures[0]),
            {e.site: _layer(e) for e in plan.entries},
            [CurvePoint(p["label"], p["kept_flops"], p["kept_params"], p["value"]) for p in stored.get("curve", [])],
            stored["remarks"], plan.fingerprint, _content(directory, stored["split"]),
        )  # fmt: skip
    except StoreError:
        raise
    except FAULTS as error:
        raise StoreError(f"{directory / RESULT}: damaged ({said(error)}): {again}") from None


def _asked(plan: Plan, found: Mapping[str, Any]) -> str:
    """The budgets; of a search the drop that was allowed, and what it found."""
    search = found.get("search")
    if not isinstance(search, dict):
        return plan.asked()
    kind = Figure(search["figure"]["name"], 0.0, unit=search["figure"].get("unit", ""))
    return searched(search["by"], kind, search["asked"], plan)


def _method(directory: Path, plan: Plan, stored: _Stored) -> str:
    notes = read_manifest(directory)["notes"] if (directory / MANIFEST).is_file() else {}
    tuned = isinstance(notes.get("tuning"), dict)
    finetuned = stored["finetuned"] is not None
    after = [word for word, done in (("tuned without labels", tuned), ("fine-tuned", finetuned)) if done]
    return ", ".join((f"{plan.method}", f"ranks {plan.rule}", *after))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in _Stored.__annotations__ if key in values}


def _names(directories: Sequence[Path]) -> list[str]:
    """The last parts of the paths that tell them apart."""
    for parts in range(1, 1 + max(len(d.resolve().parts) for d in directories)):
        names = ["/".join(d.resolve().parts[-parts:]) for d in directories]
        if len(set(names)) == len(names):
            return names
    return [f"{directory.name} ({number})" for number, directory in enumerate(directories, 1)]


def _figures(stored: _Stored) -> list[FigureKind]:
    score = (stored.get("scores") or {}).get("compressed")
    if score is None:  # the first release judged by accuracy alone
        return [FigureKind("accuracy", "fraction")]
    return [FigureKind(str(figure["name"]), str(figure.get("unit", ""))) for figure in score["figures"]]


def _stages(stored: _Stored) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any] | None] = {
        "before": stored["before"],
        "compressed": stored["compressed"],
        "finetuned": stored["finetuned"],
    }
    known = stored.get("spreads") or {}

    def timed(name: str, values: dict[str, Any]) -> dict[Any, Any]:
        times: dict[Any, Any] = stored["latencies"].get(name) or {"1": values.get("latency_ms")}
        return spread_over(times, known.get(name) or {})

    return {name: {**values, "latency_ms": timed(name, values)} for name, values in found.items() if values is not None}


def _judged_on(directory: Path, stored: _Stored) -> str:
    data = read_manifest(directory)["notes"].get("data") if (directory / MANIFEST).is_file() else ""
    count = ((stored.get("scores") or {}).get("compressed") or {}).get("count")
    text = f"{stored['split']} split" + (f" of {data}" if data else "")
    names = {figure["name"] for figure in ((stored.get("scores") or {}).get("compressed") or {}).get("figures", [])}
    counted = "tokens" if "perplexity" in names else "samples" if "accuracy" in names else "values"
    return text + (f", {count:,} {counted}" if isinstance(count, int) and count else "")


def _content(directory: Path, split: str) -> str:
    """What is in the part of the data that was judged; empty where an earlier version did not note it."""
    try:
        data = read_object(directory / PLACE.file, "what a run was asked", "run compress again").get("data")
    except (OSError, ValueError):
        return ""
    return str(data.get(split) or "") if isinstance(data, dict) else ""


def _intervals(stored: _Stored, judged: FigureKind) -> dict[str, tuple[float, float]]:
    """Of an accuracy by Wilson's formula, of a perplexity by its standard error; of others none is known."""
    found = {}
    for stage, score in (stored.get("scores") or {}).items():
        if score is None:
            continue
        values = {figure["name"]: figure["value"] for figure in score["figures"]}
        error = values.get(f"{judged.name}_error")
        if judged.name == "accuracy" and score["count"]:
            found[stage] = wilson(values["accuracy"], score["count"])
        elif error is not None:
            found[stage] = (values[judged.name] - _Z * error, values[judged.name] + _Z * error)
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of 95 % of a share of ``count`` independent samples (Wilson 1927)."""
    middle, room = share + _Z**2 / (2 * count), _Z * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return (middle - room) / scale, (middle + room) / scale


def _layer(entry: Entry) -> LayerShown:
    changed = entry.form is not Form.KEEP
    dense = entry.groups * entry.shape[0] * entry.shape[1] + (entry.shape[0] * entry.groups if entry.bias else 0)
    return LayerShown(
        entry.form.value, entry.rank if changed else None, entry.predicted_error if changed else None,
        entry.params / dense if dense else None,
    )  # fmt: skip
