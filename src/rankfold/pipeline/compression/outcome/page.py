"""The report of one run, put together from what was planned and measured."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from rankfold.batches import place_of
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.budget import Resource
from rankfold.costs import CALLED
from rankfold.objectives import Figure
from rankfold.pipeline.compression.outcome.curve import Curve
from rankfold.pipeline.compression.outcome.heldout import over_fitted
from rankfold.pipeline.compression.outcome.measure import Figures
from rankfold.pipeline.compression.outcome.offers import loss_unit, offers
from rankfold.pipeline.compression.outcome.remarks import further
from rankfold.pipeline.compression.outcome.result import Result
from rankfold.report import CurvePoint, FigureKind, LayerRow, ReportData, SearchShown, TriedPoint, quantities
from rankfold.sites import Form
from rankfold.train import History

_STEPS = 8  # of a dtype: how far rounding moves the output of a layer


def report_data(
    known: Profile,
    result: Result,
    *,
    title: str,
    method: Method,
    errors: Mapping[str, float],
    curve: Curve,
    history: History | None,
    settings: Mapping[str, Any],
) -> ReportData:
    """Everything that the report of ``result`` shows, from the profile that its plan came from. ``errors`` as from
    ``layer_errors``."""
    return ReportData(
        title=title,
        asked="; ".join((_asked(result), f"method {result.plan.method}, ranks {result.plan.rule}", *_trained(result))),
        before=_stage(result.before),
        compressed=_stage(result.compressed),
        finetuned=None if result.finetuned is None else _stage(result.finetuned),
        layers=_layers(known, result.plan, errors, method, _rounding(result.model)),
        skipped=result.plan.left_out,
        figures=[FigureKind(figure.name, figure.unit) for figure in result.before.score.figures],
        curve=[CurvePoint(p.label, p.kept_flops, p.kept_params, p.figure.value) for p in curve.points],
        curve_on=f"{_drawn_on(curve)}, without fine-tuning; the table above is of the {result.split} split",
        curve_start=result.validation["before"] if curve.start is None else curve.start,
        history=[] if history is None else [epoch.to_dict() for epoch in history.epochs],
        best_epoch=None if history is None else history.best_epoch,
        search=None if result.quality is None else _search(result),
        settings=settings,
        environment=environment(),
        offers=offers(known, result.plan, _sought(result)),
        sought=_sought(result),
        called=CALLED[_sought(result)],
        offers_lose=loss_unit(result.plan),
        forecast="" if result.forecast is None else result.forecast.sentence,
        promised="".join(further(result.quality, result.before.score, result.compressed.score, result.split)),
    )


def _drawn_on(curve: Curve) -> str:
    if curve.samples is None:
        return "the validation split"
    return f"{curve.samples} samples of the validation split, the same for all points"


def _sought(result: Result) -> str:
    """What was to be made small, as far as the pictures tell them apart: bytes are those of the parameters."""
    asked = [budget.kind for budget in result.plan.budgets if isinstance(budget, Resource)]
    kind = result.quality.by if result.quality is not None else next(iter(asked), "flops")
    return "params" if kind in ("params", "bytes") else "flops"


def _asked(result: Result) -> str:
    """The budgets, and the drop that was allowed."""
    quality = result.quality
    if quality is None:
        return result.plan.asked()
    return searched(quality.by, quality.figure, quality.asked, result.plan)


def _trained(result: Result) -> tuple[str, ...]:
    """What was asked for besides the plan: tuning steps."""
    if result.tuning is None:
        return ()
    steps = f"{result.tuning.steps} tuning step{'' if result.tuning.steps == 1 else 's'}"
    return (f"{steps} of {'the whole network' if result.tuning.by == 'whole' else 'each block'}",)


def searched(by: str, figure: Figure, asked: float, plan: Plan) -> str:
    """What a search was for, and what it found: the last of the plan's budgets, which no person has written."""
    *given, found = plan.budgets
    kept = found.keep  # of which the plan may use less
    if found.kind in CALLED and getattr(plan.before, found.kind):
        kept = getattr(plan.after, found.kind) / getattr(plan.before, found.kind)
    share = quantities.percent(kept).replace(quantities.NBSP, " ")
    told = ", ".join(
        (*(budget.describe() for budget in given), f"{share} of the {CALLED.get(found.kind, found.kind)} kept")
    )
    return f"smallest {by} with {figure.name} worse by at most {figure.amount(asked, 6)}; found: {told}"


