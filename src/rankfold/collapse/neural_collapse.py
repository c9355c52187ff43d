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


class Projected:
    """Σ over the rows of (u_jᵀ(z − μ_k))², u_j the axes on which the class means lie: what NC1 needs, and no d × d.

    tr(Σ_W Σ_B⁺) = Σ_j u_jᵀ Σ_W u_j / s_j with Σ_B = Σ_j s_j u_j u_jᵀ of rank at most K − 1.
    """

    def __init__(self, scatter: Scatter) -> None:
        means = scatter.means[scatter.counts > 0]
        centred = means - means.mean(0)  # classes count alike, as in the paper
        _, s, vh = torch.linalg.svd(centred / math.sqrt(max(len(means), 1)), full_matrices=False)
        keep = s > max(centred.shape) * torch.finfo(torch.float64).eps * max(float(s[0]), 1e-300) if len(s) else s > 0
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
    distances = torch.pdist(means).square()
    first, second = torch.triu_indices(len(means), len(means), 1)
    return float(((variances[first] + variances[second]) / (2 * distances)).mean())


def simplex(means: Tensor) -> tuple[float, float]:
    """(``nc2_norms``, ``nc2_angles``) of class means (K, d); NaN for fewer than two classes or for equal means."""
    centred = means - means.mean(0)
    norms = centred.norm(dim=1)
    if len(means) < 2 or not bool((norms > 0).all()):
        return math.nan, math.nan
    cosines = (centred / norms.unsqueeze(1)) @ (centred / norms.unsqueeze(1)).mT
    first, second = torch.triu_indices(len(means), len(means), 1)
    angles = (cosines[first, second] + 1 / (len(means) - 1)).abs().mean()
    return float(norms.std(correction=0) / norms.mean()), float(angles)


def self_duality(weight: Tensor, means: Tensor) -> float:
    """NC3 for a classifier ``weight`` (K, d) on class means (K, d); NaN where either is zero."""
    rows, centred = weight.detach().cpu().double(), means - means.mean(0)
    if rows.shape != centred.shape or not (rows.norm() > 0 and centred.norm() > 0):
        return math.nan
    return float((rows / rows.norm() - centred / centred.norm()).norm())


def neural_collapse(scatter: Scatter, projected: Projected, classifier: Tensor | None = None) -> NeuralCollapse:
    """All measures of one layer's features; ``classifier`` (K, d) where these features are what it takes."""
    norms, angles = simplex(scatter.means)
    duality = math.nan if classifier is None else self_duality(classifier, scatter.means)
    return NeuralCollapse(projected.nc1, cdnv(scatter), norms, angles, duality, projected.nc4)
