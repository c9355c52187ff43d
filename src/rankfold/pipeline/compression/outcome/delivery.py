"""The files of a finished run: the model with its manifest, the report, and the result that can be read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired

from torch import nn
from typing_extensions import TypedDict

from rankfold.batches import copied
from rankfold.compress.methods import method_named
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.rules import described, rule_named
from rankfold.compress.slicing.bottlenecks import Bottlenecks
from rankfold.costs import Example
from rankfold.costs.times import spread_over, spreads
from rankfold.objectives import Evaluation, Inferred
from rankfold.pipeline.compression.outcome.beside import Beside
from rankfold.pipeline.compression.outcome.curve import Curve
from rankfold.pipeline.compression.outcome.measure import Figures
from rankfold.pipeline.compression.outcome.page import report_data
from rankfold.pipeline.compression.outcome.result import Result
from rankfold.pipeline.compression.request import Settings
from rankfold.pipeline.compression.tuning import Tuning
from rankfold.pipeline.quality.value import Quality
from rankfold.report import write_report
from rankfold.run.disk.container import FAULTS, checked, read_object, said
from rankfold.run.disk.files import write_atomically
from rankfold.store import StoreError, load, save
from rankfold.train import History


def model_notes(spec: str, data: Any, example: Example | None, objective: Inferred | None = None) -> dict[str, Any]:
    """What a saved model keeps, to be built, fed and judged again: its name, the data's, the shape of one input, and
    the objective with the reason for it."""
    return {
        "model": spec,
        "data": getattr(data, "name", ""),
        "classes": getattr(data, "classes", None),
        "input": None if example is None else example.noted(),
        **dict(getattr(data, "cut", {})),
    } | ({} if objective is None else {"objective": objective.objective.name, "objective_why": objective.why})


def save_result(
    directory: Path,
    result: Result,
    data: Any,
    example: Example,
    settings: Settings,
    objective: Inferred,
    bottlenecks: Bottlenecks | None = None,
) -> None:
    """The model and its plan, with what was measured in the manifest."""
    notes = model_notes(settings.model, data, example, objective)
    figures = result.compressed if result.finetuned is None else result.finetuned
    notes |= {"split": result.split, "before": result.before.to_dict(), "figures": figures.to_dict()}
    notes |= {} if result.tuning is None else {"tuning": result.tuning.to_dict()}
    notes |= {} if result.forecast is None else {"forecast": result.forecast.to_dict()}
    save(result.model, result.plan, directory, notes=notes, bottlenecks=bottlenecks)


def write_page(
    directory: Path,
    known: Profile,
    result: Result,
    settings: Settings,
    errors: Mapping[str, float],
    curve: Curve,
    history: History | None,
    read: str = "",
) -> None:
    method = method_named(settings.method)
    shown = {
        "model": settings.model or type(known.needed_model()).__name__,
        "weights": known.fingerprint[:16],
        "data": read or "given in Python",
        "method": method.name,
        "ranks": ", ".join(f"{key} {value}" for key, value in described(rule_named(settings.rule)).items()),
        "objective": result.objective.removeprefix("objective: ") or "classification",
        "calibration samples": known.samples or settings.samples,
        "max drop": "none" if settings.quality is None else f"{settings.quality}, smallest {settings.smallest}",
        "tuning": "none" if result.tuning is None else result.tuning.sentence,
        "fine-tuning": "none" if history is None else f"{len(history.epochs)} epochs",
        "seed": settings.seed,
        "results on": f"the {result.split} split",
        "remarks": "; ".join(result.remarks) or "none",
    }
    data = report_data(
        known,
        result,
        method=method,
        title=f"{shown['model']} compressed",
        errors=errors,
        curve=curve,
        history=history,
        settings=shown,
    )
    write_report(data, directory / "report.html")


def close(directory: Path, result: Result, curve: Curve) -> None:
    """Write ``result.json``, which says that the run is complete, and drop the checkpoints of fine-tuning."""
    stages = {"before": result.before, "compressed": result.compressed, "finetuned": result.finetuned}
    values = result.to_dict() | {
        "split": result.split,
        "validation": dict(result.validation),
        "remarks": list(result.remarks),
        "objective": result.objective,
        "search": None if result.quality is None else result.quality.kept(),
        "scores": {name: stage and stage.score.to_dict() for name, stage in stages.items()},
        "latencies": {name: stage and dict(stage.latencies) for name, stage in stages.items()},
        "spreads": {name: stage and spreads(stage.latencies) for name, stage in stages.items()},
        "prompt_spreads": {name: stage and spreads(stage.prompts) for name, stage in stages.items()},
        "curve": [
            {"label": p.label, "kept_flops": p.kept_flops, "kept_params": p.kept_params, "value": p.figure.value}
            for p in curve.points
        ],
    }
    write_atomically(directory / "result.json", (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    for leftover in (directory / "run" / "finetune").glob("checkpoint*"):
        leftover.unlink()


def finished(directory: Path) -> bool:
    return (directory / "result.json").exists()


def read_result(directory: Path, original: nn.Module) -> Result:
    """The result of a finished run, with the saved model; ``StoreError`` if a file is damaged."""
    file, again = directory / "result.json", "run again with --restart (restart=True)"
    try:
        values = read_object(file, "the result of a run", again)
    except (OSError, ValueError) as error:
        raise StoreError(str(error)) from None
    try:
        known = checked(_Kept, {key: values[key] for key in _Kept.__annotations__ if key in values})
        scores = known.get("scores", {})
        stages = {
            name: _stage(
                values[name],
                spread_over(known["latencies"][name] or {}, (known.get("spreads") or {}).get(name) or {}),
                scores.get(name),
                (known.get("prompt_spreads") or {}).get(name) or {},
            )
            for name in ("before", "compressed", "finetuned")
        }
        before, compressed = stages["before"], stages["compressed"]
        if before is None or compressed is None:
            raise ValueError("a stage is missing")
        searched = known.get("search")
        quality = None if searched is None else Quality.read(searched)
        tuning = None if values.get("tuning") is None else Tuning.read(values["tuning"])
        forecast = None if values.get("forecast") is None else Beside.read(values["forecast"])
    except FAULTS as error:
        raise StoreError(f"{file}: damaged ({said(error)}): {again}") from None
    stored = load(directory, copied(original))
    return Result(
        stored.model, stored.plan, before, compressed, stages["finetuned"], known["seconds"], known["split"],
        known["validation"], tuple(known["remarks"]), directory, known.get("objective", ""), quality, tuning, forecast,
    )  # fmt: skip


class _Kept(TypedDict):
    seconds: float
    split: str
    validation: dict[str, float]
    remarks: list[str]
    latencies: dict[str, dict[int, float] | None]
    spreads: NotRequired[dict[str, dict[int, tuple[float, float]] | None]]
    prompt_spreads: NotRequired[dict[str, dict[str, tuple[float, float]] | None]]
    scores: NotRequired[dict[str, Any]]
    objective: NotRequired[str]
    search: NotRequired[dict[str, Any] | None]


def _stage(
    values: Mapping[str, Any] | None, latencies: Mapping[int, float], score: Mapping[str, Any] | None,
    prompts: Mapping[str, tuple[float, float]],
) -> Figures | None:  # fmt: skip
    """``score`` is missing where the first release wrote the result: of a classifier, by its accuracy."""
    if values is None:
        return None
    known = {"accuracy": values["accuracy"], "loss": values["loss"], "count": 0} if score is None else score
    costs = {key: values[key] for key in ("params", "flops", "bytes", "latency_ms")}
    costs |= {key: values[key] for key in ("prefill_ms", "decode_ms") if key in values}
    score = checked(Evaluation, asdict(Evaluation.from_dict(known)))
    read: Figures = checked(Figures, {"score": score, **costs})
    timed = spread_over(read.prompts, prompts)
    prefill, decode = timed.get("prefill_ms"), timed.get("decode_ms")
    return replace(read, latencies=dict(latencies), prefill_ms=prefill, decode_ms=decode)
