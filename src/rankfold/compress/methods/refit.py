"""The full matrix that gives a layer's target from the inputs it has in the compressed network; low rank comes after.

For every form and rank the best replacement is the projection of this matrix on the moments of those inputs
("Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.1): projecting on the span of the
inputs before truncation, as X̃ ≠ X demands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Decomposition
from rankfold.compress.methods.project import Projected, SpatialPair
from rankfold.compress.statistics import SiteStatistics
from rankfold.linalg import Moments
from rankfold.linalg.cross_moments import CrossMoments
from rankfold.linalg.ridge import Ridge, anchored_path, choose_ridge, squared_error
from rankfold.sites import Form, Site

OVERFIT = 1.5  # held-out error over fitted error, of the full matrix: above, there are too few samples


@dataclass(frozen=True)
class Refit:
    """``matrix`` (…, m, n) float64, anchored at the layer's own by ``ridge``; ``moments`` of both halves."""

    site: Site
    weight: Tensor
    matrix: Tensor
    moments: CrossMoments
    ridge: Ridge
    statistics: SiteStatistics

    def decomposition(self, form: Form, damping: float) -> Decomposition:
        """``matrix`` at every rank in ``form``: FACTORED or SPATIAL."""
        if form is Form.SPATIAL:
            folded = self.site.layer.geometry(Form.FACTORED).fold(self.weight.shape, self.matrix)
            return SpatialPair(folded, self.statistics, damping)
        return Projected("input", self.matrix, self.statistics, None, damping)

    def retargeted(self, cross: Tensor) -> Refit:
        """The same fit to other targets, whose centred moment with the inputs is ``cross`` (…, n, m)."""
        moments, ridge = self.moments, self.ridge.value
        anchor = self.site.layer.geometry(Form.FACTORED).matrix(self.weight).double()
        return replace(self, matrix=anchored_path(moments.gram, cross, anchor, [ridge])[0])

    def error(self, matrix: Tensor, free: Tensor | None = None) -> float:
        """Relative error of any matrix (…, m, n) on all the data; ``free``: its bias, the best one if None."""
        energy = float(self.moments.energy.sum())
        wrong = squared_error(matrix, self.moments)
        if free is not None:
            wrong += float((self.shift(matrix, None) - free).square().sum())
        return (wrong / energy) ** 0.5 if energy > 0 else 0.0

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
    """The least-squares matrix of a site, with the ridge that cross-validation between the two halves chooses.

    Cost: some Cholesky factorisations of the input side, n³/3 each.
    """
    anchor = site.layer.geometry(Form.FACTORED).matrix(weight).double()
    ridge = choose_ridge(known.folds, anchor)
    moments = known.moments
    gram = moments.gram
    (matrix,) = anchored_path(gram, moments.cross, anchor, [ridge.value])
    gram = gram + ridge.value * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inputs = Moments.from_state_dict({"count": 1, "mean": moments.inputs.mean, "covariance_sum": gram})
    return Refit(site, weight, matrix, moments, ridge, SiteStatistics(inputs, None, metric))


def multiplied(site: Site, form: Form, weight: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """The matrix (…, m, n) that a pair of factors stands for."""
    if form is Form.DENSE:
        return parts[0].double()
    right, left = (part.double() for part in parts)
    whole = site.layer.geometry(form).fold(weight.shape, left @ right)
    return site.layer.geometry(Form.FACTORED).matrix(whole)
