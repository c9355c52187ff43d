"""Layers whose rows data decide on are not fitted to rows of others; all other layers are paired, however large the
errors before them are."""

import copy
from functools import partial

import pytest
import torch
from networks import NETWORKS, network
from torch import nn

import rankfold as rf
from rankfold.batches import evaluating, forward
from rankfold.compress.layerwise.astray import astray
from rankfold.sites import opened, sites

UNPAIRED = "its inputs and outputs cannot be paired"


def tried(model: nn.Module, few, chosen) -> frozenset[str]:
    with evaluating(model):
        return astray(partial(forward, model, few), {model.get_submodule(site.name): site for site in chosen})


class Experts(nn.Module):
    """Two experts between two layers; ``choice``: which tokens each of them is given."""

    def __init__(self, choice: str) -> None:
        super().__init__()
        self.choice, self.enter, self.router, self.leave = choice, nn.Linear(16, 32), nn.Linear(32, 2), nn.Linear(32, 8)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def chosen(self, h, number):
        scores = self.router(h)
        if self.choice == "the best half":
            return scores[..., number].topk(h.shape[-2] // 2, -1).indices
        if self.choice == "the best half, in order":
            return scores[..., number].topk(h.shape[-2] // 2, -1).indices.sort(-1).values
        return (scores.argmax(-1) == number).nonzero().squeeze(-1)  # of each token the best expert

    def forward(self, x):
        h = torch.tanh(self.enter(x))
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            if self.choice == "all":
                out = out + self.router(h).softmax(-1)[..., number, None] * expert(h).relu()
                continue
            at = self.chosen(h, number).unsqueeze(-1).expand(*h.shape[:-2], -1, 32)
            out = out.scatter_add(-2, at, expert(h.gather(-2, at)).relu())
        return self.leave(h + out)


@pytest.mark.parametrize(
    ("choice", "shape"),
    [
        ("the best half", (128, 16)),
        ("the best half", (16, 24, 16)),
        ("the best half, in order", (128, 16)),
        ("the best half, in order", (16, 24, 16)),
        ("the best expert", (128, 16)),
        ("all", (16, 24, 16)),
    ],
)
def test_experts_that_choose_their_tokens_have_no_rows_to_pair(choice, shape):
    torch.manual_seed(0)
    model = Experts(choice).eval()
    found = tried(model, torch.randn(shape), sites(model).reducible)
    assert found == (frozenset() if choice == "all" else {"experts.0", "experts.1"})


@pytest.mark.parametrize("one_shot", [False, True])
def test_an_expert_is_fitted_to_its_own_tokens(one_shot):
    torch.manual_seed(0)
    model, x = Experts("the best half").eval(), torch.randn(1024, 16)
    ranks = rf.Ranks({"enter": 6, "experts.0": 12, "experts.1": 12})
    errors = {}
    for method in ("project", rf.Sequential(one_shot=one_shot)):
        made = rf.plan(model, ranks, method, data=x.split(128))
        small = rf.apply_(copy.deepcopy(model), made)
        with torch.no_grad():
            h = torch.tanh(model.enter(x))
            h = h[model.chosen(h, 0)]
            wanted, given = model.experts[0](h), small.experts[0](h)
        error = float((given - wanted).norm() / (wanted - wanted.mean(0)).norm())
        assert error == pytest.approx(made["experts.0"].predicted_error, rel=0.1)
        errors[str(method)] = error
    assert max(errors.values()) < 1.02 * min(errors.values())
    if not one_shot:
        assert [UNPAIRED in made[name].note for name in ("enter", "experts.0", "experts.1")] == [False, True, True]


def test_layers_with_places_of_their_own_are_paired_however_large_the_errors_before_them():
    torch.manual_seed(0)
    deep = [module for _ in range(30) for module in (nn.Linear(24, 24), nn.Tanh())]
    model, x = nn.Sequential(*deep, nn.Linear(24, 5)).eval(), torch.randn(256, 24)
    names = [site.name for site in sites(model)]
    assert not tried(model, x[:64], sites(model).reducible)
    made = rf.plan(model, rf.Ranks(dict.fromkeys(names, 1)), rf.Sequential(one_shot=False), data=x.split(64))
    assert made.changed
    assert all(UNPAIRED not in entry.note for entry in made.entries)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_ordinary_network_is_suspected_and_all_are_left_as_they_were(name):
    model, batch = network(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    with opened(model):
        assert not tried(model, batch, [site for site in sites(model).reducible if not site.layer.experts])
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
