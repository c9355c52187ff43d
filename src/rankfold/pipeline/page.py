"""The report of one run, put together from what was planned and measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.costs import site_cost, trace
from rankfold.pipeline.curve import Point
from rankfold.pipeline.heldout import over_fitted
from rankfold.pipeline.measure import Figures
from rankfold.pipeline.result import Result
from rankfold.report import CurvePoint, FigureKind, LayerRow, ReportData
from rankfold.sites import Form, Site, sites, split_attention, unwrap
from rankfold.train import History


def report_data(
    original: nn.Module,
    result: Result,
    example: Any,
    *,
    title: str,
    method: Method,
    errors: Mapping[str, float],
    points: Sequence[Point],
    history: History | None,
    settings: Mapping[str, Any],
) -> ReportData:
    """Everything that the report of ``result`` shows. ``errors`` as from ``layer_errors``. Cost: one decomposition
    of every site, for its spectrum.
    """
    return ReportData(
        title=title,
        asked=f"{result.plan.asked()}; method {result.plan.method}, ranks {result.plan.rule}",
        before=_stage(result.before),
        compressed=_stage(result.compressed),
        finetuned=None if result.finetuned is None else _stage(result.finetuned),
        layers=_layers(original, result.plan, example, errors, method),
        skipped=result.plan.left_out,
        figures=[FigureKind(figure.name, figure.unit) for figure in result.before.score.figures],
        curve=[CurvePoint(p.label, p.kept_flops, p.kept_params, p.figure.value) for p in points],
        curve_on=f"the validation split, without fine-tuning; the table above is of the {result.split} split",
        curve_start=result.validation["before"],
        history=[] if history is None else [epoch.to_dict() for epoch in history.epochs],
        best_epoch=None if history is None else history.best_epoch,
        settings=settings,
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """Where this process runs."""
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def _stage(figures: Figures) -> dict[str, Any]:
    return figures.to_dict() | {"latency_ms": dict(figures.latencies)}


def _layers(
    original: nn.Module, plan: Plan, example: Any, errors: Mapping[str, float], method: Method
) -> list[LayerRow]:
    root = unwrap(original)
    found = sites(root)
    _, calls = trace(root, example, found)
    too_far = over_fitted(plan, errors, method=method)
    rows = []
    with split_attention(root):
        for entry in plan.entries:
            site = found[entry.site]
            weight = site.weight(root)
            dense = site_cost(
                site, Form.KEEP, 0, calls.get(site.name, ()), 1, weight.element_size(), site.layer.has_bias
            )
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
                    full_rank=site.max_rank(entry.form) if changed else min(site.shape),
                    params_before=dense.params,
                    params_after=entry.params,
                    flops_before=dense.flops,
                    flops_after=entry.flops,
                    predicted_error=entry.predicted_error if changed else None,
                    measured_error=errors.get(entry.site),
                    spectrum=_levels(root, site, entry, plan, weight, method),
                    note=note,
                )
            )
    return rows


def _levels(root: nn.Module, site: Site, entry: Entry, plan: Plan, weight: torch.Tensor, method: Method) -> list[float]:
    """What ranks were chosen on: singular values over the largest, of the outputs or of the weight.

    Nothing where ranks were chosen from the errors met in sweeps, whose moments are gone.
    """
    if plan.factors is not None:
        return []
    offered = method.forms & site.forms
    form = entry.form if entry.form in offered else next(iter(sorted(offered - {Form.KEEP, Form.DENSE})), None)
    if form is None:
        return []
    known = None if plan.statistics is None else plan.statistics.sites.get(site.name)
    decomposition = method.decompose(site, form, weight, known, site.bias(root))
    return [] if decomposition is None else decomposition.levels.tolist()
