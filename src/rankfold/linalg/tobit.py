"""The Tobit loss: what is known of a pre-activation from its ReLU. Value, slope, proximal map and conjugate, entrywise.

An entry with y > 0 is seen: ½(s − y)². One with y ≤ 0 is known to be at most zero, up to noise of deviation σ:
−σ² log Φ(−s/σ), which tends to ½ max(s, 0)² for σ → 0 (appendix C of "Theoretical Guarantees for Low-Rank Compression
of Deep Neural Networks"). This is σ² times the negative log-likelihood of theorem 4.9: convex, with second derivative
at most 1 whatever σ is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SQRT2 = math.sqrt(2.0)
_RATE = math.sqrt(2.0 / math.pi)
_STEPS = 60  # of Newton's method; 30 are the most that were needed


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

    def values(self, s: Tensor) -> Tensor:
        """F entrywise."""
        return torch.where(self.y > 0, (s - self.y).square() / 2, self._hidden(s))

    def slopes(self, s: Tensor) -> Tensor:
        """F' entrywise: s − y, or σ hazard(s/σ)."""
        return torch.where(self.y > 0, s - self.y, self._hidden_slope(s))

    def nearest(self, w: Tensor, rho: float) -> Tensor:
        """argmin_s F(s) + (ρ/2)‖s − w‖², entrywise: closed where y > 0, else Newton's method from w.

        There x − w + F'(x)/ρ is convex and increasing, so that the iterates descend to the root.
        """
        seen = self.y > 0
        out = (self.y + rho * w) / (1 + rho)
        hidden = w[~seen]
        if self.sigma == 0:
            out[~seen] = torch.where(hidden > 0, hidden * (rho / (1 + rho)), hidden)
            return out
        x = hidden
        rounding = 8 * torch.finfo(w.dtype).eps
        for _ in range(_STEPS):
            h = hazard(x / self.sigma)
            # haz² − t·haz loses all digits for large t: there it is 1 − 1/t² + …, within [0, 1] in any case
            curvature = (h * (h - x / self.sigma)).clamp(0, 1)
            step = (x - hidden + self.sigma * h / rho) / (1 + curvature / rho)
            x = x - step
            if bool((step.abs() <= rounding * (x.abs() + self.sigma)).all()):
                break
        out[~seen] = x
        return out

    def conjugate(self, q: Tensor, bound: float) -> Tensor:
        """max over |s| ≤ bound of q s − F(s), entrywise: by clipping where y > 0, else by bisection of F'(s) = q.

        Whatever s the bisection ends at, the value is one that is attained, so it errs below the maximum by the square
        of rounding alone.
        """
        best = (self.y + q).clamp(-bound, bound)
        hidden = ~(self.y > 0)
        best[hidden] = self._hidden_maximum(q[hidden], bound)
        return q * best - self.values(best)

    def _hidden_maximum(self, q: Tensor, bound: float) -> Tensor:
        if self.sigma == 0:
            return torch.where(q < 0, -bound, q.clamp(max=bound))
        low, high = torch.full_like(q, -bound), torch.full_like(q, bound)
        for _ in range(24):
            middle = (low + high) / 2
            above = self._hidden_slope(middle) > q
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        x = (low + high) / 2
        for _ in range(3):
            h = hazard(x / self.sigma)
            curvature = (h * (h - x / self.sigma)).clamp(1e-12, 1)
            x = torch.maximum(torch.minimum(x - (self.sigma * h - q) / curvature, high), low)
        return x

    def _hidden(self, s: Tensor) -> Tensor:
        if self.sigma == 0:
            return s.clamp_min(0).square() / 2
        return -(self.sigma**2) * torch.special.log_ndtr(-s / self.sigma)

    def _hidden_slope(self, s: Tensor) -> Tensor:
        return s.clamp_min(0) if self.sigma == 0 else self.sigma * hazard(s / self.sigma)
