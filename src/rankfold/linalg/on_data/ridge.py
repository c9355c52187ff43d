"""How far a least-squares fit may leave its anchor: the ridge, chosen from moments of samples it was not fitted to.

The ridge is scaled by channel: inputs of language models have a few huge channels, and what is small beside their mean
is not small beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, eigh
from rankfold.linalg.on_data.cross_moments import CrossMoments

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the variance of each input
STANDARD = 1e-3  # where nothing can be held out
_TOGETHER = 1 << 18  # numbers of moments that are factorised at a time for several ridges


@dataclass(frozen=True)
class Ridge:
    """``value``: of the variance of each input. Squared errors of one row, on rows that were fitted and on others.

    The latter is None where there were none.
    """

    value: float
    fitted: float
    held_out: float | None


def anchored_path(gram: Tensor, cross: Tensor, anchor: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """argmin tr[Z G Zᵀ − 2 Z B] + tr[(Z − A) Γ (Z − A)ᵀ], Γ = μ diag(G), for every μ of ``ridges``: weights (…, m, n),
    float64.

    ``gram`` G (…, n, n), ``cross`` B (…, n, m), ``anchor`` A (…, m, n); directions in which the data say nothing are
    left as the anchor has them. The scale of an input does not matter. Cost: for each ridge one Cholesky
    factorisation, n³/3; where that fails (no ridge on singular moments) one eigendecomposition.
    """
    gram, anchor = checked(gram), checked(anchor)
    pull = checked(cross) - gram @ anchor.mT
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = torch.where(scale > 0, 1 / scale, 0.0).unsqueeze(-1)
    alike, pull = scale * gram * scale.mT, scale * pull
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    path: list[Tensor] = []
    spectrum = None
    together = max(1, _TOGETHER // max(gram.numel(), 1))
    for start in range(0, len(ridges), together):
        part = ridges[start : start + together]
        roots, failed = torch.linalg.cholesky_ex(alike + gram.new_tensor(part).reshape(-1, *[1] * gram.dim()) * eye)
        if not bool(failed.any()):
            path += anchor + (scale * torch.cholesky_solve(pull.expand(len(part), *pull.shape), roots)).mT
            continue
        values, vectors = spectrum = spectrum or eigh(alike)
        path += [anchor + (scale * _solved(values, vectors, ridge, pull)).mT for ridge in part]
    return path


def _solved(values: Tensor, vectors: Tensor, ridge: float, pull: Tensor) -> Tensor:
    damped = values + ridge
    usable = damped > 1e-12 * values[..., :1]
    inverse = torch.where(usable, 1 / torch.where(usable, damped, torch.ones_like(damped)), 0.0)
    return vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ pull))


def squared_error(weight: Tensor, moments: CrossMoments) -> float:
    """Mean of ‖t − Z x − free bias‖² over the rows, ``weight`` Z (…, m, n).

    At least 0; of an error far below 1e-15 of the targets' energy no digit is right.
    """
    weight = weight.double()
    fitted = (weight * (weight @ moments.gram - 2 * moments.cross.mT)).sum(-1)
    return float((moments.energy + fitted).clamp_min(0).sum())


@dataclass(frozen=True)
class Judge:
    """Weighs errors e of the outputs as eᵀDe. ``metric`` D (…, m, m), or its diagonal (…, m), ones if None; with
    ``inward`` P (k, m) it is (k, k), of P e: that is all of D that counts where the targets lie in a space of k
    dimensions."""

    metric: Tensor | None = None
    inward: Tensor | None = None

    def excess(self, weight: Tensor, moments: CrossMoments, bias: Tensor | None = None) -> float:
        """Mean of (t − Z x − c)ᵀ D (t − Z x − c) over the rows, less what it is for Z = 0 and the best c.

        ``weight`` Z (…, m, n); ``bias`` c (…, m), the best one for these rows if None. For comparing weights only.
        """
        return float(self.excesses(weight.unsqueeze(0), moments, bias))

    def excesses(self, weights: Tensor, moments: CrossMoments, bias: Tensor | None = None) -> Tensor:
        """``excess`` of several ``weights`` (k, …, m, n): (k,)."""
        z, cross, inner = weights.double(), moments.cross.mT, tuple(range(1, weights.dim() - 1))
        wrong = None
        if bias is not None:
            wrong = moments.target_mean - (z @ moments.inputs.mean.unsqueeze(-1)).squeeze(-1) - bias.double()
        if self.inward is not None:
            z, cross = self.inward @ z, self.inward @ cross
            wrong = None if wrong is None else wrong @ self.inward.mT
        moved = z @ moments.gram - 2 * cross
        metric = self.metric
        if metric is None or metric.dim() == z.dim() - 2:
            each = (z * moved).sum(-1) + (0 if wrong is None else wrong.square())
            return (each if metric is None else each * metric).sum(inner)
        found = (metric * (z @ moved.mT)).sum((*inner, -1))
        return found if wrong is None else found + ((metric @ wrong.unsqueeze(-1)).squeeze(-1) * wrong).sum(inner)


def choose_ridge(
    fits: Sequence[tuple[CrossMoments, CrossMoments]],
    anchor: Tensor,
    judge: Judge | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Ridge:
    """The ridge with which a fit to the first of each pair of moments errs least on the second; of such as differ by no
    more than rounding, the one nearest to ``STANDARD``.

    Without a pair it is ``STANDARD``, unchecked. Cost: one Cholesky factorisation of size n for each pair and ridge.
    """
    judge = judge or Judge()
    known = [(fitted, other) for fitted, other in fits if fitted.count and other.count]
    if not known:
        return Ridge(STANDARD, 0.0, None)
    paths = [anchored_path(fitted.gram, fitted.cross, anchor, ridges) for fitted, _ in known]
    scores = [
        sum(each)
        for each in zip(
            *(judge.excesses(torch.stack(path), other).tolist() for path, (_, other) in zip(paths, known, strict=True)),
            strict=True,
        )
    ]
    enough = min(scores) + 1e-9 * sum(abs(judge.excess(anchor, other)) for _, other in known)
    best = min((i for i in range(len(ridges)) if scores[i] <= enough), key=lambda i: abs(log(ridges[i] / STANDARD)))
    errors = [
        [squared_error(path[best], each) for path, each in zip(paths, side, strict=True)]
        for side in zip(*known, strict=True)
    ]
    return Ridge(ridges[best], *(sum(each) / len(known) for each in errors))
