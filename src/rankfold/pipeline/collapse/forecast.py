"""Forecasting what a compressed network would reach, before anything is compressed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rankfold.batches import batches_of, check_rereadable, forward, labels_of
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.ranks.options import BudgetError
from rankfold.costs import evaluating
from rankfold.objectives import Classification, main_tensor
from rankfold.pipeline.collapse.conclusion import few
from rankfold.pipeline.compression.outcome.measure import calibration_part
from rankfold.run.ordinary import ordinarily
from rankfold.zoo.data import data_of

TRIED = 0.07  # of the parameters: the least at which forecasts were compared with what was reached
SURE = 0.03  # predicted change of the outputs up to which they were within a few points: figures in docs/collapse.md
_DRAWS = 16
_POWERS = (1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
_SHIFTS = (0.0, *(sign * step / 8 for step in range(1, 33) for sign in (-1, 1)))


def lost_over_kept(change: float) -> float:
    """c/(1 − c), at most 99: the noise that ``change`` = c leaves on the outputs, over what it leaves of them.

    What a projection takes out of the outputs is orthogonal to what it keeps, so that it is no noise on top of them:
    given the outputs, 1 − c of them remain, and noise of c(1 − c) of their mean square.
    """
    kept = min(max(1 - change, 0.01), 1.0)
    return (1 - kept) / kept


@dataclass(frozen=True)
class Correction:
    """How changes of single layers add up: noise exp(``shift``) · (c/(1 − c))^``power``, learned on other networks."""

    shift: float = 0.0
    power: float = 1.0

    def of(self, change: float) -> float:
        return math.exp(self.shift) * lost_over_kept(change) ** self.power if change > 0 else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """What a budget would leave of the accuracy on labelled data.

    ``change``: the squared change of the outputs that the plan expects, layer by layer and added, over their own mean
    square (outputs less their mean over the classes). ``doubt``: why ``accuracy`` may be far off, "" where nothing
    that is known before compressing speaks against it.
    """

    budget: str
    kept_params: float
    kept_flops: float
    change: float
    accuracy: float
    plan: Plan
    doubt: str = ""

    @property
    def trusted(self) -> bool:
        return not self.doubt

    def __repr__(self) -> str:
        """Without the plan, which would fill the screen."""
        return f"Forecast({self.budget}: accuracy {self.accuracy:.3f}{'' if self.trusted else ', doubtful'})"


def doubts(change: float, kept_params: float, plan: Plan) -> str:
    """What speaks against a forecast, in words: a large ``change``, layers of rank 1, fewer parameters than tried."""
    found = []
    if not math.isfinite(change):
        found.append("the change of the outputs is not a number, as where outputs are not finite: nothing is forecast")
    elif change > SURE:
        found.append(f"the outputs change by {100 * change:.0f} %, and the forecast is rough beyond {100 * SURE:.0f} %")
    ones = [entry.site for entry in plan.changed if entry.rank == 1 < min(entry.shape)]
    if ones:
        found.append(f"rank 1 in layer{'s' if len(ones) > 1 else ''} {few(ones)}")
    if kept_params < TRIED:
        found.append(
            f"{100 * kept_params:.1f} % of the parameters are kept, and the forecast was tried only down to "
            f"{100 * TRIED:.0f} %"
        )
    return "; ".join(found)


@dataclass(frozen=True, eq=False)
class Margins:
    """``logits`` (N, C) and ``labels`` (N,) of the uncompressed network, and fixed noise (draws, N, C)."""

    logits: Tensor
    labels: Tensor
    noise: Tensor

    @classmethod
    def of(cls, model: nn.Module, data: Any, samples: int = 1024, seed: int = 0) -> Margins:
        """Cost: one forward pass. ``ValueError`` for data without one label for each row of two or more logits."""
        parts, labels = list[Tensor](), list[Tensor]()
        with evaluating(model):
            for batch in batches_of(data, 256, samples):
                found, answer = labels_of(batch), main_tensor(forward(model, batch))
                fits = isinstance(found, Tensor) and answer.ndim == 2 and len(found) == len(answer)
                if not fits or answer.shape[1] < 2:
                    raise ValueError(
                        "a forecast of accuracy needs one class label for each row, and at least two logits"
                    )
                parts.append(answer.double().cpu())
                labels.append(found.cpu())
        if not parts:
            raise ValueError("the data is empty: give at least one labelled batch")
        return cls.from_logits(torch.cat(parts), torch.cat(labels), seed)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, seed: int = 0) -> Margins:
        """Of scores (N, C) with classes (N,), or with their probabilities (N, C); labels of -100 count nowhere.
        ``ValueError`` for labels that do not fit, or of which none counts."""
        rows, found = Classification().pair(logits.double(), (logits, labels))
        if not len(rows):
            raise ValueError("there is nothing to count: every label is marked as left out")
        noise = torch.randn(_DRAWS, *rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(rows, found.argmax(1) if found.ndim > 1 else found, noise)

    @property
    def _scores(self) -> Tensor:
        """With NaN for −∞, the score of a class that the network rules out, which no noise changes."""
        return self.logits.masked_fill(~self.logits.isfinite(), torch.nan)

    @property
    def energy(self) -> float:
        """Mean over samples of ‖z − mean z‖², z the finite scores."""
        scores = self._scores
        return float((scores - scores.nanmean(1, keepdim=True)).square().nansum(1).mean())

    def accuracy(self, change: float) -> float:
        """Expected share of right answers under normal noise of ``change`` times the energy of the outputs."""
        free = float(self._scores.isfinite().sum(1).double().mean()) - 1
        deviation = math.sqrt(max(change, 0.0) * self.energy / free) if free > 0 else 0.0
        return float(((self.logits + deviation * self.noise).argmax(-1) == self.labels).double().mean())


@ordinarily
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
    into noise on what is left of the outputs (``lost_over_kept``, and ``correction``). Noise of that size on the logits
    of ``labelled`` data then gives the accuracy. Budgets that cannot be met are left out.

    ``data``: ``rankfold.zoo.Data`` or anything alike, or a tuple of data sets (train, test) or (train, validation,
    test), read as those of a factory: train calibrates, validation is ``labelled``, test is not looked at. Or one part
    alone, as ``rankfold.plan`` takes it, which is ``labelled`` too where none is given: the accuracy is that on it.
    Cost: that of the plans, one of them with statistics. Raises ``ValueError`` as ``rankfold.plan`` does, for data of
    any other kind, and for a method without output metrics.
    """
    data, labelled = _parts(data, labelled, samples)
    margins = Margins.of(model, labelled, samples)
    known = Calibration(samples=samples)
    found = []
    for budget in budgets:
        try:
            made = plan(model, budget, method, data, rule="optimal", calibration=known)
        except BudgetError:
            continue
        known = replace(known, statistics=made.statistics)
        change = sum(entry.predicted_loss for entry in made.changed) / (margins.energy or 1.0)
        params, flops = made.after.params / made.before.params, made.after.flops / made.before.flops
        accuracy = margins.accuracy((correction or Correction()).of(change))
        found.append(Forecast(budget, params, flops, change, accuracy, made, doubts(change, params, made)))
    return found


