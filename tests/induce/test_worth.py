"""What directions are worth where they compete for a budget: to the loss, not to the norm of their layer."""

import copy
import math

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.induce.dynamic.worth import Worth


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
    assert ranks["second"] <= 2
    assert ranks["first"] >= 10
    even = trained(Two(1.0)).ranks
    assert abs(even["first"] - even["second"]) <= 2  # neither takes all, whose gradient happens to be larger


def test_how_steep_the_loss_is_is_remembered_and_saved():
    optimizer = trained(Two(1.0))
    assert set(optimizer.worth.steep) == {"first", "second"}
    kept = copy.deepcopy(optimizer.state_dict())
    other = trained(Two(1.0), steps=0)
    assert other.worth.steep == {}
    other.load_state_dict(kept)
    assert other.worth.steep == optimizer.worth.steep
    other.load_state_dict({key: value for key, value in kept.items() if key != "steep"})  # of an earlier version
    assert other.worth.steep == {}


SPECTRA = {"first": torch.tensor([3.0, 2.0, 1.0]), "second": torch.tensor([2.0, 2.0])}
WHOLE = {"first": 14.0, "second": 8.0}


def product(worth: list[torch.Tensor], steep: dict[str, float]) -> None:
    """Written out: c·S·log of what is kept with a direction and without it."""
    for found, (name, values) in zip(worth, SPECTRA.items(), strict=True):
        squares = [float(value) ** 2 for value in values]
        for rank in range(1, len(squares)):
            gain = math.log(sum(squares[: rank + 1]) / sum(squares[:rank]))
            assert float(found[rank]) == pytest.approx(steep[name] * WHOLE[name] * gain, rel=1e-6)


def test_worth_is_what_a_product_of_layers_gains_in_the_unit_of_the_loss():
    worth = Worth()
    worth.look({"first": torch.full((3, 3), 2.0), "second": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
    product(worth.of(SPECTRA), {"first": 4.0, "second": 0.5})
    worth.look({"first": torch.full((3, 3), 12.0), "second": None})  # not reached
    worth.look({"first": None, "second": torch.zeros(2, 2)})  # nor are these: gradients may be cleared to zeros
    product(worth.of(SPECTRA), {"first": 0.98 * 4 + 0.02 * 144, "second": 0.5})


def test_a_layer_that_no_step_has_reached_counts_as_the_average():
    worth = Worth()
    worth.look({"first": torch.full((3, 3), 2.0), "second": None})
    product(worth.of(SPECTRA), {"first": 4.0, "second": 4.0})


@pytest.mark.parametrize("gradient", [None, torch.zeros(3, 3)])
def test_where_the_loss_says_nothing_shares_of_energy_decide(gradient):
    worth = Worth()
    worth.look({"first": gradient, "second": gradient})
    product(worth.of(SPECTRA), {"first": 1 / 14, "second": 1 / 8})
    assert [float(part.sum()) for part in worth.of({"update": torch.zeros(3)})] == [0.0]
