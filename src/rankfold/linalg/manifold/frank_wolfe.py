"""Steps of away-step Frank–Wolfe on {s ≥ 0, Σs ≤ τ}, whose vertices are 0 and τ eᵢ (Guélat and Marcotte 1986)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Direction:
    """``change`` (k,) of s for a step of 1, ``longest`` the longest step within the set, ``slope`` −⟨G, change⟩ ≥ 0.

    ``gap``: the largest ⟨G, s − z⟩ over the set, which bounds how far a convex function is from its least value.
    """

    change: Tensor
    longest: float
    slope: float
    gap: float


def direction(s: Tensor, gradient: Tensor, radius: float) -> Direction:
    """Towards the best vertex, or away from the worst one with weight, whichever is steeper."""
    best = int(gradient.argmin())
    towards = -s
    if float(gradient[best]) < 0:
        towards = towards.clone()
        towards[best] += radius
    gap = -float(gradient @ towards)
    held = s > 0
    slack = 1 - float(s.sum()) / radius
    worst, height = -1, -float("inf")
    if slack > 1e-12:
        height = 0.0
    if bool(held.any()):
        candidates = torch.where(held, gradient, -torch.inf)
        index = int(candidates.argmax())
        if radius * float(candidates[index]) > height:
            worst, height = index, radius * float(candidates[index])
    weight = slack if worst < 0 else float(s[worst]) / radius
    away = s.clone()
    if worst >= 0:
        away[worst] -= radius
    slope = -float(gradient @ away)
    if slope > gap and weight < 1:
        return Direction(away, weight / (1 - weight), slope, gap)
    return Direction(towards, 1.0, gap, gap)


def moved(s: Tensor, along: Direction, step: float) -> Tensor:
    """s after a step; a step of full length away from a vertex leaves exactly 0 there."""
    found = s + min(step, along.longest) * along.change
    tiny = 1e-12 * float(s.max()) if len(s) else 0.0
    return torch.where(found <= tiny, torch.zeros_like(found), found)
