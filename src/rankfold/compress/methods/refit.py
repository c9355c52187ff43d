"""The full matrix that gives a layer's target from the inputs it has in the compressed network; low rank comes after.

For every form and rank the best replacement is the projection of this matrix on the moments of those inputs
("Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.1): projecting on the span of the
inputs before truncation, as X̃ ≠ X demands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import Decomposition
from rankfold.compress.methods.project import Projected, SpatialPair, is_inside
from rankfold.linalg import Moments
from rankfold.linalg.on_data.cross_moments import CrossMoments
from rankfold.linalg.on_data.ridge import RIDGES, Judge, Ridge, anchored_path, choose_ridge, squared_error
from rankfold.sites import Form, Site

_DAMPED = 1e-5  # of the variance of each input, added to it: where a fit is projected
_MANY = 8  # rows for each input: where a fit needs no test
OVERFIT = 1.5  # held-out error over fitted error, of the full matrix: above, there are too few samples


@dataclass(frozen=True)
class Refit:
    """``matrix`` (…, m, n) float64, anchored at the layer's own by ``ridge``; ``moments`` of the samples it was fitted
    to, ``judged`` of others; ``judge`` weighs errors; ``statistics``: what a projection of it needs."""

    site: Site
    weight: Tensor
    matrix: Tensor
    moments: CrossMoments
    ridge: Ridge
    statistics: SiteStatistics
    judge: Judge = field(default_factory=Judge)
    judged: CrossMoments | None = None

    def decomposition(self, form: Form, damping: float) -> Decomposition:
        """``matrix`` at every rank in ``form``: FACTORED or SPATIAL."""
        return decomposed(self.site, form, self.weight, self.matrix, self.statistics, damping)

    def retargeted(self, cross: Tensor) -> Refit:
        """The same fit to other targets, whose centred moment with the inputs is ``cross`` (…, n, m)."""
        moments, ridge = self.moments, self.ridge.value
        return replace(self, matrix=anchored_path(moments.gram, cross, self.anchor, [ridge])[0])

    @property
    def anchor(self) -> Tensor:
        """The layer's own matrix (…, m, n), float64."""
        return self.site.layer.geometry(Form.FACTORED).matrix(self.weight).double()

    def metric_of(self, matrix: Tensor) -> Tensor | None:
        """The metric of the model's outputs for ``matrix`` (…, m, n) in the layer's place: D, or MᵀDM for M."""
        return carried(self.judge.metric, self.judge.inward, matrix)

    def diagonal(self) -> Tensor | None:
        """(m,) how much each output of the layer counts there alone."""
        metric, inward = self.judge.metric, self.judge.inward
        if metric is None or metric.dim() == 1:
            return metric
        return metric.diagonal() if inward is None else ((metric @ inward) * inward).sum(0)

    def error(self, matrix: Tensor, free: Tensor | None = None) -> float:
        """Relative error of any matrix (…, m, n) on all the data; ``free``: its bias, the best one if None."""
        energy = float(self.moments.energy.sum())
        wrong = squared_error(matrix, self.moments)
        if free is not None and self.statistics.free:
            wrong += float((self.shift(matrix, None) - free).square().sum())
        return (wrong / energy) ** 0.5 if energy > 0 else 0.0

    def excess(self, matrix: Tensor, shift: Tensor | None, bias: Tensor | None) -> float:
        """What a matrix costs on the samples that nothing was fitted to, for comparing; ``shift``: above its bias."""
        assert self.judged is not None
        free = torch.zeros_like(self.judged.target_mean)
        for part in (shift, bias):
            free = free if part is None else free + part.double().reshape(free.shape)
        return self.judge.excess(matrix, self.judged, free)

    def shift(self, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """What the free bias of ``matrix`` is above the layer's own: (m_total,) float64."""
        moved = matrix.double() @ self.moments.inputs.mean.unsqueeze(-1)
        free = (self.moments.target_mean - moved.squeeze(-1)).flatten()
        return free if bias is None else free - bias.double()

    @property
    def note(self) -> str:
        """A sentence where the calibration data is too little for this layer."""
        held_out, fitted = self.ridge.held_out, self.ridge.fitted
        energy = float(self.moments.energy.sum())
        if held_out is None or energy <= 0 or held_out <= max(OVERFIT**2 * fitted, fitted + 0.03**2 * energy):
            return ""
        return (
            f"few samples: a full fit errs by {(held_out / energy) ** 0.5:.1%} on data it has not seen, by "
            f"{(fitted / energy) ** 0.5:.1%} on its own"
        )


def refit(site: Site, weight: Tensor, known: Pairs, metric: Tensor | None) -> Refit:
    """The least-squares matrix of a site, with the ridge that is best on samples that it is not fitted to.

    Cost: some Cholesky factorisations of the input side, n³/3 each.
    """
    anchor = site.layer.geometry(Form.FACTORED).matrix(weight).double()
    inward = None
    if is_inside(metric, anchor):
        # WᵀDW: the targets are W x, so that a fit is W K, K = P W*, and costs what K does in WᵀDW
        inward = torch.linalg.pinv(anchor)
    judge = Judge(None if metric is None else metric.double(), inward)
    ridge = choose_ridge(known.trials, anchor, judge)
    moments = known.moments
    if ridge.held_out is None and moments.count < _MANY * moments.inputs.size:  # nothing tells: near to what it was
        ridge = replace(ridge, value=RIDGES[-1])
    gram = moments.gram
    (matrix,) = anchored_path(gram, moments.cross, anchor, [ridge.value])
    metric = carried(metric, inward, matrix)
    gram = gram + _DAMPED * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
    inputs = Moments.from_state_dict({"count": 1, "mean": moments.inputs.mean, "covariance_sum": gram})
    statistics = SiteStatistics(inputs, None, metric, free=known.free, tokens=known.tokens)
    return Refit(site, weight, matrix, moments, ridge, statistics, judge, known.unseen)


def carried(metric: Tensor | None, inward: Tensor | None, matrix: Tensor) -> Tensor | None:
    """The metric of the outputs of another ``matrix`` M in the place of W: M = W K, K = P M, has KᵀWᵀDWK for WᵀDW.
    ``inward``: P (n, m), the inverse of W, where the metric is WᵀDW; None where it is D, that stays what it is."""
    if metric is None or inward is None:
        return metric
    inside = inward @ matrix
    return inside.mT @ metric.double() @ inside


def decomposed(
    site: Site, form: Form, weight: Tensor, matrix: Tensor, statistics: SiteStatistics, damping: float
) -> Decomposition:
    """``matrix`` (…, m, n), of the shape of a site's, at every rank in ``form``, given moments of its inputs."""
    if form is Form.SPATIAL:
        folded = site.layer.geometry(Form.FACTORED).fold(weight.shape, matrix)
        return SpatialPair(folded, statistics, damping)
    return Projected("input", matrix, statistics, None, damping)


def multiplied(site: Site, form: Form, weight: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """The matrix (…, m, n) that a pair of factors stands for."""
    if form is Form.DENSE:
        return parts[0].double()
    right, left = (part.double() for part in parts)
    whole = site.layer.geometry(form).fold(weight.shape, left @ right)
    return site.layer.geometry(Form.FACTORED).matrix(whole)
