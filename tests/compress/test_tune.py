"""Blocks tuned to what they give in the original network."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import network
from torch import nn

import rankfold as rf
from rankfold.compress.repair.tune import blocks, tune_


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.norm(self.a(x))))


def three() -> tuple[nn.Module, list[torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), *(Block(16) for _ in range(3)), nn.Linear(16, 4))
        data = list(torch.randn(256, 10).split(64))
        model.train()(data[0])
    return model.eval(), data


def test_blocks_come_nearer_and_nothing_else_changes():
    model, data = three()
    plan = rf.plan(model, "params=0.6", "sequential", data)
    small = rf.apply_(copy.deepcopy(model), plan)
    before, coarse = copy.deepcopy(small.state_dict()), copy.deepcopy(small)
    told = tune_(small, model, data, steps=40, batch_size=64)
    assert [each.block for each in told] == ["1", "2", "3"]
    assert all(each.after <= each.before for each in told)
    assert sum(each.after < 0.95 * each.before for each in told) >= 2
    with torch.no_grad():
        wanted, was, now = (torch.cat([net[:4](x) for x in data]) for net in (model, coarse, small))
    assert (now - wanted).norm() < 0.95 * (was - wanted).norm()
    factored = {name for name, module in small.named_modules() if isinstance(module, rf.LowRankLinear)}
    for key, value in small.state_dict().items():
        inside = any(key.startswith(f"{name}.") for name in factored) and key.split(".")[0] in {"1", "2", "3"}
        assert inside or torch.equal(value, before[key]), key
    assert all(p.requires_grad and p.grad is None for p in small.parameters())
    assert not small.training


def test_a_block_that_gains_nothing_is_left_as_it_was():
    model, data = three()
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.6", "sequential", data))
    before = copy.deepcopy(small.state_dict())
    told = tune_(small, model, data, steps=5, learning_rate=1e3)
    assert all(each.after == each.before for each in told)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("name", ["conv_net", "encoder", "gpt2", "llama"])
def test_networks_of_other_people_are_tuned(name):
    model, batch = network(name)
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "params=0.8", "project", [batch]))
    told = tune_(small, model, [batch], steps=8)
    assert told
    assert all(0 <= each.after <= each.before for each in told)


def test_a_model_without_blocks_is_one():
    model = nn.Module()
    model.layer = nn.Linear(3, 3)
    assert blocks(model, ("layer.down",)) == ("",)


def test_an_ordinary_model_is_refused():
    model, data = three()
    with pytest.raises(ValueError, match="compress it first"):
        tune_(model, model, data)
