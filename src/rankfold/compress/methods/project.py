"""Data-driven projection: the layer of rank r that changes the model's outputs least on the calibration data.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.1 with X̃ = X, with the bias set
free and, where gradients were taken, in the metric of the model's outputs instead of the layer's own: the error is
tr[D (W − Z) H (W − Z)ᵀ]. In closed form for the pair n → r → m (k×k then 1×1 for a convolution); for the spatial pair
from a closed form by alternation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor

from rankfold.compress.effect import effect
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import Decomposition, Forecast, balanced, relative
from rankfold.compress.methods.truncate import Truncate
from rankfold.forms.layer import Side
from rankfold.linalg import Projection, bias_from_inputs, bias_from_outputs, project, tails
from rankfold.linalg.decompositions import few_rows
from rankfold.linalg.on_data.projection import restored
from rankfold.linalg.on_data.spatial import SpatialProjection, project_spatial
from rankfold.sites import Factors, Form, Site

_MANY = 2  # rows for each direction: more need no ridge
_RIDGES = (0.1, 1.0, 10.0)
DAMPING = 0.1  # of the mean sensitivity, added to every output: few gradients see few directions
_RAISED = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)  # of its mean, added to a metric that is singular
OF_TOKENS = 0.1  # of the damping: there are many more of them


@dataclass(frozen=True)
class Project:
    """Where a site has no statistics (the data never reached it) this is singular value truncation.

    ``damping`` of the output metric, as a part of its mean diagonal. ``ridge``: how much a weight's change counts
    off the data, as a part of what it counts on them: 0 is the optimum on the samples, a large one is truncation
    without data.
    """

    damping: float = DAMPING
    ridge: float = 0.0
    name: str = "project"
    forms: frozenset[Form] = frozenset({Form.FACTORED, Form.SPATIAL})
    needs_data: bool = True

    def decompose(
        self, site: Site, form: Form, weight: Tensor, statistics: SiteStatistics | None, bias: Tensor | None = None
    ) -> Decomposition | None:
        if statistics is None:
            return Truncate().decompose(site, form, weight, None, bias)
        side = statistics.side or site.layer.side
        if form is Form.SPATIAL:
            return SpatialPair(weight, statistics, self.damping, self.ridge) if side == "input" else None
        matrix = site.layer.geometry(form).matrix(weight)
        return Projected(side, matrix, statistics, bias, self.damping, self.ridge)

    def alternatives(self, fitted: SiteStatistics) -> tuple[Project, ...]:
        """What is weighed on held-out samples: ridges too, where rows are few beside the directions they have."""
        moments = fitted.moments
        if moments.count >= _MANY * moments.size or self.ridge:
            return (self,)
        return (self, *(replace(self, ridge=ridge) for ridge in _RIDGES))


def damped(metric: Tensor | None, damping: float) -> Tensor | None:
    """The metric (…, m, m) or diagonal (m,), float64, made positive definite; None stays None, as does a zero one."""
    if metric is None:
        return None
    metric = metric.double()
    if metric.dim() == 1:
        mean = metric.mean()
        return metric + damping * mean if mean > 0 else None
    mean = metric.diagonal(dim1=-2, dim2=-1).mean()
    eye = torch.eye(metric.shape[-1], dtype=metric.dtype, device=metric.device)
    return metric + damping * mean * eye if mean > 0 else None


def damped_inside(inner: Tensor, weight: Tensor, damping: float) -> Tensor | None:
    """WᵀDW (n, n) for D with ``damping`` of its mean, as W weighs it, added to every output; None for a zero one."""
    inner = inner.double()
    alike = weight.to(inner).mT @ weight.to(inner)
    mean = inner.trace() / alike.trace().clamp_min(torch.finfo(inner.dtype).tiny)
    if not mean > 0:
        return None
    made = inner + damping * mean * alike
    # a weight of a smaller rank has no triangle otherwise; rounding takes it below zero by an unknown share
    eye = made.diagonal().mean() * torch.eye(len(made), dtype=made.dtype, device=made.device)
    return next(
        (raised for share in _RAISED[:-1] if not torch.linalg.cholesky_ex(raised := made + share * eye)[1].any()),
        made + _RAISED[-1] * eye,
    )


def is_inside(metric: Tensor | None, matrix: Tensor) -> bool:
    """Whether a metric of the outputs of ``matrix`` (m, n) is WᵀDW (n, n), and not D (m, m) or its diagonal."""
    m, n = matrix.shape[-2:]
    return metric is not None and metric.dim() == matrix.dim() == 2 and metric.shape[-1] == n < m


class InMetric(TypedDict, total=False):
    """How ``rankfold.linalg.project`` weighs errors."""

    metric: Tensor | None
    inner: Tensor | None


def weighing(metric: Tensor | None, matrix: Tensor, damping: float) -> InMetric:
    """How ``rankfold.linalg.project`` is to weigh errors of ``matrix``: by ``metric``, D or WᵀDW, damped."""
    if metric is not None and is_inside(metric, matrix):
        return {"inner": damped_inside(metric, matrix, damping)}
    return {"metric": damped(metric, damping)}


class Projected:
    def __init__(
        self,
        side: Side,
        matrix: Tensor,
        statistics: SiteStatistics,
        bias: Tensor | None,
        damping: float,
        ridge: float = 0.0,
    ) -> None:
        self.side, self.matrix, self.statistics, self.bias = side, matrix, statistics, bias
        self.damping = damping * OF_TOKENS if statistics.tokens else damping
        self.ridge = ridge
        self._solved: tuple[Tensor, Tensor] | None = None

    @property
    def _weighing(self) -> InMetric:
        return weighing(self.statistics.metric, self.matrix, self.damping)

    @property
    def metric(self) -> Tensor | None:
        return None if is_inside(self.statistics.metric, self.matrix) else self._weighing.get("metric")

    @property
    def comparable(self) -> bool:
        known = self.statistics.metric
        return known is not None and bool((known if known.dim() == 1 else _trace(known)).mean() > 0)

    @property
    def projection(self) -> Projection:
        """Solved once; afterwards made anew from the vectors, as all that it stands on is several times the weight."""
        weight, by = self.matrix, self._weighing
        if self._solved is not None:
            return restored(*self._solved, weight, of_inputs=self.side == "input", **by)
        covariance = self.statistics.covariance
        side = {"outputs" if self.side == "output" else "inputs": covariance}
        ridge = 0.0
        if self.ridge:
            outputs = _trace(covariance).sum() if self.side == "output" else _energy(weight, covariance)
            ridge = self.ridge * float(outputs) / max(float(weight.double().square().sum()), 1e-300)
        made = project(weight, **side, **by, ridge=ridge, refine=False)
        self._solved = made.singular_values, made.vectors
        return made

    @cached_property
    def _values(self) -> Tensor:
        """Over the groups of a grouped convolution, root of summed squares."""
        values = self.projection.singular_values if self._solved is None else self._solved[0]
        return values if values.dim() == 1 else values.square().sum(0).sqrt()

    @property
    def errors(self) -> Tensor:
        return tails(self._values)

    @property
    def levels(self) -> Tensor:
        return relative(self._values)

    @property
    def ranks(self) -> range:
        return range(1, len(self._values) + 1)

    def relative_error(self, rank: int) -> float:
        covariance = self.statistics.covariance
        if self.side == "input":
            left, right = self.projection.factors(rank)
            rows = few_rows(self.matrix)
            parts = list(zip(left.split(rows[0].shape[-2], -2), rows, strict=True))
            change = sum(_energy((some @ right).sub_(outputs), covariance) for some, outputs in parts)
            return _ratio(change, sum(_energy(outputs, covariance) for outputs in rows))
        left = self.projection.factors(rank)[0]
        weighted = self._times_metric(left)
        eye = torch.eye(left.shape[-2], dtype=left.dtype, device=left.device)
        return _ratio(_energy(eye - left @ weighted.mT, covariance), float(_trace(covariance)))

    def forecast(self, moment: Tensor) -> Forecast:
        projection = self.projection
        errors, (left, right) = projection.errors_on(moment), projection.factors()
        if self.side == "output":
            right = self._times_metric(left).mT
        # the output is Σ_i left_i (right_i · row): what is left out at rank r are the terms beyond r
        terms = (right @ moment @ right.mT) * (left.mT @ left)
        lost = terms.flip(-1, -2).cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1).flip(-1).clamp_min(0)
        lost = torch.cat([lost, lost.new_zeros(*lost.shape[:-1], 1)], -1)
        if lost.dim() > 1:  # grouped
            lost, errors = lost.sum(0), errors.square().sum(0).sqrt()
        return Forecast(errors, relative(lost.sqrt()))

    def _times_metric(self, left: Tensor) -> Tensor:
        metric = self.metric
        if metric is None:
            return left
        return metric.unsqueeze(-1) * left if metric.dim() == left.dim() - 1 else metric @ left

    def cost_in(self, metric: Tensor, rank: int) -> float:
        """tr(D E H Eᵀ) of these very factors in another metric: D (m, m), or WᵀDW (n, n) where that was gathered."""
        left, right = self.projection.factors(rank)
        covariance, weight = self.statistics.covariance, self.matrix.to(left)
        found = effect(weight - left @ right, weight, covariance, metric, self.side)
        assert found is not None  # factors of a projection read what the weight reads
        return found

    def weighed(self, matrix: Tensor) -> float:
        """√tr(D A H Aᵀ) of a matrix A (m, n), where moments are those of the inputs."""
        covariance = self.statistics.covariance
        change = matrix.to(covariance)
        return max(float((self._times_metric(change) * (change @ covariance)).sum()), 0.0) ** 0.5

    def sensitivities(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """How much errors in the entries of the factors count; see ``rankfold.linalg.rounding.rounding_cost``. What
        the moments of the smaller side do not tell is taken as alike in all directions."""
        left, right = self.projection.factors()
        (m, n), covariance = self.matrix.shape, self.statistics.covariance
        energy = self.matrix.double().square().sum().clamp_min(1e-300)
        if self.side == "input":
            inputs, trace = ((right @ covariance) * right).sum(-1), _trace(covariance)
        else:
            seen = self._times_metric(left)
            inputs, trace = ((covariance @ seen) * seen).sum(0), n * _trace(covariance) / energy
        outputs = torch.as_tensor(float(m), dtype=covariance.dtype)
        by = self._weighing
        inner, metric = by.get("inner"), by.get("metric")
        if inner is not None:
            outputs = m * _trace(inner) / energy
        elif metric is not None:
            outputs = metric.sum() if metric.dim() == 1 else _trace(metric)
        return right, left, (inputs, trace), (torch.ones_like(inputs), outputs)

    def factors(self, rank: int) -> Factors:
        left, right = self.projection.factors(rank)
        if not self.statistics.free:
            return Factors(balanced(right, left))
        mean = self.statistics.moments.mean
        if self.side == "input":
            shift = bias_from_inputs(self.matrix, left, right, mean)
        else:
            bias = torch.zeros_like(mean) if self.bias is None else self.bias.to(mean).reshape(mean.shape)
            shift = bias_from_outputs(left, mean, bias, self.metric) - bias
        return Factors(balanced(right, left), shift.flatten())


class SpatialPair:
    def __init__(self, weight: Tensor, statistics: SiteStatistics, damping: float, ridge: float = 0.0) -> None:
        self.weight, self.statistics, self.ridge = weight, statistics, ridge
        self.metric = damped(statistics.metric, damping)
        self.comparable = self.metric is not None

    @cached_property
    def projection(self) -> SpatialProjection:
        return project_spatial(self.weight, self.statistics.covariance, self.metric, ridge=self.ridge)

    @property
    def errors(self) -> Tensor:
        return self.projection.errors

    @property
    def levels(self) -> Tensor:
        return relative(self.errors)[:-1]

    @property
    def ranks(self) -> range:
        return range(1, len(self.errors))

    def forecast(self, moment: Tensor) -> Forecast:
        plain = self.projection.errors_on(moment, torch.eye(len(self.weight), dtype=torch.float64))
        return Forecast(self.projection.errors_on(moment), relative(plain))

    def _change(self, left: Tensor, right: Tensor) -> Tensor:
        c_out, c_in, k_h, k_w = self.weight.shape
        kernel = torch.einsum("ojr,rci->ocij", left.reshape(c_out, k_w, -1), right.reshape(-1, c_in, k_h))
        return (self.weight.to(kernel) - kernel).flatten(1)

    def relative_error(self, rank: int) -> float:
        change, outputs = self._change(*self.projection.factors(rank)), self.weight.double().flatten(1)
        covariance = self.statistics.covariance
        return _ratio(_energy(change, covariance), _energy(outputs, covariance))

    def factors(self, rank: int) -> Factors:
        return self._written(*self.projection.factors(rank))

    def draft(self, rank: int) -> Factors:
        """The factors that ``errors`` are of, before they are improved in turns: at next to no cost."""
        return self._written(*self.projection.factors(rank, rounds=0))

    def _written(self, left: Tensor, right: Tensor) -> Factors:
        shift = self._change(left, right) @ self.statistics.moments.mean
        return Factors(balanced(right, left), shift)


def _energy(matrix: Tensor, covariance: Tensor) -> float:
    matrix = matrix.to(covariance)
    return float((matrix @ covariance).mul_(matrix).sum())


def _trace(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).sum()


def _ratio(part: float, whole: float) -> float:
    return (max(part, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
