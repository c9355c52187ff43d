"""Projections onto the simplex and onto the ball of the nuclear norm."""

import math

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, svd


def threshold(values: Tensor, radius: float) -> Tensor:
    """λ ≥ 0 with Σ (v_i − λ)₊ = `radius` for descending values v ≥ 0 (k,): 0 if their sum is within the radius.

    Subtracting it projects the values onto {v ≥ 0, Σ v ≤ radius} (Held, Wolfe and Crowder, 1974). Exact, O(k).
    """
    excess = values.cumsum(-1) - radius
    if values.numel() == 0 or excess[-1] <= 0:
        return values.new_zeros(())
    candidates = excess / torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    above = candidates[values > candidates]  # none where the radius is less than the rounding of the largest value
    return above[-1] if above.numel() else values[0]


def project_nuclear_ball(a: Tensor, radius: float) -> Tensor:
    """The nearest matrix to `a` (m, n) whose singular values sum to at most `radius` > 0; float64. Cost: one SVD."""
    check_radius(radius)
    u, s, vh = svd(a)
    if s.sum() <= radius:
        return checked(a)
    s = s - threshold(s, radius)
    rank = int((s > 0).sum())
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def check_radius(radius: float) -> None:
    """`ValueError` unless the nuclear ball of this radius is more than zero and finite."""
    if not 0 < radius < math.inf:
        raise ValueError(f"the radius of a nuclear-norm ball must be above 0 and finite, got {radius:g}")
