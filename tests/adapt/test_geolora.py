"""GeoLoRA: zero at the start, moving on the manifold, within a budget of numbers, read by PEFT."""

from __future__ import annotations

import pytest
import torch
from test_debora import network, samples
from torch import nn

import rankfold as rf
from rankfold.adapt import merge_, save_adapter, updates


def trained(steps: int, **how):
    model, (x, y) = network(), samples()
    rf.geolora_(model, 3, data=(x, y))
    optimizer = rf.GeoLora(model, torch.optim.Adam, lr=1e-2, **{"window": 10} | how)
    for step in range(steps):
        part = slice(32 * (step % 3), 32 * (step % 3 + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model, optimizer


def test_it_begins_as_nothing_and_its_first_step_follows_the_gradient():
    x, y = samples()
    model, _ = trained(0)
    assert torch.equal(model(x), network()(x))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{layer}.dynamic.core" for layer in ("conv", "fc", "head")
    }
    base = network()
    nn.functional.cross_entropy(base(x), y).backward()
    u, s, vh = torch.linalg.svd(base.fc.weight.grad)
    nn.functional.cross_entropy(model(x), y).backward()
    layer = updates(model)["fc"].dynamic
    first = layer.left @ layer.core.grad @ layer.right
    torch.testing.assert_close(first, (u[:, :3] * s[:3]) @ vh[:3], rtol=1e-3, atol=1e-5)


def test_it_learns_and_its_ranks_change():
    x, y = samples()
    before = float(nn.functional.cross_entropy(network()(x), y).detach())
    model, optimizer = trained(60)
    assert float(nn.functional.cross_entropy(model(x), y).detach()) < 0.5 * before
    assert set(optimizer.ranks) == {"conv.dynamic", "fc.dynamic", "head.dynamic"}
    assert len(set(optimizer.ranks.values())) > 1
    for layer in optimizer.layers.values():
        torch.testing.assert_close(layer.left.T @ layer.left, torch.eye(layer.rank), rtol=0, atol=1e-5)


def test_a_budget_counts_the_numbers_of_the_adapter():
    _, optimizer = trained(60, params=300, reach=3)
    assert optimizer.met
    prices = {"conv.dynamic": 6 + 18, "fc.dynamic": 116, "head.dynamic": 23}
    assert sum(prices[name] * rank for name, rank in optimizer.ranks.items()) <= 300
    with pytest.raises(ValueError, match="params=100 is too few: rank 1 in each of the 3 layers takes 163 numbers"):
        trained(0, params=100)
    with pytest.raises(ValueError, match="of an adapter give params="):
        trained(0, budget=0.5)


def test_what_is_saved_and_merged_is_what_was_trained(tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = trained(40)
    x, _ = samples()
    expected = model.eval()(x).detach()
    save_adapter(model, tmp_path)
    read = peft.PeftModel.from_pretrained(network(), tmp_path).eval()
    torch.testing.assert_close(read(x), expected, rtol=1e-4, atol=1e-4)
    merge_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
