"""NC1 to NC4 (Papyan, Han, Donoho 2020) and the class-distance-normalised variance, from class statistics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rankfold.collapse.scatter import Scatter


@dataclass(frozen=True)
class NeuralCollapse:
    """How far features are collapsed; every number falls to 0 with complete collapse. NaN: cannot be said.

    ``nc1``: tr(Σ_W Σ_B⁺)/K. ``cdnv``: mean over pairs of (V_i + V_j) / (2 ‖μ_i − μ_j‖²), V_k = mean ‖z − μ_k‖²
    (Galanti, György, Hutter 2022). ``nc2_norms``: deviation over mean of the norms of the centred class means;
    ``nc2_angles``: mean |cos + 1/(K − 1)| over pairs. ``nc3``: ‖W/‖W‖ − M/‖M‖‖ with the classifier's rows beside the
    centred class means. ``nc4``: share of samples for which the network and the nearest class mean disagree.
    """

    nc1: float = math.nan
    cdnv: float = math.nan
    nc2_norms: float = math.nan
    nc2_angles: float = math.nan
    nc3: float = math.nan
    nc4: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def centred(means: Tensor) -> Tensor:
    """Class means (K, d) less their mean; 0 where what is left is no more than rounding of the means themselves.

    Means that lie near each other and far from 0 round by their own size, of which their differences know nothing.
    """
    found = means - means.mean(0)
    return torch.where(found.norm(dim=1, keepdim=True) > _rounding(means), found, 0.0)


def _rounding(means: Tensor) -> float:
    return max(means.shape) * torch.finfo(torch.float64).eps * float(means.norm())


class Projected:
    """Σ over the rows of (u_jᵀ(z − μ_k))², u_j the axes on which the class means lie: what NC1 needs, and no d × d.

    tr(Σ_W Σ_B⁺) = Σ_j u_jᵀ Σ_W u_j / s_j with Σ_B = Σ_j s_j u_j u_jᵀ of rank at most K − 1.
    """

    def __init__(self, scatter: Scatter) -> None:
        means = scatter.means[scatter.counts > 0]
        share = math.sqrt(max(len(means), 1))
        _, s, vh = torch.linalg.svd(centred(means) / share, full_matrices=False)  # classes count alike, as in the paper
        keep = s > _rounding(means) / share
        keep[max(len(means) - 1, 0) :] = False  # K centred means span K − 1 axes: the last one is rounding
        self.variances, self.axes = s[keep].square(), vh[keep]
        self.means, self.rows = scatter.means, 0
        self.sums = torch.zeros(len(self.axes), dtype=torch.float64)
        self.disagreements, self.judged = 0, 0

    def update(self, rows: Tensor, index: Tensor, answers: Tensor | None = None) -> None:
        """``rows`` (R, d) of classes ``index`` (R,); ``answers`` (R,): the network's classes, for NC4."""
        rows = rows.detach().cpu().double()
        inner = (rows - self.means[index]) @ self.axes.mT
        self.sums += inner.square().sum(0)
        self.rows += len(rows)
        if answers is not None:
            # ‖z − μ‖² less ‖z‖², about the mean of the means, so that large numbers in common do not round it away
            middle = self.means.mean(0)
            nearness = (rows - middle) @ (self.means - middle).mT - (self.means - middle).square().sum(1) / 2
            self.disagreements += int((nearness.argmax(1) != answers.cpu()).sum())
            self.judged += len(rows)

    @property
    def nc1(self) -> float:
        classes = len(self.means)
        if not len(self.axes) or not self.rows:
            return math.nan  # one class, or class means that coincide
        return float((self.sums / self.rows / self.variances).sum()) / classes

    @property
    def nc4(self) -> float:
        return self.disagreements / self.judged if self.judged else math.nan


def cdnv(scatter: Scatter) -> float:
    """Class-distance-normalised variance, the mean over pairs of classes; infinite where two class means coincide."""
    filled = scatter.counts > 0
    means, variances = scatter.means[filled], scatter.within[filled] / scatter.counts[filled]
    if len(means) < 2:
        return math.nan
    apart = torch.pdist(means)
    distances = torch.where(apart > _rounding(means), apart, 0.0).square()
    first, second = torch.triu_indices(len(means), len(means), 1)
    return float(((variances[first] + variances[second]) / (2 * distances)).mean())


def simplex(means: Tensor) -> tuple[float, float]:
    """(``nc2_norms``, ``nc2_angles``) of class means (K, d); NaN for fewer than two classes or for equal means."""
    found = centred(means)
    norms = found.norm(dim=1)
    if len(means) < 2 or not bool((norms > 0).all()):
        return math.nan, math.nan
    cosines = (found / norms.unsqueeze(1)) @ (found / norms.unsqueeze(1)).mT
    first, second = torch.triu_indices(len(means), len(means), 1)
    angles = (cosines[first, second] + 1 / (len(means) - 1)).abs().mean()
    return float(norms.std(correction=0) / norms.mean()), float(angles)


def self_duality(weight: Tensor, means: Tensor) -> float:
    """NC3 for a classifier ``weight`` (K, d) on class means (K, d); NaN where either is zero."""
    rows, found = weight.detach().cpu().double(), centred(means)
    if rows.shape != found.shape or not (rows.norm() > 0 and found.norm() > 0):
        return math.nan
    return float((rows / rows.norm() - found / found.norm()).norm())


def neural_collapse(scatter: Scatter, projected: Projected, classifier: Tensor | None = None) -> NeuralCollapse:
    """All measures of one layer's features; ``classifier`` (K, d) where these features are what it takes."""
    norms, angles = simplex(scatter.means)
    duality = math.nan if classifier is None else self_duality(classifier, scatter.means)
    return NeuralCollapse(projected.nc1, cdnv(scatter), norms, angles, duality, projected.nc4)