def _parts(data: Any, labelled: Any, samples: int) -> tuple[Any, Any]:
    """(what calibrates, what is labelled) of everything that ``forecast`` takes."""
    if isinstance(data, tuple | list) and len(data) in (2, 3) and all(map(_is_data_set, data)):
        data = data_of("the data", data)
    if hasattr(data, "train") and hasattr(data, "validation"):
        if labelled is None and data.validation is not None:
            labelled = calibration_part(data.validation, samples, 0)
        data = calibration_part(data.train, samples, 0)
    labelled = data if labelled is None else labelled
    for part in (data, labelled):
        check_rereadable(part)
        try:
            next(iter(batches_of(part, 1, 1)), None)
        except TypeError as error:
            raise ValueError(
                f"a forecast cannot read a {type(part).__name__} ({error}): give rankfold.zoo.Data, a tuple of "
                "data sets (train, test) or (train, validation, test), or one data set, loader or list of "
                "labelled batches"
            ) from error
    return data, labelled


def _is_data_set(part: Any) -> bool:
    """Whether it is a part of a data set rather than a batch, or a tensor of one."""
    if isinstance(part, DataLoader):
        return True
    return hasattr(part, "__getitem__") and not isinstance(part, Tensor | tuple | list | Mapping | str)


def learned(cases: Sequence[tuple[Curve, float, float]]) -> Correction:
    """The correction that fits (accuracy curve, change, accuracy reached) of other networks best, in squared accuracy.

    A search over a grid of powers and shifts; the uncorrected forecast is on it, so that on these it is never worse.
    """
    if not cases:
        raise ValueError("a correction is learned from compressed networks: give at least one")
    powers, shifts = (grid.flatten() for grid in np.meshgrid(_POWERS, _SHIFTS, indexing="ij"))
    errors = np.zeros(len(powers))
    for curve, change, reached in cases:
        moved = shifts + powers * math.log(max(lost_over_kept(change), 1e-12))
        errors += (np.interp(moved, *curve) - reached) ** 2
    best = int(np.argmin(errors.round(12)))  # of equals the first: the plain forecast where it is as good
    return Correction(float(shifts[best]), float(powers[best]))


Curve = tuple[list[float], list[float]]


def accuracy_curve_of(margins: Margins) -> Curve:
    """(log change, accuracy) along growing noise."""
    changes = torch.logspace(-6, 4, 41, dtype=torch.float64)
    return changes.log().tolist(), [margins.accuracy(change) for change in changes.tolist()]


def accuracy_at(curve: Curve, change: float) -> float:
    """Between the points of the curve, linear in log change."""
    return float(np.interp(math.log(max(change, 1e-12)), *curve))
