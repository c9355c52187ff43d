"""How far a least-squares fit may leave its anchor: the ridge, chosen from moments of samples it was not fitted to.

The ridge is scaled by channel: inputs of language models have a few huge channels, and what is small beside their mean
is not small beside the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class Anchored:
    """argmin tr[Z G Zᵀ − 2 Z B] + tr[(Z − A) Γ (Z − A)ᵀ], Γ = μ diag(G), for any μ.

    ``gram`` G (…, n, n), ``cross`` B (…, n, m), ``anchor`` A (…, m, n); directions in which the data say nothing are
    left as the anchor has them. The scale of an input does not matter. Cost: for each ridge one Cholesky
    factorisation, n³/3; where that fails (no ridge on singular moments) one eigendecomposition. Memory: G and B once
    more, and as much again for each ridge that is asked for at a time.
    """

    def __init__(self, gram: Tensor, cross: Tensor, anchor: Tensor) -> None:
        self.anchor = checked(anchor)
        self.alike, cross = checked(gram), checked(cross)
        self.pull = (self.alike @ self.anchor.mT).neg_().add_(cross)
        scale = self.alike.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        self.scale = torch.where(scale > 0, 1 / scale, 0.0).unsqueeze(-1)
        self.alike = (self.scale * self.alike).mul_(self.scale.mT)
        self.pull *= self.scale
        self.spectrum: tuple[Tensor, Tensor] | None = None

    @property
    def together(self) -> int:
        """For how many ridges at a time it is factorised best."""
        return max(1, _TOGETHER // max(self.alike.numel(), 1))

    def at(self, ridges: Sequence[float]) -> Tensor:
        """(k, …, m, n) weights, float64, for k ridges."""
        damped = self.alike.expand(len(ridges), *self.alike.shape).clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(damped.new_tensor(ridges).reshape(-1, *[1] * (self.alike.dim() - 1)))
        roots, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if bool(failed.any()):
            self.spectrum = self.spectrum or eigh(self.alike)
            moved = torch.stack([_solved(*self.spectrum, ridge, self.pull) for ridge in ridges])
        else:
            moved = torch.cholesky_solve(self.pull.expand(len(ridges), *self.pull.shape), roots)
        del roots
        moved *= self.scale
        return moved.mT.add_(self.anchor)


def anchored_path(gram: Tensor, cross: Tensor, anchor: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """``Anchored`` at every one of ``ridges``: weights (…, m, n), float64."""
    fit = Anchored(gram, cross, anchor)
    return [weight.contiguous() for ridge in ridges for weight in fit.at([ridge])]


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
    fitted = (weight @ moments.gram).sub_(moments.cross.mT, alpha=2).mul_(weight).sum(-1)
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
        moved = (z @ moments.gram).sub_(cross, alpha=2)
        del cross
        metric = self.metric
        if metric is None or metric.dim() == z.dim() - 2:
            each = moved.mul_(z).sum(-1) + (0 if wrong is None else wrong.square())
            return (each if metric is None else each * metric).sum(inner)
        found = (z @ moved.mT).mul_(metric).sum((*inner, -1))
        return found if wrong is None else found + ((metric @ wrong.unsqueeze(-1)).squeeze(-1) * wrong).sum(inner)


def choose_ridge(
    fits: Iterable[tuple[CrossMoments, CrossMoments]],
    anchor: Tensor,
    judge: Judge | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Ridge:
    """The ridge with which a fit to the first of each pair of moments errs least on the second; of such as differ by no
    more than rounding, the one nearest to ``STANDARD``.

    Without a pair it is ``STANDARD``, unchecked. ``fits`` are gone through twice. Cost: one Cholesky factorisation of
    size n for each pair and ridge, and one more for each pair.
    """
    judge = judge or Judge()
    scores, scale, used = [0.0] * len(ridges), 0.0, 0
    for fitted, other in fits:
        if fitted.count and other.count:
            scores = [score + each for score, each in zip(scores, _tried(fitted, other, anchor, judge, ridges))]
            scale, used = scale + abs(judge.excess(anchor, other)), used + 1
        del fitted, other  # before the next ones are made
    if not used:
        return Ridge(STANDARD, 0.0, None)
    enough = min(scores) + 1e-9 * scale
    best = min(
        (r for r, score in zip(ridges, scores, strict=True) if score <= enough), key=lambda r: abs(log(r / STANDARD))
    )
    errors = [0.0, 0.0]
    for fitted, other in fits:
        if fitted.count and other.count:
            (weight,) = Anchored(fitted.gram, fitted.cross, anchor).at([best])
            errors = [sum_ + squared_error(weight, each) / used for sum_, each in zip(errors, (fitted, other))]
            del weight
        del fitted, other
    return Ridge(best, *errors)


def _tried(
    fitted: CrossMoments, other: CrossMoments, anchor: Tensor, judge: Judge, ridges: Sequence[float]
) -> list[float]:
    """What the fits with ``ridges`` cost on other samples."""
    fit, found = Anchored(fitted.gram, fitted.cross, anchor), list[float]()
    for start in range(0, len(ridges), fit.together):
        found += judge.excesses(fit.at(ridges[start : start + fit.together]), other).tolist()
    return found
