"""Forecasting what a compressed network would reach, before anything is compressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of, logits_of
from rankfold.compress.allocate import BudgetError
from rankfold.compress.plan import Plan
from rankfold.compress.planner import Calibration, plan
from rankfold.costs import evaluating

_DRAWS = 16


@dataclass(frozen=True)
class Correction:
    """How changes of single layers add up: d → exp(``shift``) · d^``power``, learned on other networks."""

    shift: float = 0.0
    power: float = 1.0

    def of(self, change: float) -> float:
        return math.exp(self.shift) * change**self.power if change > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a budget would leave of the accuracy on labelled data.

    ``change``: the squared change of the outputs that the plan expects, layer by layer and added, over their own mean
    square (outputs less their mean over the classes).
    """

    budget: str
    kept_params: float
    kept_flops: float
    change: float
    accuracy: float
    plan: Plan


@dataclass(frozen=True, eq=False)
class Margins:
    """``logits`` (N, C) and ``labels`` (N,) of the uncompressed network, and fixed noise (draws, N, C)."""

    logits: Tensor
    labels: Tensor
    noise: Tensor

    @classmethod
    def of(cls, model: nn.Module, data: Any, samples: int = 1024, seed: int = 0) -> Margins:
        """Cost: one forward pass. ``ValueError`` for data without one label for each row of two or more logits."""
        parts, labels = [], []
        with evaluating(model):
            for batch in batches_of(data, 256, samples):
                found, answer = labels_of(batch), logits_of(forward(model, batch))
                if found is None or answer.ndim != 2 or answer.shape[1] < 2 or len(found) != len(answer):
                    raise ValueError("a forecast of accuracy needs one label for each row of two or more logits")
                parts.append(answer.double().cpu())
                labels.append(found.cpu())
        if not parts:
            raise ValueError("the data is empty: give at least one labelled batch")
        return cls.from_logits(torch.cat(parts), torch.cat(labels), seed)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, seed: int = 0) -> Margins:
        noise = torch.randn(_DRAWS, *logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(logits.double(), labels, noise)

    @property
    def energy(self) -> float:
        """Mean over samples of ‖z − mean z‖²."""
        return float((self.logits - self.logits.mean(1, keepdim=True)).square().sum(1).mean())

    def accuracy(self, change: float) -> float:
        """Expected share of right answers under normal noise of ``change`` times the energy of the outputs."""
        deviation = math.sqrt(max(change, 0.0) * self.energy / (self.logits.shape[1] - 1))
        return float(((self.logits + deviation * self.noise).argmax(-1) == self.labels).double().mean())


def forecast(
    model: nn.Module,
    data: Any,
    budgets: Sequence[str],
    *,
    labelled: Any = None,
    method: str = "project",
    samples: int = 1024,
    correction: Correction | None = None,
) -> list[Forecast]:
    """Accuracy at each of ``budgets``, predicted from spectra, single-layer probes and margins; nothing is compressed.

    A plan says by how much each layer's error alone would move the outputs; these squared changes are added, and turned
    by ``correction`` into that of all together. Noise on the logits of that size, on ``labelled`` data (validation; by
    default ``data``), then gives the accuracy. Budgets that cannot be met are left out. Cost: that of the plans, one of
    them with statistics. Raises ``ValueError`` as ``rankfold.plan`` does, and for a method without output metrics.
    """
    margins = Margins.of(model, data if labelled is None else labelled, samples)
    known = Calibration(samples=samples)
    found = []
    for budget in budgets:
        try:
            made = plan(model, budget, method, data, rule="optimal", calibration=known)
        except BudgetError:
            continue
        known = replace(known, statistics=made.statistics)
        change = sum(entry.predicted_loss for entry in made.changed) / (margins.energy or 1.0)
        after, before = made.after, made.before
        accuracy = margins.accuracy((correction or Correction()).of(change))
        found.append(Forecast(budget, after.params / before.params, after.flops / before.flops, change, accuracy, made))
    return found


def learned(cases: Sequence[tuple[Margins, float, float]]) -> Correction:
    """The correction that fits (margins, change, accuracy reached) of other networks best, in squared accuracy.

    A search over a grid of powers and shifts; the uncorrected forecast is on it, so that it is never worse there.
    """
    if not cases:
        raise ValueError("a correction is learned from networks that were compressed: give at least one")
    best, least = Correction(), float("inf")
    curves: dict[int, Curve] = {}
    for margins, _, _ in cases:
        if id(margins) not in curves:
            curves[id(margins)] = accuracy_curve_of(margins)
    for power in (1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.15, 1.3):
        for shift in torch.linspace(-4, 4, 65).tolist():
            candidate = Correction(shift, power)
            error = sum(
                (accuracy_at(curves[id(margins)], candidate.of(change)) - reached) ** 2
                for margins, change, reached in cases
            )
            if error < least - 1e-12:
                best, least = candidate, error
    return best


Curve = tuple[list[float], list[float]]


def accuracy_curve_of(margins: Margins) -> Curve:
    """(log change, accuracy) along growing noise."""
    changes = torch.logspace(-6, 4, 41, dtype=torch.float64)
    return changes.log().tolist(), [margins.accuracy(change) for change in changes.tolist()]


def accuracy_at(curve: Curve, change: float) -> float:
    """Between the points of the curve, linear in log change."""
    return float(np.interp(math.log(max(change, 1e-12)), *curve))
