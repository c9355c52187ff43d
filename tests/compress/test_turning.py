"""Steps for factors: as long as the matrix is large, in every direction alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold.compress.repair.turning import RATE, REACH, Turning, rate_for


def moved(value: torch.Tensor, gradient: torch.Tensor, lr: float = 0.01) -> torch.Tensor:
    parameter = nn.Parameter(value.clone())
    parameter.grad = gradient.clone()
    Turning([parameter], lr=lr).step()
    return parameter.detach() - value


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 4, 3, 3)])
def test_a_step_is_a_share_of_the_norm_whatever_the_gradient(shape):
    value, gradient = drawn(*shape), drawn(*shape, seed=1)
    step = moved(value, gradient)
    assert float(step.norm() / value.norm()) == pytest.approx(0.01, rel=0.25)
    torch.testing.assert_close(moved(value, 1e4 * gradient), step, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved(10 * value, gradient), 10 * step, rtol=1e-3, atol=1e-5)
    assert float((step * gradient).sum()) < 0


def test_weak_directions_move_like_strong_ones():
    gradient = torch.diag(torch.tensor([1.0, 0.05, 0.02]))
    step = moved(torch.eye(3), gradient).diagonal()
    assert (step < 0).all()
    assert float(step.min() / step.max()) < 2.5  # of the gradient 50


def test_vectors_move_by_signs_and_zero_moves_at_all():
    value = torch.tensor([1.0, -2.0, 2.0])
    step = moved(value, torch.tensor([3.0, -1e-5, 1e-3]))
    torch.testing.assert_close(step, 0.01 * 3**0.5 * torch.tensor([-1.0, 1.0, -1.0]))
    assert moved(torch.zeros(4, 5), drawn(4, 5)).any()


def test_the_rate_grows_with_what_was_lost():
    assert [rate_for(lost) / RATE for lost in (0.0, 0.25, 1.0, 9.0, -1e-9)] == [0, 0.5, 1, 1, 0]


@pytest.mark.parametrize("width", [8, 64, 256])
def test_a_step_promises_a_share_of_what_there_is_to_win_however_wide_the_network(width):
    """Twenty layers near their optimum, each in many directions: alone each step is short, together they are not."""

    def after(step) -> float:
        layers = [nn.Parameter(drawn(width, width, seed=i)) for i in range(20)]
        wanted = [layer.detach() + 3e-3 * drawn(width, width, seed=100 + i) for i, layer in enumerate(layers)]
        loss = sum((layer - best).square().sum() for layer, best in zip(layers, wanted, strict=True))
        loss.backward()
        step(Turning(layers, lr=0.05), loss)
        left = sum(float((layer.detach() - best).square().sum()) for layer, best in zip(layers, wanted, strict=True))
        return left / float(loss.detach())

    share = after(lambda optimizer, loss: optimizer.step(lambda: loss.detach()))
    assert 1 - REACH - 1e-3 < share < 1 - REACH / 2
    assert after(lambda optimizer, loss: optimizer.step()) > 10  # without the loss it is overshot


def test_a_reach_falls_with_the_rate():
    parameter = nn.Parameter(drawn(8, 8))
    optimizer = Turning([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 4)
    moves = []
    for _ in range(5):
        before, parameter.grad = parameter.detach().clone(), drawn(8, 8, seed=1)
        optimizer.state.clear()
        optimizer.step(lambda: torch.tensor(1e-3))
        moves.append(float((parameter.grad * (before - parameter.detach())).sum()) / 1e-3)
        schedule.step()
    assert moves == pytest.approx([REACH, 0.75 * REACH, 0.5 * REACH, 0.25 * REACH, 0.0], rel=0.03, abs=1e-6)
