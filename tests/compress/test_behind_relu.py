"""Layers fitted to what a ReLU shows: to tokens alone, and with no bias where the model is to have none."""

from dataclasses import replace

import pytest
import torch
from test_sequential import gather, residual
from torch import nn

import rankfold as rf
from rankfold.compress.layerwise.task import Task, alone
from rankfold.compress.methods.maxnorm import MaxNorm
from rankfold.compress.methods.relu import ActivationAware, gain_told
from rankfold.compress.methods.sequential import Sequential
from rankfold.observe import Samples
from rankfold.sites import opened, sites


class Words(nn.Module):
    """Words whose vectors have a mean, through one ReLU: a language model without biases, or a tagger with them."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.down = nn.Embedding(50, 24), nn.Linear(24, 32, bias), nn.Linear(32, 24, bias)
        self.head = nn.Linear(24, 50, bias)

    def read(self, ids):
        return self.words(ids) + 1

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.head(self.down(torch.relu(self.up(self.read(input_ids)))))


def language() -> tuple[Words, torch.Tensor, list]:
    model = Words()
    ids = torch.randint(0, 50, (128, 12), generator=torch.Generator().manual_seed(1))
    return model, ids, [{"input_ids": part, "labels": part} for part in ids.split(16)]


def lost(model: Words, ids: torch.Tensor, plan) -> float:
    """Squared error behind the ReLU, with the factors alone."""
    right, left = plan.factors["up"].factors.parts
    with torch.no_grad():
        x = model.read(ids)
        return float((torch.relu(x @ (left @ right).float().mT) - torch.relu(model.up(x))).square().sum())


def test_where_no_bias_is_free_the_descent_gains_what_it_says():
    model, ids, data = language()
    methods = (Sequential(one_shot=False), ActivationAware(rounds=1))
    plain, behind = (rf.plan(model, rf.Ranks({"up": 6}), method, data) for method in methods)
    assert not behind["up"].bias
    assert behind.factors["up"].factors.shift is None
    gain = 1 - lost(model, ids, behind) / lost(model, ids, plain)
    assert gain > 0.15
    assert gain_told(behind["up"].certificate) == pytest.approx(gain, abs=0.05)  # it weighs outputs by how often shown


def test_where_no_bias_is_free_the_convex_program_fits_none():
    model, ids, data = language()
    plan = rf.plan(model, rf.Ranks({"up": 6}), ActivationAware(rounds=1, convex=True), data)
    assert "relative duality gap" in plan["up"].certificate
    assert plan.factors["up"].factors.shift is None
    assert lost(model, ids, plan) < 3900  # 4208 of a program that fits a bias, and loses it


def test_a_spatial_pair_without_a_free_bias_descends_with_none():
    model, x = residual()
    with opened(model):
        site = sites(model)["first.0"]
        known = replace(gather(model, model, site, [x], 10**6), free=False)
        made, plain = (
            method.solve(site, rf.Form.SPATIAL, 4, site.weight(model), None, known, None)
            for method in (ActivationAware(), Sequential())
        )
    assert made.factors.shift is None
    losses = []
    with torch.no_grad():
        inputs = model.stem(x)
        wanted = torch.relu(model.first[1](model.first[0](inputs)))
        for right, left in (solution.factors.parts for solution in (made, plain)):
            new = site.layer.geometry(rf.Form.SPATIAL).put(site.weight(model), left.double() @ right.double()).float()
            now = torch.relu(model.first[1](nn.functional.conv2d(inputs, new, padding=1)))
            losses.append(float((now - wanted).square().sum()))
    assert losses[0] < 0.99 * losses[1]


def test_a_method_that_fits_a_bias_which_nothing_holds_is_refused(monkeypatch):
    model, _, data = language()
    solve = Sequential.solve

    def shifted(self, site, *given):
        made = solve(self, site, *given)
        return replace(made, factors=replace(made.factors, shift=torch.ones(site.shape[0])))

    monkeypatch.setattr(Sequential, "solve", shifted)
    with pytest.raises(ValueError, match=r"up \(.*fitted a bias, and this layer is to have none of its own: leave"):
        rf.plan(model, rf.Ranks({"up": 6}), Sequential(one_shot=False), data)


def test_a_layer_that_is_fitted_to_the_original_alone_gets_no_bias_either():
    model, _, data = language()
    entry = rf.plan(model, rf.Ranks({"up": 6}), "project", data)["up"]
    found = sites(model)
    task = Task(model, found, Sequential(), Samples(data), rf.CausalLanguageModel(), {}, {"up": None}, tokens=True)
    assert alone(task, found["up"], entry, "a reason", None).factors.shift is None


def masked(pad: int) -> list:
    """Texts of 3 to 7 words, the last of them padding alone, padded with the word ``pad``."""
    ids = torch.randint(1, 40, (128, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < 3 + torch.arange(128).unsqueeze(1) % 5
    mask[112:] = False
    ids = torch.where(mask, ids, pad)
    return [{"input_ids": a, "attention_mask": b.long()} for a, b in zip(ids.split(16), mask.split(16), strict=True)]


@pytest.mark.parametrize("method", [ActivationAware(rounds=1), ActivationAware(rounds=1, convex=True), MaxNorm()])
def test_nothing_is_fitted_to_padding(method):
    made = []
    for pad in (0, 45):
        plan = rf.plan(Words(bias=True), rf.Ranks({"up": 6}), method, masked(pad))
        right, left = plan.factors["up"].factors.parts
        made.append((left @ right, plan.factors["up"].factors.shift))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
