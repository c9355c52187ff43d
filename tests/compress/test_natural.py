"""Steps of the natural gradient, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rankfold.compress.repair.natural import LOOKS, Natural


def run(spread: float, optimizer, steps: int = 200) -> tuple[float, float]:
    """What is left of a quadratic's loss whose entries are curved as differently as ``spread``², and the most that it
    was on the way, both over the start's. Gradients are of a few samples: noise for the most part."""
    draw = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, math.log10(spread), 64, dtype=torch.float64)
    scale = scale[torch.randperm(64, generator=draw)]
    wanted = torch.randn(64, generator=draw, dtype=torch.float64) / scale
    found = nn.Parameter(torch.zeros_like(scale))
    made = optimizer([found])
    schedule = torch.optim.lr_scheduler.LinearLR(made, 1.0, 0.0, steps)

    def loss() -> torch.Tensor:
        return (scale * (found - wanted)).square().mean() / 2

    losses = [loss().item()]
    for _ in range(steps):
        made.zero_grad()
        loss().backward()
        found.grad += 2 * scale * torch.randn(64, generator=draw, dtype=torch.float64) / 64
        made.step(lambda: losses[-1])
        schedule.step()
        losses.append(loss().item())
    return losses[-1] / losses[0], max(losses) / losses[0]


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
def test_entries_may_be_curved_as_differently_as_they_like(spread: float) -> None:
    left, most = run(spread, Natural)
    assert left < 0.75
    assert most < 1.1
    assert run(1e6, lambda parameters: torch.optim.Adam(parameters, lr=0.1))[1] > 100  # as no other step does


def test_the_first_steps_only_look() -> None:
    weight = nn.Parameter(torch.ones(3))
    made = Natural([weight])
    for step in range(LOOKS + 1):
        assert torch.equal(weight.detach(), torch.ones(3)), step
        weight.grad = torch.tensor([1.0, -1.0, 0.5])
        made.step(lambda: 1.0)
    assert weight[0] < 1 < weight[1]


def test_a_step_promises_a_share_of_the_loss() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    made, gradient = Natural([weight], lr=0.03), torch.tensor([3.0, -1.0, 0.5, 20.0], dtype=torch.float64)
    for _ in range(LOOKS + 1):
        weight.grad = gradient.clone()
        made.step(lambda: 0.7)
    mean = gradient * (1 - 0.9 ** (LOOKS + 1))  # of so many equal gradients
    assert float(-(weight.detach() * mean).sum()) == pytest.approx(0.03 * 0.7)


def test_a_gradient_of_mere_rounding_moves_nothing_far() -> None:
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    made, draw = Natural([weight, other], lr=0.02), torch.Generator().manual_seed(0)
    for _ in range(LOOKS + 1):
        weight.grad, other.grad = torch.randn(2, generator=draw), 1e-18 * torch.randn(2, generator=draw)
        made.step(lambda: 1.0)
    assert 0 < other.abs().max() <= 0.02


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan])
def test_where_the_loss_says_nothing_no_step_is_made(loss: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    made = Natural([weight])
    for _ in range(LOOKS + 3):
        weight.grad = torch.ones(2)
        made.step(lambda: loss)
    assert torch.equal(weight.detach(), torch.ones(2))
