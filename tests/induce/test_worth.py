"""What directions are worth where they compete for a budget: to the loss, not to the norm of their layer."""

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.induce.worth import Worth


class Two(nn.Module):
    """Two matrices of the same spectrum, on inputs of which the second are ``small``."""

    def __init__(self, small):
        super().__init__()
        self.first, self.second, self.small = nn.Linear(32, 32), nn.Linear(32, 32), small
        nn.init.orthogonal_(self.first.weight)
        self.second.weight = nn.Parameter(self.first.weight.detach().clone())

    def forward(self, x):
        return self.first(x[:, :32]) + self.small * self.second(x[:, 32:])


def trained(model, steps=12, **settings):
    torch.manual_seed(0)
    rf.dlrt_(model)
    wanted = torch.randn(32, 32)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=1e-3, window=4, budget=0.4, reach=2, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(64, 64)
        (model(x) - (x[:, :32] + model.small * x[:, 32:]) @ wanted).square().mean().backward()
        optimizer.step()
    return optimizer


def test_a_matrix_that_the_loss_hardly_sees_leaves_the_budget_to_others():
    ranks = trained(Two(0.05)).ranks
    assert ranks["second"] == 1
    assert ranks["first"] >= 10
    even = trained(Two(1.0)).ranks
    assert min(even.values()) > 2


def test_how_steep_the_loss_is_is_remembered_and_saved():
    optimizer = trained(Two(1.0))
    assert set(optimizer.worth.steep) == {"first", "second"}
    kept = copy.deepcopy(optimizer.state_dict())
    other = trained(Two(1.0), steps=3)
    assert other.worth.steep == {}
    other.load_state_dict(kept)
    assert other.worth.steep == optimizer.worth.steep
    other.load_state_dict({key: value for key, value in kept.items() if key != "steep"})  # of an earlier version
    assert other.worth.steep == {}


SPECTRA = {"first": torch.tensor([3.0, 2.0, 1.0]), "second": torch.tensor([2.0, 2.0])}


def test_worth_is_energy_times_the_mean_square_of_gradients_over_windows():
    worth = Worth()
    worth.look({"first": torch.full((3, 3), 2.0), "second": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
    first, second = worth.of(SPECTRA)
    torch.testing.assert_close(first, 4 * SPECTRA["first"].double().square(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, 0.5 * SPECTRA["second"].double().square(), rtol=1e-6, atol=1e-6)
    worth.look({"first": torch.full((3, 3), 12.0), "second": None})  # not reached
    first, second = worth.of(SPECTRA)
    torch.testing.assert_close(first, (0.8 * 4 + 0.2 * 144) * SPECTRA["first"].double().square(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, 0.5 * SPECTRA["second"].double().square(), rtol=1e-6, atol=1e-6)


def test_a_layer_that_no_step_has_reached_counts_as_the_average():
    worth = Worth()
    worth.look({"first": torch.full((3, 3), 2.0), "second": None})
    torch.testing.assert_close(worth.of(SPECTRA)[1], 4 * SPECTRA["second"].double().square(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", [None, torch.zeros(3, 3)])
def test_where_the_loss_says_nothing_energy_decides(gradient):
    worth = Worth()
    worth.look({"first": gradient, "second": gradient})
    for found, values in zip(worth.of(SPECTRA), SPECTRA.values(), strict=True):
        torch.testing.assert_close(found, values.double().square() / values.double().square().sum())
