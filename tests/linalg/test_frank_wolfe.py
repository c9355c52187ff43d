"""Away-step Frank–Wolfe on the capped simplex: in the set at every step, certified, at the projection in the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankfold.linalg.manifold.frank_wolfe import direction, moved


def projected(target: Tensor, radius: float) -> Tensor:
    """The nearest point of {s ≥ 0, Σs ≤ radius}, by bisection on the threshold."""
    low, high = 0.0, float(target.max())
    if float(target.clamp_min(0).sum()) <= radius:
        return target.clamp_min(0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((target - middle).clamp_min(0).sum()) > radius else (low, middle)
    return (target - high).clamp_min(0)


@pytest.mark.parametrize("radius", [0.5, 2.0, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_projection_and_its_support(radius, seed):
    target = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = projected(target, radius)
    least = 0.5 * float((best - target).square().sum())
    s = torch.zeros(12, dtype=torch.float64)
    for _ in range(3000):
        along = direction(s, s - target, radius)
        value = 0.5 * float((s - target).square().sum())
        assert value - least <= along.gap + 1e-12
        if along.gap < 1e-11:
            break
        s = moved(s, along, along.slope / float(along.change.square().sum()))
        assert bool((s >= 0).all())
        assert float(s.sum()) <= radius * (1 + 1e-12)
    assert along.gap < 1e-11
    torch.testing.assert_close(s, best, rtol=0, atol=1e-5)
    assert bool(((s > 0) == (best > 1e-6)).all())


def test_without_steps_away_it_would_not_get_there():
    """What the test above is worth: steps towards vertices alone zigzag."""
    target = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.zeros(12, dtype=torch.float64)
    for _ in range(3000):
        gradient = s - target
        towards = -s
        if float(gradient.min()) < 0:
            towards = towards.clone()
            towards[int(gradient.argmin())] += 2.0
        gap = -float(gradient @ towards)
        s = s + min(1.0, gap / float(towards.square().sum())) * towards
    assert gap > 1e-11
