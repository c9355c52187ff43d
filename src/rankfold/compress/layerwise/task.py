"""What is asked of a fit, and what becomes of one of its sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.affordable import moments_bytes
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import LayerwiseMethod, Solution
from rankfold.compress.planning.plan import Entry
from rankfold.compress.statistics import calibrate
from rankfold.linalg import Moments
from rankfold.objectives import Objective
from rankfold.observe import PAGES, Samples
from rankfold.run.progress import Progress
from rankfold.sites import Factors, Form, Site, SiteList

_ROUNDING = 1e-5
_STEPS = 8  # of a dtype: how far the rounding of a run moves a fit to it


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of a fit. ``seen``: the samples to fit to; ``judges``: batches that were held back from them;
    ``metrics`` of the model's outputs by site, of tokens if ``tokens``; ``directory``: of this fit alone: what is in it
    already was fitted for the same request."""

    original: nn.Module
    found: SiteList
    method: LayerwiseMethod
    seen: Samples
    objective: Objective
    metrics: Mapping[str, Tensor]
    absorbers: Mapping[str, str | None]
    judges: Sequence[Any] = ()
    tokens: bool = False
    directory: Path | None = None
    progress: Progress = lambda what, done, total: None


def alone(task: Task, site: Site, entry: Entry, why: str, moments: Moments | None) -> Solution:
    """Fitted to the original alone, from moments of its smaller side; without data where it was never called.
    ``moments``: those, where they were gathered on the way; else a pass over the samples gathers them."""
    seen, original = task.seen, task.original
    free = entry.bias or task.absorbers.get(site.name) is not None
    statistics = None
    if seen.memory is None or moments_bytes(site) <= seen.memory:
        if moments is not None:
            statistics = SiteStatistics(moments, task.absorbers.get(site.name))
        elif getattr(original, PAGES, None) is None:
            statistics = calibrate(
                original, seen.data, SiteList((site,)), samples=seen.samples, batch_size=seen.batch_size,
                metric_samples=0,
            ).sites.get(site.name)  # fmt: skip
        if statistics is not None:
            statistics = replace(statistics, metric=task.metrics.get(site.name), free=free, tokens=task.tokens)
    note = f"fitted to the original's own inputs: {why}"
    if statistics is None:
        note = f"truncated without data: {why if seen.memory is not None else 'never called on the calibration data'}"
    weight, bias = site.weight(original), site.bias(original)
    if entry.form is Form.DENSE:
        return Solution(Factors((site.matrix(original),)), 0.0, {}, note=note)
    decomposition = task.method.decompose(site, entry.form.decomposed, weight, statistics, bias)
    if decomposition is None:
        raise ValueError(f"method {task.method.name!r} does not make the form {entry.form} of this layer")
    error = decomposition.relative_error(entry.rank)  # before the factors lie beside what it takes
    factors = decomposition.factors(entry.rank)
    return Solution(factors, error, {}, note=note, alone=factors)


def unchanged(site: Site, matrix: Tensor, solution: Solution) -> bool:
    """Whether a layer fitted anew is what it was: nothing before it has changed, or nothing was to be gained. In half
    precision such a fit follows what the run rounds; its error is then no more than that."""
    step = torch.finfo(matrix.dtype).eps
    near = max(_ROUNDING, _STEPS * step) if solution.error <= step else _ROUNDING
    near *= float(matrix.double().norm())
    shift = solution.factors.shift
    moved = float((solution.factors.parts[0].reshape(matrix.shape) - matrix.double()).norm())
    return moved <= near and (shift is None or float(shift.norm()) <= near)


def told(entry: Entry, solution: Solution, priced: bool) -> Entry:
    """``priced``: prices of the fit are in the unit of those before."""
    values: dict[str, Any] = {"predicted_error": solution.error, "certificate": solution.certificate}
    values["few"] = entry.few or solution.few
    if solution.note:
        values["note"] = "; ".join(filter(None, (entry.note, solution.note)))
    if priced and entry.form.decomposed in solution.losses:
        values["predicted_loss"] = float(solution.losses[entry.form.decomposed][entry.rank])
    return replace(entry, **values)
