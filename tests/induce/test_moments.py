"""Moments of directions that come in late: they move as far as those that were there from the first step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.induce.dynamic import pace
from rankfold.induce.dynamic.moments import lag, turn_
from rankfold.linalg.manifold.tangent import Turn


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam, torch.optim.Adamax])
@pytest.mark.parametrize("before", [3, 200])
def test_the_lag_is_by_how_much_steps_are_too_short(kind, before):
    """Of two numbers with one gradient all along the second has its mean from zero on, later."""
    both = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = kind([both], lr=1e-3, weight_decay=0.0, eps=1e-12)
    for step in range(before + 6):
        if step == before:
            optimizer.state[both]["exp_avg"][1] = 0.0
        old = both.detach().clone()
        both.grad = torch.ones_like(both)
        optimizer.step()
        moved, age = old - both.detach(), step - before + 1
        late = lag(optimizer.state[both], optimizer.param_groups[0], age) if age > 0 else 1.0
        assert float(moved[0]) == pytest.approx(late * float(moved[1]), rel=1e-9)


def test_without_a_mean_nothing_lags():
    for kind, more in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.RMSprop, {}), (torch.optim.NAdam, {})):
        one = nn.Parameter(torch.zeros(2))
        optimizer = kind([one], lr=0.1, **more)
        one.grad = torch.ones_like(one)
        optimizer.step()
        assert lag(optimizer.state[one], optimizer.param_groups[0], 1) == 1.0


def learned(window: int, steps: int = 45) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4),
    )  # fmt: skip
    x = torch.randn(512, 40)
    labels = (x[:, :2] > 0).long() @ torch.tensor([1, 2])
    rf.dlrt_(model, rank=8)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=1e-2, window=window, tolerance=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("window", [5, 20])
def test_short_windows_learn_as_long_ones_do(window, monkeypatch):
    now = learned(window)
    monkeypatch.setattr(pace, "lag", lambda state, group, age: 1.0)
    assert now < 0.1
    assert now < 0.7 * learned(window)


def test_a_copy_in_the_middle_of_a_window_goes_on_as_the_original():
    torch.manual_seed(0)
    model, x = rf.dlrt_(nn.Sequential(nn.Linear(20, 24)), 4), torch.randn(32, 20)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=1e-2, window=6)

    def go(net, opt, steps):
        for _ in range(steps):
            opt.zero_grad()
            (net(x) - x[:, :1]).square().mean().backward()
            opt.step()

    go(model, optimizer, 9)
    other = rf.dlrt_(nn.Sequential(nn.Linear(20, 24)), 4)
    resumed = rf.Dlrt(other, torch.optim.Adam, lr=1e-2, window=6)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(model, optimizer, 8)
    go(other, resumed, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def turned(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """What becomes of it where both bases turn by 45 degrees, and one direction comes in on the left."""
    half = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    state = {"step": torch.tensor(3.0), key: value}
    turn_(state, value.shape, Turn(torch.cat([half, torch.zeros(2, 1)], 1), half))
    return state


@pytest.mark.parametrize("key", ["exp_inf", "step_size"])
def test_sizes_turn_as_the_roots_of_squares(key):
    """Of one entry of size 2 each of the four that it falls on has size 1; turned as a mean they would cancel."""
    value = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.ones(3, 2, dtype=torch.float64)
    torch.testing.assert_close(turned(key, value)[key], expected)
    torch.testing.assert_close(turned("exp_avg_sq", value.square())["exp_avg_sq"], expected)


def test_what_is_not_known_begins_anew():
    assert turned("of_somebody", torch.ones(2, 2, dtype=torch.float64)) == {}


@pytest.mark.parametrize(("kind", "most"), [(torch.optim.Adamax, 0.5), (torch.optim.Rprop, 0.3)])
@pytest.mark.parametrize("integrator", ["window", "augmented"])
def test_optimizers_that_keep_sizes_learn(kind, integrator, most):
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    y = x @ (torch.randn(32, 4) @ torch.randn(4, 32) / 6)
    model = rf.dlrt_(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)))
    optimizer, losses = rf.Dlrt(model, kind, integrator=integrator, lr=0.01), []
    for step in range(200):
        batch = torch.arange(32) + step * 32 % 256

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[batch]), y[batch])
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    assert sum(losses[-20:]) / 20 < most
