"""Losses of single entries, of which a program of recovery is the sum: value, slope, proximal map, conjugate.

Squares: ½(s − y)². Tobit, what is known of a pre-activation from its ReLU: an entry with y > 0 is seen, ½(s − y)²; one
with y ≤ 0 is known to be at most zero, up to noise of deviation σ: −σ² log Φ(−s/σ), which tends to ½ max(s, 0)² for
σ → 0 (appendix C of "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks"). This is σ² times the
negative log-likelihood of theorem 4.9. Both are convex, with second derivative at most 1 whatever σ is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

_SQRT2 = math.sqrt(2.0)
_RATE = math.sqrt(2.0 / math.pi)
_STEPS = 60  # of Newton's method; ten are many
_SMALL = 1e-7
_HALVINGS = 40


class Loss(Protocol):
    """A sum over entries F of a matrix s in the shape of the data; everything entrywise, and convex."""

    def values(self, s: Tensor) -> Tensor: ...
    def slopes(self, s: Tensor) -> Tensor: ...
    def nearest(self, w: Tensor, rho: float, start: Tensor | None = None) -> Tensor: ...
    def maxima(self, q: Tensor, bound: float) -> Tensor: ...


def conjugate(loss: Loss, q: Tensor, bound: float, at: Tensor | None = None) -> Tensor:
    """Not below the maximum over |s| ≤ `bound` of q s − F(s), entrywise.

    `at`: points where it is thought to be attained, `loss.maxima` if None. Wherever they are, the tangent there bounds
    the concave function over the interval, so that the result is never too small, and exact where they are right.
    """
    at = loss.maxima(q, bound) if at is None else at.clamp(-bound, bound)
    slope = q - loss.slopes(at)
    return q * at - loss.values(at) + torch.maximum(slope * (bound - at), slope * (-bound - at))


@dataclass(frozen=True, eq=False)
class Squares:
    """F(s) = Σ ½(s − y)²."""

    y: Tensor

    def values(self, s: Tensor) -> Tensor:
        """F entrywise."""
        return (s - self.y).square() / 2

    def slopes(self, s: Tensor) -> Tensor:
        """F' entrywise."""
        return s - self.y

    def nearest(self, w: Tensor, rho: float, start: Tensor | None = None) -> Tensor:
        """argmin_s F(s) + (ρ/2)‖s − w‖²."""
        return (self.y + rho * w) / (1 + rho)

    def maxima(self, q: Tensor, bound: float) -> Tensor:
        """argmax over |s| ≤ bound of q s − F(s)."""
        return (self.y + q).clamp(-bound, bound)


def hazard(t: Tensor) -> Tensor:
    """φ(t)/Φ(−t), the density over the upper tail of the standard normal: √(2/π)/erfcx(t/√2).

    Correct to rounding for every t, in float32 too: the quotient itself is 0/0 from t ≈ 14 (38 in float64) and wrong
    from t ≈ 5. Convex, increasing, above max(t, 0).
    """
    # erfcx overflows to infinity for very negative t, and the hazard to the 0 it is
    return _RATE / torch.special.erfcx(t / _SQRT2)


@dataclass(frozen=True, eq=False)
class Tobit:
    """F(s) = Σ_{y>0} ½(s − y)² − Σ_{y≤0} σ² log Φ(−s/σ) of matrices s in the shape of `y`; σ = 0 is its limit.

    Raises `ValueError` for σ below 0 or not finite.
    """

    y: Tensor
    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma, the deviation of the noise, must be at least 0 and finite, got {self.sigma}")

    @cached_property
    def _hidden(self) -> Tensor:
        return (self.y <= 0).flatten().nonzero().squeeze(1)

    def _joined(self, seen: Tensor, hidden: Tensor) -> Tensor:
        """`seen`, with the entries that are hidden replaced."""
        return seen.flatten().index_copy_(0, self._hidden, hidden).view_as(self.y)

    def values(self, s: Tensor) -> Tensor:
        """F entrywise."""
        hidden = s.flatten()[self._hidden]
        if self.sigma == 0:
            value = hidden.clamp_min(0).square() / 2
        else:
            value = -(self.sigma**2) * torch.special.log_ndtr(-hidden / self.sigma)
        return self._joined((s - self.y).square() / 2, value)

    def slopes(self, s: Tensor) -> Tensor:
        """F' entrywise: s − y, or σ hazard(s/σ)."""
        return self._joined(s - self.y, self._slope(s.flatten()[self._hidden]))

    def nearest(self, w: Tensor, rho: float, start: Tensor | None = None) -> Tensor:
        """argmin_s F(s) + (ρ/2)‖s − w‖²: closed where y > 0, else Newton's method from `start` (w if None).

        There x − w + F'(x)/ρ is convex and increasing: after one step the iterates descend to the root.
        """
        wanted = w.flatten()[self._hidden]
        if self.sigma == 0:
            nearest = torch.where(wanted > 0, wanted * (rho / (1 + rho)), wanted)
        else:
            nearest = wanted if start is None else start.flatten()[self._hidden]
            for _ in range(_STEPS):
                slope, curvature = self._slope_and_curvature(nearest)
                step = (nearest - wanted + slope / rho) / (1 + curvature / rho)
                nearest = nearest - step
                # convergence is quadratic: what remains is about the square of this
                if bool((step.abs() <= _SMALL * (nearest.abs() + self.sigma)).all()):
                    break
        return self._joined((self.y + rho * w) / (1 + rho), nearest)

    def maxima(self, q: Tensor, bound: float) -> Tensor:
        """argmax over |s| ≤ bound of q s − F(s): by clipping where y > 0, else by bisection and Newton's method."""
        slope = q.flatten()[self._hidden]
        low, high = torch.full_like(slope, -bound), torch.full_like(slope, bound)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self._slope(middle) > slope
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        best = (low + high) / 2
        for _ in range(3):
            present, curvature = self._slope_and_curvature(best)
            best = torch.clamp(best - (present - slope) / curvature.clamp_min(1e-12), low, high)
        return self._joined((self.y + q).clamp(-bound, bound), best)

    def _slope(self, s: Tensor) -> Tensor:
        return s.clamp_min(0) if self.sigma == 0 else self.sigma * hazard(s / self.sigma)

    def _slope_and_curvature(self, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.sigma == 0:
            return s.clamp_min(0), (s > 0).to(s.dtype)
        t = s / self.sigma
        h = hazard(t)
        # h(h − t) loses its digits for large t, where it is 1 − 1/t² + …; it is within [0, 1] everywhere
        return self.sigma * h, (h * (h - t)).clamp(0, 1)
