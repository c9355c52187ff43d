"""A weight of given rank whose outputs fit *after* the activation: majorise, then project, and again.

minimise Σ_ij w_j (φ(t_ij) − φ(u_ij))² over u = x Zᵀ + b + offset with rank Z ≤ r. Where the loss of an entry lies below
a parabola L (u − û)² that touches it at the present u, the parabolas together are minimised by one projection of the
imputed outputs û (theorem 3.1, centred for b): algorithm A4, with the factorisation of x shared by all iterations. û is
u plus the step of the loss over L.

What is exact. For ReLU, L = 1 gives a parabola above the loss itself and above both surrogates: at t > 0 > u the loss
is flat, (u − u₀)² + t² ≥ (t − ρ(u))²; elsewhere (u − ρ(t))², or (u − min(u₀, 0))² where t ≤ 0. For the identity L = 1
is the loss. Leaky ReLU has a kink upwards at 0 where t < 0, GELU and SiLU have a curvature that grows slowly with
|t|; there L is found by trial. In every case a step is taken only if what is minimised does not rise, and L is tried
smaller after it, since entries that the activation hides are flat. The problem is not convex: what is found is a
local optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.brief import brief
from rankfold.linalg.decompositions import checked
from rankfold.linalg.on_data.moments import Moments
from rankfold.linalg.on_data.projection import project
from rankfold.linalg.on_data.regression import GramInverse, invert
from rankfold.linalg.programs.activation_loss import Loss, activation_loss, check_activation, surrogate_loss

_STEEPEST = 64.0  # the largest L that is tried: where even that does not descend, rounding does not let anything
_FLATTEST = 0.25

Point = tuple[Tensor, Tensor, Tensor]  # left (m, r), right (r, n), bias (m,)


@dataclass(frozen=True, eq=False)
class ActivationAwareFit:
    """u = x (left right)ᵀ + bias + offset: `left` (m, r), `right` (r, n), `bias` (m,), float64.

    `losses`: what was minimised, at the start and after each iteration, never rising. `activation_losses`: the loss
    behind the activation at the same points; the factors are those of its smallest value, number `best`. Both are
    weighted sums over all rows. `message` says why it stopped.
    """

    left: Tensor
    right: Tensor
    bias: Tensor
    losses: tuple[float, ...]
    activation_losses: tuple[float, ...]
    best: int
    converged: bool
    message: str

    __repr__ = brief


def activation_aware(
    x: Tensor,
    target: Tensor,
    rank: int,
    *,
    offset: Tensor | None = None,
    weights: Tensor | None = None,
    activation: str = "relu",
    slope: float = 0.01,
    sigma: float | None = None,
    start: tuple[Tensor, Tensor, Tensor] | None = None,
    free: bool = True,
    anchor: Tensor | None = None,
    ridge: float = 0.0,
    iterations: int = 50,
    tolerance: float = 1e-4,
) -> ActivationAwareFit:
    """The rank-`rank` weight and bias whose activations are nearest to those of `target`, by descent.

    `x` (N, n): inputs of the layer; `target` (N, m): pre-activations to imitate, those of the original network;
    `offset` (N, m): a given part of the pre-activation, such as the other branch of a residual block, 0 if None.
    `weights` (m,) positive: of the outputs. `activation`: identity, relu, leaky_relu (with `slope`), gelu or silu.
    `sigma`: None minimises the loss behind the activation; for ReLU also a number ≥ 0, for the convex loss above it,
    −2σ² log Φ(−u/σ) where the target is not positive and (t − u)² where it is (theorem 4.9), which for 0 is max(u,
    0)². `start` (left, right, bias): where the descent begins, of any rank up to `rank`; least squares on the
    pre-activations if None. `free`: the bias is fitted too; else it stays that of `start`, 0 without one. ridge ‖Z −
    anchor‖² (`anchor` (m, n), 0 if None), weighted by output like the rest, is added to what is minimised. It ends when
    an iteration gains less than `tolerance` of the loss, or after `iterations`.

    Rows of float32 stay so in products with N rows; sums, factorisations and results are float64. Deterministic.
    Cost: one eigendecomposition of n × n; each iteration O(N n m), O(n² m) and an eigenproblem of min(m, n).
    Raises `ValueError` (shapes, rank, names, numbers out of range) and `NonFiniteError`.
    """
    if sigma is not None and activation != "relu":
        raise ValueError(f"sigma is for the convex loss of relu, and {activation} has none: leave sigma out")
    if iterations < 0 or not 0 <= tolerance < math.inf:
        raise ValueError(f"iterations and tolerance must be at least 0, got {iterations} and {tolerance}")
    check_activation(activation)
    x, target, offset, weights, anchor = _fitting(x, target, rank, offset, weights, anchor)
    problem = _problem(x, rank, offset, weights, anchor, ridge, free)
    point = problem.least_squares(target) if start is None else problem.checked(start)
    behind = activation_loss(target, activation, slope)
    return _descend(
        problem, point, behind, None if sigma is None else surrogate_loss(target, sigma), iterations, tolerance
    )


def _descend(
    problem: _Problem, point: Point, behind: Loss, above: Loss | None, iterations: int, tolerance: float
) -> ActivationAwareFit:
    """Minimise `above`, or where there is none `behind`, which is watched in any case."""

    def evaluate(point: Point) -> tuple[float, float, Tensor]:
        u = problem.outputs(point)
        entries, step = behind(u)
        seen = problem.total(entries, point)
        if above is None:
            return seen, seen, step
        entries, step = above(u)
        return problem.total(entries, point), seen, step

    loss, seen, step = evaluate(point)
    losses, watched, kept, best = [loss], [seen], point, 0
    curvature, converged, message = 1.0, False, ""
    for number in range(1, iterations + 1):
        direction = problem.direction(point, step)
        while True:
            candidate = problem.move(point, direction, step, curvature)
            loss, seen, following = evaluate(candidate)
            if loss <= losses[-1] or curvature >= _STEEPEST:
                break
            curvature *= 2
        if not loss < losses[-1]:
            converged, message = True, f"after {number - 1} iterations no step lowers the loss any further"
            break
        gain = 1 - loss / losses[-1]
        point, step = candidate, following
        losses.append(loss)
        watched.append(seen)
        if seen < watched[best]:
            best, kept = number, point
        if gain <= tolerance:
            converged, message = True, f"after {number} iterations one more gains less than {tolerance:g} of the loss"
            break
        curvature = max(curvature / 1.5, _FLATTEST)
    if not converged:
        message = f"not converged: after all {iterations} iterations the loss still falls"
    return ActivationAwareFit(*kept, tuple(losses), tuple(watched), best, converged, message)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What all iterations share: the rows, their moments, and one factorisation."""

    x: Tensor
    rank: int
    offset: Tensor | None
    weights: Tensor
    anchor: Tensor
    ridge: float
    free: bool  # whether the bias is fitted; else moments are about zero, and so is `mean`
    mean: Tensor
    gram: Tensor  # with the ridge
    inverse: GramInverse

    def outputs(self, point: Point) -> Tensor:
        left, right, bias = (part.to(self.x.dtype) for part in point)
        u = (self.x @ right.mT) @ left.mT + bias
        return u if self.offset is None else u + self.offset

    def total(self, entries: Tensor, point: Point) -> float:
        total = entries.sum(0, dtype=torch.float64)
        if self.ridge > 0:
            total = total + self.ridge * (point[0] @ point[1] - self.anchor).square().sum(1)
        return float(self.weights @ total)

    def direction(self, point: Point, step: Tensor) -> Tensor:
        """What is to be added to the weight (m, n) for the outputs to move by `step` (N, m), in least squares."""
        pull = (self.x.mT @ (step - self.level(step).to(step.dtype))).double()
        if self.ridge > 0:
            pull = pull + self.ridge * (self.anchor - point[0] @ point[1]).mT
        return (self.inverse @ pull).mT

    def move(self, point: Point, direction: Tensor, step: Tensor, curvature: float) -> Point:
        """The minimum of the parabolas over all weights of the rank and, where the bias is free, all biases."""
        before = point[0] @ point[1]
        projection = project(before + direction / curvature, inputs=self.gram, metric=self.weights)
        left, right = projection.factors(self.rank)
        return left, right, point[2] + self.level(step) / curvature - (left @ right - before) @ self.mean

    def level(self, step: Tensor) -> Tensor:
        """(m,) the part of `step` that a bias takes."""
        return step.mean(0, dtype=torch.float64) if self.free else torch.zeros_like(self.weights)

    def least_squares(self, target: Tensor) -> Point:
        """Theorem 3.1 on the pre-activations: a step from the anchor in the loss of the identity."""
        m = len(self.weights)
        anchor = torch.eye(m).to(self.anchor), self.anchor, self.anchor.new_zeros(m)
        step = target - self.outputs(anchor)
        return self.move(anchor, self.direction(anchor, step), step, 1.0)

    def checked(self, start: Point) -> Point:
        left, right, bias = (checked(part) for part in start)
        m, n = self.anchor.shape
        inner = left.shape[-1]
        if left.shape != (m, inner) or right.shape != (inner, n) or bias.shape != (m,) or inner > self.rank:
            shapes = [tuple(part.shape) for part in (left, right, bias)]
            raise ValueError(
                f"a start of shapes {shapes} does not fit a weight ({m}, {n}) of rank at most {self.rank} and its bias"
            )
        return left, right, bias