def _search(result: Result) -> SearchShown:
    quality, before = result.quality, result.plan.before
    assert quality is not None
    start, sign = quality.figure.value, -1 if quality.figure.higher else 1
    points = [
        TriedPoint(
            p.flops / before.flops if before.flops else None, p.params / before.params if before.params else None,
            p.figure, p.met, p.fraction == quality.fraction,
        )
        for p in quality.tried
    ]  # fmt: skip
    kind = FigureKind(quality.figure.name, quality.figure.unit)
    last = f"{quantities.title(kind)}{quality.sentence.removeprefix(kind.name)}."
    drawn = f"The picture shows the figures on the {quality.samples[0]} samples that searched."
    told = (last, *(note + "." for note in quality.remarks), drawn)
    return SearchShown(told, start + sign * quality.asked, start, points, kind)


def environment() -> dict[str, str]:
    """Where this process runs."""
    return {
        "rankfold": version("rankfold"),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        **({"transformers": sys.modules["transformers"].__version__} if "transformers" in sys.modules else {}),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def _stage(figures: Figures) -> dict[str, Any]:
    return figures.to_dict() | {"latency_ms": dict(figures.latencies)} | figures.prompts


def _rounding(model: nn.Module) -> float:
    """An error of a layer's output that says nothing."""
    place = place_of(model.modules())
    return 0.0 if place is None else _STEPS * torch.finfo(place.dtype).eps


def _layers(
    known: Profile, plan: Plan, errors: Mapping[str, float], method: Method, rounding: float = 0.0
) -> list[LayerRow]:
    too_far = over_fitted(plan, errors, method=method)
    rows, owners = [], dict[str, str]()  # of parameters that several sites share: the first has them
    for entry in plan.entries:
        site = known.sites[entry.site]
        owner = next((owners[name] for name in site.tied_to if name in owners), "")
        owners.setdefault(site.parameter, site.name)
        dense = known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias)
        changed = entry.form is not Form.KEEP
        note = "; ".join(filter(None, (entry.certificate, entry.note)))
        if entry.site in too_far:
            note = "; ".join(filter(None, (note, "more calibration samples would help here")))
        rows.append(
            LayerRow(
                name=entry.site,
                kind=site.kind,
                shape=site.shape,
                form=entry.form.value,
                rank=entry.rank if changed else None,
                full_rank=_largest(known, entry),
                params_before=dense.params,
                params_after=entry.params,
                flops_before=dense.flops,
                flops_after=entry.flops,
                predicted_error=entry.predicted_error if changed else None,
                measured_error=errors.get(entry.site),
                spectrum=_levels(known, entry, plan),
                note=note,
                tied_to=owner,
                rounding=rounding,
            )
        )
    return rows


def _largest(known: Profile, entry: Entry) -> int:
    """The largest rank of the matrix that this form parts, which it shares with other layers or has folded anew."""
    site = next((group for group in known.sites.joint if group.names == entry.members), known.sites[entry.site])
    return min(site.shape) if entry.form is Form.KEEP else site.max_rank(entry.form.decomposed)


def _levels(known: Profile, entry: Entry, plan: Plan) -> list[float]:
    """What ranks were chosen on: singular values over the largest, of the outputs or of the weight.

    Nothing where ranks were chosen from the errors met in fits, whose moments are gone.
    """
    if plan.factors is not None:
        return []
    group = known.candidates.get(entry.site, ())
    own = (each for each in group if len(each.decomposition.levels) == min(each.site.shape))  # of the matrix as it is
    shown = known.candidate(entry.site, entry.form) or next(own, next(iter(group), None))
    return [] if shown is None else shown.decomposition.levels.tolist()