def _fitting(
    x: Tensor, target: Tensor, rank: int, offset: Tensor | None, weights: Tensor | None, anchor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """The tensors, filled in and in the dtype of their use, once they are known to fit together."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, target = checked(x, dtype), checked(target, dtype)
    if x.ndim != 2 or target.ndim != 2 or len(x) != len(target) or len(x) < 1:
        raise ValueError(
            f"inputs and targets must have equally many rows, at least one, got shapes {tuple(x.shape)} and "
            f"{tuple(target.shape)}"
        )
    n, m = x.shape[1], target.shape[1]
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank must be from 1 to {min(m, n)} for a weight ({m}, {n}), got {rank}")
    offset = None if offset is None else checked(offset, dtype)
    if offset is not None and offset.shape != target.shape:
        raise ValueError(
            f"an offset of shape {tuple(offset.shape)} does not fit a target of shape {tuple(target.shape)}"
        )
    weights = x.new_ones(m, dtype=torch.float64) if weights is None else checked(weights)
    if weights.shape != (m,) or not bool((weights > 0).all()):
        raise ValueError(f"the weights of the outputs must be {m} positive numbers: clamp them from below")
    anchor = x.new_zeros(m, n, dtype=torch.float64) if anchor is None else checked(anchor)
    if anchor.shape != (m, n):
        raise ValueError(f"an anchor of shape {tuple(anchor.shape)} does not fit a weight ({m}, {n})")
    return x, target, offset, weights, anchor


def _problem(
    x: Tensor, rank: int, offset: Tensor | None, weights: Tensor, anchor: Tensor, ridge: float, free: bool
) -> _Problem:
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be at least 0 and finite, got {ridge}")
    moments = Moments(x.shape[1], device=x.device).update(x)
    moments = moments if free else moments.about_zero_()
    gram = moments.covariance_sum
    if ridge > 0:
        gram = gram + ridge * torch.eye(len(gram)).to(gram)
    return _Problem(x, rank, offset, weights, anchor, ridge, free, moments.mean, gram, invert(gram))
